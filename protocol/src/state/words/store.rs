//! From a valid state to the words of a quiesced machine, whatever they hold.
//!
//! A word that has its value already is not written: a machine that waits for a state is as after reset, and so is
//! most of a state, most often.

use std::convert::Infallible;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::super::Incoming;
use super::super::blocks::{
    Bitmaps, Block, Blocks, Held, Kinds, Listed, SIZE, XicsBlock, XiveBlock,
};
use super::super::model::*;
use super::{InputBits, Words, XICS_INPUT, XIVE_INPUT};
use crate::layout::header::Mode;
use crate::layout::words::{cursor, end_config, icp, tima};
use crate::layout::{AtomicWord, Contiguous, Page, Table};

impl<S: Contiguous> Words<'_, S> {
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
        let claims = &state.claims;
        let entries = &state.xics.sources;
        let xics = Listed::<XicsBlock> { entries, claims };
        let entries = &state.xive.sources;
        self.store(state, xics, Listed::<XiveBlock> { entries, claims });
    }

    /// The same of a state that came.
    pub fn load(&self, state: &Incoming) {
        self.store(state.lists(), state.xics(), state.xive());
    }

    fn store(&self, lists: &State, xics: impl Blocks<XicsBlock>, xive: impl Blocks<XiveBlock>) {
        self.store_claims(&lists.claims);
        let active = |mode| match lists.head.active == mode {
            true => lists.inputs.as_slice(),
            false => &[],
        };
        if self.machine.ic_mode.has_xics() {
            let mut inputs = active(Mode::Xics);
            self.store_blocks(xics, |held| self.store_xics(held, &mut inputs));
            self.store_icps(&lists.xics.icps);
        }
        if self.machine.ic_mode.has_xive() {
            let mut inputs = active(Mode::Xive);
            self.store_blocks(xive, |held| self.store_xive(held, &mut inputs));
            self.store_ends(&lists.xive.ends);
            self.store_rings(&lists.xive.rings);
        }
    }

    fn store_claims(&self, claims: &[Claims]) {
        let mut bitmaps = Bitmaps(claims);
        for w in 0..self.geometry.sources().div_ceil(u64::BITS) {
            let Kinds { claimed, lsi, msi } = bitmaps.at(w);
            let now = [Table::Claimed(w), Table::Lsi(w), Table::Msi(w)].map(|at| self.table(at));
            if now == [claimed, lsi, msi] {
                continue;
            }
            // A daemon that dies here leaves no number claimed as what it is not: those that go go first, and
            // those that stay keep their kind.
            self.set_table(Table::Claimed(w), now[0] & claimed);
            self.set_table(Table::Lsi(w), lsi);
            self.set_table(Table::Msi(w), msi);
            self.set_table(Table::Claimed(w), claimed);
        }
    }

    /// Every block of the machine, those too of which nothing is listed.
    fn store_blocks<B: Block>(&self, blocks: impl Blocks<B>, mut store: impl FnMut(&Held<B>)) {
        let (mut next, mut unlisted) = (0, Held::<B>::new());
        let mut empty = |to: u32, store: &mut dyn FnMut(&Held<B>)| {
            for w in next..to {
                unlisted.become_empty(w, self.kinds(w), 0);
                store(&unlisted);
            }
            next = to + 1;
        };
        let done: Result<(), Infallible> = blocks.each(|held| {
            empty(held.w, &mut store);
            store(held);
            Ok(())
        });
        let Ok(()) = done;
        empty(self.geometry.sources().div_ceil(u64::BITS), &mut store);
    }

    fn store_xics(&self, held: &Held<XicsBlock>, inputs: &mut &[Input]) {
        let mut words = [0; SIZE];
        held.block.to_words(held.kinds, &mut words);
        add_inputs(held.first(), inputs, XICS_INPUT, &mut words);
        let (shared, bits) = self.ics_words(held.w);
        put(shared, &words[bits]);
    }

    fn store_xive(&self, held: &Held<XiveBlock>, inputs: &mut &[Input]) {
        let (mut sources, mut eas) = ([0; SIZE], [0; SIZE]);
        held.block.to_words(held.kinds, &mut sources, &mut eas);
        add_inputs(held.first(), inputs, XIVE_INPUT, &mut sources);
        put(self.eas_words(held.w), &eas);
        put(self.source_words(held.w), &sources);
    }

    fn store_icps(&self, icps: &[Icp]) {
        let mut icps = icps.iter().peekable();
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

    fn store_rings(&self, rings: &[Ring]) {
        let mut rings = rings.iter().peekable();
        for server in 0..self.geometry.servers() {
            let ring = rings.next_if(|r| r.server == server);
            let bytes = ring.map_or(Ring::RESET, |r| r.bytes);
            let kept = self.page(Page::Tima(server)) & (tima::CONNECTED | tima::TOGGLE);
            self.set_page(Page::Tima(server), bytes | kept);
        }
    }

    fn store_ends(&self, ends: &[End]) {
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

/// Stores `values`, of which there are at least as many.
fn put<'a, W: AtomicWord + 'a>(words: impl IntoIterator<Item = &'a W>, values: &[u64]) {
    for (word, value) in words.into_iter().zip(values) {
        // Acquire and Release: as in `page` and `set_page`.
        if word.load(Acquire) != *value {
            word.store(*value, Release);
        }
    }
}

/// A cursor after reset: index and generation 0, ESn off.
const RESET_CURSOR: u64 = 1 << cursor::ESN_SHIFT;

/// Adds what reaches the 64 sources from `first` on; `inputs` go on after them.
fn add_inputs(first: u32, inputs: &mut &[Input], bits: InputBits, words: &mut [u64; SIZE]) {
    while let [input, rest @ ..] = *inputs
        && input.lisn < first + u64::BITS
    {
        if let Some(i) = input.lisn.checked_sub(first) {
            words[i as usize] |= input_bits(input, bits);
        }
        *inputs = rest;
    }
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
