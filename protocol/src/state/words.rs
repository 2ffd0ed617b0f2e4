//! From the shared words of a quiesced machine to a [`State`], and back.
//!
//! Quiesced: no transition is under way; devices may still set levels and LATCHED. What is read is
//! checked by [`State::validate`], since a VMM can write what it likes into its pages.
//!
//! Not carried, because it says nothing about the guest: tags, toggles and parities, which configuration
//! slot of an END is in force, counts of running forwards (none is), the index of what waits.

mod gather;
mod store;

use std::sync::atomic::Ordering::Acquire;

use super::blocks::{Kinds, bits, mask};
use super::model::*;
use super::stream::{Encoder, StreamError};
use super::validate::Checker;
use crate::layout::header::{Mode, word};
use crate::layout::words::{cursor, end_config, icp, ics, source, tima};
use crate::layout::{AtomicWord, Contiguous, Geometry, Machine, Page, Table};

/// The words of one machine.
pub struct Words<'a, S> {
    storage: &'a S,
    machine: &'a Machine,
    geometry: &'a Geometry,
}

impl<'a, S: Contiguous> Words<'a, S> {
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
        self.head_with(producer, &self.claims())
    }

    fn head_with(&self, producer: &str, claims: &[Claims]) -> Head {
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
            fixed: fixed(claims),
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
        for w in 0..self.geometry.sources().div_ceil(u64::BITS) {
            let kinds = self.kinds(w);
            let mut left = kinds.claimed;
            while left != 0 {
                let bit = left.trailing_zeros();
                let Some(kind) = kinds.of(bit) else { break };
                let count = (kinds.all(kind) >> bit).trailing_ones();
                left &= !mask(bit..bit + count);
                let first = w * u64::BITS + bit;
                match runs.last_mut() {
                    Some(run) if run.kind == kind && run.first + run.count == first => {
                        run.count += count;
                    }
                    _ => runs.push(Claims { first, count, kind }),
                }
            }
        }
        runs
    }

    /// What the bitmaps say.
    #[inline]
    fn kinds(&self, w: u32) -> Kinds {
        let claimed = self.table(Table::Claimed(w));
        let lsi = self.table(Table::Lsi(w)) & claimed;
        let msi = self.table(Table::Msi(w)) & claimed & !lsi;
        Kinds { claimed, lsi, msi }
    }

    /// The whole state, encoded as [`State::encode`] does. A million sources are never in memory beside their stream.
    ///
    /// # Errors
    /// As those of [`State::encode`].
    pub fn save(&self, producer: &str) -> Result<Vec<u8>, StreamError> {
        let claims = self.claims();
        let head = self.head_with(producer, &claims);
        let checker = Checker::new(&head, &claims)?;
        // Room that is not used is not memory.
        let room = self.geometry.sources() as usize * 18 + 4096;
        let mut out = Encoder::new(&head, room)?;
        let words = self.geometry.sources().div_ceil(u64::BITS);
        let mut touched = vec![0; words as usize];
        out.list(&claims);
        if head.machine.ic_mode.has_xics() {
            self.save_xics(&mut touched, &checker, &mut out)?;
            let icps = self.icps(&head.servers);
            checker.icps(&icps)?;
            out.list(&icps);
        }
        if head.machine.ic_mode.has_xive() {
            self.save_xive(&mut touched, &checker, &mut out)?;
            let (ends, rings) = (self.ends(), self.rings(&head.servers));
            checker.ends(&ends)?;
            out.list(&ends);
            checker.rings(&rings)?;
            out.list(&rings);
        }
        let inputs = self.inputs(&touched, head.active);
        checker.inputs(&inputs)?;
        out.list(&inputs);
        Ok(out.finish())
    }

    /// `touched`: a bit for each number whose words hold something from outside.
    fn inputs(&self, touched: &[u64], active: Mode) -> Vec<Input> {
        let mut inputs = Vec::new();
        for (w, touched) in (0..).zip(touched).filter(|(_, touched)| **touched != 0) {
            let kinds = self.kinds(w);
            let claimed = bits(touched & kinds.claimed);
            inputs.extend(claimed.filter_map(|bit| {
                let lsi = kinds.lsi >> bit & 1 == 1;
                self.input(w * u64::BITS + bit, lsi, active)
            }));
        }
        inputs
    }

    /// Levels are the active controller's, as long as LATCHED and RESAMPLE_DUE are anybody's: a switch may
    /// have left them in the other one's word.
    fn input(&self, lisn: u32, lsi: bool, active: Mode) -> Option<Input> {
        let (xive, xics) = self.input_words(lisn);
        let (vmm, irqfd) = match active {
            Mode::Xive => (xive & source::LEVEL_VMM, xive & source::LEVEL_IRQFD),
            Mode::Xics => (xics & ics::LEVEL_VMM, xics & ics::LEVEL_IRQFD),
        };
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

#[cfg(test)]
mod tests;
