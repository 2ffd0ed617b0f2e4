//! What the XICS scenarios share: executors, what they start from, and the checks P1 to P5, I1, I2.
#![allow(dead_code)] // every test binary uses a part of it

pub mod faults;
pub mod threads;

use std::sync::atomic::Ordering::Relaxed;

use crate::explorer::{Change, Ghost, Key, Scenario, Snapshot, word};
use faults::{Fault, Faulty};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Table};
use papr_intc_protocol::layout::words::{icp, ics, journal};
use papr_intc_protocol::layout::{Compat, Geometry, IcMode, Machine};
use papr_intc_protocol::plane::xics::{Routing, Xics};
use papr_intc_protocol::plane::{Host, LockOwner};

pub const BASE: u32 = 16;
pub const SERVERS: u32 = 2;
/// Two leaves, so two slices.
pub const MACHINE_SOURCES: u32 = 128;
/// Sources, as they are numbered in the checks.
pub const SOURCES: usize = 3;
pub const IPI: u32 = 2;

/// Most states of a scenario: `EXPLORE_LIMIT`, or what a test run has time for.
pub fn limit() -> usize {
    let asked = std::env::var("EXPLORE_LIMIT").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(50_000_000)
}

/// Words of the scenarios: a kick flag per vCPU, an irqfd's counter.
pub const fn kick_flag(server: u32) -> Key {
    Key::User(server)
}
pub const COUNTER: Key = Key::User(8);

/// Ghosts, of source n or vCPU k: triggers, accepts, "triggered and not accepted since", servers
/// that a returned call excludes; an IPI that is owed; crashes.
pub const TRIGGERS: usize = 0;
pub const ACCEPTS: usize = 3;
pub const UNSERVED: usize = 6;
pub const EXCLUDED: usize = 9;
pub const IPI_OWED: usize = 12;
pub const CRASHES: usize = 14;

/// An executor.
#[derive(Clone, Copy)]
pub struct Executor {
    pub daemon: bool,
}
pub const VMM: Executor = Executor { daemon: false };
pub const DAEMON: Executor = Executor { daemon: true };

impl Host for Executor {
    fn write_queue_entry(&self, _: u64, _: u32) -> bool {
        unreachable!("XICS has no event queues")
    }
    fn kick(&self, server: u32) {
        word(kick_flag(server)).store(1, Relaxed);
    }
    fn lock_owner(&self) -> LockOwner {
        if self.daemon {
            LockOwner::Daemon {
                generation: 1,
                worker: 0,
            }
        } else {
            LockOwner::FrontEnd
        }
    }
    fn journal(&self, token: u32, victim: u32) {
        if self.daemon && JOURNALS.get() {
            let value = u64::from(token) | u64::from(victim) << 24;
            word(Key::Table(Table::Journal(journal::XICS))).store(value, Relaxed);
        }
    }
}

thread_local! {
    /// The level of the scenario under way, what is broken in it, whether its daemon has a journal.
    pub static LEVEL: std::cell::Cell<Compat> = const { std::cell::Cell::new(Compat::Papr1) };
    pub static FAULT: std::cell::Cell<Fault> = const { std::cell::Cell::new(Fault::None) };
    pub static JOURNALS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static MACHINES: [(Machine, Geometry); 2] = [Compat::Papr1, Compat::Qemu72].map(|compat| {
        let machine = Machine {
            sources: BASE + MACHINE_SOURCES,
            xics_base: BASE,
            ..Machine::pseries(IcMode::Xics, compat, SERVERS)
        };
        (machine, machine.geometry().unwrap())
    });
}

