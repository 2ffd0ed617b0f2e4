//! XIVE guests.

use papr_intc_protocol::layout::IcMode;

use super::super::op::{LINE, MSI, MSI_SLOTS, Program, VSCSI, esb, queue_page};
use super::super::pic::{Eas, Pic};
use super::{Class, Scenario};

/// Byte 23 of option vector 5 that asks for XIVE.
pub const ASK_XIVE: u8 = 0x40;
const OPEN: u64 = 0xff;
/// IPI sources of the two vCPUs.
const IPI: u32 = 0;
/// What the queues are: vCPU, priority, size as a power of two, whether every event notifies.
const QUEUES: [(usize, u64, u64, bool); 7] = [
    (0, 2, 12, true),
    (0, 5, 12, true),
    (0, 6, 16, true),
    (1, 1, 12, false),
    (1, 3, 12, true),
    (1, 6, 12, true),
    (0, 0, 21, true),
];

pub fn all() -> Vec<Scenario> {
    let new = |name, program, classes| Scenario::new(name, IcMode::Xive, program, classes);
    vec![
        new(
            "xive: presented, queued, blocked, masked",
            |program| whole(program, pending),
            pending_classes(),
        ),
        new(
            "xive: the same, with gaps between the server numbers",
            |program| whole(program, pending),
            pending_classes(),
        )
        .with_gaps(),
        new(
            "xive: in service, and a more favoured one presented",
            |program| whole(program, in_service),
            in_service_classes(),
        ),
        new(
            "xive: what guests should not do",
            |program| whole(program, odd),
            odd_classes(),
        ),
        new(
            "xive: an MSI that was freed",
            |program| {
                whole(program, |program| {
                    pending(program);
                    program.on(0).free_msi(MSI_SLOTS[0]);
                });
            },
            vec![("freed", |pic| {
                pic.xive().sources.iter().all(|s| s.lisn != MSI)
            })],
        ),
        new(
            "xive: an MSI that was freed and claimed again",
            |program| {
                whole(program, |program| {
                    pending(program);
                    let slot = MSI_SLOTS[0];
                    program.on(0).free_msi(slot).set_up_msi(slot);
                });
            },
            vec![("masked, with the old event data", |pic| {
                source(pic, MSI).masked && source(pic, MSI).eisn == MSI
            })],
        ),
        new(
            "xive: never used",
            |program| whole(program, |_| {}),
            vec![("reset", is_reset)],
        ),
        new(
            "xive: before CAS",
            |program| {
                program.save_here();
                program.on(0).tima_ring().esb(VSCSI, esb::GET);
            },
            vec![("reset", is_reset)],
        ),
    ]
}

/// Interrupts are pending, and taken after the save.
fn whole(program: &mut Program, pend: fn(&mut Program)) {
    program.cas(ASK_XIVE).start_cpu(1);
    set_up_queues(program);
    pend(program);
    program.save_here();
    take(program);
}

fn is_reset(pic: &Pic) -> bool {
    pic.xive().sources.iter().all(|s| s.masked && s.pq == 1)
}

/// The queues of [`QUEUES`].
pub fn set_up_queues(program: &mut Program) {
    program.on(0);
    for (cpu, priority, shift, always) in QUEUES {
        program.queue(cpu, priority, shift, always);
    }
}

/// A source that is routed and on.
fn on(program: &mut Program, lisn: u32, cpu: usize, priority: u64) -> &mut Program {
    program
        .on(0)
        .route(lisn, cpu, priority)
        .esb(lisn, esb::SET_00)
}

