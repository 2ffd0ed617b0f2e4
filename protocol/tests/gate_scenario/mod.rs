//! What the explorations of the gate share: a dual machine, its executors, device threads, and the
//! judgements. The daemon's side is in [`daemon`], words and hosts in [`words`].
//!
//! Judged throughout: an event is delivered by the controller that the state word names at that moment,
//! and only the holder of an END lock changes the cursor. At rest: [`quiet`] and its
//! callers.
#![allow(dead_code)] // every test binary uses a part of it

pub mod daemon;
mod words;

use std::sync::atomic::Ordering::Relaxed;

use papr_intc_protocol::layout::header::{Executor, Gate, Mode, State, word as header};
use papr_intc_protocol::layout::storage::{AtomicWord, Page, Table};
use papr_intc_protocol::layout::words::{cursor, eas, icp, ics, journal, source};
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::plane::xics::Routing;
use papr_intc_protocol::plane::xive::config::QueueConfig;
use papr_intc_protocol::plane::{LevelInput, Outcome, Plane};

use crate::explorer::{Change, Ghost, Key, Scenario, Snapshot, Then, Thread, word};
use words::{COPYING, FAULT, JOURNALS};
pub use words::{Fault, Who, Words};

/// The two sources; both controllers serve them.
pub const MSI: u32 = 16;
pub const LSI: u32 = 17;
const BASE: u32 = 16;
pub const PRIO: u8 = 6;
pub const END: u32 = PRIO as u32;
pub const QUEUE: u64 = 0x10000;
/// Epoch slots that threads use: the vCPU's 0, and two devices'. The rest of 1025 stay 0.
pub const EPOCHS: u32 = 3;
/// The daemon is the first thread of every scenario.
pub const DAEMON: u32 = 0;

pub const STATE: Key = Key::Table(Table::Header(header::STATE));
pub const DEPTH: Key = Key::Table(Table::Header(header::QUIESCE_DEPTH));
pub const CURSOR: Key = Key::Page(Page::EndCursor(END));
pub const ICP: Key = Key::Page(Page::Icp(0));
pub const RING: Key = Key::Page(Page::Tima(0));
pub const EPOCH_OF_VCPU: Key = Key::Page(Page::Epoch(0));
pub const JOURNAL: Key = Key::Table(Table::Journal(journal::XICS));
/// TRIGGER messages sent and not yet served.
pub const MESSAGES: Key = Key::User(0);

/// Ghosts: an event of the MSI began that no delivery followed; the same of the LSI.
pub const UNSERVED: usize = 0;
/// Deliveries: queue entries, and XISRs.
pub const ENTRIES: usize = 2;
pub const PRESENTS: usize = 3;
/// The state word, 0 until it first changes.
pub const STATE_NOW: usize = 4;
/// Thread + 1 that holds the END lock.
pub const HOLDER: usize = 5;
/// 1 from the first grace period's end until the gate opens.
pub const ALONE: usize = 6;
/// QUIESCEs open now, as far as they changed; + 1.
pub const DEPTH_NOW: usize = 7;
/// 1 if the vCPU's thread entered its transition before the gate was latched.
pub const ENTERED_BEFORE: usize = 8;
/// 1 once the second grace period is over.
pub const REPLAYING: usize = 9;

/// A plane of the machine: XICS and XIVE, one vCPU, numbers up to the LSI's.
pub fn plane(who: Who) -> Plane<Words, Who> {
    COPYING.set(false);
    let machine = Machine {
        sources: BASE + 2,
        xics_base: BASE,
        ..Machine::pseries(IcMode::Dual, Compat::Papr1, 1)
    };
    Plane::new(Words, who, machine).unwrap()
}

pub fn vmm() -> Plane<Words, Who> {
    plane(Who::Vmm)
}

/// The word of a source in a controller.
pub fn source_word(mode: Mode, lisn: u32) -> Key {
    Key::Page(match mode {
        Mode::Xics => Page::IcsSource(lisn - BASE),
        Mode::Xive => Page::Source(lisn),
    })
}

/// What a scenario starts from: the vCPU connected with CPPR ff; the claimed sources routed to it in
/// both controllers, ready unless masked.
#[derive(Clone, Copy)]
pub struct Start {
    pub mode: Mode,
    pub claimed: &'static [u32],
    pub masked: bool,
    /// The LSI's VMM input is high, in both words.
    pub high: bool,
    /// QUIESCEs open; the gate is latched if there are any.
    pub depth: u64,
    pub executor: Executor,
    /// How many threads are daemons: the first ones.
    pub daemons: usize,
}

impl Start {
    pub fn of(mode: Mode, claimed: &'static [u32]) -> Self {
        Self {
            mode,
            claimed,
            masked: false,
            high: false,
            depth: 0,
            executor: Executor::FrontEnd,
            daemons: 1,
        }
    }

