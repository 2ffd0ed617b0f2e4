//! What each daemon says of itself, and who takes whose memory.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::errno::Errno;
use papr_intc_frontend::protocol::LAYOUT_VERSION;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::wire::handshake::{Hello, verdict};
use papr_intc_frontend::{Error, Executor};

use super::{Heard, next, next_daemon};
use crate::bench::{Bench, FIRST, How, launcher};
use crate::harness::client::{Client, hello};

fn capabilities(binary: &str) -> serde_json::Value {
    let output = Command::new(binary).arg("--print-capabilities").output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

#[test]
fn the_two_daemons_print_different_numbers() {
    let now = capabilities(env!("CARGO_BIN_EXE_papr-intc"));
    let next = capabilities(next_daemon().to_str().unwrap());
    let number = |of: &serde_json::Value, at: &str| of.pointer(at).unwrap().as_u64().unwrap();
    for (at, more) in [
        ("/protocol/min", 0),
        ("/protocol/max", 1),
        ("/layout/min", 0),
        ("/layout/max", 0),
        ("/plane", 1),
        ("/memory/plane/min", 0),
        ("/memory/plane/max", 1),
        ("/memory/incompat_flags", 1 << 63),
    ] {
        assert_eq!(number(&next, at), number(&now, at) + more, "{at}");
    }
    assert_ne!(now["build"], next["build"]);
}

#[test]
fn hello_chooses_the_highest_common_protocol_or_names_both_ranges() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = Command::new(next_daemon())
        .args(["--fd", "0"])
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let main = Client::new(ours);
    let own = papr_intc_frontend::protocol::PROTOCOL_VERSION;
    let speaks = |protocol_min, protocol_max| {
        main.call(&Hello {
            protocol_min,
            protocol_max,
            ..hello()
        })
    };
    for (min, max, chosen) in [
        (own, own, own),
        (own, own + 1, own + 1),
        (0, own + 9, own + 1),
        (own + 1, own + 1, own + 1),
    ] {
        assert_eq!(speaks(min, max).unwrap().protocol, chosen, "{min} to {max}");
    }
    let refused = speaks(own + 2, own + 3).unwrap_err();
    assert_eq!(refused.errno, Errno::EPROTONOSUPPORT as i32);
    let ranges = [(own, own + 1), (own + 2, own + 3)].map(|(min, max)| format!("{min} to {max}"));
    assert!(
        ranges.iter().all(|range| refused.text.contains(range)),
        "{}",
        refused.text
    );
    assert_eq!(main.hello().verdict, verdict::DEMOTE);
    drop(main);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_guest_that_was_born_on_the_next_version_moves_to_this_one() {
    let heard = Heard::default();
    let bench = Bench::start_by(&How::mapped(IcMode::Xics), next(&[]), |o| {
        o.on_change = heard.listen()
    });
    assert_eq!(bench.intc.executor(), Executor::Daemon, "asked for DEMOTE");
    assert!(
        bench.intc.storage().is_none(),
        "mapped a plane it does not know"
    );
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    bench.trigger(FIRST);
    bench.intc.upgrade(launcher()).unwrap();
    assert_eq!(bench.intc.executor(), Executor::FrontEnd);
    assert_eq!(heard.turns().1, 1);
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), FIRST);
    bench.eoi(0, FIRST);
    assert!(bench.intc.storage().is_some());
}

#[test]
fn the_vmm_cannot_promote_what_the_daemon_demoted_but_its_wish_is_remembered() {
    let bench = Bench::start(&How::remote(IcMode::Xics));
    bench.intc.upgrade(next(&[])).unwrap();
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    assert!(matches!(bench.intc.promote(), Err(Error::Unfit(_))));
    assert_eq!(bench.intc.executor(), Executor::Daemon);
    bench.trigger(FIRST);
    bench.wait_for_line(0, true);
    bench.intc.upgrade(launcher()).unwrap();
    assert_eq!(bench.intc.executor(), Executor::FrontEnd);
    assert_eq!(bench.accept(0), FIRST);
}

#[test]
fn memory_in_which_the_next_version_used_something_new_is_not_rolled_back() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    bench.open(0);
    bench.xics_source(FIRST, false, 0);
    bench.intc.upgrade(next(&["--use-next"])).unwrap();
    let serving = bench.intc.daemon_pid();
    let refused = bench.intc.upgrade(launcher()).unwrap_err();
    assert_eq!(refused.errno(), Errno::EPROTONOSUPPORT as i32);
    let text = refused.to_string();
    assert!(
        text.contains("CHECK_SHM") && text.contains("0x8000000000000000") && text.contains("0x1"),
        "{text}"
    );
    assert_eq!(bench.intc.daemon_pid(), serving, "the old one was touched");
    bench.trigger(FIRST);
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), FIRST);
    // One that knows the flag takes it, whether it uses the thing or not.
    bench.intc.upgrade(next(&[])).unwrap();
    bench.eoi(0, FIRST);
}

#[test]
fn memory_of_this_layout_is_not_rolled_back_to_a_version_that_knows_only_the_one_before() {
    let bench = Bench::start(&How::mapped(IcMode::Xics));
    let words = bench.intc.storage().unwrap();
    assert_eq!(words.geometry().layout(), LAYOUT_VERSION);
    let serving = bench.intc.daemon_pid();
    let refused = bench.intc.upgrade(next(&["--layout", "1"])).unwrap_err();
    assert_eq!(refused.errno(), Errno::EPROTONOSUPPORT as i32);
    assert!(refused.to_string().contains("layout 2"), "{refused}");
    assert_eq!(bench.intc.daemon_pid(), serving, "the old one was touched");
}
