//! Loading is the inverse of saving, on words in any condition.

use std::sync::atomic::Ordering::Release;

use super::super::Incoming;
use super::super::random::{self, Rng};
use super::*;
use crate::layout::plain::PlainStorage;
use crate::layout::{Compat, IcMode};
use crate::layout::{Storage, TableStorage};

/// Words of a machine whose vCPUs exist, and otherwise full of what an earlier life left.
fn used_words(rng: &mut Rng, state: &State) -> PlainStorage {
    let machine = state.head.machine;
    let geometry = machine.geometry().unwrap();
    let storage = PlainStorage::new(geometry);
    let junk = random::state(rng, machine, 60);
    Words::new(&storage, &machine, &geometry).apply(&junk);
    for server in 0..machine.servers {
        let exists = state.head.servers.contains(&server);
        let connected = |bit: u64| if exists { bit } else { 0 };
        // Relaxed: one thread.
        let (icp, ring) = (Page::Icp(server), Page::Tima(server));
        storage.page(icp).fetch_and(!icp::CONNECTED, Release);
        storage
            .page(icp)
            .fetch_or(connected(icp::CONNECTED), Release);
        storage.page(ring).fetch_and(!tima::CONNECTED, Release);
        storage
            .page(ring)
            .fetch_or(connected(tima::CONNECTED), Release);
    }
    storage
}

/// The words that SET_MACHINE, CAS and START leave in the header.
fn set_header(storage: &PlainStorage, head: &Head) {
    use crate::layout::header::{Executor, Gate, State as Word};
    let state = Word {
        mode: head.active,
        gate: Gate::Latch,
        executor: Executor::FrontEnd,
        cas_xive: head.cas_xive,
    };
    for (w, value) in [
        (word::STATE, state.to_word()),
        (word::OV5_BYTE_23, head.ov5_byte_23.into()),
    ] {
        storage.table_word(Table::Header(w)).store(value, Release);
    }
}

#[test]
fn save_load_save_is_byte_identical_on_100_000_random_states() {
    for seed in 0..100_000 {
        let mut rng = Rng::new(seed);
        let machine = random::machine(&mut rng);
        let density = [0, 5, 30, 90][rng.below(4) as usize];
        let state = random::state(&mut rng, machine, density);
        let geometry = machine.geometry().unwrap();
        let saved = state
            .encode()
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let loaded = State::decode(&saved).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let storage = used_words(&mut rng, &loaded);
        let words = Words::new(&storage, &machine, &geometry);
        words.apply(&loaded);
        set_header(&storage, &loaded.head);
        assert_eq!(words.save("random").unwrap(), saved, "seed {seed}");
        assert_eq!(loaded, state, "seed {seed}");
        // Over words in another condition, and straight from the stream.
        let storage = used_words(&mut rng, &loaded);
        let words = Words::new(&storage, &machine, &geometry);
        words.load(&Incoming::read(saved.clone()).unwrap());
        set_header(&storage, &loaded.head);
        assert_eq!(words.save("random").unwrap(), saved, "seed {seed}");
    }
}

#[test]
fn a_machine_after_reset_has_nothing_in_its_lists() {
    for ic_mode in [IcMode::Xics, IcMode::Xive, IcMode::Dual] {
        let machine = Machine::pseries(ic_mode, Compat::Papr1, 4);
        let geometry = machine.geometry().unwrap();
        let storage = PlainStorage::new(geometry);
        let words = Words::new(&storage, &machine, &geometry);
        let head = Head::new("random", machine);
        set_header(&storage, &head);
        words.apply(&State::reset(head));
        let state = State::decode(&words.save("random").unwrap()).unwrap();
        assert_eq!(state, State::reset(state.head.clone()));
    }
}

#[test]
fn words_that_a_vmm_scribbled_on_are_not_saved_as_a_state() {
    let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 2);
    let geometry = machine.geometry().unwrap();
    let fresh = || {
        let storage = PlainStorage::new(geometry);
        set_header(&storage, &Head::new("random", machine));
        Words::new(&storage, &machine, &geometry)
            .apply(&State::reset(Head::new("random", machine)));
        storage.page(Page::Icp(1)).fetch_or(icp::CONNECTED, Release);
        storage
    };
    let save = |storage: &PlainStorage| Words::new(storage, &machine, &geometry).save("random");
    save(&fresh()).unwrap();
    for (at, value, item) in [
        (
            Page::Icp(1),
            icp::CONNECTED | icp::RESET | 7,
            "icp of server 1",
        ),
        (
            Page::Icp(1),
            icp::CONNECTED | 0xff << icp::MFRR_SHIFT,
            "icp of server 1",
        ),
        (Page::IcsSource(3), ics::RESET | 5000, "xics source 0x1003"),
        (
            Page::IcsSource(3),
            ics::RESET | ics::REJECTED,
            "xics source 0x1003",
        ),
        (
            Page::Tima(1),
            tima::CONNECTED | 0x41 << tima::NSR_SHIFT,
            "ring of server 1",
        ),
    ] {
        let storage = fresh();
        storage.page(at).store(value, Release);
        let refused = save(&storage).unwrap_err().to_string();
        assert!(refused.starts_with(item), "{at:?}: {refused}");
    }
}
