//! From the shared words of a quiesced machine to a [`State`], and back.
//!
//! Quiesced: no transition is under way; devices may still set levels and LATCHED. What is read is
//! checked by [`State::validate`], since a VMM can write what it likes into its pages.
//!
//! Not carried, because it says nothing about the guest: tags, toggles and parities, which configuration
//! slot of an END is in force, counts of running forwards (none is), the index of what waits.

use std::convert::Infallible;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::columns::Columns;
use super::model::*;
use super::stream::{Encoder, StreamError};
use super::validate::Checker;
use crate::layout::header::{Mode, word};
use crate::layout::words::{cursor, eas, end_config, icp, ics, source, tima};
use crate::layout::{AtomicWord, Geometry, Machine, Page, Storage, Table, TableStorage};

/// The words of one machine.
pub struct Words<'a, S> {
    storage: &'a S,
    machine: &'a Machine,
    geometry: &'a Geometry,
}

impl<'a, S: Storage> Words<'a, S> {
    /// The words of `machine`, laid out as `geometry` says.
    pub fn new(storage: &'a S, machine: &'a Machine, geometry: &'a Geometry) -> Self {
        Self {
            storage,
            machine,
            geometry,
        }
    }

    // Acquire: what a word shows is there. The gate's grace period ordered all transitions before.
    fn page(&self, at: Page) -> u64 {
        self.storage.page(at).load(Acquire)
    }
    fn table(&self, at: Table) -> u64 {
        self.storage.table(at, Acquire)
    }

    /// What is known before the rest; also of a machine that runs.
    pub fn head(&self, producer: &str) -> Head {
        let state = crate::layout::header::State::read(self.storage);
        Head {
            producer: producer.to_owned(),
            machine: Machine {
                // The host's business; a stream does not say.
                ram_shared: true,
                ..*self.machine
            },
            active: state.mode,
            cas_xive: state.cas_xive,
            ov5_byte_23: self.table(Table::Header(word::OV5_BYTE_23)) as u8,
            servers: self.servers(),
            fixed: fixed(&self.claims()),
        }
    }

    /// The vCPUs that exist.
    pub fn servers(&self) -> Vec<u32> {
        let exists = |server: &u32| match self.machine.ic_mode.has_xics() {
            true => self.page(Page::Icp(*server)) & icp::CONNECTED != 0,
            false => self.page(Page::Tima(*server)) & tima::CONNECTED != 0,
        };
        (0..self.geometry.servers()).filter(exists).collect()
    }

    /// The claimed numbers.
    pub fn claims(&self) -> Vec<Claims> {
        let mut runs: Vec<Claims> = Vec::new();
        for w in 0..self.geometry.sources().div_ceil(64) {
            let (lsi, msi) = (self.table(Table::Lsi(w)), self.table(Table::Msi(w)));
            for lisn in bits(w, self.table(Table::Claimed(w))) {
                let bit = 1 << (lisn % 64);
                let kind = match (lsi & bit != 0, msi & bit != 0) {
                    (true, _) => Kind::Lsi,
                    (false, true) => Kind::Msi,
                    (false, false) => Kind::Edge,
                };
                match runs.last_mut() {
                    Some(run) if run.kind == kind && run.first + run.count == lisn => {
                        run.count += 1
                    }
                    _ => runs.push(Claims {
                        first: lisn,
                        count: 1,
                        kind,
                    }),
                }
            }
        }
        runs
    }

    /// The whole state, as it is. Not validated.
    pub fn capture(&self, producer: &str) -> State {
        let mut state = self.without_sources(producer);
        let mut touched = Vec::new();
        let (xics, xive) = (&mut state.xics.sources, &mut state.xive.sources);
        let collected: Result<(), Infallible> = self
            .xics_sources(&mut touched, |piece| {
                xics.extend_from_slice(piece);
                Ok(())
            })
            .and_then(|()| {
                self.xive_sources(&mut touched, |piece| {
                    xive.extend_from_slice(piece);
                    Ok(())
                })
            });
        let Ok(()) = collected;
        state.inputs = self.inputs(touched, &state);
        state
    }

