//! Stock QEMU guests with interrupts pending in every class: saved, converted, loaded, converted back, loaded again.
//!
//! Needs `qemu-system-ppc64`: `tests/qemu/state` installs it and runs this. A guest ([`scenario`]) is a list of
//! operations ([`op`]), compiled into firmware ([`guest`], [`asm`]) that makes the state, waits to be saved, and
//! takes what is pending afterwards. QEMU ([`qemu`]) runs it ([`subject`]); its monitor ([`pic`]) shows the
//! controller, [`neutral`] what it has to show. [`convert`] changes formats, [`ours`] is the guest on our daemon.
#![allow(clippy::unwrap_used)] // a test that cannot go on says where

mod asm;
mod convert;
mod guest;
mod neutral;
mod op;
mod ours;
mod pic;
mod qemu;
mod scenario;
mod subject;

use std::fs;

use papr_intc_frontend::Executor;
use papr_intc_protocol::state::State;

use ours::Ours;
use subject::{Saved, Subject, subjects};

#[test]
#[ignore = "needs qemu-system-ppc64: tests/qemu/state"]
fn what_is_pending_survives_qemus_own_migration() {
    for subject in subjects() {
        let saved = subject.save();
        let mut loaded = subject.load(&saved.stream).unwrap();
        subject.assert_loaded(&mut loaded, &saved.pic);
        subject.assert_same(&saved.after, &subject.take(&mut loaded));
        println!("{}", subject.summary(&saved));
    }
}

#[test]
#[ignore = "needs qemu-system-ppc64: tests/qemu/state"]
fn a_stream_becomes_the_state_that_the_monitor_shows() {
    for subject in subjects() {
        let saved = subject.save();
        let (state, notes) = convert::from_qemu(&saved.stream, subject.shape());
        let shows = |file| convert::show(file, subject.shape());
        let out = saved.folder.path().join("state");
        fs::write(&out, state.encode().unwrap()).unwrap();
        assert_eq!(shows(&saved.stream), shows(&out), "{}", subject.name());
        assert!(notes.is_empty() || !subject.is_exact(), "{notes:?}");
        let shown = neutral::shown(&state, |gpa| saved.word(gpa));
        shown.assert_same(&saved.pic, subject.name());
    }
}

#[test]
#[ignore = "needs qemu-system-ppc64: tests/qemu/state"]
fn a_state_goes_back_into_a_stream_that_qemu_loads() {
    for subject in subjects() {
        let (name, shape) = (subject.name(), subject.shape());
        let saved = subject.save();
        let (state, _) = convert::from_qemu(&saved.stream, shape);
        // A stream of the same guest, with controllers that were never used.
        let wiped = saved.folder.path().join("wiped");
        let reset = State {
            inputs: Vec::new(),
            xics: Default::default(),
            xive: Default::default(),
            ..state.clone()
        };
        convert::to_qemu(&reset, &saved.stream, &wiped, shape);
        let shown = subject.pic(&mut subject.load(&wiped).unwrap());
        shown.assert_same(&neutral::shown(&reset, |_| 0), name);

        let back = saved.folder.path().join("back");
        convert::to_qemu(&state, &wiped, &back, shape);
        let same = fs::read(&back).unwrap() == fs::read(&saved.stream).unwrap();
        assert!(
            same || !subject.is_exact(),
            "{name}: not the stream that was saved"
        );
        let mut loaded = subject.load(&back).unwrap();
        subject.assert_loaded(&mut loaded, &saved.pic);
        subject.assert_same(&saved.after, &subject.take(&mut loaded));
    }
}

#[test]
#[ignore = "needs qemu-system-ppc64: tests/qemu/state"]
fn a_guest_of_qemus_goes_on_under_our_daemon_and_returns() {
    for subject in subjects() {
        let (name, shape) = (subject.name(), subject.shape());
        let saved = subject.save();
        let (state, _) = convert::from_qemu(&saved.stream, shape);
        for executor in [Executor::FrontEnd, Executor::Daemon] {
            let ours = Ours::start(shape, &saved.queues, executor);
            ours.load(&state);
            arrived(&subject, &saved, &state, &ours);
            // It goes on as it did on QEMU, to the same end.
            subject.assert_same_as_ours(&saved.after, &ours);
            let moved = ours.save();
            let shown = neutral::shown(&moved, |gpa| ours.word(gpa));
            shown.assert_same(&saved.pic_after, name);

            let back = saved.folder.path().join("back");
            convert::to_qemu(&moved, &saved.stream, &back, shape);
            let returned = subject.pic(&mut subject.load(&back).unwrap());
            let returned = returned.without_entries();
            returned.assert_same(&shown.without_entries(), name);
        }
    }
}

/// All of a state is on our side, and shows what QEMU showed; lines are as it asks.
fn arrived(subject: &Subject, saved: &Saved, state: &State, ours: &Ours) {
    let here = ours.save();
    assert_eq!((&here.xics, &here.xive), (&state.xics, &state.xive));
    assert_eq!((&here.claims, &here.inputs), (&state.claims, &state.inputs));
    let shown = neutral::shown(&here, |gpa| ours.word(gpa));
    shown.assert_same(&saved.pic, subject.name());
    for (cpu, vcpu) in ours.vcpus.iter().enumerate() {
        let (line, expected) = (vcpu.pending(), saved.pic.line(cpu));
        assert_eq!(line, expected, "{}: vCPU {cpu}", subject.name());
    }
}
