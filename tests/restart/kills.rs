//! kill -9 at random moments of random requests in remote mode, each sent again to the next daemon with
//! its number and the REPLAY flag: replies, words and guest RAM are those of a daemon that nobody killed
//! (SPEC.md chapter 3, "Commit"). `HOSTILE=10` runs ten times as many.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::guest::{Hcall, Mmio, Rtas};
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::source::*;

use crate::harness::client::{Answer, borrow};
use crate::harness::guest::*;
use crate::harness::{Daemon, LONG};
use crate::machine_words;

/// Random numbers by a seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

enum Step {
    Mmio(Mmio),
    Trigger(Trigger),
    Level(SetLevel),
    Hcall(Hcall),
    Rtas(Rtas),
    Claim(Claim),
    Free(Free),
}

impl Step {
    fn random(r: &mut Random, xive: bool) -> Self {
        let lisn = 0x1300 + r.below(12);
        let (server, priority) = (r.below(4), r.below(7));
        match r.below(20) {
            0..4 => Self::Trigger(Trigger {
                lisn: lisn as u32,
                zero: 0,
            }),
            4 => Self::Level(SetLevel {
                lisn: lisn as u32,
                level: r.below(2) as u32,
            }),
            5..8 if xive => {
                let offset = [0, 0, 0xc00, 0xd00, 0x800][r.below(5) as usize];
                Self::Mmio(esb_load(lisn as u32, 1, offset))
            }
            8..10 if xive => Self::Mmio(tima_load(server as u32, 0x2_0810, 2)),
            10 if xive => Self::Mmio(tima_store(server as u32, 0x2_0011, 1, 0xff)),
            5..11 => {
                let (op, arg) = match r.below(5) {
                    0 => (opcode::H_CPPR, 0xff),
                    1 => (opcode::H_IPI, server),
                    2 => (opcode::H_EOI, 0xff00_0000 | lisn),
                    _ => (opcode::H_XIRR, 0),
                };
                Self::Hcall(hcall(server as u32, op, &[arg, priority]))
            }
            11 | 12 => Self::Claim(Claim {
                first: if r.below(2) == 0 { ANY } else { lisn as u32 },
                count: 1 + r.below(3) as u32,
                align: 1,
                flags: r.below(3) as u32,
                low: 0x1300,
                high: 0x1310,
            }),
            13 => Self::Free(Free {
                first: lisn as u32,
                count: 1 + r.below(2) as u32,
            }),
            14..17 if xive => {
                let size = [0, 12, 16][r.below(3) as usize];
                let args = [1, server, priority, (1 + r.below(9)) << 16, size];
                Self::Hcall(hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &args))
            }
            _ if xive => {
                let args = [2, lisn, server, priority, r.below(99)];
                Self::Hcall(hcall(0, opcode::H_INT_SET_SOURCE_CONFIG, &args))
            }
            n => {
                let call = [1, 3, 4][(n % 3) as usize];
                let args = [lisn as u32, server as u32, priority as u32];
                let nargs = if call == 1 { 3 } else { 1 };
                Self::Rtas(rtas(call, &args[..nargs], 1))
            }
        }
    }

    /// Runs it on `guest`, whose daemon may be killed meanwhile. The reply without its line.
    fn run(&self, guest: &mut Guest, killer: &mut Killer<'_>) -> String {
        match self {
            Self::Hcall(request) => {
                let reply = killer.call(guest, request).unwrap();
                format!("{} {:x?} {}", reply.ret, reply.args, reply.line.level)
            }
            Self::Rtas(request) => {
                let reply = killer.call(guest, request).unwrap();
                format!("{} {:x?}", reply.written, reply.rets)
            }
            Self::Mmio(request) => {
                let reply = killer.call(guest, request).unwrap();
                format!("{:x} {}", reply.value, reply.line.level)
            }
            Self::Trigger(request) => format!("{:?}", killer.call(guest, request)),
            Self::Level(request) => format!("{:?}", killer.call(guest, request)),
            Self::Claim(request) => format!("{:?}", killer.call(guest, request)),
            Self::Free(request) => format!("{:?}", killer.call(guest, request)),
        }
    }
}

