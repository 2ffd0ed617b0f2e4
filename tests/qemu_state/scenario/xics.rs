//! XICS guests.

use papr_intc_protocol::layout::IcMode;

use super::super::op::{LINE, MSI, MSI_SLOTS, Program, VSCSI};
use super::super::pic::status::{ASSERTED, MASKED_PENDING, REJECTED, SENT};
use super::super::pic::{Icp, Pic, Xics};
use super::{Class, Scenario};

/// `H_CPPR` that lets everything through.
const OPEN: u64 = 0xff;

pub fn all() -> Vec<Scenario> {
    let new = |name, program, classes| Scenario::new(name, IcMode::Xics, program, classes);
    vec![
        new(
            "xics: a source presented, others behind it",
            |program| whole(program, refused),
            refused_classes(),
        ),
        new(
            "xics: the same, with gaps between the server numbers",
            |program| whole(program, refused),
            refused_classes(),
        )
        .with_gaps(),
        new(
            "xics: displaced by an IPI and by a source",
            |program| whole(program, displaced),
            displaced_classes(),
        ),
        new(
            "xics: in service, and again",
            |program| whole(program, in_service),
            in_service_classes(),
        ),
        new(
            "xics: presented, although the cause has gone",
            |program| whole(program, outlived),
            outlived_classes(),
        ),
        Scenario {
            on_load: forget_rejected,
            ..new(
                "xics: rejected, then masked",
                |program| whole(program, masked_late),
                masked_late_classes(),
            )
        },
        new(
            "xics: an MSI that was freed",
            |program| {
                whole(program, |program| {
                    refused(program);
                    program.on(0).free_msi(MSI_SLOTS[0]);
                });
            },
            vec![("freed", |pic| {
                pic.xics().sources.iter().all(|s| s.lisn != MSI)
            })],
        ),
        new(
            "xics: an MSI that was freed and claimed again",
            |program| {
                whole(program, |program| {
                    refused(program);
                    let slot = MSI_SLOTS[0];
                    program.on(0).free_msi(slot).set_up_msi(slot);
                });
            },
            vec![("most favoured", |pic| source(pic, MSI) == (0, 0))],
        ),
        new(
            "xics: never used",
            |program| whole(program, |_| {}),
            vec![("reset", is_reset)],
        ),
    ]
}

/// Interrupts are pending, and taken after the save.
fn whole(program: &mut Program, pend: fn(&mut Program)) {
    program.start_cpu(1);
    pend(program);
    program.save_here();
    take(program);
}

/// As after reset.
pub fn is_reset(pic: &Pic) -> bool {
    let Xics { icps, sources } = pic.xics();
    let idle = |icp: &Icp| (icp.xirr, icp.pending, icp.mfrr) == (0, 0xff, 0xff);
    icps.iter().all(idle) && sources.iter().all(|s| (s.priority, s.status) == (0xff, 0))
}

/// vCPU 0 has a source presented, vCPU 1 one in service and a more favoured one presented.
pub fn refused(program: &mut Program) {
    program
        .on(0)
        .set_xive(VSCSI, 0, 5)
        .cppr(OPEN)
        .pulse_vscsi(0) // presented
        .set_xive(VSCSI + 1, 0, 7)
        .pulse_vscsi(1) // less favoured than what is there
        .pulse_vscsi(2) // masked since reset
        .set_xive(VSCSI + 3, 0, 6)
        .int_off(VSCSI + 3)
        .pulse_vscsi(3) // masked, with a priority to come back to
        .set_xive(LINE, 0, 6)
        .raise(0) // refused
        .raise(1) // masked
        .ipi(0, 6); // less favoured
    program.on(1).cppr(OPEN);
    program.on(0).set_xive(LINE + 2, 1, 4).raise(2);
    program.on(1).accept(); // the line is in service
    program
        .on(0)
        .set_xive(LINE + 3, 1, 2)
        .raise(3) // presented
        .set_xive(MSI, 1, 7)
        .pulse_msi(MSI_SLOTS[0]) // refused
        .ipi(1, 5); // behind both
}

