//! Shared words as a hostile or dead peer leaves them.

use super::super::Busy;
use super::*;
use crate::layout::{Table, TableStorage};

#[test]
fn a_scribbled_cursor_or_configuration_stays_inside_the_queue() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    let at = rig.storage.page(Page::EndCursor(END));
    // An index beyond the queue, whatever else is in the word (but no lock).
    at.store(!cursor::LOCK, Relaxed);
    x.route(0).unwrap();
    let (gpa, _) = rig.entries()[0];
    assert!((QUEUE..QUEUE + 0x1000).contains(&gpa), "{gpa:#x}");
    // Configurations that no daemon writes.
    for (address, config) in [
        (QUEUE, end_config::new(13, true)),
        (QUEUE, end_config::new(0, true)),
        (QUEUE, end_config::new(0xff, true)),
        (u64::MAX, end_config::new(24, true)),
    ] {
        for slot in 0..2 {
            let word = |i| rig.storage.table_word(Table::EndConfig(END, slot, i));
            word(0).store(address, Relaxed);
            word(1).store(config, Relaxed);
        }
        x.route(0).unwrap();
        assert_eq!(rig.entries(), vec![]);
    }
}

#[test]
fn a_daemon_gives_up_on_a_lock_that_never_moves_and_nothing_is_lost() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    let daemon = |generation| LockOwner::Daemon {
        generation,
        worker: 0,
    };
    rig.host.owner.set(daemon(2));
    let at = rig.storage.page(Page::EndCursor(END));
    let free = at.fetch_or(cursor::LOCKED, Relaxed);

    let old = x.source_config(0);
    assert_eq!(x.set_source_config(0, eas::new(5, 1, false)), Err(Busy));
    assert_eq!(x.free(0), Err(Busy));
    assert_eq!(x.set_queue_config(0, 6, None), Err(Busy));
    assert_eq!(x.source_config(0), old);
    x.trigger(0);
    assert_eq!((rig.entries(), x.sync(0)), (vec![], true));
    assert_eq!(rig.word(Page::Source(0)), source::LATCHED);

    at.store(free, Relaxed);
    x.replay(0);
    assert_eq!((rig.entries().len(), rig.pq(0)), (1, 2));
    assert_eq!(rig.word(Page::Source(0)) & source::LATCHED, 0);
}

#[test]
fn the_lock_of_a_dead_daemon_is_taken_and_that_of_a_thread_or_a_later_one_is_not() {
    let rig = Rig::ready(Compat::Papr1);
    let x = rig.xive();
    rig.host.owner.set(LockOwner::Daemon {
        generation: 9,
        worker: 0,
    });
    let at = rig.storage.page(Page::EndCursor(END));
    let free = at.load(Relaxed);
    rig.host.dead.set(4);
    for (generation, taken) in [(4, true), (5, false), (0, false)] {
        let lock = cursor::LOCKED | generation << cursor::DGEN_SHIFT | 3 << cursor::WORKER_SHIFT;
        at.store(free | lock, Relaxed);
        assert_eq!(
            x.set_source_config(0, eas::new(END, 7, false)).is_ok(),
            taken
        );
        if taken {
            assert_eq!(at.load(Relaxed), free, "unlocked, and as it was");
        }
    }
}
