//! The daemon as a process: command line, descriptors, signals, front-ends that go and come.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Stdio;

use nix::libc;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use papr_intc_protocol::papr::codes::{RtasCall, opcode};
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::source::Trigger;

use crate::harness::client::{Client, errno};
use crate::harness::guest::*;
use crate::harness::{self, Daemon, Ended, LONG};

const LISN: u32 = 0x1300;

/// Runs the daemon to its end.
fn run(args: &[&str]) -> Ended {
    Daemon::run(args).wait()
}

fn one_line(ended: &Ended, code: u8, what: &str) {
    assert_eq!(ended.code, Some(code.into()), "{what}: {ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{what}: {}", ended.stderr);
    assert!(ended.stderr.starts_with("papr-intc: "), "{}", ended.stderr);
    assert!(ended.stdout.is_empty(), "{what}: {}", ended.stdout);
}

#[test]
fn capabilities_are_json_on_stdout() {
    let ended = run(&["--print-capabilities"]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["type"], "interrupt-controller");
    assert_eq!(json["protocol"]["max"], 1);
    assert_eq!(json["limits"]["servers"], 4096);
}

#[test]
fn help_and_version_are_no_errors() {
    for arg in ["--help", "--version"] {
        let ended = run(&[arg]);
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
        assert!(ended.stdout.contains("papr-intc") || arg == "--help");
        assert!(!ended.stdout.is_empty());
    }
}

#[test]
fn a_wrong_command_line_is_one_line_and_code_2() {
    for args in [
        &[][..],
        &["--nonsense"],
        &["--fd"],
        &["--fd", "nine"],
        &["--fd", "99999999999"],
        &["--fd", "9", "--socket-path", "/nonexistent/x"],
        &["--fd", "9", "--ic-mode", "gic"],
        &["--fd", "9", "--servers", "0"],
        &["--fd", "9", "--servers", "4097"],
        &["--fd", "9", "--sources", "1048577"],
        &["--fd", "9", "--compat", "qemu-8"],
        &["--fd", "9", "--on-disconnect", "cry"],
        &["--fd", "9", "--log-level", "loud"],
        &["--fd", "9", "stray"],
        &["--socket-path", ""],
    ] {
        one_line(&run(args), 2, &format!("{args:?}"));
    }
}

#[test]
fn a_socket_that_cannot_be_used_is_one_line_and_code_3() {
    for number in ["-1", "1", "2", "9", "2147483647"] {
        let ended = run(&[&format!("--fd={number}")]);
        one_line(&ended, 3, number);
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "precious").unwrap();
    let long = path(&"x".repeat(200));
    for bad in ["/nonexistent/socket", &path("file"), &long] {
        one_line(&run(&["--socket-path", bad]), 3, bad);
    }
    assert_eq!(std::fs::read(path("file")).unwrap(), b"precious");
}

#[test]
fn an_inherited_descriptor_that_is_no_unix_stream_socket_is_refused() {
    let (datagram, _other) = UnixDatagram::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain: OwnedFd = memfd(4096).into();
    for fd in [datagram.into(), tcp.into(), plain] {
        let ended = Daemon::on_fd(fd, &[]).wait();
        one_line(&ended, 3, "--fd");
    }
}

#[test]
fn output_that_goes_nowhere_is_no_panic() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let mut command = harness::command();
    command.arg("--print-capabilities").stdout(full());
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for args in [&["--nonsense"][..], &["--fd", "9"]] {
        let mut command = harness::command();
        let status = command.args(args).stderr(full()).status().unwrap();
        assert!([Some(2), Some(3)].contains(&status.code()), "{status}");
    }
}

#[test]
fn goodbye_ends_it_well() {
    let (daemon, guest) = Guest::new(machine());
    guest.main.call(&Goodbye {}).unwrap();
    assert!(guest.main.is_closed());
    daemon.ends_well();
}

