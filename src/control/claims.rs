//! The machine's numbers: one allocator, a claim in both controllers or in neither (xics.md §5).
//!
//! The truth is three bitmaps in `tables`: claimed, level-sensitive, MSI. Allocation looks at words
//! of 64 numbers and never walks the whole space bit by bit.

use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::{AtomicWord, Machine, Table, TableStorage};
use papr_intc_protocol::wire::source::{ANY, Claim, claim_flag};

use super::error::Refused;

/// The claim bitmaps on some storage.
#[derive(Clone, Copy)]
pub struct Claims<'a, S> {
    storage: &'a S,
    machine: &'a Machine,
}

impl<'a, S: TableStorage> Claims<'a, S> {
    /// The claims of `machine`.
    pub fn new(storage: &'a S, machine: &'a Machine) -> Self {
        Self { storage, machine }
    }

    fn word(&self, table: fn(u32) -> Table, lisn: u32) -> u64 {
        // Relaxed: the control thread is the only writer and reader.
        self.storage.table(table(lisn / 64), Ordering::Relaxed)
    }
    fn bit(&self, table: fn(u32) -> Table, lisn: u32) -> bool {
        lisn < self.machine.sources && self.word(table, lisn) >> (lisn % 64) & 1 == 1
    }
    fn set(&self, table: fn(u32) -> Table, lisn: u32, on: bool) {
        let word = self.storage.table_word(table(lisn / 64));
        // Release: the VMM reads the LSI bitmap with Acquire.
        if on {
            word.fetch_or(1 << (lisn % 64), Ordering::Release);
        } else {
            word.fetch_and(!(1 << (lisn % 64)), Ordering::Release);
        }
    }

    /// The number is claimed.
    pub fn is_claimed(&self, lisn: u32) -> bool {
        self.bit(Table::Claimed, lisn)
    }
    /// The number is level-sensitive.
    pub fn is_lsi(&self, lisn: u32) -> bool {
        self.bit(Table::Lsi, lisn)
    }

    /// Claimed numbers, ascending.
    pub fn claimed(&self) -> impl Iterator<Item = u32> {
        self.iterate(|w| self.word(Table::Claimed, w * 64))
    }
    /// Claimed MSIs, ascending.
    pub fn msis(&self) -> impl Iterator<Item = u32> {
        self.iterate(|w| self.word(Table::Claimed, w * 64) & self.word(Table::Msi, w * 64))
    }
    /// Claimed LSIs, ascending.
    pub fn lsis(&self) -> impl Iterator<Item = u32> {
        self.iterate(|w| self.word(Table::Claimed, w * 64) & self.word(Table::Lsi, w * 64))
    }
    fn iterate(&self, word: impl Fn(u32) -> u64) -> impl Iterator<Item = u32> {
        (0..self.machine.sources.div_ceil(64)).flat_map(move |w| {
            let bits = word(w);
            (0..64)
                .filter(move |b| bits >> b & 1 == 1)
                .map(move |b| w * 64 + b)
        })
    }

    /// Where `request` would go: its own numbers, or a free aligned block. Nothing changes.
    pub fn find(&self, request: &Claim) -> Result<u32, Refused> {
        let known = claim_flag::LSI | claim_flag::MSI;
        if request.flags & !known != 0 || request.flags == known {
            return Err(Refused::Value(format!(
                "claim flags {:#x} are not defined",
                request.flags
            )));
        }
        if request.count == 0 {
            return Err(Refused::Value("a claim of no numbers".into()));
        }
        if request.first == ANY {
            self.find_any(request)
        } else {
            self.find_fixed(request)
        }
    }

    /// Refuses numbers that are not the machine's to claim.
    pub(super) fn check_range(&self, first: u32, count: u32) -> Result<(), Refused> {
        let end = u64::from(first) + u64::from(count);
        // The IPI numbers below the XICS base belong to the machine.
        if first < self.machine.xics_base || end > u64::from(self.machine.sources) {
            return Err(Refused::SourceRange {
                first,
                last: end.saturating_sub(1),
            });
        }
        Ok(())
    }

    fn find_fixed(&self, request: &Claim) -> Result<u32, Refused> {
        self.check_range(request.first, request.count)?;
        match (request.first..request.first + request.count).find(|n| self.is_claimed(*n)) {
            Some(taken) => Err(Refused::Taken(taken)),
            None => Ok(request.first),
        }
    }

    fn find_any(&self, request: &Claim) -> Result<u32, Refused> {
        if !request.align.is_power_of_two() {
            return Err(Refused::Value(format!(
                "alignment {} is no power of two",
                request.align
            )));
        }
        if request.low >= request.high {
            return Err(Refused::Value("an empty range".into()));
        }
        self.check_range(request.low, request.high - request.low)?;
        let none = Refused::NoSpace(request.count);
        let mut first = request.low;
        while let Some(aligned) = first.checked_next_multiple_of(request.align) {
            let Some(end) = aligned.checked_add(request.count) else {
                break;
            };
            if end > request.high {
                break;
            }
            match self.last_claimed(aligned, end) {
                None => return Ok(aligned),
                Some(taken) => first = taken + 1,
            }
        }
        Err(none)
    }