    fn set_up(self) {
        let plane = plane(Who::Daemon(1));
        let c = plane.controller();
        c.xics.create();
        (0..c.geometry.sources()).for_each(|lisn| c.xive.reset_source(lisn));
        (0..c.geometry.ends()).for_each(|end| c.xive.reset_end(end));
        c.xics.connect(0);
        c.xics.set_cppr(0, 0xff);
        c.xive.connect(0);
        c.xive.set_cppr(0, 0xff);
        let queue = QueueConfig {
            address: QUEUE,
            size: 12,
            always_notify: true,
        };
        c.xive.set_queue_config(0, PRIO, Some(queue)).unwrap();
        for &lisn in self.claimed {
            let kind = if lisn == LSI { Table::Lsi } else { Table::Msi };
            for bitmap in [Table::Claimed(0), kind(0)] {
                word(Key::Table(bitmap)).fetch_or(1 << lisn, Relaxed);
            }
            c.xics.claim(lisn, lisn == LSI);
            let to = Routing {
                server: 0,
                priority: if self.masked { 0xff } else { PRIO },
                saved: PRIO,
            };
            c.xics.write(lisn, to).unwrap();
            c.xive.claim(lisn, lisn == LSI);
            let eas = eas::new(END, lisn, false);
            c.xive.set_source_config(lisn, eas).unwrap();
            let pq = if self.masked { source::Q } else { 0 };
            word(source_word(Mode::Xive, lisn)).store(pq, Relaxed);
        }
        for mode in [Mode::Xics, Mode::Xive].into_iter().filter(|_| self.high) {
            word(source_word(mode, LSI)).fetch_or(level_bits(mode)[0], Relaxed);
        }
        word(ICP).fetch_and(icp::TAG - 1, Relaxed);
        word(DEPTH).store(self.depth, Relaxed);
        word(STATE).store(self.state().to_word(), Relaxed);
    }

    /// The state word at the start.
    pub fn state(self) -> State {
        State {
            mode: self.mode,
            gate: if self.depth == 0 {
                Gate::Open
            } else {
                Gate::Latch
            },
            executor: self.executor,
            cas_xive: self.mode == Mode::Xive,
        }
    }

    pub fn scenario(self, name: impl Into<String>, fault: Fault) -> Scenario {
        FAULT.set(fault);
        JOURNALS.set(false);
        let mut scenario = Scenario::new(name)
            .setup(move || self.set_up())
            .var(STATE)
            .var(DEPTH)
            .observer(move |g, c| watch(self, g, c))
            .limit(200_000);
        for lisn in (0..BASE + 2).filter(|l| !self.claimed.contains(l)) {
            scenario = scenario.fix(source_word(Mode::Xive, lisn));
            if lisn >= BASE {
                scenario = scenario.fix(source_word(Mode::Xics, lisn));
            }
        }
        scenario
    }
}

/// The daemon of this scenario writes its journal.
pub fn with_journal(scenario: Scenario) -> Scenario {
    JOURNALS.set(true);
    scenario.var(JOURNAL)
}

/// Place of a source in the ghosts.
fn place(lisn: u32) -> usize {
    UNSERVED + (lisn == LSI) as usize
}

/// What the observer sees at a change: the state word in force, and how far a barrier is.
struct Moment {
    state: State,
    quiesced: bool,
    daemon: bool,
}

/// Counts deliveries; judges who makes them, when, and who changes the cursor.
pub fn watch(start: Start, g: &mut Ghost, c: Change) {
    let now = Moment {
        state: match g[STATE_NOW] {
            0 => start.state(),
            word => State::from_word(word),
        },
        quiesced: match g[DEPTH_NOW] {
            0 => start.depth > 0,
            depth => depth > 1,
        },
        daemon: c.thread < start.daemons,
    };
    match c.key {
        STATE => {
            g[STATE_NOW] = c.new;
            if State::from_word(c.new).gate == Gate::Open {
                g[ALONE] = 0;
            }
        }
        DEPTH => g[DEPTH_NOW] = c.new + 1,
        EPOCH_OF_VCPU if c.new & 1 == 1 => {
            g[ENTERED_BEFORE] = u64::from(g[STATE_NOW] == 0);
        }
        Key::Ram(_) => {
            assert_eq!(now.state.mode, Mode::Xive, "an entry while XICS is active");
            delivered(g, c.new as u32 & 0x7fff_ffff, ENTRIES, &now);
        }
        ICP => {
            let shown = icp::xisr(c.new);
            if shown != icp::xisr(c.old) && shown >= BASE {
                assert_eq!(now.state.mode, Mode::Xics, "a XISR while XIVE is active");
                delivered(g, shown, PRESENTS, &now);
            }
        }
        CURSOR => {
            let holder = c.thread as u64 + 1;
            let free = c.old & cursor::LOCKED == 0;
            let locks = c.new & cursor::LOCKED != 0;
            // A daemon's lock may be taken over by who knows that it is dead.
            let may = free || g[HOLDER] == holder || locks && c.old & cursor::DGEN != 0;
            assert!(may, "the cursor changed under another's lock");
            g[HOLDER] = if locks { holder } else { 0 };
        }
        _ => (),
    }
}

