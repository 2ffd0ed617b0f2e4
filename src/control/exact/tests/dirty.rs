//! The dirty log of a daemon that dies: whoever copies the marked pages, at any moment and once more in the
//! end, has all of guest memory.

use std::collections::BTreeSet;

use super::*;

/// When the dirty pages are taken and copied, beside the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Moment {
    #[default]
    Never,
    BeforeEntry,
    BeforeMark,
}

/// Dirty pages, and what was copied of them so far.
#[derive(Default)]
pub(super) struct Log {
    marked: RefCell<BTreeSet<u64>>,
    sent: RefCell<BTreeMap<u64, u32>>,
    take_at: Cell<Moment>,
}

impl Log {
    /// Everything has just been copied.
    pub(super) fn sent(ram: &BTreeMap<u64, u32>) -> Self {
        Self {
            sent: ram.clone().into(),
            ..Self::default()
        }
    }

    pub(super) fn mark(&self, gpa: u64) {
        self.marked.borrow_mut().insert(gpa >> 12);
    }
}

impl World {
    /// Takes the dirty pages, if this is the moment.
    pub(super) fn take_at(&self, moment: Moment) {
        if self.log.take_at.get() == moment {
            self.take();
        }
    }

    fn take(&self) {
        let taken = self.log.marked.take();
        let ram = self.ram.borrow();
        let copied = ram.iter().filter(|(gpa, _)| taken.contains(&(*gpa >> 12)));
        self.log.sent.borrow_mut().extend(copied);
    }

    fn is_all_sent(&self) -> bool {
        self.take();
        *self.log.sent.borrow() == *self.ram.borrow()
    }
}

/// How a daemon runs an operation that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// Beside a front-end that executes.
    InPlace,
    /// Alone.
    Committed,
}

/// One daemon is cut after `cut` stores, another takes over. Whether everything is copied in the end.
fn migrates(case: &Case, image: &Shared, run: Run, cut: u32, moment: Moment, marks: bool) -> bool {
    let world = case.copy(image);
    world.0.log.take_at.set(moment);
    match (run, case.operation) {
        (Run::InPlace, Some(operation)) => {
            world.0.life.set(cut);
            operation(&case.daemon(&world, 2).controller());
        }
        _ => drop(case.live(&world, cut, 2)),
    }
    world.0.log.take_at.set(Moment::Never);
    world.0.life.set(u32::MAX);
    if marks {
        case.daemon(&world, 3).host().mark_last_page();
    }
    world.0.is_all_sent()
}

/// Every case, cut and moment of a run: how many there are, and how many of them lose a page.
fn losses(run: Run, marks: bool) -> (u32, u32) {
    let (mut runs, mut lost) = (0, 0);
    for case in cases().filter(|c| c.mode == Mode::Xive) {
        let image = case.world();
        let (_, stores) = case.uncut();
        for moment in [Moment::Never, Moment::BeforeEntry, Moment::BeforeMark] {
            for cut in 0..=stores {
                runs += 1;
                lost += u32::from(!migrates(&case, &image, run, cut, moment, marks));
            }
        }
    }
    (runs, lost)
}

#[test]
fn a_page_whose_writer_was_killed_before_it_could_mark_it_is_marked_by_the_next() {
    for run in [Run::InPlace, Run::Committed] {
        let (runs, lost) = losses(run, true);
        assert!(runs > 500, "{run:?}: {runs} runs");
        assert_eq!(lost, 0, "{run:?}");
    }
}

#[test]
fn without_the_record_of_the_page_such_kills_lose_it() {
    for run in [Run::InPlace, Run::Committed] {
        assert!(losses(run, false).1 > 0, "{run:?}");
    }
}
