//! kill -9 at random moments of random configuration requests, each sent again to the next daemon with its
//! number and the REPLAY flag: replies and state are those of a daemon that nobody killed.
//!
//! Configuration only: what remote mode promises for guests' accesses is less (SPEC.md [P-39]).

use papr_intc_protocol::papr::codes::opcode;
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::guest::{Hcall, Rtas};
use papr_intc_protocol::wire::handshake::executor;
use papr_intc_protocol::wire::source::{ANY, Claim, Free};

use crate::harness::Daemon;
use crate::harness::client::Answer;
use crate::harness::guest::*;
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
    Hcall(Hcall),
    Rtas(Rtas),
    Claim(Claim),
    Free(Free),
}

impl Step {
    fn random(r: &mut Random, xive: bool) -> Self {
        let lisn = 0x1300 + r.below(12);
        let (server, priority) = (r.below(4), r.below(7));
        match r.below(8) {
            0 | 1 => Self::Claim(Claim {
                first: if r.below(2) == 0 { ANY } else { lisn as u32 },
                count: 1 + r.below(3) as u32,
                align: 1,
                flags: r.below(3) as u32,
                low: 0x1300,
                high: 0x1310,
            }),
            2 => Self::Free(Free {
                first: lisn as u32,
                count: 1 + r.below(2) as u32,
            }),
            3..6 if xive => {
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
                format!("{} {:x?}", reply.ret, reply.args)
            }
            Self::Rtas(request) => {
                let reply = killer.call(guest, request).unwrap();
                format!("{} {:x?}", reply.written, reply.rets)
            }
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

fn compare(xive: bool, seed: u64) {
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
    for n in 0..200 {
        let step = Step::random(&mut steps, xive);
        let expected = step.run(&mut spared, &mut nobody);
        assert_eq!(step.run(&mut killed, &mut killer), expected, "step {n}");
        // END selectors may differ; what they select may not, and the guest asks.
        if !xive {
            assert!(machine_words(&killed) == machine_words(&spared), "step {n}");
        }
    }
    for server in 0..4 {
        for priority in 0..7 {
            let args = [1, server, priority];
            let ask = |g: &Guest| g.hcall_reply(0, opcode::H_INT_GET_QUEUE_CONFIG, &args);
            assert_eq!(ask(&killed).args, ask(&spared).args);
        }
    }
    for lisn in 0x1300..0x1310 {
        let ask = |g: &Guest| {
            let config = hcall(0, opcode::H_INT_GET_SOURCE_CONFIG, &[0, lisn]);
            let reply = g.main.call(&config).unwrap();
            (reply.ret, reply.args)
        };
        assert_eq!(ask(&killed), ask(&spared));
    }
    assert!(killer.kills > 20, "{}", killer.kills);
}

#[test]
fn xics_configuration_survives_kills_at_any_moment() {
    compare(false, 31);
}

#[test]
fn xive_configuration_survives_kills_at_any_moment() {
    compare(true, 32);
}