pub fn refused_classes() -> Vec<Class> {
    vec![
        ("presented MSI", |pic| {
            icp(pic, 0) == (0xff00_1101, 5, 6) && source(pic, VSCSI) == (5, 0)
        }),
        ("presented line", |pic| {
            icp(pic, 1) == (0x0400_1203, 2, 5) && source(pic, LINE + 3) == (2, ASSERTED | SENT)
        }),
        ("rejected: refused by what is presented", |pic| {
            source(pic, VSCSI + 1) == (7, REJECTED)
        }),
        ("rejected: refused by CPPR", |pic| {
            source(pic, MSI) == (7, REJECTED)
        }),
        ("masked pending", |pic| {
            source(pic, VSCSI + 2) == (0xff, MASKED_PENDING)
        }),
        ("masked pending, with a saved priority", |pic| {
            source(pic, VSCSI + 3) == (0xff, MASKED_PENDING)
        }),
        ("level asserted, refused", |pic| {
            source(pic, LINE) == (6, ASSERTED)
        }),
        ("level asserted, masked", |pic| {
            source(pic, LINE + 1) == (0xff, ASSERTED)
        }),
        ("level asserted, in service", |pic| {
            source(pic, LINE + 2) == (4, ASSERTED | SENT)
        }),
        ("MFRR behind what is presented", |pic| {
            pic.xics().icps[0].mfrr == 6 && pic.xics().icps[1].mfrr == 5
        }),
    ]
}

/// vCPU 0 is presented an IPI that came after a source; vCPU 1 a source that came after a line.
fn displaced(program: &mut Program) {
    program
        .on(0)
        .set_xive(VSCSI, 0, 5)
        .cppr(OPEN)
        .pulse_vscsi(0)
        .ipi(0, 4);
    program.on(1).cppr(OPEN);
    program
        .on(0)
        .set_xive(LINE, 1, 6)
        .raise(0)
        .set_xive(VSCSI + 1, 1, 3)
        .pulse_vscsi(1)
        .pulse_vscsi(1);
}

fn displaced_classes() -> Vec<Class> {
    vec![
        ("MFRR presented", |pic| icp(pic, 0) == (0xff00_0002, 4, 4)),
        ("rejected: displaced", |pic| {
            source(pic, VSCSI) == (5, REJECTED)
        }),
        ("level asserted, displaced", |pic| {
            source(pic, LINE) == (6, ASSERTED)
        }),
        ("presented and pending once more", |pic| {
            icp(pic, 1) == (0xff00_1102, 3, 0xff) && source(pic, VSCSI + 1) == (3, REJECTED)
        }),
    ]
}

/// vCPU 0 handles a source that comes again; vCPU 1 takes nothing.
fn in_service(program: &mut Program) {
    program
        .on(0)
        .set_xive(VSCSI, 0, 5)
        .cppr(OPEN)
        .pulse_vscsi(0)
        .accept()
        .pulse_vscsi(0)
        .set_xive(MSI + 1, 1, 0)
        .pulse_msi(MSI_SLOTS[1])
        .ipi(1, 0)
        .set_xive(LINE, 1, 4)
        .raise(0);
}

fn in_service_classes() -> Vec<Class> {
    vec![
        ("in service and pending once more", |pic| {
            icp(pic, 0) == (0x0500_0000, 0xff, 0xff) && source(pic, VSCSI) == (5, REJECTED)
        }),
        ("a closed vCPU: MFRR", |pic| icp(pic, 1) == (0, 0xff, 0)),
        ("a closed vCPU: rejected", |pic| {
            source(pic, MSI + 1) == (0, REJECTED)
        }),
        ("a closed vCPU: level asserted", |pic| {
            source(pic, LINE) == (4, ASSERTED)
        }),
    ]
}

