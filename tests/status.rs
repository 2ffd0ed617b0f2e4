//! `papr-intc status` on a real daemon under a real front-end: serving, quiesced, stopped, killed; hostile
//! memory; the monitor socket under onlookers that do not read.
#![allow(clippy::unwrap_used)] // a test says what it means with it

mod harness;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papr_intc_frontend::{GuestRam, Intc, Launcher, Options};
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use serde_json::Value;

fn run(args: &[&str]) -> (Output, Value) {
    let output = harness::command().args(args).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, json)
}

/// `status --pid` of this process; the guest of that name.
fn status(name: &str) -> Value {
    let (_, json) = run(&["status", "--json", "--pid", &std::process::id().to_string()]);
    let guests = json["guests"].as_array().unwrap().clone();
    guests.into_iter().find(|g| g["name"] == name).unwrap()
}

fn until(name: &str, what: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + harness::LONG;
    loop {
        let guest = status(name);
        if what(&guest) {
            return guest;
        }
        assert!(Instant::now() < end, "{guest:#}");
    }
}

fn intc(name: &str, args: Vec<std::ffi::OsString>) -> Intc {
    let machine = Machine {
        ram_shared: false,
        ..Machine::pseries(IcMode::Xics, Compat::Papr1, 2)
    };
    let mut options = Options::new(machine);
    options.name = name.to_owned();
    // A stopped daemon is to be seen stopped: nobody may replace it meanwhile.
    options.watch.patience = harness::LONG;
    options.watch.idle = None;
    let launcher = Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), args);
    let ram = Arc::new(GuestRam::new(&[(0, 1 << 20)]).unwrap());
    Intc::start(options, launcher, ram, Arc::new(|_| {})).unwrap()
}

#[test]
fn a_guest_is_seen_serving_quiesced_stopped_and_served_again_after_a_kill() {
    let intc = intc("life", vec![]);
    let _vcpu = intc.connect_vcpu(1).unwrap();
    let guest = status("life");
    assert_eq!(
        (&guest["state"], &guest["restarts"]),
        (&"serving".into(), &0.into()),
        "{guest:#}"
    );
    assert_eq!(guest["daemon_pid"], intc.daemon_pid().unwrap());
    assert_eq!(guest["servers_connected"], serde_json::json!([1]));
    assert_eq!(guest["numbers"]["front_end"]["layout"], 2);
    assert_eq!(guest["numbers"]["memory"]["layout"], 2);

    intc.quiesce(Duration::from_secs(10)).unwrap();
    assert_eq!(status("life")["state"], "quiesced");
    intc.resume(None).unwrap();

    let pid = Pid::from_raw(intc.daemon_pid().unwrap() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    until("life", |g| g["state"] == "stopped" && g["serving"] == false);
    kill(pid, Signal::SIGKILL).unwrap();
    let guest = until("life", |g| g["state"] == "serving" && g["restarts"] == 1);
    assert_eq!(guest["last_outage"]["signal"], 9, "{guest:#}");
    // Whichever of the two the front-end sees first.
    let reasons = ["the process ended", "the connection hung up"];
    let reason = guest["last_outage"]["reason"].as_str();
    assert!(reason.is_some_and(|r| reasons.contains(&r)), "{guest:#}");
    assert!(guest["last_outage"]["length_us"].as_u64().unwrap() > 0);
}

#[test]
fn usage_and_blindness_have_their_exit_codes_and_one_line() {
    for (args, code) in [
        (&["status"][..], 2),
        (&["status", "--pid", "1", "--socket", "x"][..], 2),
        (&["status", "--pid", "4194305"][..], 3),
        (&["status", "--socket", "/nonexistent/socket"][..], 3),
    ] {
        let (output, _) = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn the_monitor_socket_answers_onlookers_and_is_not_held_by_those_who_do_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("monitor");
    let intc = intc(
        "watched",
        vec!["--monitor-path".into(), path.clone().into()],
    );
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // More than there is room for, each with half a message, or with noise.
    let mut idle: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    for (i, stream) in idle.iter_mut().enumerate() {
        // One that was turned out already does not take it.
        let _ = stream.write_all(&[i as u8; 7]);
    }
    let socket = path.to_str().unwrap();
    let (output, json) = run(&["status", "--json", "--socket", socket]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(json["guests"][0]["serving"], true);
    assert_eq!(json["guests"][0]["name"], "watched");
    let (output, _) = run(&["query", "pic", "--socket", socket]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    intc.shutdown();
    assert!(!path.exists());
}
