//! Random steps. At each look the dirty pages are a superset of the difference and hold nothing that was
//! never written; when nothing happened, nothing is dirty.

use papr_intc_frontend::{DirtyPages, LOG_PAGE};

use crate::bench::{Bench, How};
use crate::queues::{
    Copy, Dice, MSI, SOURCES, fire, guest, is_queue, is_written_to, mapped, move_queue, other,
    remote, route, vmm_writes, ways,
};

/// How the pages are taken.
type Take = fn(&Bench) -> DirtyPages;

/// As a VMM does.
fn both(bench: &Bench) -> DirtyPages {
    bench.intc.take_dirty()
}

/// Marks of the daemon are overlooked.
fn front_end_only(bench: &Bench) -> DirtyPages {
    bench.ram.take_dirty()
}

/// Marks of the front-end are overlooked.
fn daemon_only(bench: &Bench) -> DirtyPages {
    bench.ram.take_dirty();
    bench.intc.take_dirty()
}

struct Walk {
    bench: Bench,
    dice: Dice,
    take: Take,
    /// RAM at the last look, while logging is on.
    copy: Option<Copy>,
    /// Something has happened since the last look.
    busy: bool,
    found: Found,
}

/// What the looks of a walk found.
#[derive(Debug, Default)]
struct Found {
    looks: u32,
    /// Pages of queues that differed, over all looks.
    queue_pages: usize,
    /// Pages that differed and were not in the set.
    missed: usize,
}

impl Walk {
    fn new(how: &How, seed: u64, take: Take) -> Self {
        Self {
            bench: guest(how),
            dice: Dice::new(seed),
            take,
            copy: None,
            busy: false,
            found: Found::default(),
        }
    }

    fn step(&mut self) {
        let lisn = MSI + self.dice.below(SOURCES.into()) as u32;
        let bench = &self.bench;
        let of_100 = self.dice.below(100);
        // Neither looks, nor configuration, nor another executor write anything; the next daemon may mark.
        self.busy |= matches!(of_100, 0..56 | 96..) || bench.forwards() && of_100 >= 91;
        match of_100 {
            0..50 => fire(bench, lisn),
            50..56 => vmm_writes(bench, &mut self.dice),
            56..76 => self.look(),
            76..82 => route(bench, lisn, self.dice.below(2)),
            82..86 => move_queue(bench, &mut self.dice),
            86..91 => self.switch_log(),
            91..96 if !bench.forwards() => self.switch_executor(),
            _ => bench.kill_and_wait(),
        }
    }

    fn switch_log(&mut self) {
        let intc = &self.bench.intc;
        if self.copy.take().is_some() {
            intc.stop_dirty_log().unwrap();
            return;
        }
        intc.start_dirty_log().unwrap();
        intc.take_dirty();
        self.copy = Some(Copy::of(&self.bench));
        self.busy = false;
    }

    fn switch_executor(&self) {
        let intc = &self.bench.intc;
        let long = std::time::Duration::from_secs(60);
        intc.quiesce(long).unwrap();
        intc.resume(Some(other(intc.executor()))).unwrap();
    }

    fn look(&mut self) {
        let Some(copy) = &mut self.copy else {
            return;
        };
        let differing = copy.differing();
        let taken = (self.take)(&self.bench);
        assert!(self.busy || taken.is_empty(), "nothing has happened");
        let never = taken.iter().find(|gpa| !is_written_to(*gpa));
        assert_eq!(never, None, "a page that nobody wrote");
        copy.update(&taken);
        self.busy = false;
        self.found.looks += 1;
        self.found.queue_pages += differing.iter().filter(|gpa| is_queue(**gpa)).count();
        let missed = differing.iter().filter(|gpa| !taken.contains(**gpa));
        self.found.missed += missed.count();
    }

    fn run(mut self, steps: u32) -> Found {
        for _ in 0..steps {
            self.step();
        }
        self.found
    }
}

#[test]
fn what_differs_is_in_the_set_and_what_nobody_wrote_is_not() {
    for (name, how) in ways() {
        for seed in 1..=3 {
            let found = Walk::new(&how, seed, both).run(600);
            println!("{name}, seed {seed}: {found:?}");
            assert_eq!(found.missed, 0, "{name}, seed {seed}");
            assert!(found.looks > 20 && found.queue_pages > 20, "{found:?}");
        }
    }
}

/// The walk notices when either half of the marks is missing.
#[test]
fn the_marks_of_one_side_alone_are_not_enough() {
    for (how, take) in [(mapped(), daemon_only as Take), (remote(), front_end_only)] {
        let found = Walk::new(&how, 1, take).run(600);
        assert!(found.missed > 0, "{found:?}");
    }
}

#[test]
fn while_logging_is_off_the_daemon_marks_nothing() {
    let bench = guest(&remote());
    bench.intc.take_dirty();
    bench.intc.start_dirty_log().unwrap();
    fire(&bench, MSI);
    assert_eq!(bench.intc.take_dirty().count(), 1);
    bench.intc.stop_dirty_log().unwrap();
    bench.intc.stop_dirty_log().unwrap();
    fire(&bench, MSI);
    bench.kill_and_wait();
    fire(&bench, MSI);
    assert!(bench.intc.take_dirty().is_empty());
    // Nor is anything left of it when logging starts again.
    bench.intc.start_dirty_log().unwrap();
    assert!(bench.intc.take_dirty().is_empty());
}

/// Whatever happened at the end of a daemon: between an entry and its mark there is nothing to see from outside.
#[test]
fn the_page_that_a_killed_daemon_wrote_last_is_marked_by_the_next() {
    let bench = guest(&remote());
    bench.intc.start_dirty_log().unwrap();
    fire(&bench, MSI + 1);
    fire(&bench, MSI);
    bench.intc.take_dirty();
    fire(&bench, MSI);
    let last = bench.intc.take_dirty();
    assert_eq!(last.count(), 1);
    for _ in 0..2 {
        bench.kill_and_wait();
        assert_eq!(bench.intc.take_dirty(), last);
    }
}

#[test]
fn an_upgrade_goes_on_logging() {
    let bench = guest(&remote());
    bench.intc.start_dirty_log().unwrap();
    bench.intc.take_dirty();
    bench.intc.upgrade(crate::bench::launcher()).unwrap();
    // What the old daemon wrote last may be marked once more.
    bench.intc.take_dirty();
    fire(&bench, MSI);
    let taken = bench.intc.take_dirty();
    assert_eq!(taken.count(), 1);
    assert!(taken.iter().all(|gpa| is_queue(gpa) && gpa % LOG_PAGE == 0));
    // A second start changes nothing.
    fire(&bench, MSI);
    bench.intc.start_dirty_log().unwrap();
    assert_eq!(bench.intc.take_dirty().count(), 1);
}