/// Runs `f` on the XICS of the scenario's level.
pub fn xics<T>(host: &Executor, f: impl FnOnce(Xics<'_, Faulty, Executor>) -> T) -> T {
    MACHINES.with(|m| {
        let (machine, geometry) = &m[usize::from(LEVEL.get() == Compat::Qemu72)];
        let storage = Faulty::new(FAULT.get());
        f(Xics::new(&storage, host, machine, geometry))
    })
}

/// A source of a scenario: its index from the XICS base, its routing, its kind.
#[derive(Clone, Copy)]
pub struct Src {
    pub index: u32,
    pub server: u32,
    pub priority: u8,
    pub lsi: bool,
}
pub const fn msi(index: u32, server: u32, priority: u8) -> Src {
    Src {
        index,
        server,
        priority,
        lsi: false,
    }
}
pub const fn lsi(index: u32, server: u32, priority: u8) -> Src {
    Src {
        lsi: true,
        ..msi(index, server, priority)
    }
}

/// What a scenario starts from, and what its checks need to know.
#[derive(Clone, Copy)]
pub struct Machinery {
    pub sources: [Option<Src>; SOURCES],
    /// The vCPUs' CPPR at the start.
    pub cppr: [u8; 2],
    /// Bits of leaf 0 and of the roots that are set though nothing waits.
    pub stale: u64,
    /// vCPUs that accept what they are sent, at rest of the scenario.
    pub served: [bool; 2],
    /// At `qemu-7.2` a source that configuration moved may wait for anybody's next pass (S08).
    pub moves: bool,
}

impl Machinery {
    pub fn of(sources: &[Src]) -> Self {
        let mut all = [None; SOURCES];
        for (to, from) in all.iter_mut().zip(sources) {
            *to = Some(*from);
        }
        Self {
            sources: all,
            cppr: [0xff; 2],
            stale: 0,
            served: [true; 2],
            moves: false,
        }
    }
    pub fn irq(&self, n: usize) -> u32 {
        BASE + self.sources[n].unwrap().index
    }
    /// The place of a number in the list.
    pub fn place(&self, xisr: u32) -> Option<usize> {
        (0..SOURCES).find(|n| self.sources[*n].is_some_and(|s| BASE + s.index == xisr))
    }

    pub fn set_up(&self) {
        xics(&DAEMON, |x| {
            for k in 0..SERVERS {
                word(Key::Page(Page::Icp(k))).store(icp::RESET, Relaxed);
                x.connect(k);
                x.set_cppr(k, self.cppr[k as usize]);
            }
            for s in self.sources.iter().flatten() {
                let irq = BASE + s.index;
                x.reset_source(irq, None);
                x.claim(irq, s.lsi);
                x.write(irq, to(s.server, s.priority)).unwrap();
            }
        });
        for k in 0..SERVERS {
            word(kick_flag(k)).store(0, Relaxed);
            // As if no source had ever been routed: the tags' start does not matter.
            word(Key::Page(Page::Icp(k))).fetch_and(icp::TAG - 1, Relaxed);
        }
        if self.stale != 0 {
            word(Key::Page(Page::PendingLeaf(0))).store(self.stale, Relaxed);
            for root in [Page::CommonRoot, Page::PendingRoot(0), Page::PendingRoot(1)] {
                word(Key::Page(root)).store(1, Relaxed);
            }
        }
    }

    pub fn scenario(self, name: &str, level: Compat) -> Scenario {
        LEVEL.set(level);
        FAULT.set(Fault::None);
        JOURNALS.set(false);
        let mut scenario = Scenario::new(format!("{name}, {level:?}"));
        for index in (0..MACHINE_SOURCES).filter(|i| self.place(BASE + i).is_none()) {
            scenario = scenario.fix(Key::Page(Page::IcsSource(index)));
        }
        scenario
            .setup(move || self.set_up())
            .limit(limit())
            .observer(move |g, c| self.watch(g, c))
            .at_rest(move |s| self.judge_rest(s))
    }

    /// P1, P2, I1, and the counts for the rest.
    fn watch(&self, g: &mut Ghost, c: Change) {
        let Key::Page(Page::Icp(k)) = c.key else {
            return;
        };
        let (old, new) = (c.old, c.new);
        assert_eq!(icp::xisr(new) == 0, icp::pp(new) == 0xff, "I1: {new:x}");
        let changed = icp::xisr(old) != icp::xisr(new);
        if let Some(n) = self.place(icp::xisr(new)).filter(|_| changed) {
            assert!(
                g[EXCLUDED + n] >> k & 1 == 0,
                "P1: source {n} presented to {k} after the call that excludes it returned"
            );
        }
        let accepted = icp::xisr(old) != 0
            && icp::cppr(new) == icp::pp(old)
            && icp::cppr(new) != icp::cppr(old);
        if accepted && icp::xisr(old) == IPI {
            g[IPI_OWED + k as usize] = 0;
        }
        if let Some(n) = self.place(icp::xisr(old)).filter(|_| accepted) {
            g[UNSERVED + n] = 0;
            g[ACCEPTS + n] += 1;
            let most = g[TRIGGERS + n] + g[CRASHES];
            let lsi = self.sources[n].unwrap().lsi;
            assert!(
                lsi || g[ACCEPTS + n] <= most,
                "P2: source {n} accepted too often"
            );
        }
    }

    fn judge_rest(&self, s: &Snapshot<'_>) -> Result<(), String> {
        for k in 0..SERVERS {
            let i = s.get(Key::Page(Page::Icp(k)));
            let served = self.served[k as usize] && i & icp::CONNECTED != 0;
            if served && icp::xisr(i) != 0 {
                return Err(format!("P5: vCPU {k} sleeps with {i:x}"));
            }
            if served && s.ghost[IPI_OWED + k as usize] != 0 && icp::mfrr(i) != 0xff {
                return Err(format!("P3: the IPI to vCPU {k} is lost: {i:x}"));
            }
        }
        for n in 0..SOURCES {
            if let Some(source) = self.sources[n] {
                let w = s.get(Key::Page(Page::IcsSource(source.index)));
                self.judge_source(s, n, source, w)
                    .map_err(|why| format!("{why}: source {n} is {w:x}"))?;
            }
        }
        Ok(())
    }

    fn judge_source(&self, s: &Snapshot<'_>, n: usize, at: Src, w: u64) -> Result<(), String> {
        if w & ics::CLAIMED == 0 {
            return Ok(());
        }
        let server = ics::server(w);
        let i = s.get(Key::Page(Page::Icp(server)));
        let unserved = s.ghost[UNSERVED + n] != 0;
        let in_xisr =
            (0..SERVERS).any(|k| icp::xisr(s.get(Key::Page(Page::Icp(k)))) == BASE + at.index);
        let status = w & (ics::REJECTED | ics::MASKED_PENDING | ics::ASSERTED);
        if unserved && !in_xisr && status == 0 {
            return Err("P3: an event is lost".into());
        }
        if w & ics::REJECTED != 0 && !indexed(s, at.index, server) {
            return Err("I2: waits and is not in the index".into());
        }
        let closed = i & icp::CONNECTED == 0 || icp::cppr(i) == 0 || ics::priority(w) == 0xff;
        let left_by_qemu = self.moves && LEVEL.get() == Compat::Qemu72;
        if closed || left_by_qemu {
            return Ok(());
        }
        let waits = if self.served[server as usize] {
            unserved || status != 0
        } else {
            // It is shown, or something else is; an LSI that is sent and not accepted is shown.
            let sent_nowhere = w & ics::SENT != 0 && !in_xisr;
            sent_nowhere || status != 0 && icp::xisr(i) == 0
        };
        if waits {
            return Err("P4: waits though its vCPU is open".into());
        }
        Ok(())
    }
}

pub fn indexed(s: &Snapshot<'_>, index: u32, server: u32) -> bool {
    let root = match LEVEL.get() {
        Compat::Qemu72 => Page::CommonRoot,
        Compat::Papr1 => Page::PendingRoot(server),
    };
    s.get(Key::Page(Page::PendingLeaf(index / 64))) >> (index % 64) & 1 == 1
        && s.get(Key::Page(root)) >> (index / 64) & 1 == 1
}

pub fn to(server: u32, priority: u8) -> Routing {
    Routing {
        server,
        priority,
        saved: priority,
    }
}

pub const LEVELS: [Compat; 2] = [Compat::Papr1, Compat::Qemu72];

/// Explores at both levels.
pub fn both(name: &str, m: Machinery, threads: impl Fn(Scenario) -> Scenario) {
    for level in LEVELS {
        threads(m.scenario(name, level)).explore();
    }
}
