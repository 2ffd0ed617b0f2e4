//! The explorer finds what it is there to find: lost updates, deadlocks, livelocks, stopped threads.

mod explorer;

use std::sync::atomic::Ordering::Relaxed;

use explorer::{Key, Memory, Scenario, Then, Thread, word};
use papr_intc_protocol::layout::storage::{AtomicWord, Storage};

const COUNT: Key = Key::User(0);
const A: Key = Key::User(1);
const B: Key = Key::User(2);

fn two(name: &str, op: fn()) -> Scenario {
    let thread = |n| {
        Thread::new(n).op("add", move |_| {
            op();
            Then::Next
        })
    };
    Scenario::new(name)
        .thread(thread("one"))
        .thread(thread("two"))
        .at_rest(|s| match s.get(COUNT) {
            2 => Ok(()),
            n => Err(format!("counted {n}")),
        })
}

fn lock(key: Key) {
    let mut spins = 0;
    while word(key).swap(1, Relaxed) != 0 {
        Memory.relax(spins);
        spins += 1;
    }
}

#[test]
fn an_atomic_add_is_never_lost_and_a_load_then_store_is() {
    let report = two("fetch_add", || {
        word(COUNT).fetch_add(1, Relaxed);
    })
    .explore();
    // Start, one of two done, both done: the two ways meet.
    assert_eq!((report.states, report.rests), (4, 1));

    let lost = two("load and store", || {
        let n = word(COUNT).load(Relaxed);
        word(COUNT).store(n + 1, Relaxed);
    })
    .refute();
    assert_eq!(lost, "at rest: counted 1");
}

#[test]
fn a_lock_makes_it_right() {
    two("lock", || {
        lock(A);
        let n = word(COUNT).load(Relaxed);
        word(COUNT).store(n + 1, Relaxed);
        word(A).store(0, Relaxed);
    })
    .explore();
}

#[test]
fn a_wait_that_loads_and_then_swaps_sees_a_word_that_moved_on() {
    // The load is stale when the CAS fails: waiting must go back to the load.
    two("load and compare", || {
        let mut spins = 0;
        loop {
            let n = word(COUNT).load(Relaxed);
            if word(COUNT)
                .compare_exchange(n, n + 1, Relaxed, Relaxed)
                .is_ok()
            {
                return;
            }
            Memory.relax(spins);
            spins += 1;
        }
    })
    .explore();
}

#[test]
fn locks_taken_crosswise_deadlock() {
    let cross = |first, second| {
        move |_: &explorer::Cx| {
            lock(first);
            lock(second);
            Then::Next
        }
    };
    let why = Scenario::new("crosswise")
        .thread(Thread::new("one").op("ab", cross(A, B)))
        .thread(Thread::new("two").op("ba", cross(B, A)))
        .refute();
    assert!(why.starts_with("deadlock"), "{why}");
}

#[test]
fn a_loop_that_nobody_ends_is_a_livelock() {
    let why = Scenario::new("spin")
        .thread(Thread::new("one").op("flip", |_| {
            let n = word(A).load(Relaxed);
            word(A).store(1 - n, Relaxed);
            Then::Repeat
        }))
        .refute();
    assert!(why.starts_with("livelock"), "{why}");
}

#[test]
fn ghosts_count_each_step_once_and_locals_outlive_operations() {
    Scenario::new("ghosts")
        .thread(
            Thread::new("one")
                .op("first", |cx| {
                    cx.ghost(|g| g[0] += 1);
                    word(A).load(Relaxed);
                    cx.ghost(|g| g[1] += 1);
                    word(A).load(Relaxed);
                    cx.set_local(0, 7);
                    Then::Next
                })
                .op("second", |cx| {
                    assert_eq!(cx.local(0), 7);
                    cx.ghost(|g| g[2] += 1);
                    Then::Next
                }),
        )
        .at_rest(|s| {
            assert_eq!(s.ghost[..3], [1, 1, 1]);
            Ok(())
        })
        .explore();
}

#[test]
fn a_thread_that_stops_keeps_its_lock() {
    let holder = || {
        Thread::new("holder").op("hold", |_| {
            lock(A);
            word(A).store(0, Relaxed);
            Then::Next
        })
    };
    let waiter = || {
        Thread::new("waiter").op("take", |_| {
            lock(A);
            word(A).store(0, Relaxed);
            Then::Next
        })
    };
    Scenario::new("alive")
        .thread(holder())
        .thread(waiter())
        .explore();
    let why = Scenario::new("stopped")
        .thread(holder().may_stop())
        .thread(waiter())
        .refute();
    assert_eq!(why, "deadlock: waiter waits for ever");
}
