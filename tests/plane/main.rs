//! The shipped transitions, run one at a time, against the slow model of `tests/model`.
//!
//! Random operations on plain memory, both controllers, both compat levels; after each one the results,
//! the whole state, the queue entries and the lines must be equal. What runs concurrently, crashes or
//! travels over a socket is checked elsewhere.

#![allow(clippy::unwrap_used, reason = "a test says what it means with unwrap")]

#[path = "../model/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with examples/replay and the conformance tests"
)]
mod model;
mod xics;
mod xive;

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use model::machine;
use model::memory::Memory;
use model::rules::Rules;
use model::xive::Layout;
use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word};
use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::{Compat, IcMode, Machine, Table, TableStorage};
use papr_intc_protocol::plane::{Controller, Host, LevelInput, Plane};
use proptest::prelude::*;

/// Server numbers; number 2 has no vCPU at the start.
const SERVERS: u32 = 4;
const ABSENT: u32 = 2;
const XICS_BASE: u32 = 0x1000;
/// A little over two leaves of the pending index.
const SOURCES: u32 = XICS_BASE + 160;
const RAM: u64 = 64 << 20;

/// The plane's outside: memory of its own. Lines are read, so kicks say nothing here.
struct TestHost {
    mem: RefCell<Memory>,
}

impl Host for TestHost {
    fn write_queue_entry(&self, gpa: u64, entry: u32) -> bool {
        self.mem.borrow_mut().write_entry(gpa, entry)
    }
    fn kick(&self, _server: u32) {}
}

/// The same machine twice.
struct Pair {
    plane: Plane<PlainStorage, TestHost>,
    model: machine::Machine,
    entries_seen: usize,
}

impl Pair {
    fn new(ic_mode: IcMode, compat: Compat) -> Pair {
        let mut shape = Machine::pseries(ic_mode, compat, SERVERS);
        shape.sources = SOURCES;
        let storage = PlainStorage::new(shape.geometry().unwrap());
        let mode = if ic_mode == IcMode::Xics {
            Mode::Xics
        } else {
            Mode::Xive
        };
        let state = State {
            mode,
            gate: Gate::Open,
            executor: Executor::FrontEnd,
            cas_xive: mode == Mode::Xive,
        };
        storage
            .table_word(Table::Header(word::STATE))
            .store(state.to_word(), Ordering::Release);
        let host = TestHost {
            mem: RefCell::new(Memory::new(RAM)),
        };
        let plane = Plane::new(storage, host, shape).unwrap();
        let model = machine::Machine::new(&machine::Shape {
            ic_mode: match ic_mode {
                IcMode::Xics => machine::IcMode::Xics,
                IcMode::Xive => machine::IcMode::Xive,
                IcMode::Dual => machine::IcMode::Dual,
            },
            rules: match compat {
                Compat::Qemu72 => Rules::QEMU_7_2,
                Compat::Papr1 => Rules::PAPR_1,
            },
            servers: SERVERS,
            lisns: SOURCES,
            xics_base: XICS_BASE,
            layout: Layout {
                esb_base: shape.esb_base,
                end_base: shape.end_base,
                store_eoi: false,
            },
            ram: RAM,
        });
        let mut pair = Pair {
            plane,
            model,
            entries_seen: 0,
        };
        let c = pair.c();
        c.xics.create();
        (0..SOURCES).for_each(|lisn| c.xive.reset_source(lisn));
        (0..c.geometry.ends()).for_each(|end| c.xive.reset_end(end));
        (0..SERVERS).for_each(|server| c.xive.disconnect(server));
        (0..SERVERS)
            .filter(|s| *s != ABSENT)
            .for_each(|s| pair.connect(s, true));
        pair
    }

    fn c(&self) -> Controller<'_, PlainStorage, TestHost> {
        self.plane.controller()
    }

    fn connect(&mut self, server: u32, connected: bool) {
        let c = self.c();
        if connected {
            c.xics.connect(server);
            c.xive.connect(server);
        } else {
            c.xics.disconnect(server);
            c.xive.disconnect(server);
        }
        self.model.connect(server, connected);
    }

    fn set_gate(&self, gate: Gate) {
        let state = State {
            gate,
            ..self.plane.state()
        };
        let word = self.plane.storage().table_word(Table::Header(word::STATE));
        word.store(state.to_word(), Ordering::Release);
    }

    /// Quiesce, what devices do meanwhile, resume: as the daemon does it.
    fn quiesced(&mut self, played: &[u32], events: &[(u32, bool)]) {
        self.set_gate(Gate::Latch);
        let c = self.plane.controller();
        for &(lisn, level) in events {
            if c.xive.is_lsi(lisn) || c.xics.source(lisn).is_some_and(|s| s.lsi) {
                c.set_level(lisn, LevelInput::Vmm, level);
            } else if level {
                c.trigger(lisn);
            }
        }
        self.set_gate(Gate::Open);
        let c = self.plane.controller();
        played.iter().for_each(|lisn| c.replay(*lisn));
        self.model.quiesced(events);
    }

    /// The queue entries written since the last call are the same.
    fn check_entries(&mut self) -> Result<(), TestCaseError> {
        let plane = self.plane.host().mem.borrow();
        let (plane, model) = (
            &plane.entries[self.entries_seen..],
            &self.model.mem.entries[self.entries_seen..],
        );
        prop_assert_eq!(plane, model, "queue entries");
        self.entries_seen += model.len();
        Ok(())
    }

    fn check_lines(&self) -> Result<(), TestCaseError> {
        for server in 0..SERVERS {
            prop_assert_eq!(
                self.plane.line(server),
                self.model.line(server),
                "line {}",
                server
            );
        }
        Ok(())
    }
}

/// PROPTEST_CASES asks for more, as usual.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|n| n.parse().ok()).unwrap_or(96),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
