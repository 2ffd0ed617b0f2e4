//! What a guest may do: all calls and accesses with random arguments, in both modes and both compat
//! levels. The only words of guest RAM that may change are those of queues that it set up.

use std::os::unix::fs::FileExt;

use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::papr::codes::{opcode, ret};
use papr_intc_protocol::wire::Request;
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::source::Trigger;

use crate::harness::client::Client;
use crate::harness::guest::*;
use crate::{Random, leaks_nothing, rounds};

/// Requests in flight at once: as many as fit into a socket whose other end does not read yet.
const BATCH: usize = 32;

const OPCODES: [u64; 20] = [
    opcode::H_EOI,
    opcode::H_CPPR,
    opcode::H_IPI,
    opcode::H_IPOLL,
    opcode::H_XIRR,
    opcode::H_XIRR_X,
    opcode::H_INT_GET_SOURCE_INFO,
    opcode::H_INT_SET_SOURCE_CONFIG,
    opcode::H_INT_SET_SOURCE_CONFIG,
    opcode::H_INT_GET_SOURCE_CONFIG,
    opcode::H_INT_GET_QUEUE_INFO,
    opcode::H_INT_SET_QUEUE_CONFIG,
    opcode::H_INT_SET_QUEUE_CONFIG,
    opcode::H_INT_GET_QUEUE_CONFIG,
    opcode::H_INT_SET_OS_REPORTING_LINE,
    opcode::H_INT_GET_OS_REPORTING_LINE,
    opcode::H_INT_ESB,
    opcode::H_INT_ESB,
    opcode::H_INT_SYNC,
    opcode::H_INT_SYNC,
];

const CODES: [i64; 9] = [
    ret::H_SUCCESS,
    ret::H_BUSY,
    ret::H_HARDWARE,
    ret::H_FUNCTION,
    ret::H_PARAMETER,
    ret::H_P2,
    ret::H_P3,
    ret::H_P4,
    ret::H_P5,
];

fn random_hcall(random: &mut Random) -> Hcall {
    let op = match random.below(2000) {
        0 => opcode::H_INT_RESET,
        1..50 => random.register(),
        _ => random.pick(&OPCODES),
    };
    let mut args = [0; 9];
    args.fill_with(|| random.register());
    // Or nearly all calls would end at their flags.
    if random.below(4) != 0 && op >= opcode::H_INT_GET_SOURCE_INFO {
        args[0] = random.below(4) & 1;
    }
    if op == opcode::H_INT_SET_QUEUE_CONFIG && random.below(2) == 0 {
        args[4] = random.pick(&[12, 16]);
    }
    let server = random.below(4) as u32;
    Hcall {
        server,
        zero: 0,
        opcode: op,
        args,
        time_base: random.word(),
    }
}

fn random_rtas(random: &mut Random) -> Rtas {
    let mut args = [0; 16];
    args.fill_with(|| random.register() as u32);
    Rtas {
        server: random.below(4) as u32,
        call: 1 + random.below(4) as u32,
        nargs: random.pick(&[0, 1, 1, 1, 2, 3, 3, 3, 16]),
        nret: random.pick(&[0, 1, 1, 1, 2, 3, 3, 16]),
        args,
    }
}

fn random_access(random: &mut Random) -> Mmio {
    let store = random.below(2) as u32;
    let size = random.pick(&[1, 2, 4, 8, 8]);
    let server = random.below(4) as u32;
    let value = random.register();
    let (space, offset) = if random.below(2) == 0 {
        let at = random.register() % 0x2100;
        let offset = (at << 17) + (random.below(2) << 16) + (random.below(0x1000) & !7);
        (space::ESB, offset)
    } else {
        let registers = [0x11, 0x10, 0x14, 0x18, 0x810, 0x812, 0x30, 0xc10];
        let at = random.below(5) << 16;
        (space::TIMA, at + random.pick(&registers))
    };
    let offset = match random.below(20) {
        0 => random.word(),
        1 => offset + random.below(8),
        _ => offset,
    };
    Mmio {
        server,
        space,
        offset,
        size,
        store,
        value,
    }
}

/// Sends a batch, then takes the answers.
fn batch<R: Request>(client: &Client, requests: &[R]) -> Vec<R::Reply> {
    let seqs: Vec<u64> = requests.iter().map(|r| client.post(r)).collect();
    let answers = seqs.iter().map(|seq| client.take::<R>(*seq));
    answers
        .map(|answer| answer.expect("a guest's answer is no refusal").0)
        .collect()
}