pub fn pending(program: &mut Program) {
    program.on(0).tima_cppr(OPEN);
    // Presented; once more while it is.
    on(program, VSCSI, 0, 5).pulse_vscsi(0).pulse_vscsi(0);
    // Behind it.
    on(program, VSCSI + 1, 0, 6).pulse_vscsi(1);
    on(program, IPI, 0, 6).trigger(IPI);
    // Triggered while the routing is masked, and while the source is off.
    on(program, VSCSI + 2, 0, 0xff).pulse_vscsi(2);
    program.on(0).route(VSCSI + 3, 0, 6).pulse_vscsi(3);
    // Held back by the guest with PQ = 10, then triggered.
    on(program, VSCSI + 4, 0, 6)
        .esb(VSCSI + 4, esb::SET_10)
        .pulse_vscsi(4);
    // Lines: presented, queued, asserted behind PQ = 00, asserted while off.
    on(program, LINE, 0, 6).raise(0);
    on(program, LINE + 1, 0, 6)
        .raise(1)
        .esb(LINE + 1, esb::SET_11);
    on(program, LINE + 2, 0, 5)
        .raise(2)
        .esb(LINE + 2, esb::SET_00);
    program
        .on(0)
        .route(LINE + 3, 1, 3)
        .esb(LINE + 3, esb::SET_01)
        .raise(3);
    // vCPU 1 takes nothing; its queues fill, one of them more than once.
    on(program, IPI + 1, 1, 3).trigger(IPI + 1);
    on(program, MSI, 1, 6).burst(MSI, 1024 + 7);
    program.pulse_msi(MSI_SLOTS[0]);
    // A queue that notifies once.
    on(program, MSI + 1, 1, 1)
        .burst(MSI + 1, 2)
        .pulse_msi(MSI_SLOTS[1]);
    // An event for a queue that does not exist.
    on(program, VSCSI + 5, 1, 4).pulse_vscsi(5);
}

pub fn pending_classes() -> Vec<Class> {
    vec![
        ("presented", |pic| {
            // Exception, open, priorities 5 and 6; the most favoured is 5.
            ring(pic, 0) == (0x80, 0xff, 0x06, 5)
        }),
        ("queued in an EQ", |pic| {
            let queue = pic.xive().queue(queue_page(0, 6)).unwrap();
            let last: Vec<u32> = queue.recent.iter().rev().skip(1).copied().collect();
            queue.index == 4
                && queue.generation == 1
                && last[1..4] == [0x8000_1200, 0x8000_0000, 0x8000_1102]
        }),
        ("an EQ that wrapped", |pic| {
            let queue = pic.xive().queue(queue_page(1, 6)).unwrap();
            (queue.index, queue.entries, queue.generation) == (8, 1024, 0)
        }),
        ("pending again in the source", |pic| {
            source(pic, VSCSI).pq == 3
        }),
        ("pending, blocked by CPPR", |pic| {
            ring(pic, 1) == (0, 0, 0x52, 1)
        }),
        ("masked routing, event dropped", |pic| {
            source(pic, VSCSI + 2).masked && source(pic, VSCSI + 2).pq == 2
        }),
        ("off", |pic| source(pic, VSCSI + 3).pq == 1),
        ("masked by the guest, pending", |pic| {
            source(pic, VSCSI + 4).pq == 3
        }),
        ("level presented", |pic| line(pic, 0) == (true, 2)),
        ("level pending again", |pic| line(pic, 1) == (true, 3)),
        ("level asserted, unnoticed", |pic| line(pic, 2) == (true, 0)),
        ("level asserted, off", |pic| line(pic, 3) == (true, 1)),
        ("a queue that is not enabled", |pic| {
            source(pic, VSCSI + 5).queue.is_none()
        }),
    ]
}

/// vCPU 0 handles priority 5; 6 waits, 2 is presented. vCPU 1 has one pending that no source sent.
fn in_service(program: &mut Program) {
    program.on(0).tima_cppr(OPEN);
    on(program, VSCSI, 0, 5).pulse_vscsi(0);
    program.on(0).tima_ack().pulse_vscsi(0);
    on(program, VSCSI + 1, 0, 6).pulse_vscsi(1);
    on(program, MSI, 0, 2).pulse_msi(MSI_SLOTS[0]);
    on(program, LINE, 1, 3).raise(0);
    program.on(1).tima_cppr(OPEN).tima_ack().tima_pend(1);
    program.on(0).lower(0);
}