    /// The highest claimed number of `first..end`, by whole words.
    fn last_claimed(&self, first: u32, end: u32) -> Option<u32> {
        let mut at = end;
        while at > first {
            let base = (at - 1) / 64 * 64;
            let mut bits = self.word(Table::Claimed, base);
            bits &= u64::MAX >> (63 - (at - 1 - base));
            if bits != 0 {
                let top = base + 63 - bits.leading_zeros();
                return (top >= first).then_some(top);
            }
            at = base;
        }
        None
    }

    /// Marks numbers as claimed. Done again, it changes nothing.
    pub fn mark(&self, first: u32, count: u32, flags: u32) {
        for lisn in first..first + count {
            self.set(Table::Lsi, lisn, flags & claim_flag::LSI != 0);
            self.set(Table::Msi, lisn, flags & claim_flag::MSI != 0);
            self.set(Table::Claimed, lisn, true);
        }
    }

    /// Refuses unless all the numbers are claimed.
    pub fn check_claimed(&self, first: u32, count: u32) -> Result<(), Refused> {
        self.check_range(first, count)?;
        match (first..first + count).find(|n| !self.is_claimed(*n)) {
            Some(free) => Err(Refused::NotClaimed(free)),
            None => Ok(()),
        }
    }

    /// Marks numbers as free. Done again, it changes nothing.
    pub fn clear(&self, first: u32, count: u32) {
        for lisn in first..first + count {
            self.set(Table::Claimed, lisn, false);
            self.set(Table::Lsi, lisn, false);
            self.set(Table::Msi, lisn, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::plain::PlainStorage;
    use papr_intc_protocol::layout::{Compat, IcMode};
    use proptest::prelude::*;

    use super::*;

    fn any(count: u32, align: u32) -> Claim {
        Claim {
            first: ANY,
            count,
            align,
            flags: claim_flag::MSI,
            low: 0x1300,
            high: 0x2000,
        }
    }

    fn machine() -> Machine {
        Machine::pseries(IcMode::Dual, Compat::Papr1, 2)
    }

    fn storage() -> PlainStorage {
        PlainStorage::new(machine().geometry().unwrap())
    }

    #[test]
    fn an_msi_block_is_aligned_and_the_lowest_that_fits() {
        let (storage, machine) = (storage(), machine());
        let claims = Claims::new(&storage, &machine);
        claims.mark(0x1300, 3, claim_flag::MSI);
        assert_eq!(claims.find(&any(8, 8)).unwrap(), 0x1308);
        assert_eq!(claims.find(&any(1, 1)).unwrap(), 0x1303);
        assert_eq!(claims.find(&any(64, 64)).unwrap(), 0x1340);
    }

    #[test]
    fn a_full_or_too_small_range_has_no_space() {
        let (storage, machine) = (storage(), machine());
        let claims = Claims::new(&storage, &machine);
        assert!(matches!(
            claims.find(&any(0xd01, 1)),
            Err(Refused::NoSpace(0xd01))
        ));
        claims.mark(0x1300, 0xd00, claim_flag::MSI);
        assert!(matches!(claims.find(&any(1, 1)), Err(Refused::NoSpace(1))));
    }

    #[test]
    fn numbers_outside_the_machine_are_refused() {
        let (storage, machine) = (storage(), machine());
        let claims = Claims::new(&storage, &machine);
        for (first, count) in [
            (0, 1),
            (0xfff, 2),
            (0x1fff, 2),
            (0x1000, u32::MAX),
            (0x2000, 1),
        ] {
            let fixed = Claim {
                first,
                count,
                align: 1,
                flags: 0,
                low: 0,
                high: 0,
            };
            assert!(
                matches!(claims.find(&fixed), Err(Refused::SourceRange { .. })),
                "{first:x}"
            );
        }
    }

    proptest! {
        #[test]
        fn allocation_equals_a_search_bit_by_bit(
            blocks in prop::collection::vec((0u32..0xd00, 1u32..70), 0..60),
            count in 1u32..100, align_log in 0u32..7,
        ) {
            let (storage, machine) = (storage(), machine());
            let claims = Claims::new(&storage, &machine);
            for (at, len) in blocks {
                let first = 0x1300 + at;
                claims.mark(first, len.min(0x2000 - first), claim_flag::MSI);
            }
            let align = 1 << align_log;
            let expected = (0x1300u32..0x2000)
                .filter(|f| f.is_multiple_of(align) && f + count <= 0x2000)
                .find(|f| (*f..f + count).all(|n| !claims.is_claimed(n)));
            prop_assert_eq!(claims.find(&any(count, align)).ok(), expected);
        }
    }
}
