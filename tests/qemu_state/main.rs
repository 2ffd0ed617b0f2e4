//! Stock QEMU guests with interrupts pending in every class, saved and loaded.
//!
//! Needs `qemu-system-ppc64`: `tests/qemu/state` installs it and runs this. A guest ([`scenario`]) is a list of
//! operations ([`op`]), compiled into firmware ([`guest`], [`asm`]) that makes the state, waits to be saved, and
//! takes what is pending afterwards. QEMU ([`qemu`]) runs it; its monitor ([`pic`]) shows the controller.
#![allow(clippy::unwrap_used)] // a test that cannot go on says where

mod asm;
mod guest;
mod op;
mod pic;
mod qemu;
mod scenario;

use std::path::Path;

use guest::{Guest, OUTCOMES};
use op::Step;
use pic::Pic;
use qemu::Qemu;
use scenario::Scenario;

/// What the steps of a half showed.
type Outcomes = Vec<Vec<u64>>;

/// A scenario's guest, compiled.
struct Subject {
    scenario: Scenario,
    guest: Guest,
}

impl Subject {
    fn new(scenario: Scenario) -> Self {
        let guest = Guest::compile(&scenario.program);
        Self { scenario, guest }
    }

    /// Runs the first half, and stops.
    fn prepare(&self) -> Qemu {
        let mut qemu = Qemu::boot(self.scenario.mode, &self.guest.image);
        qemu.wait_for_turn(self.guest.turns[0]);
        qemu.stop();
        let (before, _) = self.outcomes(&mut qemu);
        self.assert_done(&self.scenario.program.before, &before);
        qemu
    }

    fn load(&self, stream: &Path) -> Result<Qemu, String> {
        Qemu::load(self.scenario.mode, &self.guest.image, stream)
    }

    /// Runs the second half of a guest that stands where it was saved.
    fn take(&self, qemu: &mut Qemu) -> Outcomes {
        qemu.resume();
        qemu.inject_nmi();
        qemu.wait_for_turn(self.guest.turns[1]);
        let (_, after) = self.outcomes(qemu);
        self.assert_done(&self.scenario.program.after, &after);
        after
    }

    fn outcomes(&self, qemu: &mut Qemu) -> (Outcomes, Outcomes) {
        let memory = qemu.memory(OUTCOMES, 8 * self.guest.outcome_words);
        let mut words = memory
            .chunks(8)
            .map(|word| u64::from_be_bytes(word.try_into().unwrap()));
        let mut half = |steps: &[Step]| {
            let outcome = |step: &Step| words.by_ref().take(step.op.outcome_len()).collect();
            steps.iter().map(outcome).collect()
        };
        let program = &self.scenario.program;
        (half(&program.before), half(&program.after))
    }

    fn assert_done(&self, steps: &[Step], outcomes: &Outcomes) {
        for (step, outcome) in steps.iter().zip(outcomes) {
            let done = step.op.succeeded(outcome);
            assert!(done, "{}: {step:x?} gave {outcome:x?}", self.scenario.name);
        }
    }

    /// The first step of the second half that showed something else.
    fn assert_same(&self, expected: &Outcomes, got: &Outcomes) {
        let steps = self.scenario.program.after.iter();
        for ((step, expected), got) in steps.zip(expected).zip(got) {
            let name = self.scenario.name;
            assert_eq!(
                expected, got,
                "{name}: {step:x?} (left: where it was saved)"
            );
        }
    }
}

#[test]
#[ignore = "needs qemu-system-ppc64: tests/qemu/state"]
fn what_is_pending_in_qemu_survives_qemus_own_migration() {
    let folder = tempfile::tempdir().unwrap();
    for scenario in scenario::all() {
        let subject = Subject::new(scenario);
        let name = subject.scenario.name;
        let mut source = subject.prepare();
        let pic = Pic::parse(&source.info_pic());
        for (class, is_shown) in &subject.scenario.classes {
            assert!(is_shown(&pic), "{name}: not shown: {class}\n{pic}");
        }
        let stream = folder.path().join("stream");
        source.save(&stream);
        let expected = subject.take(&mut source);
        let mut loaded = subject.load(&stream).unwrap();
        assert_eq!(Pic::parse(&loaded.info_pic()), pic, "{name}");
        subject.assert_same(&expected, &subject.take(&mut loaded));
        println!("{name}: {} classes", subject.scenario.classes.len());
    }
}
