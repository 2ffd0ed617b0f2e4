//! The threads of the XICS scenarios: vCPUs, devices, callers, the daemon and its successor.

use std::sync::atomic::Ordering::Relaxed;

use papr_intc_protocol::layout::storage::AtomicWord;
use papr_intc_protocol::layout::words::icp;
use papr_intc_protocol::plane::{Host, LevelInput};

use super::*;
use crate::explorer::{Cx, Key, Then, Thread, word};

/// A vCPU's own operations before it serves, each followed by an evaluation of its line.
#[derive(Clone, Copy)]
pub enum Own {
    Cppr(u8),
    /// H_EOI of a place in the list, with CPPR ff.
    Eoi(usize),
    Ipi(u32, u8),
}

/// Which order a vCPU evaluates its line in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Evaluate {
    FlagThenWord,
    /// A mistake.
    WordThenFlag,
}

/// A vCPU: sleeps until it is kicked, evaluates its line, accepts, handles, ends.
pub fn vcpu(m: Machinery, k: u32, first: &[Own]) -> Thread {
    vcpu_evaluating(m, k, first, Evaluate::FlagThenWord)
}

pub fn vcpu_evaluating(m: Machinery, k: u32, first: &[Own], order: Evaluate) -> Thread {
    let name = ["vcpu 0", "vcpu 1"][k as usize];
    let mut thread = Thread::new(name).background();
    for own in first.iter().copied() {
        thread = thread.op("own call", move |cx| {
            if let Own::Ipi(t, mfrr) = own {
                cx.ghost(|g| g[IPI_OWED + t as usize] = u64::from(mfrr != 0xff));
            }
            xics(&VMM, |x| match own {
                Own::Cppr(c) => x.set_cppr(k, c),
                Own::Eoi(n) => x.eoi(k, 0xff00_0000 | m.irq(n)),
                Own::Ipi(t, mfrr) => assert!(x.set_mfrr(t, mfrr)),
            });
            Then::Next
        });
    }
    let evaluate = first.len() as u16;
    let [sleep, accept, handle] = [1, 2, 3].map(|i| evaluate + i);
    thread
        .op("evaluate", move |_| {
            let flag = word(kick_flag(k));
            if order == Evaluate::FlagThenWord {
                flag.swap(0, Relaxed);
            }
            let line = xics(&VMM, |x| x.line(k));
            if order == Evaluate::WordThenFlag {
                flag.swap(0, Relaxed);
            }
            Then::Goto(if line { accept } else { sleep })
        })
        .op("sleep", move |cx| {
            cx.wait(|| word(kick_flag(k)).load(Relaxed) != 0);
            Then::Goto(evaluate)
        })
        .op("accept", move |cx| {
            let xirr = xics(&VMM, |x| x.accept(k));
            cx.set_local(0, u64::from(xirr) & icp::XISR);
            Then::Goto(if cx.local(0) == 0 { evaluate } else { handle })
        })
        .op("handle", move |cx| {
            let xisr = cx.local(0) as u32;
            let lsi = m.place(xisr).is_some_and(|n| m.sources[n].unwrap().lsi);
            xics(&VMM, |x| {
                if xisr == IPI {
                    assert!(x.set_mfrr(k, 0xff));
                } else if lsi {
                    x.set_level(xisr, LevelInput::Vmm, false);
                }
            });
            Then::Next
        })
        .op("end", move |cx| {
            xics(&VMM, |x| x.eoi(k, 0xff00_0000 | cx.local(0) as u32));
            Then::Goto(evaluate)
        })
}

/// What a device does.
#[derive(Clone, Copy)]
pub enum Dev {
    Trigger(usize),
    Level(usize, bool),
}

pub fn device(m: Machinery, what: &[Dev]) -> Thread {
    let mut thread = Thread::new("device");
    for dev in what.iter().copied() {
        thread = thread.op("signal", move |cx| {
            match dev {
                Dev::Trigger(n) => {
                    cx.ghost(|g| {
                        g[TRIGGERS + n] += 1;
                        g[UNSERVED + n] = 1;
                    });
                    xics(&VMM, |x| x.trigger(m.irq(n)));
                }
                Dev::Level(n, level) => {
                    xics(&VMM, |x| x.set_level(m.irq(n), LevelInput::Vmm, level));
                }
            }
            Then::Next
        });
    }
    thread
}

/// H_IPI by a thread that does nothing else.
pub fn caller(target: u32, mfrr: u8) -> Thread {
    Thread::new("caller").op("H_IPI", move |cx| {
        cx.ghost(|g| g[IPI_OWED + target as usize] = 1);
        assert!(xics(&VMM, |x| x.set_mfrr(target, mfrr)));
        Then::Next
    })
}

/// What the daemon does.
#[derive(Clone, Copy)]
pub enum Cfg {
    Set(usize, u32, u8),
    Off(usize),
    On(usize),
    Free(usize),
    Disconnect(u32),
    Connect(u32),
    /// Reads an irqfd's counter, and triggers.
    Irqfd(usize),
}

pub fn configure(m: Machinery, cfg: Cfg) -> impl Fn(&Cx) -> Then {
    move |cx| {
        // Before it returns nothing is excluded; after it, all but where it routes to.
        let excluding = |n: usize, excluded: u64| {
            cx.ghost(|g| g[EXCLUDED + n] = excluded);
        };
        match cfg {
            Cfg::Set(n, server, priority) => {
                excluding(n, 0);
                xics(&DAEMON, |x| x.write(m.irq(n), to(server, priority))).unwrap();
                excluding(n, !(1 << server));
            }
            Cfg::Off(n) => {
                xics(&DAEMON, |x| x.int_off(m.irq(n))).unwrap();
                excluding(n, !0);
            }
            Cfg::On(n) => {
                excluding(n, 0);
                xics(&DAEMON, |x| x.int_on(m.irq(n))).unwrap();
            }
            Cfg::Free(n) => {
                xics(&DAEMON, |x| x.free(m.irq(n))).unwrap();
                excluding(n, !0);
            }
            Cfg::Disconnect(k) => xics(&DAEMON, |x| x.disconnect(k)),
            Cfg::Connect(k) => xics(&DAEMON, |x| x.connect(k)),
            Cfg::Irqfd(n) => {
                xics(&DAEMON, |x| {
                    DAEMON.journal(m.irq(n), 0);
                    if word(COUNTER).swap(0, Relaxed) != 0 {
                        x.trigger(m.irq(n));
                    } else {
                        DAEMON.journal(0, 0);
                    }
                });
            }
        }
        Then::Next
    }
}

pub fn daemon(m: Machinery, what: &[Cfg]) -> Thread {
    let mut thread = Thread::new("daemon");
    for cfg in what.iter().copied() {
        thread = thread.op("configure", configure(m, cfg));
    }
    thread
}

/// Waits for the death of thread `of`, recovers, and does again what that one may not have done.
pub fn successor(m: Machinery, of: u32, again: &[Cfg]) -> Thread {
    let mut thread = Thread::new("successor")
        .background()
        .op("wait", move |cx| {
            cx.wait(|| word(Key::Stopped(of)).load(Relaxed) != 0);
            cx.ghost(|g| g[CRASHES] += 1);
            Then::Next
        })
        .op("recover", |_| {
            xics(&DAEMON, |x| x.recover());
            Then::Next
        });
    for cfg in again.iter().copied() {
        thread = thread.op("again", configure(m, cfg));
    }
    thread
}
