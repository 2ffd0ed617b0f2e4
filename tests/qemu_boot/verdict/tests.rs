//! Recorded boots, each with one thing wrong: every one must fail, for its reason.

use super::*;
use crate::matrix::Cpu;

const GOOD: &str = "\
console: [    0.000000] Linux version 6.1.0-powerpc64le (gcc 12.2.0)\r
console: [    0.000000] Kernel command line: console=hvc0 panic=-1 papr.work=plain\r
console: papr-guest: UP 6.1.0-powerpc64le work=plain boot=0 xive cpus=2 seconds=2.50\r
console: papr-guest: STEP blk ok 64 requests\r
console: papr-guest: INTERRUPTS  17:   5100   20  XIVE 4608 Edge      virtio0-req.0\r
console: papr-guest: INTERRUPTS  18:   0   8  XIVE 4609 Edge      virtio1-req.0\r
console: papr-guest: STEP ipi ok\r
console: papr-guest: DONE ok\r
errors: papr-intc-rig: served hcalls=61 loads=4200 stores=3300 events=1770 queue-writes=2086 restarts=0 differences=0
";

fn record(text: &str, end: End) -> Record {
    let mut record = Record {
        end: Some(end),
        ..Record::default()
    };
    for (n, line) in (0..).zip(text.lines()) {
        let (stream, line) = match line.split_once(": ") {
            Some(("console", line)) => (Stream::Console, line),
            Some(("errors", line)) => (Stream::Errors, line),
            _ => panic!("{line}"),
        };
        record.hear(Duration::from_secs(n), stream, line.trim_end());
    }
    record
}

fn demands(way: Way) -> Demands {
    let boot = Boot {
        ic_mode: IcMode::Dual,
        vcpus: 2,
        cpu: Cpu::Power9,
        way,
    };
    Demands { boot, reboots: 0 }
}

/// The boot's faults, as one line.
fn faults(record: &Record, way: Way) -> String {
    record.complaints(demands(way)).join("; ")
}

fn without(part: &str) -> String {
    let kept: Vec<&str> = GOOD.lines().filter(|l| !l.contains(part)).collect();
    assert!(kept.len() < GOOD.lines().count(), "{part} is not there");
    kept.join("\n")
}

fn instead(of: &str, other: &str) -> String {
    assert!(GOOD.contains(of), "{of} is not there");
    GOOD.replace(of, other)
}

fn good(text: &str) -> Record {
    record(text, End::Exited(0))
}

#[test]
fn a_good_boot_passes() {
    let record = good(GOOD);
    for way in [Way::Plain, Way::Remote, Way::Shadow, Way::Stock] {
        assert_eq!(faults(&record, way), "");
    }
    assert_eq!(record.up, Some(Duration::from_secs(2)));
    assert_eq!(record.interrupts(), Some(5_128));
}

#[test]
fn a_failed_step_fails_even_if_the_guest_is_content() {
    let text = instead("STEP ipi ok", "STEP ipi FAILED 3 lost");
    assert_eq!(faults(&good(&text), Way::Plain), "step ipi failed: 3 lost");
}

#[test]
fn a_guest_that_counts_failures_fails() {
    let text = instead("DONE ok", "DONE failed=2");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the guest counts 2 failed"
    );
}

#[test]
fn a_guest_that_is_never_done_fails() {
    let text = without("DONE");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the guest never said DONE, after step ipi"
    );
}

#[test]
fn a_guest_that_did_nothing_fails() {
    let text = without("STEP");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the guest is done and did nothing"
    );
}

#[test]
fn a_line_cut_short_fails() {
    let text = instead("STEP ipi ok", "STEP ipi");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "cannot be read: papr-guest: STEP ipi"
    );
}

#[test]
fn a_kernel_in_trouble_fails() {
    let text = format!("{GOOD}console: [  9.0] irq 18: nobody cared (try booting)\n");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "kernel: [  9.0] irq 18: nobody cared (try booting)"
    );
}

#[test]
fn differences_fail() {
    let text = instead("differences=0", "differences=4");
    let unsaid = "4 differences from QEMU: nobody says which";
    assert_eq!(faults(&good(&text), Way::Shadow), unsaid);
    let said = "errors: papr-intc-rig: difference: hcall 0 6c: QEMU line 1; papr-intc line 0\n";
    let first = "4 differences from QEMU: hcall 0 6c: QEMU line 1; papr-intc line 0";
    assert_eq!(faults(&good(&format!("{said}{text}")), Way::Shadow), first);
    // Even if the end is never reached.
    let cut = record(said, End::Settled).differences();
    assert_eq!(cut.as_deref(), Some(&*first.replace('4', "1")));
}

#[test]
fn a_rig_that_does_not_say_what_it_served_fails() {
    let text = without("served");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "no summary of the rig's: did it serve at all?"
    );
    assert_eq!(faults(&good(&text), Way::Stock), "");
    let text = instead("hcalls=61", "hcalls=0");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the rig served no hypercall"
    );
}

#[test]
fn a_rig_that_refuses_fails_and_says_why() {
    let text = "errors: papr-intc-rig: refused: QEMU 9.9.9 is not known\n";
    let said = faults(&record(text, End::Exited(REFUSED)), Way::Plain);
    assert!(
        said.starts_with("the rig refused this QEMU: QEMU 9.9.9 is not known; "),
        "{said}"
    );
    let went_on = format!("{text}{GOOD}");
    assert_ne!(faults(&good(&went_on), Way::Plain), "");
}