fn delivered(g: &mut Ghost, lisn: u32, how: usize, now: &Moment) {
    if g[ALONE] != 0 {
        assert!(now.daemon, "a delivery by a thread of the VMM at the gate");
        assert!(!now.quiesced, "a delivery in a quiesced machine");
    }
    g[place(lisn)] = 0;
    g[how] += 1;
}

/// A device thread that triggers the MSI so often, by message where it must.
pub fn triggers(name: &'static str, epoch: u32, times: usize) -> Thread {
    (0..times).fold(Thread::new(name), |thread, _| {
        thread.op("trigger", move |cx| {
            cx.ghost(|g| g[UNSERVED] = 1);
            if vmm().thread(epoch).trigger(MSI) == Outcome::Elsewhere {
                word(MESSAGES).fetch_add(1, Relaxed);
            }
            Then::Next
        })
    })
}

/// A device thread that sets one input of the LSI to these levels, one after the other.
pub fn levels(
    name: &'static str,
    epoch: u32,
    input: LevelInput,
    levels: &'static [bool],
) -> Thread {
    levels.iter().fold(Thread::new(name), |thread, &level| {
        thread.op(if level { "raise" } else { "lower" }, move |cx| {
            cx.ghost(|g| g[UNSERVED + 1] = level.into());
            let done = vmm().thread(epoch).set_level(LSI, input, level);
            assert_eq!(done, Outcome::Done(()));
            Then::Next
        })
    })
}

/// The level bits of an LSI's word.
pub fn level_bits(mode: Mode) -> [u64; 2] {
    match mode {
        Mode::Xics => [ics::LEVEL_VMM, ics::LEVEL_IRQFD],
        Mode::Xive => [source::LEVEL_VMM, source::LEVEL_IRQFD],
    }
}

/// Nobody is inside, nothing is recorded and not replayed, nothing is half done.
pub fn quiet(s: &Snapshot<'_>) -> Result<State, String> {
    let state = State::from_word(s.get(STATE));
    if state.gate != Gate::Open {
        return Err(format!("the gate is left as {state:?}"));
    }
    if let Some(e) = (0..EPOCHS).find(|e| s.get(Key::Page(Page::Epoch(*e))) & 1 == 1) {
        return Err(format!("epoch {e} is left odd"));
    }
    for lisn in [MSI, LSI] {
        let (xics, xive) = (
            s.get(source_word(Mode::Xics, lisn)),
            s.get(source_word(Mode::Xive, lisn)),
        );
        if xics & ics::LATCHED != 0 || xive & source::LATCHED != 0 {
            return Err(format!("latched for ever: {lisn} {xics:#x} {xive:#x}"));
        }
        if xive & source::FORWARDS != 0 {
            return Err(format!("a forward of {lisn} for ever: {xive:#x}"));
        }
    }
    if s.get(CURSOR) & cursor::LOCKED != 0 {
        return Err("the END is locked".into());
    }
    Ok(state)
}

/// No event of the MSI is lost: a delivery followed the last trigger, or the event is recorded in a
/// controller, where the end of the delivery before (or unmasking) finds it.
pub fn msi_served(s: &Snapshot<'_>) -> Result<(), String> {
    quiet(s)?;
    let (xics, xive) = (
        s.get(source_word(Mode::Xics, MSI)),
        s.get(source_word(Mode::Xive, MSI)),
    );
    let recorded =
        xics & (ics::REJECTED | ics::MASKED_PENDING) != 0 || xive & source::PQ == source::PQ;
    if s.ghost[UNSERVED] != 0 && !recorded {
        return Err(format!("the MSI is lost: XICS {xics:#x}, XIVE {xive:#x}"));
    }
    Ok(())
}

/// The active controller knows the inputs as the devices left them; asserted it is delivered if
/// unmasked.
pub fn levels_are(
    vmm: bool,
    irqfd: bool,
    masked: bool,
) -> impl Fn(&Snapshot<'_>) -> Result<(), String> {
    move |s| {
        let mode = quiet(s)?.mode;
        let found = s.get(source_word(mode, LSI));
        let wrong = |what: &str| Err(format!("{what}: {mode:?} {found:#x}"));
        for (bit, level) in level_bits(mode).into_iter().zip([vmm, irqfd]) {
            if (found & bit != 0) != level {
                return wrong("a level is not the device's");
            }
        }
        let sent = match mode {
            Mode::Xics => found & ics::SENT != 0 && icp::xisr(s.get(ICP)) == LSI,
            Mode::Xive => found & source::PQ == source::P && s.ghost[ENTRIES] > 0,
        };
        if (vmm || irqfd) && !masked && !sent {
            return wrong("asserted and not sent");
        }
        Ok(())
    }
}
