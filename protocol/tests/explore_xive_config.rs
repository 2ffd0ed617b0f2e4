//! Every interleaving of configuration against events, the daemon's death included (data-plane-xive
//! §4.4, §6); and mistakes that the search finds.
#![allow(clippy::unwrap_used)]

mod explorer;
mod xive_scenario;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

use explorer::{Change, Ghost, Key, Memory, Scenario, Then, Thread, word};
use papr_intc_protocol::layout::storage::{Page, Storage, Table};
use papr_intc_protocol::layout::words::{cursor, eas};
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::plane::xive::Xive;
use xive_scenario::*;

/// The daemon moves S to server 1 with EISN 0x55; after the hcall nothing old may be written.
fn moves_source() -> Thread {
    Thread::new("daemon").op("set source config", |cx| {
        let done = xive(&DAEMON, |x| {
            x.set_source_config(S, eas::new(end_of(1), 0x55, false))
        });
        assert_eq!(done, Ok(()));
        cx.ghost(|g| g[RETURNED] = 1);
        Then::Next
    })
}

/// P3: after the hcall returned, nothing is written for the old EISN of S, nor to an old queue.
fn nothing_old(g: &mut Ghost, c: Change) {
    watch(g, c);
    if let Key::Ram(at) = c.key {
        let old = c.new & 0x7fff_ffff == u64::from(S) && (QUEUE..QUEUE + 0x1000).contains(&at);
        assert!(!(old && g[RETURNED] == 1), "P3: old entry after the return");
        assert!(
            c.new & 0x7fff_ffff != 0x55 || at >= QUEUE_1,
            "new EISN in the old queue"
        );
    }
}

#[test]
fn after_set_source_config_nothing_old_is_written() {
    let report = scenario("SET_SOURCE_CONFIG against two triggers", 1)
        .var(Key::Table(Table::Eas(S)))
        .thread(device("device 1", S))
        .thread(Thread::new("device 2").op("reset and trigger", |_| {
            xive(&VMM, |x| {
                x.esb_store(management(S) + 0xc00, 8, 0);
                x.trigger(S);
            });
            Then::Next
        }))
        .thread(moves_source())
        .observer(nothing_old)
        .at_rest(forwards_add_up)
        .explore();
    assert!(report.states > 1000);
}

#[test]
fn after_set_queue_config_the_old_page_is_not_written() {
    scenario("SET_QUEUE_CONFIG against two triggers", 1)
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 1)))
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .thread(Thread::new("daemon").op("set queue config", |cx| {
            let done = xive(&DAEMON, |x| x.set_queue_config(0, PRIO, queue(NEW_QUEUE)));
            assert_eq!(done, Ok(()));
            cx.ghost(|g| g[RETURNED] = 1);
            Then::Next
        }))
        .observer(|g, c| {
            watch(g, c);
            if let Key::Ram(at) = c.key {
                assert!(
                    at >= NEW_QUEUE || g[RETURNED] == 0,
                    "P3: old page after the return"
                );
                let first = at == NEW_QUEUE || at == QUEUE + 4 * (ENTRIES - 1) || at == QUEUE;
                assert!(first || at == NEW_QUEUE + 4, "P4: a hole before {at:#x}");
            }
        })
        .at_rest(|s| {
            forwards_add_up(s)?;
            let at = s.get(Key::Page(Page::EndCursor(end_of(0))));
            let new = (0..2)
                .filter(|i| s.get(Key::Ram(NEW_QUEUE + 4 * i)) != 0)
                .count() as u64;
            // Generation 1 from slot 0; the entries of the old page are the guest's to look for.
            if at & (cursor::INDEX | cursor::GENERATION | cursor::LOCK) != new | cursor::GENERATION
            {
                return Err(format!("cursor {at:#x} with {new} entries"));
            }
            Ok(())
        })
        .explore();
}

#[test]
fn a_queue_reset_ends_writing_to_its_page() {
    scenario("SET_QUEUE_CONFIG size 0 against two triggers", 2)
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .thread(Thread::new("daemon").op("reset queue", |cx| {
            assert_eq!(xive(&DAEMON, |x| x.set_queue_config(0, PRIO, None)), Ok(()));
            cx.ghost(|g| g[RETURNED] = 1);
            Then::Next
        }))
        .observer(|g, c| {
            watch(g, c);
            let late = matches!(c.key, Key::Ram(_)) && g[RETURNED] == 1;
            assert!(!late, "P3: entry after the return");
        })
        .at_rest(|s| {
            // Whoever came late was dropped: its source waits for an EOI.
            let entries = s.ghost[ENTRIES_WRITTEN];
            if s.ghost[ACCEPTED] != 2 || entries > 2 {
                return Err(format!("{} forwards, {entries} entries", s.ghost[ACCEPTED]));
            }
            Ok(())
        })
        .explore();
}

