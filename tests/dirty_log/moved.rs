//! A guest that moves to RAM of its own: memory by the dirty pages, the controllers by their state. Every event is in the
//! queues of the other side, and the next one follows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use papr_intc_frontend::GuestRam;

use crate::bench::{Bench, How, launcher};
use crate::queues::{Copy, Dice, MSI, RAM, SOURCES, events, fire, guest, mapped, ready, remote};

const LONG: Duration = Duration::from_secs(60);

/// How often each source fired.
type Fired = BTreeMap<u32, u32>;

fn fire_some(bench: &Bench, dice: &mut Dice, fired: &mut Fired) {
    for _ in 0..20 {
        let lisn = MSI + dice.below(SOURCES.into()) as u32;
        fire(bench, lisn);
        *fired.entry(lisn).or_default() += 1;
    }
}

/// Pre-copy with a kill in each round, then the stop; what is sent, and the state.
fn leave(source: &Bench, dice: &mut Dice, fired: &mut Fired) -> (Copy, Vec<u8>) {
    let intc = &source.intc;
    intc.start_dirty_log().unwrap();
    let mut copy = Copy::of(source);
    for _ in 0..5 {
        fire_some(source, dice, fired);
        copy.update(&intc.take_dirty());
        fire_some(source, dice, fired);
        source.kill_and_wait();
    }
    // One event is still to come when the machine stops.
    ready(source, MSI);
    intc.quiesce(LONG).unwrap();
    source.trigger(MSI);
    *fired.entry(MSI).or_default() += 1;
    copy.update(&intc.take_dirty());
    (copy, intc.state_save().unwrap())
}

fn arrive(how: &How, copy: &Copy, state: &[u8]) -> Bench {
    let ram = Arc::new(GuestRam::new(&[(0, RAM)]).unwrap());
    assert!(ram.write(0, copy.bytes()));
    let there = Bench::start_on(how, launcher(), ram, |_| ());
    there.intc.quiesce(LONG).unwrap();
    there.intc.state_load(state).unwrap();
    there.intc.resume(None).unwrap();
    there
}

#[test]
fn every_event_of_a_moving_guest_is_in_the_queues_of_the_other_side() {
    for (seed, (from, to)) in (1..).zip([
        (mapped(), mapped()),
        (mapped(), remote()),
        (remote(), mapped()),
        (remote(), remote()),
    ]) {
        let (mut dice, mut fired) = (Dice::new(seed), Fired::new());
        let source = guest(&from);
        fire_some(&source, &mut dice, &mut fired);
        let (copy, state) = leave(&source, &mut dice, &mut fired);
        source.intc.shutdown();
        let there = arrive(&to, &copy, &state);
        assert_eq!(events(&there), fired, "seed {seed}");
        fire_some(&there, &mut dice, &mut fired);
        assert_eq!(events(&there), fired, "seed {seed}, after the move");
    }
}
