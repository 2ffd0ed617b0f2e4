//! What a daemon is cut in: a machine to begin with, the operation, and what other threads of the VMM do
//! while the daemon stands still.

use papr_intc_frontend::Executor::{self, Daemon, FrontEnd};
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use papr_intc_frontend::protocol::wire::source::claim_flag;

use crate::guest::{A, B, ELSEWHERE, FREE, Guest, L, QUEUES};

/// What the operation gave, for people and to be compared.
pub type Results = Vec<i64>;

/// Something that threads of the VMM do.
pub type Step = fn(&Guest);
/// What the daemon is cut in.
pub type Operation = fn(&Guest) -> Results;

/// One scenario.
pub struct Scenario {
    pub name: &'static str,
    pub executor: Executor,
    /// Before the daemon can be cut.
    pub setup: Step,
    /// What it is cut in.
    pub operation: Operation,
    /// What the VMM's threads do meanwhile.
    pub active: [Step; 2],
    /// Recovery from it is cut everywhere too.
    pub recovery: bool,
}

/// Those whose recovery has most to do.
const RECOVERIES: [&str; 7] = [
    "ibm,set-xive moves a pending source",
    "CAS to XIVE",
    "claim of an MSI",
    "H_INT_SET_QUEUE_CONFIG moves a queue",
    "quiesce and resume, XICS",
    "H_XIRR then H_EOI",
    "ESB loads: EOI of what came again",
];

fn nothing(_: &Guest) {}

/// One more event of each source.
fn fire(guest: &Guest) {
    guest.trigger(A);
    guest.trigger(B);
}

/// vCPU 1 takes one.
fn take_one(guest: &Guest) {
    if let xisr @ 1.. = guest.accept(1) {
        guest.eoi(1, xisr);
    }
}

fn acknowledge_one(guest: &Guest) {
    guest.acknowledge(1);
    guest.store_cppr(1, 0xff);
}

fn xics(guest: &Guest) {
    guest.route_xics();
}

pub fn xics_pending(guest: &Guest) {
    guest.route_xics();
    fire(guest);
    guest.level(true);
}

fn xics_masked_pending(guest: &Guest) {
    guest.route_xics();
    assert_eq!(guest.rtas(RtasCall::IntOff, &[A]), 0);
    fire(guest);
}

fn xics_rejected(guest: &Guest) {
    guest.route_xics();
    // B presented on 0, then A takes its place.
    assert_eq!(guest.rtas(RtasCall::SetXive, &[B, 0, 7]), 0);
    guest.trigger(B);
    guest.trigger(A);
}

fn xics_accepted(guest: &Guest) {
    guest.route_xics();
    fire(guest);
    assert_eq!(guest.accept(0), A);
    guest.trigger(A);
}

pub fn xive(guest: &Guest) {
    guest.route_xive();
}

pub fn xive_pending(guest: &Guest) {
    guest.route_xive();
    fire(guest);
    fire(guest);
    guest.level(true);
}

fn cas(guest: &Guest, byte_23: u8) -> Results {
    let mut ov5 = [0; 27];
    (ov5[0], ov5[23]) = (25, byte_23);
    let reply = guest.vcpus[0].cas(&ov5).unwrap();
    vec![reply.ret, reply.byte_23.into(), reply.mode.into()]
}

fn hcall(guest: &Guest, opcode: u64, args: &[u64]) -> Results {
    let (ret, out) = guest.hcall(0, opcode, args);
    let mut results = vec![ret];
    results.extend(out.map(|r| r as i64));
    results
}

pub fn errno(result: Result<(), papr_intc_frontend::Error>) -> Results {
    vec![result.map_or_else(|e| e.errno().into(), |()| 0)]
}

pub fn quiesce_and_resume(guest: &Guest, to: Option<Executor>) -> Results {
    let quiesced = guest.intc.quiesce(std::time::Duration::from_secs(60));
    guest.trigger(A);
    let resumed = guest.intc.resume(to);
    [errno(quiesced), errno(resumed)].concat()
}