#[test]
fn sigterm_and_sigint_end_it_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (daemon, guest) = Guest::new(machine());
        daemon.signal(signal);
        daemon.ends_well();
        assert!(guest.main.is_closed());
    }
    // Nobody is connected, too.
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    drop(address.served());
    daemon.signal(Signal::SIGTERM);
    daemon.ends_well();
}

#[test]
fn a_daemon_on_a_connected_socket_ends_with_its_front_end() {
    for args in [
        &[][..],
        &["--on-disconnect", "exit"],
        &["--on-disconnect", "wait"],
    ] {
        let (daemon, guest) = {
            let (daemon, socket) = Daemon::connected(args);
            (daemon, Guest::boot(socket, machine()))
        };
        drop(guest);
        daemon.ends_well();
    }
}

#[test]
fn a_listening_daemon_ends_with_its_first_front_end_unless_told_to_wait() {
    let (daemon, address) = Daemon::listening(&[]);
    let guest = Guest::boot(address.served(), machine());
    drop(guest);
    daemon.ends_well();
}

#[test]
fn the_socket_appears_and_goes_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let watch = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).unwrap();
    let created = nix::sys::inotify::AddWatchFlags::IN_CREATE;
    watch.add_watch(directory.path(), created).unwrap();
    let daemon = Daemon::on_path(&path, &[]);
    let until = std::time::Instant::now() + LONG;
    harness::wait_for(&watch, PollFlags::POLLIN, until, "the socket");
    // Bound, and a moment later listening.
    let socket = loop {
        match UnixStream::connect(&path) {
            Ok(socket) => break socket,
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ECONNREFUSED)),
        }
        std::thread::yield_now();
    };
    let guest = Guest::boot(socket, machine());
    guest.main.call(&Goodbye {}).unwrap();
    daemon.ends_well();
    assert!(!path.exists());
}

#[test]
fn a_second_front_end_is_turned_away() {
    let (daemon, address) = Daemon::listening(&[]);
    let guest = Guest::boot(address.connect(), machine());
    for _ in 0..20 {
        assert!(Client::new(address.connect()).is_closed());
    }
    guest.main.ping();
    let fds = daemon.fds();
    assert!(Client::new(address.connect()).is_closed());
    guest.main.ping();
    assert_eq!(daemon.fds(), fds);
}

#[test]
fn a_waiting_daemon_gives_the_memory_to_the_next_front_end() {
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let first = Guest::boot(address.served(), machine());
    first.claim_msi(LISN);
    assert_eq!(first.rtas(RtasCall::SetXive, &[LISN, 2, 5]), 0);
    first.must(2, opcode::H_CPPR, &[0xff]);
    first
        .main
        .call(&Trigger {
            lisn: LISN,
            zero: 0,
        })
        .unwrap();
    let channel = first.channel(2);
    let (machine, kept) = (first.machine, first.kicks[2].write(1));
    kept.unwrap();
    drop((first, channel));

    let socket = address.served();
    let main = Client::new(socket.try_clone().unwrap());
    let hello = main.hello();
    assert_eq!((hello.state, hello.generation), (state::WANTS_MEMORY, 1));
    assert_eq!(
        errno(main.call(&hcall(2, opcode::H_XIRR, &[]))),
        libc::EINVAL
    );
    let (info, _shm) = get_shm(&main).unwrap();
    assert_eq!(info.generation, 1);
    drop(main);
    let second = Guest::boot(socket, machine);
    let xirr = second.must(2, opcode::H_XIRR, &[]);
    assert_eq!(xirr, 0xff00_0000 | u64::from(LISN));
    assert!(was_kicked(&second.kicks[2]), "the line was up");

    // The third hands back what it has kept; another machine's memory is refused.
    let (shm, request) = (second.shm.try_clone().unwrap(), second.shm_request());
    drop(second);
    let third = Client::new(address.served());
    third.hello();
    let foreign = {
        let (_other, guest) = Guest::new(machine);
        guest.shm.try_clone().unwrap()
    };
    use std::os::fd::AsFd;
    let take = |file: &std::fs::File| {
        let answer = third.call_fds(&request, &[file.as_fd()]);
        answer.map(|(reply, _)| reply.generation)
    };
    assert_eq!(errno(take(&foreign)), libc::EINVAL);
    assert_eq!(take(&shm).unwrap(), 1);
    start(&third, executor::DAEMON).unwrap();
    third.call(&Goodbye {}).unwrap();
    daemon.ends_well();
}