    /// What [`State::encode`] makes of [`capture`](Self::capture), piece by piece: a million sources are never in
    /// memory beside their stream.
    ///
    /// # Errors
    /// As those of [`State::encode`].
    pub fn save(&self, producer: &str) -> Result<Vec<u8>, StreamError> {
        let state = self.without_sources(producer);
        let mut checker = Checker::new(&state.head, &state.claims)?;
        // Room that is not used is not memory.
        let room = self.geometry.sources() as usize * 18 + 4096;
        let mut encoder = Encoder::new(&state.head, room)?;
        encoder.list(&state.claims);
        let mut touched = Vec::new();
        self.xics_sources(&mut touched, |piece| {
            checker.xics_sources(piece)?;
            encoder.list(piece);
            Ok::<_, StreamError>(())
        })?;
        checker.icps(&state.xics.icps)?;
        encoder.list(&state.xics.icps);
        self.xive_sources(&mut touched, |piece| {
            checker.xive_sources(piece)?;
            encoder.list(piece);
            Ok::<_, StreamError>(())
        })?;
        checker.ends(&state.xive.ends)?;
        encoder.list(&state.xive.ends);
        checker.rings(&state.xive.rings)?;
        encoder.list(&state.xive.rings);
        let inputs = self.inputs(touched, &state);
        checker.inputs(&inputs)?;
        encoder.list(&inputs);
        Ok(encoder.finish())
    }

    fn without_sources(&self, producer: &str) -> State {
        let (head, claims) = (self.head(producer), self.claims());
        let ic_mode = self.machine.ic_mode;
        let (mut xics, mut xive) = (Xics::default(), Xive::default());
        if ic_mode.has_xics() {
            xics.icps = self.icps(&head.servers);
        }
        if ic_mode.has_xive() {
            (xive.ends, xive.rings) = (self.ends(), self.rings(&head.servers));
        }
        State {
            head,
            claims,
            inputs: Vec::new(),
            xics,
            xive,
        }
    }

    /// `touched`: numbers whose words hold something from outside; from each controller's words, rising.
    fn inputs(&self, mut touched: Vec<u32>, state: &State) -> Vec<Input> {
        touched.sort_unstable();
        touched.dedup();
        let input = |lisn: &u32| self.input(*lisn, state.kind(*lisn)?, state.head.active);
        touched.iter().filter_map(input).collect()
    }

    /// Levels are the active controller's, as long as LATCHED and RESAMPLE_DUE are anybody's: a switch may
    /// have left them in the other one's word.
    fn input(&self, lisn: u32, kind: Kind, active: Mode) -> Option<Input> {
        let (xive, xics) = self.input_words(lisn);
        let (vmm, irqfd) = match active {
            Mode::Xive => (xive & source::LEVEL_VMM, xive & source::LEVEL_IRQFD),
            Mode::Xics => (xics & ics::LEVEL_VMM, xics & ics::LEVEL_IRQFD),
        };
        let lsi = kind == Kind::Lsi;
        let due = xive & source::RESAMPLE_DUE | xics & ics::RESAMPLE_DUE;
        let input = Input {
            lisn,
            level_vmm: lsi && vmm != 0,
            level_irqfd: lsi && irqfd != 0,
            latched: xive & source::LATCHED | xics & ics::LATCHED != 0,
            resample_due: lsi && due != 0,
        };
        let idle = Input {
            lisn,
            ..Input::default()
        };
        (input != idle).then_some(input)
    }

    /// The words of a source in XIVE and XICS; 0 where it has none.
    fn input_words(&self, lisn: u32) -> (u64, u64) {
        let ic_mode = self.machine.ic_mode;
        let xive = if ic_mode.has_xive() {
            self.page(Page::Source(lisn))
        } else {
            0
        };
        let index = lisn.checked_sub(self.geometry.xics_base());
        let xics = index
            .filter(|_| ic_mode.has_xics())
            .map_or(0, |index| self.page(Page::IcsSource(index)));
        (xive, xics)
    }