/// Configuration, machine-wide operations and claims: in both ways to run the machine.
const CONFIGURING: &[(&str, Step, Operation, Step)] = &[
    (
        "ibm,set-xive moves a pending source",
        xics_pending,
        |g| vec![g.rtas(RtasCall::SetXive, &[A, 1, 3])],
        take_one,
    ),
    (
        "ibm,set-xive moves a rejected source",
        xics_rejected,
        |g| vec![g.rtas(RtasCall::SetXive, &[B, 1, 3])],
        take_one,
    ),
    (
        "ibm,set-xive delivers what was masked",
        xics_masked_pending,
        |g| vec![g.rtas(RtasCall::SetXive, &[A, 1, 3])],
        take_one,
    ),
    (
        "ibm,int-off of a pending source",
        xics_pending,
        |g| vec![g.rtas(RtasCall::IntOff, &[A])],
        take_one,
    ),
    (
        "ibm,int-off of a level",
        xics_pending,
        |g| vec![g.rtas(RtasCall::IntOff, &[L])],
        take_one,
    ),
    (
        "ibm,int-on delivers what was masked",
        xics_masked_pending,
        |g| vec![g.rtas(RtasCall::IntOn, &[A])],
        take_one,
    ),
    ("CAS to XIVE", xics_pending, |g| cas(g, 0x40), nothing),
    ("CAS to XICS", xive_pending, |g| cas(g, 0), nothing),
    (
        "machine reset, XICS",
        xics_pending,
        |g| errno(g.intc.machine_reset(false)),
        nothing,
    ),
    (
        "machine reset, XIVE, MSIs freed",
        xive_pending,
        |g| errno(g.intc.machine_reset(true)),
        nothing,
    ),
    (
        "claim of an MSI",
        xics,
        |g| vec![g.claim(FREE, claim_flag::MSI)],
        take_one,
    ),
    (
        "claim of what is taken",
        xics,
        |g| vec![g.claim(A, claim_flag::MSI)],
        take_one,
    ),
    (
        "claim of an LSI",
        xive,
        |g| vec![g.claim(FREE, claim_flag::LSI)],
        acknowledge_one,
    ),
    (
        "free of a pending source, XICS",
        xics_pending,
        |g| errno(g.intc.free(A, 1)),
        take_one,
    ),
    (
        "free of a pending source, XIVE",
        xive_pending,
        |g| errno(g.intc.free(A, 1)),
        acknowledge_one,
    ),
    ("vCPU plugged", xics_pending, plug, nothing),
    (
        "vCPU reset",
        xics_pending,
        |g| errno(g.vcpus[0].reset()),
        nothing,
    ),
    (
        "quiesce and resume, XICS",
        xics_pending,
        |g| quiesce_and_resume(g, None),
        nothing,
    ),
    (
        "quiesce and resume, XIVE",
        xive_pending,
        |g| quiesce_and_resume(g, None),
        nothing,
    ),
    (
        "resume by the daemon",
        xive_pending,
        |g| quiesce_and_resume(g, Some(Daemon)),
        nothing,
    ),
    (
        "resume by the front-end",
        xics_pending,
        |g| quiesce_and_resume(g, Some(FrontEnd)),
        nothing,
    ),
    (
        "H_INT_SET_SOURCE_CONFIG moves a source",
        xive_pending,
        |g| {
            hcall(
                g,
                opcode::H_INT_SET_SOURCE_CONFIG,
                &[2, A.into(), 1, 6, 0x77],
            )
        },
        acknowledge_one,
    ),
    (
        "H_INT_SET_SOURCE_CONFIG masks a source",
        xive_pending,
        |g| {
            hcall(
                g,
                opcode::H_INT_SET_SOURCE_CONFIG,
                &[0, A.into(), 0, 0xff, 0],
            )
        },
        acknowledge_one,
    ),
    (
        "H_INT_SET_QUEUE_CONFIG moves a queue",
        xive,
        |g| hcall(g, opcode::H_INT_SET_QUEUE_CONFIG, &[1, 0, 6, ELSEWHERE, 12]),
        acknowledge_one,
    ),
    (
        "H_INT_SET_QUEUE_CONFIG ends a queue",
        xive_pending,
        |g| hcall(g, opcode::H_INT_SET_QUEUE_CONFIG, &[0, 0, 6, 0, 0]),
        acknowledge_one,
    ),
    (
        "H_INT_SET_QUEUE_CONFIG of what is set",
        xive,
        |g| {
            hcall(
                g,
                opcode::H_INT_SET_QUEUE_CONFIG,
                &[1, 1, 6, QUEUES + 0x1000, 12],
            )
        },
        acknowledge_one,
    ),
    (
        "H_INT_SET_OS_REPORTING_LINE",
        xive,
        |g| hcall(g, opcode::H_INT_SET_OS_REPORTING_LINE, &[0, 0, 0]),
        acknowledge_one,
    ),
    (
        "H_INT_RESET",
        xive_pending,
        |g| hcall(g, opcode::H_INT_RESET, &[0]),
        nothing,
    ),
];

