//! What SET_MACHINE fixed for the life of the guest: one source of truth, kept in header words.
//!
//! A restarted daemon takes the header's machine; a SET_MACHINE that differs is refused with the
//! first differing field named (architecture §2).

use std::sync::atomic::Ordering;

use super::geometry::Geometry;
use super::header::word;
use super::storage::{AtomicWord, Storage, Table, TableStorage};
use crate::LAYOUT_VERSION;

/// Header words that a machine takes.
pub const MACHINE_WORDS: u32 = 6;
/// Log2 of the ESB space per LISN: two 64 KiB pages, trigger then management (xive.md §1.2).
pub const ESB_SHIFT: u8 = 17;

/// Which controllers the machine has (the VMM's `ic-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcMode {
    /// XICS only.
    Xics,
    /// XIVE only.
    Xive,
    /// Both; the guest chooses at CAS, XICS before it.
    Dual,
}

impl IcMode {
    /// The machine has XICS.
    pub fn has_xics(self) -> bool {
        self != Self::Xive
    }
    /// The machine has XIVE.
    pub fn has_xive(self) -> bool {
        self != Self::Xics
    }
    fn from_code(code: u64) -> Option<Self> {
        [Self::Xics, Self::Xive, Self::Dual]
            .into_iter()
            .find(|m| m.code() == code)
    }
    fn code(self) -> u64 {
        match self {
            Self::Xics => 1,
            Self::Xive => 2,
            Self::Dual => 3,
        }
    }
}

/// Compat level: whose observable behaviour the machine has (docs/fidelity.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compat {
    /// PAPR, where QEMU 7.2 differs from it to the guest's disadvantage.
    Papr1,
    /// QEMU 7.2 to the letter.
    Qemu72,
}

impl Compat {
    fn from_code(code: u64) -> Option<Self> {
        [Self::Papr1, Self::Qemu72]
            .into_iter()
            .find(|c| c.code() == code)
    }
    fn code(self) -> u64 {
        match self {
            Self::Papr1 => 1,
            Self::Qemu72 => 2,
        }
    }
}

/// The machine, as SET_MACHINE gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which controllers there are.
    pub ic_mode: IcMode,
    /// Whose behaviour they have.
    pub compat: Compat,
    /// LISNs are `0..sources`.
    pub sources: u32,
    /// XICS serves `xics_base..sources`; LISNs `0..servers` are the XIVE IPIs.
    pub xics_base: u32,
    /// Server numbers are `0..servers`.
    pub servers: u32,
    /// Phandle of the interrupt controller's device-tree node.
    pub phandle: u32,
    /// Guest physical address of the source ESB pages.
    pub esb_base: u64,
    /// Guest physical address that H_INT_GET_QUEUE_INFO hands out.
    pub end_base: u64,
    /// Guest physical address of the four TIMA pages.
    pub tima_base: u64,
    /// First priority reserved to the hypervisor; the guest may use `0..hv_prio`. 1 to 7.
    pub hv_prio: u8,
    /// Offer StoreEOI to the guest (never in QEMU's pseries).
    pub store_eoi: bool,
    /// Guest RAM is shared with the daemon.
    pub ram_shared: bool,
}

impl Machine {
    /// QEMU's pseries machine: 0x2000 LISNs, XICS from 0x1000, its addresses and phandle.
    pub fn pseries(ic_mode: IcMode, compat: Compat, servers: u32) -> Self {
        let esb_base = 0x0006_0100_0000_0000;
        Self {
            ic_mode,
            compat,
            sources: 0x2000,
            xics_base: super::geometry::DEFAULT_XICS_BASE,
            servers,
            phandle: 0x1111,
            esb_base,
            end_base: esb_base + (0x2000 << ESB_SHIFT),
            tima_base: 0x0006_0302_0318_0000,
            hv_prio: 7,
            store_eoi: false,
            ram_shared: true,
        }
    }

    /// Its offsets in new memory; `None` if it asks for what no layout has.
    ///
    /// Also refused: an `hv_prio` out of 1..=7, more servers than IPI numbers below `xics_base`.
    pub fn geometry(&self) -> Option<Geometry> {
        self.geometry_in(LAYOUT_VERSION)
    }