    /// Hands over what is not as after reset, in pieces of [`Columns::MOST`].
    fn xics_sources<E>(
        &self,
        touched: &mut Vec<u32>,
        mut take: impl FnMut(&[XicsSource]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.machine.ic_mode.has_xics() {
            return Ok(());
        }
        let kept = 0xffff_ffff | ics::SENT | ics::REJECTED | ics::MASKED_PENDING;
        let mut piece = Vec::new();
        for index in 0..self.geometry.ics_sources() {
            let word = self.page(Page::IcsSource(index));
            if word & all(XICS_INPUT) != 0 {
                touched.push(self.geometry.xics_base() + index);
            }
            if word & kept == ics::RESET {
                continue;
            }
            piece.push(XicsSource {
                irq: self.geometry.xics_base() + index,
                server: (word & ics::SERVER) as u16,
                priority: ics::priority(word),
                saved: ics::saved(word),
                sent: word & ics::SENT != 0,
                rejected: word & ics::REJECTED != 0,
                masked_pending: word & ics::MASKED_PENDING != 0,
            });
            if piece.len() == XicsSource::MOST {
                take(&piece)?;
                piece.clear();
            }
        }
        take(&piece)
    }

    fn icps(&self, servers: &[u32]) -> Vec<Icp> {
        let of = |server: &u32| {
            let word = self.page(Page::Icp(*server));
            Icp {
                server: *server,
                cppr: icp::cppr(word),
                xisr: icp::xisr(word),
                pending_priority: icp::pp(word),
                mfrr: icp::mfrr(word),
            }
        };
        let used = |i: &Icp| *i != Icp::reset(i.server);
        servers.iter().map(of).filter(used).collect()
    }

    /// As [`xics_sources`](Self::xics_sources).
    fn xive_sources<E>(
        &self,
        touched: &mut Vec<u32>,
        mut take: impl FnMut(&[XiveSource]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.machine.ic_mode.has_xive() {
            return Ok(());
        }
        let mut piece = Vec::new();
        let mut claimed = 0;
        for lisn in 0..self.geometry.sources() {
            if lisn.is_multiple_of(64) {
                claimed = self.table(Table::Claimed(lisn / 64));
            }
            let (eas, word) = (self.table(Table::Eas(lisn)), self.page(Page::Source(lisn)));
            let is_claimed = claimed >> (lisn % 64) & 1 == 1;
            if word & all(XIVE_INPUT) != 0 {
                touched.push(lisn);
            }
            // Most are as after reset, and their words say so at a glance.
            let reset = if is_claimed {
                eas::VALID | eas::MASKED
            } else {
                0
            };
            if word & source::PQ == source::RESET && eas == reset {
                continue;
            }
            let found = XiveSource {
                lisn,
                pq: (word & source::PQ) as u8,
                masked: eas & eas::MASKED != 0,
                end: eas::end(eas),
                eisn: eas::eisn(eas),
            };
            if found == XiveSource::reset(lisn, is_claimed) {
                continue;
            }
            piece.push(found);
            if piece.len() == XiveSource::MOST {
                take(&piece)?;
                piece.clear();
            }
        }
        take(&piece)
    }

    fn ends(&self) -> Vec<End> {
        let mut ends = Vec::new();
        for end in 0..self.geometry.ends() {
            let cursor = self.page(Page::EndCursor(end));
            let slot = u32::from(cursor & cursor::SEL != 0);
            let config = self.table(Table::EndConfig(end, slot, 1));
            if config & end_config::VALID == 0 {
                continue;
            }
            ends.push(End {
                end,
                address: self.table(Table::EndConfig(end, slot, 0)),
                size: end_config::size(config) as u8,
                always_notify: config & end_config::ALWAYS_NOTIFY != 0,
                generation: cursor & cursor::GENERATION != 0,
                index: (cursor & cursor::INDEX) as u32,
                esn: (cursor >> cursor::ESN_SHIFT & 3) as u8,
            });
        }
        ends
    }

    fn rings(&self, servers: &[u32]) -> Vec<Ring> {
        let of = |server: &u32| Ring {
            server: *server,
            bytes: self.page(Page::Tima(*server)) & !tima::AGE,
        };
        let used = |r: &Ring| r.bytes != Ring::RESET;
        servers.iter().map(of).filter(used).collect()
    }
}

impl<S: TableStorage> Words<'_, S> {
    // Release: the gate, opened later, publishes them all; uniform.
    fn set_page(&self, at: Page, value: u64) {
        self.storage.page(at).store(value, Release);
    }
    fn set_table(&self, at: Table, value: u64) {
        self.storage.table_word(at).store(value, Release);
    }

    /// Stores a valid state over whatever the words hold. vCPUs stay: those that the state does not speak of
    /// are as after reset. The header's words, and the index of what waits, are the caller's.
    pub fn apply(&self, state: &State) {
        self.apply_claims(&state.claims);
        if self.machine.ic_mode.has_xics() {
            self.apply_xics(state);
        }
        if self.machine.ic_mode.has_xive() {
            self.apply_xive(state);
        }
    }

    fn apply_claims(&self, claims: &[Claims]) {
        let mut runs = claims.iter().peekable();
        for w in 0..self.geometry.sources().div_ceil(64) {
            let (mut claimed, mut lsi, mut msi) = (0u64, 0u64, 0u64);
            let (first, after) = (w * 64, w * 64 + 64);
            while let Some(run) = runs.peek().filter(|run| run.first < after) {
                let end = run.first + run.count;
                let mask = mask(run.first.max(first) - first, end.min(after) - first);
                claimed |= mask;
                match run.kind {
                    Kind::Lsi => lsi |= mask,
                    Kind::Msi => msi |= mask,
                    Kind::Edge => {}
                }
                if end > after {
                    break;
                }
                runs.next();
            }
            // A daemon that dies here leaves no number claimed as what it is not: those that go go first, and
            // those that stay keep their kind.
            let stay = self.table(Table::Claimed(w)) & claimed;
            self.set_table(Table::Claimed(w), stay);
            self.set_table(Table::Lsi(w), lsi);
            self.set_table(Table::Msi(w), msi);
            self.set_table(Table::Claimed(w), claimed);
        }
    }

    fn apply_xics(&self, state: &State) {
        let mut sources = state.xics.sources.iter().peekable();
        let mut inputs = state.inputs.iter().peekable();
        let active = state.head.active == Mode::Xics;
        let mut w = u32::MAX;
        let (mut claimed, mut lsi) = (0, 0);
        for index in 0..self.geometry.ics_sources() {
            let irq = self.geometry.xics_base() + index;
            if irq / 64 != w {
                w = irq / 64;
                (claimed, lsi) = (self.table(Table::Claimed(w)), self.table(Table::Lsi(w)));
            }
            let mut word = match sources.next_if(|s| s.irq == irq) {
                Some(s) => xics_word(s),
                None => ics::RESET,
            };
            let has = |bitmap: u64, bit: u64| {
                if bitmap >> (irq % 64) & 1 == 1 {
                    bit
                } else {
                    0
                }
            };
            word |= has(claimed, ics::CLAIMED) | has(lsi, ics::LSI);
            while inputs.next_if(|i| i.lisn < irq).is_some() {}
            if let Some(input) = inputs.next_if(|i| active && i.lisn == irq) {
                word |= input_bits(input, XICS_INPUT);
            }
            self.set_page(Page::IcsSource(index), word);
        }
        let mut icps = state.xics.icps.iter().peekable();
        for server in 0..self.geometry.servers() {
            let icp = icps.next_if(|i| i.server == server).copied();
            let icp = icp.unwrap_or(Icp::reset(server));
            let old = self.page(Page::Icp(server));
            let kept = old & (icp::CONNECTED | icp::PARITY);
            // What a swap of before has read is stale.
            let tag = (old & !(icp::TAG - 1)).wrapping_add(icp::TAG);
            let word = u64::from(icp.xisr)
                | u64::from(icp.cppr) << icp::CPPR_SHIFT
                | u64::from(icp.pending_priority) << icp::PP_SHIFT
                | u64::from(icp.mfrr) << icp::MFRR_SHIFT;
            self.set_page(Page::Icp(server), word | kept | tag);
        }
    }

    fn apply_xive(&self, state: &State) {
        let mut sources = state.xive.sources.iter().peekable();
        let mut inputs = state.inputs.iter().peekable();
        let active = state.head.active == Mode::Xive;
        let mut claimed = 0;
        for lisn in 0..self.geometry.sources() {
            if lisn.is_multiple_of(64) {
                claimed = self.table(Table::Claimed(lisn / 64));
            }
            let is_claimed = claimed >> (lisn % 64) & 1 == 1;
            let s = sources.next_if(|s| s.lisn == lisn).copied();
            let s = s.unwrap_or(XiveSource::reset(lisn, is_claimed));
            let valid = if is_claimed { eas::VALID } else { 0 };
            let eas = eas::new(s.end, s.eisn, s.masked) & !eas::VALID | valid;
            let mut word = u64::from(s.pq);
            if let Some(input) = inputs.next_if(|i| i.lisn == lisn)
                && active
            {
                word |= input_bits(input, XIVE_INPUT);
            }
            self.set_table(Table::Eas(lisn), eas);
            self.set_page(Page::Source(lisn), word);
        }
        self.apply_ends(&state.xive.ends);
        let mut rings = state.xive.rings.iter().peekable();
        for server in 0..self.geometry.servers() {
            let ring = rings.next_if(|r| r.server == server);
            let bytes = ring.map_or(Ring::RESET, |r| r.bytes);
            let kept = self.page(Page::Tima(server)) & (tima::CONNECTED | tima::TOGGLE);
            self.set_page(Page::Tima(server), bytes | kept);
        }
    }

    fn apply_ends(&self, ends: &[End]) {
        let mut ends = ends.iter().peekable();
        for index in 0..self.geometry.ends() {
            let end = ends.next_if(|e| e.end == index);
            let (address, config, cursor) = match end {
                None => (0, 0, RESET_CURSOR),
                Some(e) => (
                    e.address,
                    end_config::new(e.size.into(), e.always_notify),
                    u64::from(e.index)
                        | if e.generation { cursor::GENERATION } else { 0 }
                        | u64::from(e.esn) << cursor::ESN_SHIFT,
                ),
            };
            for (slot, address, config) in [(0, address, config), (1, 0, 0)] {
                self.set_table(Table::EndConfig(index, slot, 0), address);
                self.set_table(Table::EndConfig(index, slot, 1), config);
            }
            self.set_page(Page::EndCursor(index), cursor);
        }
    }
}

/// A cursor after reset: index and generation 0, ESn off.
const RESET_CURSOR: u64 = 1 << cursor::ESN_SHIFT;

/// Numbers whose bits are set in word `w` of a bitmap.
fn bits(w: u32, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(w * 64 + bit)
    })
}

