//! A migration's loop while devices fire, a guest configures, daemons are killed and the executor changes:
//! when the machine is quiesced and the last pages are sent, the copy is the guest's RAM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::bench::{Bench, How};
use crate::queues::{Copy, Dice, MSI, SOURCES, fire, guest, move_queue, other, route, ways};

const LONG: Duration = Duration::from_secs(60);

/// What runs beside a migration until `done`.
fn load(bench: &Bench, seed: u64, done: &AtomicBool) {
    let mut dice = Dice::new(seed);
    while !done.load(Ordering::Relaxed) {
        let lisn = MSI + dice.below(SOURCES.into()) as u32;
        match dice.below(40) {
            0 => move_queue(bench, &mut dice),
            1 => route(bench, lisn, dice.below(2)),
            _ => fire(bench, lisn),
        }
    }
}

/// Kills, and changes of the executor where they can be.
fn chaos(bench: &Bench, done: &AtomicBool) -> u32 {
    let mut kills = 0;
    while !done.load(Ordering::Relaxed) {
        bench.kill_and_wait();
        kills += 1;
        if !bench.forwards() {
            let to = other(bench.intc.executor());
            bench.intc.quiesce(LONG).unwrap();
            // Refused while the migration has the machine quiesced.
            if bench.intc.resume(Some(to)).is_err() {
                bench.intc.resume(None).unwrap();
            }
        }
    }
    kills
}

/// One migration: full copy, rounds of dirty pages, quiesce, the last ones. The pages sent in rounds.
fn migrate(bench: &Bench) -> u64 {
    let intc = &bench.intc;
    intc.start_dirty_log().unwrap();
    intc.take_dirty();
    let mut copy = Copy::of(bench);
    let mut sent = 0;
    for _ in 0..20 {
        let pages = intc.take_dirty();
        sent += pages.count();
        copy.update(&pages);
        // As a network would take its time: some interrupts come.
        for lisn in MSI..MSI + 4 {
            fire(bench, lisn);
        }
    }
    intc.quiesce(LONG).unwrap();
    copy.update(&intc.take_dirty());
    let differing = copy.differing();
    intc.resume(None).unwrap();
    assert!(differing.is_empty(), "{differing:x?}");
    intc.stop_dirty_log().unwrap();
    sent
}

fn under_load(how: &How, migrations: u32) -> (u64, u32) {
    let bench = guest(how);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 1..=2 {
            let (bench, done) = (&bench, &done);
            scope.spawn(move || load(bench, seed, done));
        }
        let killer = scope.spawn(|| chaos(&bench, &done));
        let run = || (0..migrations).map(|_| migrate(&bench)).sum();
        let sent = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        done.store(true, Ordering::Relaxed);
        let kills = killer.join().unwrap();
        (sent.unwrap(), kills)
    })
}

#[test]
fn after_the_last_round_the_copy_is_the_guests_memory() {
    for (name, how) in ways() {
        let (sent, kills) = under_load(&how, 10);
        println!("{name}: {sent} pages in rounds, {kills} kills");
        assert!(sent > 0 && kills > 0);
    }
}
