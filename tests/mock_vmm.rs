//! The mock VMM ends well on a sound daemon, in every mode and way of running, and notices every
//! fault that is put in on purpose (issue "the whole path", shown by 4).

#![allow(clippy::unwrap_used)] // Tests say what they mean with unwrap.

use std::path::PathBuf;
use std::process::{Command, Output};

/// The example of the same build: cargo puts it beside `deps`, where this test is.
fn example() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("examples/mock_vmm");
    // `cargo test` builds it; `cargo test --test mock_vmm` alone does not.
    assert!(path.exists(), "cargo build --example mock_vmm first");
    path
}

fn run(arguments: &str) -> Output {
    Command::new(example())
        .args(["--daemon", env!("CARGO_BIN_EXE_papr-intc")])
        // Or it would build the examples that it starts, which are there.
        .env_remove("CARGO")
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

/// A value of the last line, `lost=0 spurious=0 delivered=1 kills=1 migrations=0 aborted=0`.
fn value(output: &Output, name: &str) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    let mut words = last.split(' ').filter_map(|word| word.split_once('='));
    let found = words.find(|(key, _)| *key == name);
    let number = found.and_then(|(_, value)| value.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {last:?}; {}", everything(output)))
}

fn everything(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn ends_well(arguments: &str) -> Output {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments}: {}",
        everything(&output)
    );
    assert_eq!(value(&output, "lost"), 0);
    assert!(value(&output, "delivered") > 0);
    output
}

#[test]
fn mapped_nothing_is_lost_though_the_daemon_is_killed() {
    for mode in ["xics", "xive", "dual"] {
        let output = ends_well(&format!("--mode {mode} --duration 1 --kills 1"));
        assert_eq!(value(&output, "kills"), 1);
        assert_eq!(value(&output, "spurious"), 0, "{}", everything(&output));
    }
}

#[test]
fn mapped_nothing_is_lost_or_doubled_however_often_the_daemon_is_killed() {
    for mode in ["xics", "xive", "dual"] {
        let output = ends_well(&format!("--mode {mode} --duration 2 --chaos kill=50"));
        assert!(value(&output, "kills") > 1, "{}", everything(&output));
        assert_eq!(value(&output, "spurious"), 0, "{}", everything(&output));
    }
}

#[test]
fn remote_nothing_is_lost_however_often_the_daemon_is_killed() {
    for mode in ["xics", "xive", "dual"] {
        let output = ends_well(&format!(
            "--mode {mode} --duration 2 --remote --chaos kill=25"
        ));
        assert!(value(&output, "kills") > 1, "{}", everything(&output));
    }
}

#[test]
fn nothing_is_lost_when_the_daemon_is_stopped_for_a_while_or_for_good() {
    for how in ["", "--remote"] {
        let output = ends_well(&format!("--duration 2 {how} --chaos stop=4,hang=1"));
        assert!(value(&output, "stops") > 0, "{}", everything(&output));
        assert!(value(&output, "hangs") > 0, "{}", everything(&output));
    }
}

#[test]
fn nothing_is_lost_in_upgrades_and_changes_of_the_executor_with_kills_among_them() {
    for mode in ["xics", "xive"] {
        let output = ends_well(&format!(
            "--mode {mode} --duration 2 --chaos kill=3,upgrade=2,switch=2,plug=5"
        ));
        assert!(value(&output, "upgrades") > 0, "{}", everything(&output));
        assert!(value(&output, "plugs") > 0, "{}", everything(&output));
        assert!(value(&output, "switches") > 0, "{}", everything(&output));
    }
}

/// Moves between daemons, some of them given up; a daemon is killed in others, and between them.
fn is_moved(how: &str) {
    let kills = "--chaos kill=10 --migrate-every 0.1";
    let output = ends_well(&format!("--duration 6 {kills} {how}"));
    for what in ["migrations", "aborted", "kills"] {
        assert!(value(&output, what) > 0, "{}", everything(&output));
    }
    if !how.contains("--remote") {
        assert_eq!(value(&output, "spurious"), 0, "{}", everything(&output));
    }
}

#[test]
fn mapped_nothing_is_lost_or_doubled_when_the_guest_moves_between_daemons() {
    for mode in ["xics", "xive", "dual"] {
        is_moved(&format!("--mode {mode}"));
    }
}

#[test]
fn remote_nothing_is_lost_when_the_guest_moves_between_daemons() {
    for mode in ["xics", "xive", "dual"] {
        is_moved(&format!("--mode {mode} --remote"));
    }
}

#[test]
fn nothing_is_lost_when_moves_meet_upgrades_and_changes_of_the_executor() {
    let chaos = "--chaos kill=3,stop=2,upgrade=2,switch=2,plug=5";
    let output = ends_well(&format!("--duration 6 {chaos} --migrate-every 0.1"));
    for what in ["migrations", "aborted", "upgrades", "switches"] {
        assert!(value(&output, what) > 0, "{}", everything(&output));
    }
}

#[test]
fn remote_nothing_is_lost() {
    for mode in ["xics", "xive", "dual"] {
        ends_well(&format!("--mode {mode} --duration 1 --remote --no-kill"));
    }
}

#[test]
fn with_every_call_forwarded_nothing_is_lost() {
    for mode in ["xics", "xive", "dual"] {
        ends_well(&format!(
            "--mode {mode} --duration 1 --forward-all --no-kill"
        ));
    }
}

#[test]
fn one_vcpu_and_many_vcpus_do_as_well() {
    for vcpus in [1, 2, 16] {
        ends_well(&format!("--vcpus {vcpus} --duration 1 --seed {vcpus}"));
    }
}

#[test]
fn server_numbers_may_have_gaps() {
    for mode in ["xics", "xive"] {
        ends_well(&format!("--mode {mode} --stride 8 --duration 1"));
    }
}

#[test]
fn the_guest_is_sound_on_a_plain_model_too() {
    for mode in ["xics", "xive", "dual"] {
        ends_well(&format!("--mode {mode} --duration 1 --model"));
    }
}

/// Runs long enough for the fault to strike, and ends as soon as it has been noticed.
fn is_noticed(fault: &str, mode: &str) {
    let arguments = format!("--break {fault} --mode {mode} --duration 20 --patience 2 --no-kill");
    let output = run(&arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{arguments}: {}",
        everything(&output)
    );
    assert!(value(&output, "lost") > 0, "{}", everything(&output));
}

#[test]
fn swallowed_triggers_are_noticed() {
    is_noticed("forward", "xics");
    is_noticed("forward", "xive");
}

#[test]
fn events_swallowed_in_a_move_are_noticed() {
    is_noticed("move --migrate-every 0.1", "xics");
    is_noticed("move --migrate-every 0.1", "xive");
}

#[test]
fn dropped_kicks_are_noticed() {
    is_noticed("kick", "xics");
    is_noticed("kick", "xive");
}

#[test]
fn a_resend_that_does_not_happen_is_noticed() {
    is_noticed("resend", "xics");
    is_noticed("resend", "xive");
}

#[test]
fn a_wrong_generation_bit_is_noticed() {
    is_noticed("generation", "xive");
    is_noticed("generation", "dual");
}