fn in_service_classes() -> Vec<Class> {
    vec![
        ("presented over one in service", |pic| {
            ring(pic, 0) == (0x80, 5, 0x22, 2)
        }),
        ("in service and pending once more", |pic| {
            source(pic, VSCSI).pq == 3
        }),
        ("pending without a source", |pic| {
            ring(pic, 1) == (0x80, 3, 0x40, 1)
        }),
        ("a level that went away in service", |pic| {
            line(pic, 0) == (false, 2)
        }),
    ]
}

/// vCPU 0 closes after something was presented; vCPU 1 has a CPPR that is no priority. A queue is dropped under its
/// source, a number that nobody claimed is triggered, a line is stored to.
fn odd(program: &mut Program) {
    program.on(0).tima_cppr(OPEN);
    on(program, VSCSI, 0, 5).pulse_vscsi(0);
    program.on(0).tima_cppr(2);
    on(program, VSCSI + 1, 1, 3).pulse_vscsi(1);
    program.on(1).tima_raw_cppr(0x5a);
    on(program, VSCSI + 2, 0, 6)
        .pulse_vscsi(2)
        .drop_queue(0, 6)
        .pulse_vscsi(2);
    program
        .on(0)
        .esb(MSI + 0x100, esb::SET_00)
        .trigger(MSI + 0x100)
        .trigger(MSI + 0x100);
    on(program, LINE, 0, 2).trigger(LINE).trigger(LINE);
    on(program, VSCSI + 3, 1, 6).route(VSCSI + 3, 1, 0xff);
}

fn odd_classes() -> Vec<Class> {
    vec![
        ("presented, CPPR closed since", |pic| {
            ring(pic, 0) == (0x80, 2, 0x26, 2)
        }),
        ("CPPR that is no priority", |pic| {
            ring(pic, 1) == (0, 0x5a, 0x10, 3)
        }),
        ("pending, its queue dropped", |pic| {
            source(pic, VSCSI + 2).queue.is_none() && source(pic, VSCSI + 2).pq == 3
        }),
        ("a line that was stored to", |pic| {
            line(pic, 0) == (false, 3)
        }),
    ]
}

/// NSR, CPPR, IPB, PIPR.
fn ring(pic: &Pic, cpu: usize) -> (u8, u8, u8, u8) {
    let ring = pic.xive().rings[cpu];
    (ring[0], ring[1], ring[2], ring[7])
}

fn source(pic: &Pic, lisn: u32) -> &Eas {
    pic.xive().source(lisn)
}

/// Asserted, and PQ.
fn line(pic: &Pic, pin: u32) -> (bool, u8) {
    let source = source(pic, LINE + pin);
    (source.asserted, source.pq)
}

/// Takes all that is pending, and looks at every setting.
pub fn take(program: &mut Program) {
    let sources: Vec<u32> = (IPI..IPI + 2)
        .chain(VSCSI..VSCSI + 6)
        .chain(LINE..LINE + 4)
        .chain(MSI..MSI + 2)
        .collect();
    let acknowledge = |program: &mut Program| {
        for cpu in 0..2 {
            program.on(cpu).tima_ring();
            for _ in 0..4 {
                program.tima_ack().tima_cppr(OPEN);
            }
        }
        program.on(0);
        for (cpu, priority, ..) in QUEUES {
            program.get_queue(cpu, priority);
            (0..9).for_each(|n| _ = program.load(queue_page(cpu, priority) + 4 * n, 4));
        }
    };
    acknowledge(program);
    for &lisn in &sources {
        program
            .esb(lisn, esb::GET)
            .esb(lisn, esb::EOI)
            .get_route(lisn);
    }
    acknowledge(program);
    for &lisn in &sources {
        program.esb(lisn, esb::EOI).esb(lisn, esb::GET);
    }
    (0..6).for_each(|n| _ = program.pulse_vscsi(n));
    for lisn in [IPI, IPI + 1, MSI, MSI + 1] {
        program.trigger(lisn);
    }
    acknowledge(program);
}
