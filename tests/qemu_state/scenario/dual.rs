//! Guests that may choose: before they did, and after.

use papr_intc_protocol::layout::IcMode;

use super::super::op::{LINE, Program};
use super::{Scenario, xics, xive};

pub fn all() -> Vec<Scenario> {
    let new = |name, program, classes| Scenario::new(name, IcMode::Dual, program, classes);
    let left_behind = "dual: XIVE chosen, XICS left with things pending";
    vec![
        new(
            "dual: before the choice, never used",
            |program| {
                program.save_here();
                program.on(0).poll(0);
            },
            vec![("reset", xics::is_reset)],
        ),
        new(
            "dual: before the choice",
            with_xics,
            xics::refused_classes(),
        ),
        new(
            "dual: XICS chosen",
            |program| with_xics(program.on(0).cas(0)),
            xics::refused_classes(),
        ),
        // What XICS remembers of levels is as old as the choice.
        Scenario {
            exact: false,
            ..new(
                "dual: XIVE chosen while lines were high",
                with_lines,
                vec![("a level that XIVE does not know", |pic| {
                    !pic.xive().source(LINE).asserted
                })],
            )
        },
        new(left_behind, with_xive, xive::pending_classes()),
        new(
            "dual: the same, with a vCPU that was plugged in",
            with_xive,
            xive::pending_classes(),
        )
        .with_late_vcpu(),
        new(
            "dual: the same, with gaps between the server numbers",
            with_xive,
            xive::pending_classes(),
        )
        .with_gaps(),
    ]
}

fn with_xics(program: &mut Program) {
    program.start_cpu(1);
    xics::refused(program);
    program.save_here();
    xics::take(program);
}

fn with_xive(program: &mut Program) {
    xics::left_behind(program);
    program.cas(xive::ASK_XIVE).start_cpu(1);
    xive::set_up_queues(program);
    xive::pending(program);
    program.save_here();
    xive::take(program);
}

fn with_lines(program: &mut Program) {
    program.on(0).set_xive(LINE, 0, 6).raise(0).raise(1);
    program.cas(xive::ASK_XIVE).start_cpu(1).lower(1);
    xive::set_up_queues(program);
    program.save_here();
    xive::take(program);
}