/// Queues that the guest has set up, as 4 KiB pages of RAM.
struct Queues(Vec<bool>);

impl Queues {
    fn note(&mut self, call: &Hcall, reply: &HcallReply) {
        let done = call.opcode == opcode::H_INT_SET_QUEUE_CONFIG && reply.ret == ret::H_SUCCESS;
        if done && call.args[4] != 0 {
            let first = (call.args[3] >> 12) as usize;
            self.0[first..first + (1 << (call.args[4] - 12))].fill(true);
        }
    }

    fn all_else_is_untouched(&self, guest: &Guest) {
        let mut page = [0; 4096];
        for (i, in_queue) in self.0.iter().enumerate() {
            guest.ram.read_exact_at(&mut page, i as u64 * 4096).unwrap();
            assert!(*in_queue || page == [0; 4096], "page {i:#x} was written");
        }
    }
}

fn one_round(guest: &Guest, random: &mut Random, queues: &mut Queues) {
    let calls: Vec<Hcall> = (0..BATCH).map(|_| random_hcall(random)).collect();
    for (call, reply) in calls.iter().zip(batch(&guest.main, &calls)) {
        assert!(CODES.contains(&reply.ret), "{call:x?}: {}", reply.ret);
        assert!(reply.line.level <= 1);
        if reply.ret != ret::H_SUCCESS {
            assert_eq!(reply.args, call.args, "{call:x?}: registers have changed");
        }
        queues.note(call, &reply);
    }
    let calls: Vec<Rtas> = (0..BATCH / 2).map(|_| random_rtas(random)).collect();
    for (call, reply) in calls.iter().zip(batch(&guest.main, &calls)) {
        let status = reply.rets[0] as i32;
        assert!([0, -1, -2, -3].contains(&status), "{call:x?}: {status}");
        assert!(reply.written <= call.nret.max(1), "{call:x?}: {reply:x?}");
    }
    let accesses: Vec<Mmio> = (0..BATCH).map(|_| random_access(random)).collect();
    for (access, reply) in accesses.iter().zip(batch(&guest.main, &accesses)) {
        let fits = access.size == 8 || reply.value >> (access.size * 8) == 0;
        assert!(fits, "{access:x?}: {:#x}", reply.value);
    }
    let events: Vec<Trigger> = (0..8)
        .map(|_| Trigger {
            lisn: 0x1300 + random.below(20) as u32,
            zero: 0,
        })
        .collect();
    batch(&guest.main, &events);
}

fn torture(machine: Machine, seed: u64, rounds: usize) {
    let (daemon, guest) = Guest::new(machine);
    guest.main.call(&claim(0x1300, 10, 2)).unwrap();
    guest.main.call(&claim(0x130a, 10, 1)).unwrap();
    let (mut random, mut queues) = (Random(seed), Queues(vec![false; (RAM >> 12) as usize]));
    let dual = machine.ic_mode == IcMode::Dual;
    let mut work = |rounds: usize| {
        for round in 0..rounds {
            if round % 50 == 0 && dual {
                guest.cas(if round % 100 == 0 { 0x40 } else { 0 });
            }
            one_round(&guest, &mut random, &mut queues);
        }
    };
    work(100);
    leaks_nothing(&daemon, || work(rounds));
    queues.all_else_is_untouched(&guest);
    guest.main.ping();
}

// 80 hcalls, RTAS calls and accesses a round; with the four machines more than 10^5.
const ROUNDS: usize = 350;

#[test]
fn a_dual_machine_at_papr_1_answers_every_call() {
    torture(machine(), 1, rounds(ROUNDS));
}

#[test]
fn a_dual_machine_at_qemu_7_2_answers_every_call() {
    let machine = Machine::pseries(IcMode::Dual, Compat::Qemu72, 4);
    torture(machine, 2, rounds(ROUNDS));
}

#[test]
fn an_xics_machine_answers_every_call() {
    let machine = Machine::pseries(IcMode::Xics, Compat::Papr1, 4);
    torture(machine, 3, rounds(ROUNDS));
}

#[test]
fn a_xive_machine_with_store_eoi_answers_every_call() {
    let machine = Machine {
        store_eoi: true,
        ..Machine::pseries(IcMode::Xive, Compat::Papr1, 4)
    };
    torture(machine, 4, rounds(ROUNDS));
}
