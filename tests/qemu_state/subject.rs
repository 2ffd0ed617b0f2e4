//! A guest on QEMU: made, saved, loaded, and what it says.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::guest::{Guest, OUTCOMES};
use super::op::{Program, QUEUES, QUEUES_LEN, Step};
use super::ours::Ours;
use super::pic::Pic;
use super::qemu::{Qemu, Shape};
use super::scenario::{self, Scenario};

/// What the steps of a half showed.
pub type Outcomes = Vec<Vec<u64>>;

/// A scenario's guest, compiled.
pub struct Subject {
    scenario: Scenario,
    program: Program,
    guest: Guest,
}

impl Subject {
    fn new(scenario: Scenario) -> Self {
        let program = scenario.compose();
        let guest = Guest::compile(&program);
        Self {
            scenario,
            program,
            guest,
        }
    }

    pub fn name(&self) -> &'static str {
        self.scenario.name
    }

    pub fn shape(&self) -> Shape {
        self.scenario.shape
    }

    /// Nothing may be lost between its stream and our state.
    pub fn is_exact(&self) -> bool {
        self.scenario.exact
    }

    /// Shows a loaded guest that was saved with this state.
    pub fn assert_loaded(&self, qemu: &mut Qemu, saved: &Pic) {
        let mut expected = saved.clone();
        (self.scenario.on_load)(&mut expected);
        self.pic(qemu).assert_same(&expected, self.name());
    }

    /// Makes the state, shows it, saves it, and goes on where it stands.
    pub fn save(&self) -> Saved {
        let folder = tempfile::tempdir().unwrap();
        let stream = folder.path().join("stream");
        let mut qemu = self.prepare();
        let pic = self.pic(&mut qemu);
        for (class, is_shown) in &self.scenario.classes {
            assert!(is_shown(&pic), "{}: not shown: {class}\n{pic}", self.name());
        }
        let queues = qemu.memory(QUEUES, QUEUES_LEN);
        qemu.save(&stream);
        let after = self.take(&mut qemu);
        qemu.stop();
        let pic_after = self.pic(&mut qemu);
        Saved {
            stream,
            pic,
            queues,
            after,
            pic_after,
            folder,
        }
    }

    /// The active controller, as the monitor of a stopped QEMU shows it.
    pub fn pic(&self, qemu: &mut Qemu) -> Pic {
        Pic::parse(&qemu.info_pic())
    }

    /// A line about a guest that was saved.
    pub fn summary(&self, saved: &Saved) -> String {
        let steps = self.program.after.iter().zip(&saved.after);
        let delivered = steps.filter(|(step, outcome)| step.op.delivered(outcome));
        let (classes, delivered) = (self.scenario.classes.len(), delivered.count());
        format!("{}: classes={classes} delivered={delivered}", self.name())
    }

    /// Runs the first half, and stops.
    fn prepare(&self) -> Qemu {
        let mut qemu = Qemu::boot(self.scenario.shape, &self.guest.image);
        qemu.wait_for_turn(self.guest.turns[0]);
        qemu.stop();
        let (before, _) = self.outcomes(&mut qemu);
        self.assert_done(&before);
        qemu
    }

    /// The guest as it was saved, stopped.
    pub fn load(&self, stream: &Path) -> Result<Qemu, String> {
        Qemu::load(self.scenario.shape, &self.guest.image, stream)
    }

    /// Runs the second half of a guest that stands where it was saved.
    pub fn take(&self, qemu: &mut Qemu) -> Outcomes {
        qemu.resume();
        qemu.inject_nmi();
        qemu.wait_for_turn(self.guest.turns[1]);
        self.outcomes(qemu).1
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
        let program = &self.program;
        (half(&program.before), half(&program.after))
    }

    /// The first half does what it is for.
    fn assert_done(&self, outcomes: &Outcomes) {
        for (step, outcome) in self.program.before.iter().zip(outcomes) {
            let done = step.op.succeeded(outcome);
            assert!(done, "{}: {step:x?} gave {outcome:x?}", self.name());
        }
    }

    /// The second half, done by us, shows what it showed on QEMU.
    pub fn assert_same_as_ours(&self, expected: &Outcomes, ours: &Ours) {
        for (step, expected) in self.program.after.iter().zip(expected) {
            if let Some(got) = ours.step(step) {
                let name = self.name();
                assert_eq!(*expected, got, "{name}: {step:x?} (left: QEMU)");
            }
        }
    }

    /// The second half showed the same, step by step.
    pub fn assert_same(&self, expected: &Outcomes, got: &Outcomes) {
        let steps = self.program.after.iter();
        for ((step, expected), got) in steps.zip(expected).zip(got) {
            let name = self.name();
            assert_eq!(
                expected, got,
                "{name}: {step:x?} (left: where it was saved)"
            );
        }
    }
}

/// A guest that was saved. Its files go with it.
pub struct Saved {
    pub stream: PathBuf,
    /// The controller when it was saved.
    pub pic: Pic,
    /// The event queues then.
    pub queues: Vec<u8>,
    /// What the second half showed on the guest that went on.
    pub after: Outcomes,
    /// The controller at the end of that.
    pub pic_after: Pic,
    /// Holds the stream, and others that are made of it.
    pub folder: TempDir,
}

impl Saved {
    /// A word of an event queue.
    pub fn word(&self, gpa: u64) -> u32 {
        let at = (gpa - QUEUES) as usize;
        u32::from_be_bytes(self.queues[at..at + 4].try_into().unwrap())
    }
}

/// All guests, compiled.
pub fn subjects() -> impl Iterator<Item = Subject> {
    scenario::all().into_iter().map(Subject::new)
}