/// Kills the daemon now and then.
struct Killer<'a> {
    daemon: Option<Daemon>,
    random: &'a mut Random,
    kills: u32,
}

impl Killer<'_> {
    fn call<R: Request>(&mut self, guest: &mut Guest, request: &R) -> Answer<R::Reply> {
        if self.daemon.is_none() || self.random.below(4) != 0 {
            return guest.main.call(request);
        }
        let seq = guest.main.post(request);
        for _ in 0..self.random.below(20_000) {
            std::hint::spin_loop();
        }
        self.daemon.take().unwrap().kill();
        self.kills += 1;
        let (daemon, socket) = Daemon::connected(&[]);
        guest.reconnect(socket, executor::DAEMON);
        self.daemon = Some(daemon);
        guest.main.replay(seq, request)
    }
}

/// As many runs as the environment asks for.
fn compare(xive: bool, seed: u64) {
    let runs = std::env::var("HOSTILE").map_or(1, |text| text.parse().unwrap());
    (0..runs).for_each(|run| run_once(xive, seed + 2 * run));
}

fn run_once(xive: bool, seed: u64) {
    let (daemon, mut killed) = Guest::new(machine());
    let (_daemon, mut spared) = Guest::new(machine());
    for guest in [&killed, &spared] {
        if xive {
            guest.choose_xive();
        }
    }
    let (mut steps, mut moments) = (Random(seed), Random(seed + 1));
    let mut never = Random(0);
    let mut killer = Killer {
        daemon: Some(daemon),
        random: &mut moments,
        kills: 0,
    };
    let mut nobody = Killer {
        daemon: None,
        random: &mut never,
        kills: 0,
    };
    for n in 0..400 {
        let step = Step::random(&mut steps, xive);
        let expected = step.run(&mut spared, &mut nobody);
        assert_eq!(
            step.run(&mut killed, &mut killer),
            expected,
            "seed {seed} step {n}"
        );
        assert!(
            machine_words(&killed) == machine_words(&spared),
            "seed {seed} step {n}: words"
        );
    }
    let ram = |guest: &Guest| {
        let mut bytes = vec![0; RAM as usize];
        guest.ram.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(ram(&killed) == ram(&spared), "guest RAM");
    assert!(killer.kills > 20, "{}", killer.kills);
}

#[test]
fn xics_survives_kills_at_any_moment() {
    compare(false, 31);
}

#[test]
fn xive_survives_kills_at_any_moment() {
    compare(true, 1_000_031);
}

#[test]
fn an_irqfd_is_one_event_whatever_moment_kills_the_daemon() {
    const QUEUE: u64 = 0x10_0000;
    const LISN: u32 = 0x1300;
    let (mut daemon, mut guest) = Guest::new(machine());
    guest.claim_msi(LISN);
    guest.choose_xive();
    guest.set_queue(1, 6, QUEUE);
    guest.set_source(LISN, 1, 6, 0x77);
    guest.mmio(esb_load(LISN, 1, 0xc00));
    let irqfd = eventfd();
    let set = |guest: &Guest| {
        let items = vec![IrqfdItem {
            lisn: LISN,
            kind: irqfd_kind::EDGE,
            input: 0,
            zero: 0,
        }];
        let fds = borrow(std::slice::from_ref(&irqfd));
        guest.main.call_fds(&SetIrqfds { items }, &fds).unwrap();
    };
    set(&guest);
    let mut random = Random(77);
    for n in 0..60 {
        irqfd.write(1).unwrap();
        for _ in 0..random.below(10_000) {
            std::hint::spin_loop();
        }
        daemon.kill();
        let (next, socket) = Daemon::connected(&[]);
        daemon = next;
        guest.reconnect(socket, executor::DAEMON);
        set(&guest);
        let until = Instant::now() + LONG;
        while guest.ram_word(QUEUE + 4 * n) == 0 {
            assert!(Instant::now() < until, "event {n} is lost");
            guest.main.ping();
        }
        guest.main.ping();
        let pq = guest.mmio(esb_load(LISN, 1, 0x800)).value;
        assert_eq!(pq, 2, "event {n} came twice");
        assert_eq!(guest.ram_word(QUEUE + 4 * (n + 1)), 0);
        guest.mmio(esb_load(LISN, 1, 0));
    }
}