#[test]
fn after_free_and_sync_no_event_of_the_number_comes() {
    scenario("free against two triggers", 2)
        .var(Key::Table(Table::Eas(S)))
        .thread(device("device 1", S))
        .thread(Thread::new("device 2").op("reset and trigger", |_| {
            xive(&VMM, |x| {
                x.esb_store(management(S) + 0xc00, 8, 0);
                x.trigger(S);
            });
            Then::Next
        }))
        .thread(
            Thread::new("daemon")
                .op("free", |cx| {
                    assert_eq!(xive(&DAEMON, |x| x.free(S)), Ok(()));
                    cx.ghost(|g| g[RETURNED] = 1);
                    Then::Next
                })
                .op("sync, claim again", |cx| {
                    cx.wait(|| xive(&DAEMON, |x| x.sync(S)));
                    xive(&DAEMON, |x| x.claim(S, false));
                    Then::Next
                }),
        )
        .observer(|g, c| {
            watch(g, c);
            let late = matches!(c.key, Key::Ram(_)) && g[RETURNED] == 1;
            assert!(!late, "P3: entry after free");
        })
        .at_rest(|s| {
            let word = s.get(Key::Page(Page::Source(S)));
            if forwards(word) != 0 {
                return Err(format!("source {word:#x}"));
            }
            Ok(())
        })
        .explore();
}

/// A storage that reads each EAS once per transition: the router without its second look.
struct ReadOnce(RefCell<HashMap<u32, u64>>);

impl Storage for ReadOnce {
    type Word = explorer::Word;
    fn page(&self, at: Page) -> &Self::Word {
        word(Key::Page(at))
    }
    fn table(&self, at: Table, order: Ordering) -> u64 {
        let Table::Eas(lisn) = at else {
            return Memory.table(at, order);
        };
        let known = self.0.borrow().get(&lisn).copied();
        known.unwrap_or_else(|| {
            let eas = Memory.table(at, order);
            self.0.borrow_mut().insert(lisn, eas);
            eas
        })
    }
    fn fence(&self) {}
    fn fence_everywhere(&self) -> bool {
        true
    }
    fn relax(&self, spins: u32) {
        Memory.relax(spins);
    }
}

#[test]
fn a_router_that_reads_the_eas_once_is_refuted() {
    let why = scenario("EAS read before the lock only", 1)
        .var(Key::Table(Table::Eas(S)))
        .thread(Thread::new("device").op("trigger", |_| {
            let storage = ReadOnce(RefCell::default());
            let machine = Machine {
                sources: 64,
                xics_base: 16,
                ..Machine::pseries(IcMode::Xive, Compat::Papr1, 2)
            };
            let geometry = machine.geometry().unwrap();
            Xive::new(&storage, &VMM, &machine, &geometry).trigger(S);
            Then::Next
        }))
        .thread(moves_source())
        .observer(nothing_old)
        .breadth_first()
        .refute();
    assert_eq!(why, "P3: old entry after the return");
}

/// The daemon (thread 0) works on queue and source of the END that two devices use, and may die.
fn dying_daemon(name: &str, dead: Dead, dies: bool) -> Scenario {
    let host = move || Executor { dead, ..VMM };
    let mut daemon = Thread::new("daemon")
        .op("set queue config", |_| {
            let _ = xive(&DAEMON, |x| x.set_queue_config(0, PRIO, queue(NEW_QUEUE)));
            Then::Next
        })
        .op("set source config", |_| {
            let _ = xive(&DAEMON, |x| {
                x.set_source_config(S, eas::new(end_of(1), 0x55, false))
            });
            Then::Next
        });
    if dies {
        daemon = daemon.may_stop();
    }
    let device = |name, lisn| {
        Thread::new(name).op("trigger", move |_| {
            xive(&host(), |x| x.trigger(lisn));
            Then::Next
        })
    };
    scenario(name, 1)
        .var(Key::Table(Table::Eas(S)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 0, 1)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 0)))
        .var(Key::Table(Table::EndConfig(end_of(0), 1, 1)))
        .thread(daemon)
        .thread(device("device 1", S))
        .thread(device("device 2", R))
        .at_rest(forwards_add_up)
}

#[test]
fn events_flow_past_the_lock_of_a_dead_daemon_and_of_no_other() {
    dying_daemon("the daemon dies at any step", Dead::Stopped(0), true).explore();
    let why = dying_daemon("nobody breaks its lock", Dead::None, true).refute();
    assert!(why.starts_with("deadlock: device"), "{why}");
    // N5: a lock taken on suspicion has two owners.
    let why = dying_daemon("taken on suspicion", Dead::Suspected, false).refute();
    assert!(why.contains("I1"), "{why}");
}