#[test]
fn a_qemu_that_dies_fails() {
    let faults_of = |end| faults(&record(GOOD, end), Way::Plain);
    assert_eq!(faults_of(End::Signal(11)), "QEMU died of signal 11");
    assert_eq!(faults_of(End::Exited(1)), "QEMU exited with status 1");
    assert_eq!(faults_of(End::Broken("no QEMU".to_owned())), "no QEMU");
    assert_eq!(faults_of(End::Loops), "restarts again and again");
}

#[test]
fn silence_fails() {
    let text = "console: papr-guest: UP xive cpus=2\nconsole: papr-guest: WANT cpu_add\n";
    let record = record(text, End::Silent(Duration::from_secs(60)));
    assert_eq!(
        faults(&record, Way::Plain),
        "silent for 60 s; the guest never said DONE, after it wanted cpu_add"
    );
}

#[test]
fn a_boot_that_never_ends_fails_whatever_it_said() {
    let record = record(GOOD, End::TooLong(Duration::from_secs(300)));
    assert_eq!(faults(&record, Way::Plain), "not over after 300 s");
    let unended = Record {
        end: None,
        ..good(GOOD)
    };
    assert_eq!(faults(&unended, Way::Plain), "never ended");
}

#[test]
fn a_panic_fails() {
    let text = "console: [    1.0] Kernel panic - not syncing: VFS\n";
    assert_eq!(
        faults(&record(text, End::Settled), Way::Plain),
        "kernel: [    1.0] Kernel panic - not syncing: VFS; the guest never said DONE, after nothing"
    );
}

#[test]
fn kills_must_have_happened_and_been_survived() {
    let restarted = instead("restarts=0", "restarts=3");
    let killed = |text: &str, kills| Record {
        kills,
        ..good(text)
    };
    assert_eq!(faults(&killed(&restarted, 3), Way::Killed), "");
    assert_eq!(
        faults(&killed(&restarted, 0), Way::Killed),
        "the daemon was never killed"
    );
    assert_eq!(
        faults(&killed(GOOD, 3), Way::Killed),
        "no daemon was restarted"
    );
    let cut = restarted.replace("console: papr-guest: DONE ok\r\n", "");
    assert_ne!(faults(&killed(&cut, 3), Way::Killed), "");
}

#[test]
fn a_daemon_that_dies_by_itself_fails() {
    let restarted = instead("restarts=0", "restarts=1");
    let restarted = format!("errors: papr-intc-rig: the daemon is lost: no answer\n{restarted}");
    for way in [Way::Plain, Way::Remote, Way::Shadow] {
        assert_eq!(
            faults(&good(&restarted), way),
            "1 daemons replaced that nobody killed: no answer"
        );
    }
}

#[test]
fn upgrades_must_have_happened() {
    assert_eq!(faults(&good(GOOD), Way::Upgraded), "no daemon was upgraded");
    let upgraded = Record {
        upgrades: 1,
        ..good(GOOD)
    };
    assert_eq!(faults(&upgraded, Way::Upgraded), "");
    let died = Record {
        upgrades: 1,
        ..good(&instead("restarts=0", "restarts=3"))
    };
    assert_eq!(
        faults(&died, Way::Upgraded),
        "2 daemons replaced that nobody killed: nobody says why"
    );
}

#[test]
fn an_order_that_was_not_carried_out_fails() {
    let mut record = good(GOOD);
    record.problems.push("device_add: no such bus".to_owned());
    assert_eq!(faults(&record, Way::Plain), "device_add: no such bus");
}

#[test]
fn a_restart_that_is_missing_or_too_many_fails() {
    let twice = format!("console: papr-guest: UP xive cpus=2\n{GOOD}");
    assert_eq!(
        faults(&good(&twice), Way::Plain),
        "userland was reached 2 times, not 1"
    );
    let demands = Demands {
        reboots: 1,
        ..demands(Way::Plain)
    };
    assert!(good(&twice).complaints(demands).is_empty());
}

#[test]
fn a_guest_on_another_controller_or_with_other_cpus_fails() {
    let text = instead("xive cpus", "xics cpus");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the guest uses xics, not xive"
    );
    let text = instead("cpus=2", "cpus=1");
    assert_eq!(
        faults(&good(&text), Way::Plain),
        "the guest has 1 CPUs, not 2"
    );
}

#[test]
fn a_step_that_is_skipped_fails_unless_there_is_but_one_cpu() {
    let record = good(&instead("STEP ipi ok", "STEP ipi ok skipped: no room"));
    assert_eq!(faults(&record, Way::Plain), "step ipi was skipped: no room");
    let single =
        good(&instead("STEP ipi ok", "STEP ipi ok skipped: one CPU").replace("cpus=2", "cpus=1"));
    let mut demands = demands(Way::Plain);
    demands.boot.vcpus = 1;
    assert!(single.complaints(demands).is_empty());
}

#[test]
fn the_wrong_executor_fails() {
    let by = |executor: &str| Record {
        executor: Some(executor.to_owned()),
        ..good(GOOD)
    };
    assert_eq!(faults(&by("front-end"), Way::Plain), "");
    assert_eq!(faults(&by("daemon"), Way::Remote), "");
    assert_eq!(
        faults(&by("front-end"), Way::Remote),
        "the front-end executes, not the daemon"
    );
    assert_ne!(faults(&by("daemon"), Way::Plain), "");
}