/// What a daemon does only if it executes.
const EXECUTING: &[(&str, Step, Operation)] = &[
    ("H_XIRR", xics_pending, |g| hcall(g, opcode::H_XIRR, &[])),
    ("H_XIRR then H_EOI", xics_pending, |g| {
        let xisr = g.accept(0);
        vec![xisr.into(), g.eoi(0, xisr)]
    }),
    ("H_EOI of what came again", xics_accepted, |g| {
        vec![g.eoi(0, A)]
    }),
    ("H_CPPR rejects", xics_pending, |g| {
        hcall(g, opcode::H_CPPR, &[0])
    }),
    ("H_IPI", xics, |g| hcall(g, opcode::H_IPI, &[1, 4])),
    ("H_IPOLL", xics_pending, |g| hcall(g, opcode::H_IPOLL, &[1])),
    ("trigger, XICS", xics, |g| {
        g.trigger(A);
        vec![]
    }),
    ("level up and down, XICS", xics, |g| {
        g.level(true);
        g.level(false);
        vec![]
    }),
    ("trigger, XIVE", xive, |g| {
        g.trigger(A);
        vec![]
    }),
    ("ESB loads: EOI of what came again", xive_pending, |g| {
        vec![g.esb(A, 0) as i64, g.esb(A, 0x800) as i64]
    }),
    ("ESB load: off", xive_pending, |g| {
        vec![g.esb(A, 0xd00) as i64]
    }),
    ("ESB store: trigger", xive, |g| {
        let at = u64::from(A) << 17;
        g.vcpus[0].esb_store(at, 8, 0).unwrap();
        vec![]
    }),
    ("H_INT_ESB: EOI of a level", xive_pending, |g| {
        hcall(g, opcode::H_INT_ESB, &[0, L.into(), 0, 0])
    }),
    ("TIMA acknowledge and CPPR", xive_pending, |g| {
        let nsr = g.acknowledge(0) as i64;
        g.store_cppr(0, 0xff);
        vec![nsr]
    }),
    ("an irqfd is written, XICS", with_irqfd_xics, |g| {
        g.irqfd.write(1).unwrap();
        await_irqfd(g);
        vec![]
    }),
    ("an irqfd is written, XIVE", with_irqfd_xive, |g| {
        g.irqfd.write(1).unwrap();
        await_irqfd(g);
        vec![]
    }),
];

fn plug(guest: &Guest) -> Results {
    // Shows in the picture; the handle is not used again.
    let plugged = guest.intc.connect_vcpu(2).map(drop);
    errno(plugged)
}

fn with_irqfd_xics(guest: &Guest) {
    guest.route_xics();
    guest.intc.add_irqfd(A, &guest.irqfd).unwrap();
}

fn with_irqfd_xive(guest: &Guest) {
    guest.route_xive();
    guest.intc.add_irqfd(A, &guest.irqfd).unwrap();
}

/// Until the event has reached vCPU 0.
fn await_irqfd(guest: &Guest) {
    while !guest.vcpus[0].pending() {
        std::thread::yield_now();
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (name, setup, operation, take) in CONFIGURING {
        for executor in [FrontEnd, Daemon] {
            let active: [Step; 2] = match executor {
                FrontEnd => [fire, *take],
                // Its threads could only send messages, which wait.
                Daemon => [nothing, nothing],
            };
            all.push(Scenario {
                name,
                executor,
                setup: *setup,
                operation: *operation,
                active,
                recovery: RECOVERIES.contains(name),
            });
        }
    }
    for (name, setup, operation) in EXECUTING {
        all.push(Scenario {
            name,
            executor: Daemon,
            setup: *setup,
            operation: *operation,
            active: [nothing, nothing],
            recovery: RECOVERIES.contains(name),
        });
    }
    all.extend(crate::logging::all());
    all.extend(crate::moving::all());
    all
}
