//! Guests that may choose: before they did, and after.

use papr_intc_protocol::layout::IcMode;

use super::super::op::Program;
use super::{Scenario, set_up_devices, xics, xive};

pub fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "dual: before the choice",
            mode: IcMode::Dual,
            program: with_xics(|_| {}),
            classes: xics::refused_classes(),
        },
        Scenario {
            name: "dual: XICS chosen",
            mode: IcMode::Dual,
            program: with_xics(|program| _ = program.cas(0)),
            classes: xics::refused_classes(),
        },
        Scenario {
            name: "dual: XIVE chosen, XICS left with things pending",
            mode: IcMode::Dual,
            program: with_xive(),
            classes: xive::pending_classes(),
        },
    ]
}

fn with_xics(choose: fn(&mut Program)) -> Program {
    let mut program = Program::default();
    set_up_devices(&mut program);
    choose(program.on(0));
    program.start_cpu(1);
    xics::refused(&mut program);
    program.save_here();
    xics::take(&mut program);
    program
}

fn with_xive() -> Program {
    let mut program = Program::default();
    set_up_devices(&mut program);
    xics::left_behind(&mut program);
    program.cas(xive::ASK_XIVE).start_cpu(1);
    xive::set_up_queues(&mut program);
    xive::pending(&mut program);
    program.save_here();
    xive::take(&mut program);
    program
}