/// Bits `from..to` of a word; `to` is at most 64 and above `from`.
fn mask(from: u32, to: u32) -> u64 {
    u64::MAX >> (64 - (to - from)) << from
}

fn xics_word(s: &XicsSource) -> u64 {
    let status = [
        (s.sent, ics::SENT),
        (s.rejected, ics::REJECTED),
        (s.masked_pending, ics::MASKED_PENDING),
    ];
    status.into_iter().fold(
        ics::routing(s.server.into(), s.priority, s.saved),
        |word, (on, bit)| word | if on { bit } else { 0 },
    )
}

/// Bits of a source word, in the order of the fields of [`Input`].
type InputBits = [u64; 4];
const XICS_INPUT: InputBits = [
    ics::LEVEL_VMM,
    ics::LEVEL_IRQFD,
    ics::LATCHED,
    ics::RESAMPLE_DUE,
];
const XIVE_INPUT: InputBits = [
    source::LEVEL_VMM,
    source::LEVEL_IRQFD,
    source::LATCHED,
    source::RESAMPLE_DUE,
];

const fn all(bits: InputBits) -> u64 {
    bits[0] | bits[1] | bits[2] | bits[3]
}

fn input_bits(input: &Input, bits: InputBits) -> u64 {
    let held = [
        input.level_vmm,
        input.level_irqfd,
        input.latched,
        input.resample_due,
    ];
    let set = held.into_iter().zip(bits).filter(|(on, _)| *on);
    set.fold(0, |word, (_, bit)| word | bit)
}

#[cfg(test)]
mod tests;
