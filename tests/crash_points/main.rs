//! Every point at which a daemon can be cut: each write to shared memory and each system call is numbered,
//! and for each number the daemon is stopped there with the VMM's threads active, killed, and replaced. What
//! the guest sees in the end must be what it sees if nobody dies, in one of the orders in which the
//! operation and the other threads' doings can have happened. Then each system call fails once with each
//! error that it can fail with.
//!
//! `PAPR_INTC_CRASH_ONLY=NAME` runs the scenarios whose names contain NAME; `PAPR_INTC_CRASH_AT=N` one
//! point of them.
#![allow(clippy::unwrap_used)] // tests say what they mean with unwrap

mod control;
mod guest;
mod logging;
mod moving;
mod scenarios;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use control::Control;
use guest::Guest;
use scenarios::{Results, Scenario};

/// What a guest got and sees.
type View = Vec<String>;

const ERRNOS: [i32; 4] = [libc::EINTR, libc::EAGAIN, libc::ENOMEM, libc::EMFILE];

fn view(guest: &Guest, results: &Results) -> View {
    let mut view = vec![format!("results {results:x?}")];
    view.extend(guest.view());
    view
}

/// Everything happens, nobody dies: `before` of the active steps come before the operation.
fn uncut(scenario: &Scenario, before: usize) -> View {
    let guest = Guest::start(&Control::new(), scenario.executor);
    (scenario.setup)(&guest);
    scenario.active[..before].iter().for_each(|f| f(&guest));
    let results = (scenario.operation)(&guest);
    scenario.active[before..].iter().for_each(|f| f(&guest));
    view(&guest, &results)
}

/// What may come out, in the order of likelihood.
fn expected(scenario: &Scenario) -> Vec<View> {
    [0, 2, 1].map(|before| uncut(scenario, before)).into()
}

/// A run in which something happened to the daemon.
struct Cut {
    /// How many daemons were stopped, or had a call that failed.
    hits: usize,
    point: String,
    view: View,
}

/// Waits until `done` or the daemon stands still; whether the latter.
fn stands_still(control: &Control, done: &AtomicBool) -> bool {
    loop {
        if control.take_hit() {
            return true;
        }
        if done.load(Ordering::Relaxed) {
            return control.take_hit();
        }
        thread::sleep(Duration::from_micros(50));
    }
}

/// Cuts the daemon at point `n`; its successor at point `next` of its life, and that one's at `after`, if
/// they are not 0.
fn cut(scenario: &Scenario, points: [u64; 3]) -> Cut {
    cut_with(&Control::new(), scenario, points)
}

fn cut_with(control: &Control, scenario: &Scenario, [n, next, after]: [u64; 3]) -> Cut {
    let guest = Guest::start(control, scenario.executor);
    (scenario.setup)(&guest);
    let done = AtomicBool::new(false);
    let mut hits = 0;
    let mut point = String::new();
    control.arm(n, 0);
    let results = thread::scope(|scope| {
        let operation = scope.spawn(|| {
            let results = (scenario.operation)(&guest);
            done.store(true, Ordering::Relaxed);
            results
        });
        if !stands_still(control, &done) {
            control.disarm();
            return operation.join().unwrap();
        }
        hits = 1;
        point = control.point();
        let active = scope.spawn(|| scenario.active.iter().for_each(|f| f(&guest)));
        // They may meet a lock or a gate that the dead one holds; a moment is enough for what they can do.
        let begun = Instant::now();
        while !active.is_finished() && begun.elapsed() < Duration::from_millis(2) {
            thread::yield_now();
        }
        if next != 0 {
            control.arm_next(next, after, 0);
        }
        guest.kill();
        for deeper in [next, after] {
            if deeper != 0 && stands_still(control, &done) {
                hits += 1;
                guest.kill();
            }
        }
        control.disarm();
        active.join().unwrap();
        operation.join().unwrap()
    });
    let view = view(&guest, &results);
    Cut { hits, point, view }
}

/// Lets the `n`th system call that can fail so fail with `errno`.
fn fail(scenario: &Scenario, n: u64, errno: i32) -> Cut {
    let control = Control::new();
    let guest = Guest::start(&control, scenario.executor);
    (scenario.setup)(&guest);
    control.arm(n, errno);
    let results = (scenario.operation)(&guest);
    let hits = usize::from(control.is_hit());
    control.disarm();
    let point = format!("{} failed with {errno}", control.point());
    let view = view(&guest, &results);
    Cut { hits, point, view }
}

/// The same, but for how often and where a source of XICS was accepted. A daemon that dies with an event in
/// hand whose source is presented already leaves it to that: the guest, which has yet to accept it, comes
/// after both events (SPEC.md chapter 3, "Recovery"). Such a run is counted as merged.
fn merged(view: &View) -> View {
    let merge = |line: &String| {
        let Some(pairs) = line.strip_prefix("accepted ") else {
            return line.clone();
        };
        let numbers = pairs.split(')').filter_map(|pair| pair.rsplit(", ").next());
        let numbers: BTreeSet<&str> = numbers.collect();
        format!("accepted once or more {numbers:?}")
    };
    view.iter().map(merge).collect()
}

