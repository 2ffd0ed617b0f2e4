//! Moving a machine of the bench, and a guest that has XIVE queues.

use std::sync::Arc;
use std::time::Duration;

use papr_intc_frontend::Error;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::protocol::plane::xive::presenter::OS_PAGE;

use crate::bench::{Bench, How, OV5_XIVE, launcher};

/// More than any step takes.
pub const LONG: Duration = Duration::from_secs(10);
/// Where priority 5 of vCPU `server` has its queue.
const QUEUES: u64 = 1 << 20;

/// Every way to run a machine, and the other one on the far side.
pub fn ways(ic_mode: IcMode) -> [(How, How); 4] {
    let (mapped, remote) = (|| How::mapped(ic_mode), || How::remote(ic_mode));
    [
        (mapped(), mapped()),
        (mapped(), remote()),
        (remote(), mapped()),
        (remote(), remote()),
    ]
}

/// A destination for what `source` has: its RAM, its vCPUs, nothing claimed, quiesced.
pub fn destination(source: &Bench, how: &How) -> Bench {
    let bench = Bench::start_on(how, launcher(), Arc::clone(&source.ram), |_| ());
    bench.intc.quiesce(LONG).unwrap();
    bench
}

/// The whole move, as a VMM does it. The source is still there, quiesced.
pub fn moved(source: &Bench, how: &How) -> Bench {
    let there = destination(source, how);
    there
        .intc
        .state_check(&source.intc.state_header().unwrap())
        .unwrap();
    source.intc.quiesce(LONG).unwrap();
    let state = source.intc.state_save().unwrap();
    there.intc.state_load(&state).unwrap();
    assert_eq!(
        there.intc.state_save().unwrap(),
        state,
        "saved again at once"
    );
    there.intc.resume(None).unwrap();
    there
}

/// Errno and text of a refusal.
pub fn refused<T: std::fmt::Debug>(done: Result<T, Error>) -> (i32, String) {
    match done {
        Err(Error::Refused { errno, text, .. }) => (errno, text),
        other => panic!("not refused: {other:?}"),
    }
}

/// The guest chooses XIVE and sets a queue up for priority 5 of both vCPUs, with everything let in.
pub fn choose_xive(bench: &Bench) {
    bench.vcpus[0].cas(&OV5_XIVE).unwrap();
    for server in [0, 1] {
        let queue = [1, server, 5, QUEUES + (server << 16), 16];
        assert_eq!(bench.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &queue).0, 0);
        set_cppr(bench, server as u32, 0xff);
    }
}

/// Routes a source to priority 5 of a server, with event data `eisn`, and lets it through.
pub fn route(bench: &Bench, lisn: u32, server: u64, eisn: u64) {
    let config = [2, u64::from(lisn), server, 5, eisn];
    assert_eq!(
        bench.hcall(0, opcode::H_INT_SET_SOURCE_CONFIG, &config).0,
        0
    );
    esb(bench, lisn, 0xc00);
}

/// A load of a source's management page.
pub fn esb(bench: &Bench, lisn: u32, offset: u64) -> u64 {
    let at = (u64::from(lisn) << 17) + 0x1_0000 + offset;
    bench.vcpus[0].esb_load(at, 8).unwrap()
}

pub fn set_cppr(bench: &Bench, server: u32, cppr: u64) {
    let vcpu = &bench.vcpus[server as usize];
    vcpu.tima_store(OS_PAGE + 0x11, 1, cppr).unwrap();
}

/// Acknowledges: the priority that was pending, none if the line was down.
pub fn acknowledge(bench: &Bench, server: u32) -> Option<u8> {
    let vcpu = &bench.vcpus[server as usize];
    let value = vcpu.tima_load(OS_PAGE + 0x810, 2).unwrap();
    (value & 0x8000 != 0).then_some(value as u8)
}

/// The entries that a vCPU's queue holds from the first on, of the first generation.
pub fn entries(bench: &Bench, server: u64) -> Vec<u32> {
    let at = |i: u64| {
        bench
            .ram
            .read_u32_be(QUEUES + (server << 16) + i * 4)
            .unwrap()
    };
    let valid = (0..1 << 14).map(at).take_while(|entry| entry >> 31 == 1);
    valid.map(|entry| entry & 0x7fff_ffff).collect()
}