/// vCPU 0 is presented an IPI that was withdrawn; vCPU 1 a source that was moved, and
/// more than its CPPR allows since a wrong H_EOI.
fn outlived(program: &mut Program) {
    program.on(0).cppr(OPEN).ipi(0, 4).ipi(0, 0xff);
    program.set_xive(VSCSI, 1, 5).set_xive(LINE, 1, 6);
    program.on(1).cppr(OPEN);
    program.on(0).raise(0).lower(0).pulse_vscsi(0);
    program
        .set_xive(VSCSI, 0, 3)
        .pulse_vscsi(0)
        .set_xive(VSCSI + 1, 0, 2)
        .pulse_vscsi(1)
        .set_xive(VSCSI + 1, 0, 0xff);
    program.on(1).ipi(1, 5).end(0x0300_0000);
}

fn outlived_classes() -> Vec<Class> {
    vec![
        ("presented, masked since", |pic| {
            icp(pic, 0) == (0xff00_1102, 2, 0xff) && source(pic, VSCSI + 1).0 == 0xff
        }),
        ("presented, moved and pending once more", |pic| {
            pic.xics().icps[1].xirr & 0xff_ffff == VSCSI && source(pic, VSCSI) == (3, REJECTED)
        }),
        ("presented, CPPR closed since; MFRR ties", |pic| {
            icp(pic, 1) == (0x0300_1101, 5, 5)
        }),
        ("a level that went away", |pic| source(pic, LINE) == (6, 0)),
    ]
}

/// Two sources that a closed vCPU refused, masked since; one of them was triggered once more.
fn masked_late(program: &mut Program) {
    program.on(0);
    for n in 0..2 {
        program.set_xive(VSCSI + n, 0, 5).pulse_vscsi(n);
        program.set_xive(VSCSI + n, 0, 0xff);
    }
    program.pulse_vscsi(1);
}

fn masked_late_classes() -> Vec<Class> {
    vec![
        ("rejected, masked since", |pic| {
            source(pic, VSCSI) == (0xff, REJECTED)
        }),
        ("rejected, masked since, masked pending", |pic| {
            source(pic, VSCSI + 1) == (0xff, REJECTED | MASKED_PENDING)
        }),
    ]
}

/// QEMU tries every rejected source when it has loaded, and forgets those that are masked.
fn forget_rejected(pic: &mut Pic) {
    if let Pic::Xics(xics) = pic {
        let masked = xics.sources.iter_mut().filter(|s| s.priority == 0xff);
        masked.for_each(|source| source.status &= !REJECTED);
    }
}

/// What a guest with one vCPU leaves when it chooses XIVE: nothing that XICS presents, for the vCPU has one line for both.
pub fn left_behind(program: &mut Program) {
    program
        .on(0)
        .set_xive(VSCSI, 0, 5)
        .pulse_vscsi(0)
        .pulse_vscsi(1)
        .set_xive(VSCSI + 3, 1, 6)
        .int_off(VSCSI + 3)
        .ipi(0, 3);
}

fn icp(pic: &Pic, cpu: usize) -> (u32, u8, u8) {
    let Icp {
        xirr,
        pending,
        mfrr,
    } = pic.xics().icps[cpu];
    (xirr, pending, mfrr)
}

/// Priority and status.
fn source(pic: &Pic, lisn: u32) -> (u8, u8) {
    let source = pic.xics().source(lisn);
    (source.priority, source.status)
}

/// Takes all that is pending, and looks at every setting. The lines stay high, so they are masked in between.
pub fn take(program: &mut Program) {
    let sources = || (VSCSI..VSCSI + 6).chain(LINE..LINE + 4).chain(MSI..MSI + 2);
    for cpu in 0..2 {
        program.on(cpu).poll(cpu).accept_and_end(3);
    }
    for lisn in sources() {
        program.get_xive(lisn);
    }
    for lisn in LINE..LINE + 4 {
        program.int_off(lisn);
    }
    for cpu in 0..2 {
        program.on(cpu).cppr(OPEN).accept_and_end(6);
        program.ipi(cpu, 0xff).cppr(OPEN).accept_and_end(6);
    }
    for lisn in sources() {
        program.int_on(lisn).accept_and_end(2).get_xive(lisn);
    }
    for lisn in VSCSI..VSCSI + 6 {
        program.set_xive(lisn, 1, 1).cppr(OPEN).accept_and_end(2);
    }
    program.on(0).cppr(OPEN).accept_and_end(2).poll(0).poll(1);
}