    /// Its offsets in memory of a layout; `None` also if that is unknown.
    pub fn geometry_in(&self, layout: u16) -> Option<Geometry> {
        let ipis_fit = !self.ic_mode.has_xive() || self.servers <= self.xics_base;
        let prio_ok = (1..=7).contains(&self.hv_prio);
        if ipis_fit && prio_ok {
            Geometry::in_layout(layout, self.sources, self.xics_base, self.servers)
        } else {
            None
        }
    }

    /// As header words.
    pub fn to_words(&self) -> [u64; MACHINE_WORDS as usize] {
        let flags = u64::from(self.store_eoi) | u64::from(self.ram_shared) << 1;
        [
            self.ic_mode.code()
                | self.compat.code() << 8
                | u64::from(self.hv_prio) << 16
                | flags << 24,
            u64::from(self.sources) | u64::from(self.servers) << 32,
            u64::from(self.xics_base) | u64::from(self.phandle) << 32,
            self.esb_base,
            self.end_base,
            self.tima_base,
        ]
    }

    /// From header words; `None` if a code is unknown or the sizes have no geometry.
    pub fn from_words(w: [u64; MACHINE_WORDS as usize]) -> Option<Self> {
        let flags = w[0] >> 24;
        let machine = Self {
            ic_mode: IcMode::from_code(w[0] & 0xff)?,
            compat: Compat::from_code(w[0] >> 8 & 0xff)?,
            sources: w[1] as u32,
            xics_base: w[2] as u32,
            servers: (w[1] >> 32) as u32,
            phandle: (w[2] >> 32) as u32,
            esb_base: w[3],
            end_base: w[4],
            tima_base: w[5],
            hv_prio: (w[0] >> 16) as u8,
            store_eoi: flags & 1 == 1,
            ram_shared: flags >> 1 & 1 == 1,
        };
        (flags & !3 == 0 && machine.geometry().is_some()).then_some(machine)
    }

    /// Reads the machine of a started header; `None` if there is none or it is damaged.
    pub fn read<S: Storage>(storage: &S) -> Option<Self> {
        let mut words = [0; MACHINE_WORDS as usize];
        for (i, w) in words.iter_mut().enumerate() {
            *w = storage.table(Table::Header(word::MACHINE + i as u32), Ordering::Acquire);
        }
        Self::from_words(words)
    }

    /// Writes the machine into the header.
    pub fn write<S: TableStorage>(&self, storage: &S) {
        for (i, w) in self.to_words().into_iter().enumerate() {
            // Release pairs with `read`'s Acquire; the magic, stored last, publishes the header.
            storage
                .table_word(Table::Header(word::MACHINE + i as u32))
                .store(w, Ordering::Release);
        }
    }

    /// The first field in which two machines differ, with both values, for people.
    pub fn difference(&self, other: &Self) -> Option<String> {
        macro_rules! compare {
            ($($field:ident),*) => {
                $(if self.$field != other.$field {
                    return Some(format!(
                        concat!(stringify!($field), " is {:?} here and {:?} there"),
                        self.$field, other.$field
                    ));
                })*
            };
        }
        compare!(
            ic_mode, compat, sources, xics_base, servers, phandle, esb_base, end_base, tima_base,
            hv_prio, store_eoi, ram_shared
        );
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_survives_its_words() {
        for ic_mode in [IcMode::Xics, IcMode::Xive, IcMode::Dual] {
            for compat in [Compat::Papr1, Compat::Qemu72] {
                let mut m = Machine::pseries(ic_mode, compat, 8);
                m.store_eoi = compat == Compat::Papr1;
                assert_eq!(Machine::from_words(m.to_words()), Some(m));
            }
        }
    }

    #[test]
    fn damaged_words_are_no_machine() {
        let good = Machine::pseries(IcMode::Dual, Compat::Papr1, 8).to_words();
        for (i, bad) in [
            (0, 0),
            (0, good[0] | 0xff << 8),
            (0, good[0] | 1 << 60),
            (1, 0),
            (2, 0),
        ] {
            let mut words = good;
            words[i] = bad;
            assert_eq!(Machine::from_words(words), None, "word {i} = {bad:#x}");
        }
    }

    #[test]
    fn a_difference_names_the_field_and_both_values() {
        let a = Machine::pseries(IcMode::Dual, Compat::Papr1, 8);
        let b = Machine { servers: 16, ..a };
        assert_eq!(
            a.difference(&b).as_deref(),
            Some("servers is 8 here and 16 there")
        );
        assert_eq!(a.difference(&a), None);
    }
}