/// Counts, over all scenarios.
#[derive(Default)]
struct Counts {
    merged: AtomicUsize,
    points: AtomicUsize,
    recovered: AtomicUsize,
    faults: AtomicUsize,
    survived: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Counts {
    fn judge(&self, scenario: &Scenario, what: &str, cut: &Cut, expected: &[View]) -> bool {
        if expected.contains(&cut.view) {
            return true;
        }
        let cut_merged = merged(&cut.view);
        if expected.iter().any(|view| merged(view) == cut_merged) {
            self.merged.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let mut text = format!(
            "{} ({:?}), {what}, {}:",
            scenario.name, scenario.executor, cut.point
        );
        for line in cut.view.iter().filter(|l| !expected[0].contains(l)) {
            text += &format!("\n    got      {line}");
        }
        for line in expected[0].iter().filter(|l| !cut.view.contains(l)) {
            text += &format!("\n    expected {line}");
        }
        println!("{text}");
        self.failures.lock().unwrap().push(text);
        false
    }
}

fn every_cut(scenario: &Scenario, counts: &Counts, expected: &[View]) -> u64 {
    let only: Option<u64> = std::env::var("PAPR_INTC_CRASH_AT")
        .ok()
        .map(|n| n.parse().unwrap());
    let mut n = only.unwrap_or(1);
    loop {
        let cut = cut(scenario, [n, 0, 0]);
        if cut.hits == 0 {
            return n - 1;
        }
        counts.points.fetch_add(1, Ordering::Relaxed);
        if counts.judge(scenario, &format!("point {n}"), &cut, expected) {
            counts.recovered.fetch_add(1, Ordering::Relaxed);
        }
        if only.is_some() {
            return n;
        }
        n += 1;
    }
}

fn every_fault(scenario: &Scenario, counts: &Counts, expected: &[View]) {
    for errno in ERRNOS {
        for n in 1.. {
            let cut = fail(scenario, n, errno);
            if cut.hits > 0 {
                counts.faults.fetch_add(1, Ordering::Relaxed);
            }
            if counts.judge(scenario, &format!("fault {n}"), &cut, expected) && cut.hits > 0 {
                counts.survived.fetch_add(1, Ordering::Relaxed);
            }
            if cut.hits == 0 {
                break;
            }
        }
    }
}

/// The daemon is cut in the middle of the operation, its successor at each point of its start, handshake and
/// recovery, and now and then the next one too.
fn every_recovery(scenario: &Scenario, counts: &Counts, expected: &[View], points: u64) -> u64 {
    let n = points / 2;
    for next in 1.. {
        let after = if next % 5 == 0 { next } else { 0 };
        let cut = cut(scenario, [n, next, after]);
        if cut.hits < 2 {
            return next - 1;
        }
        counts.points.fetch_add(1, Ordering::Relaxed);
        if counts.judge(scenario, &format!("point {n}, then {next}"), &cut, expected) {
            counts.recovered.fetch_add(1, Ordering::Relaxed);
        }
    }
    0
}

fn run(scenario: &Scenario, counts: &Counts) {
    let orders = expected(scenario);
    let points = every_cut(scenario, counts, &orders);
    let mut deep = 0;
    if scenario.recovery {
        deep = every_recovery(scenario, counts, &orders, points);
    }
    // Nobody else is active where calls fail.
    let alone = Scenario {
        active: [|_| (), |_| ()],
        ..*scenario
    };
    every_fault(&alone, counts, &[uncut(&alone, 0)]);
    let (name, executor) = (scenario.name, scenario.executor);
    println!("{name} ({executor:?}): {points} points, {deep} of its recovery");
}

/// Cuts a scenario everywhere with a recovery that does nothing; how often that was noticed.
#[test]
fn a_recovery_that_forgets_what_was_under_way_is_noticed() {
    let all = scenarios::all();
    let names = ["claim of an MSI", "H_XIRR"];
    for scenario in all.iter().filter(|s| names.contains(&s.name)) {
        let expected = expected(scenario);
        let mut noticed = 0;
        for n in 1.. {
            let control = Control::new();
            control.make_forgetful();
            let cut = cut_with(&control, scenario, [n, 0, 0]);
            if cut.hits == 0 {
                break;
            }
            noticed += usize::from(!expected.contains(&cut.view));
        }
        assert!(noticed > 0, "{} ({:?})", scenario.name, scenario.executor);
    }
}

#[test]
fn every_crash_point_and_every_fault_loses_nothing() {
    let only = std::env::var("PAPR_INTC_CRASH_ONLY").unwrap_or_default();
    let scenarios: Vec<Scenario> = scenarios::all()
        .into_iter()
        .filter(|s| s.name.contains(&only))
        .collect();
    let (counts, next) = (Counts::default(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(scenario, &counts);
                }
            });
        }
    });
    let count = |c: &AtomicUsize| c.load(Ordering::Relaxed);
    println!(
        "merged with an event not yet accepted: {}",
        count(&counts.merged)
    );
    println!(
        "points={} recovered={} faults={} survived={}",
        count(&counts.points),
        count(&counts.recovered),
        count(&counts.faults),
        count(&counts.survived)
    );
    let failures = counts.failures.lock().unwrap();
    assert!(failures.is_empty(), "{} failures", failures.len());
}