#[test]
fn a_waiting_daemon_keeps_nothing_of_the_front_ends_that_went() {
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let visit = || {
        let guest = Guest::boot(address.served(), machine());
        let channels = [guest.channel(0), guest.channel(1), guest.channel(1)];
        channels[0].ping();
        channels[2].ping();
        guest.main.ping();
    };
    visit();
    visit();
    let probe = || {
        let main = Client::new(address.served());
        main.hello();
        (daemon.fds(), daemon.mappings(), daemon.watched())
    };
    let before = probe();
    (0..20).for_each(|_| visit());
    assert_eq!(probe(), before);
}

#[test]
fn channels_that_the_front_end_still_holds_are_forgotten_all_the_same() {
    use papr_intc_protocol::wire::vcpu::VcpuChannel;
    use std::os::fd::AsFd;
    let (daemon, address) = Daemon::listening(&["--on-disconnect", "wait"]);
    let guest = Guest::boot(address.served(), machine());
    let before = daemon.watched();
    // Whoever sent it keeps both ends: closing ours would not end the daemon's interest in it.
    let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    for (_, theirs) in &pairs {
        let request = VcpuChannel { server: 1, zero: 0 };
        guest.main.call_fds(&request, &[theirs.as_fd()]).unwrap();
    }
    guest.main.ping();
    assert_eq!(daemon.watched(), before + 1, "replaced");
    drop(guest);
    let next = Client::new(address.served());
    next.hello();
    assert_eq!(daemon.watched(), before, "left behind");
    drop(pairs);
}

#[test]
fn the_limit_of_open_files_is_raised_to_what_is_allowed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = std::process::Command::new("sh");
    let line = format!(
        "ulimit -Sn 40; exec {} --fd 0",
        env!("CARGO_BIN_EXE_papr-intc")
    );
    let mut child = command
        .args(["-c", &line])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    // It holds the daemon's end.
    drop(command);
    let many = papr_intc_protocol::layout::Machine {
        servers: 200,
        ..machine()
    };
    let guest = Guest::boot(ours, many);
    guest.main.call(&Goodbye {}).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn too_many_descriptors_end_the_connection_and_leak_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = std::process::Command::new("sh");
    let line = format!(
        "ulimit -n 60; exec {} --fd 0 --on-disconnect wait",
        env!("CARGO_BIN_EXE_papr-intc")
    );
    let mut child = command
        .args(["-c", &line])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let many = papr_intc_protocol::layout::Machine {
        servers: 200,
        ..machine()
    };
    let kicks: Vec<_> = (0..200).map(|_| eventfd()).collect();
    let fds = harness::client::borrow(&kicks);
    let open = || {
        let directory = format!("/proc/{}/fd", child.id());
        std::fs::read_dir(directory).unwrap().count()
    };
    let mut seen = Vec::new();
    for _ in 0..5 {
        let main = Client::new(UnixStream::connect(&path).unwrap());
        main.hello();
        seen.push(open());
        set_machine(&main, &many).unwrap();
        get_shm(&main).unwrap();
        use papr_intc_protocol::wire::Request;
        use papr_intc_protocol::wire::vcpu::VcpuConnect;
        let request = VcpuConnect {
            servers: (0..200).collect(),
        };
        let body = papr_intc_protocol::wire::request_body(9, 0, &request);
        main.send(VcpuConnect::CODE, 0, &body, &fds);
        assert!(main.is_closed());
    }
    let last = Client::new(UnixStream::connect(&path).unwrap());
    last.hello();
    assert_eq!(seen[4], seen[1]);
    last.call(&Goodbye {}).unwrap();
    assert!(child.wait().unwrap().success());
}
