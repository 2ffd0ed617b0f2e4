//! Every interleaving of the machine-wide operations with devices and vCPUs: gate, epochs, grace
//! periods, levels, replay (SPEC.md §3.8, §3.9).
#![allow(clippy::unwrap_used)]

mod explorer;
mod gate_scenario;

use gate_scenario::daemon::{Daemon, Work};
use gate_scenario::*;
use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::plane::LevelInput;

const MODES: [Mode; 2] = [Mode::Xics, Mode::Xive];

fn other(mode: Mode) -> Mode {
    MODES[usize::from(mode == Mode::Xics)]
}

fn quiesced_trigger(mode: Mode, fault: Fault) -> explorer::Scenario {
    let daemon = Daemon::new(Who::Daemon(1))
        .barrier(Work::Quiesce)
        .barrier(Work::Resume(None));
    Start::of(mode, &[MSI])
        .scenario(
            format!("trigger against QUIESCE and RESUME, {mode:?}"),
            fault,
        )
        .thread(daemon.thread)
        .thread(triggers("device", 1, 1))
        .thread(triggers("device 2", 2, 1))
        .at_rest(msi_served)
}

#[test]
fn a_trigger_is_not_lost_to_quiesce_and_resume() {
    for mode in MODES {
        quiesced_trigger(mode, Fault::None).explore();
        let why = quiesced_trigger(mode, Fault::ReplayEarly).refute();
        assert!(why.contains("latched for ever"), "{why}");
    }
}

fn switched_level(mode: Mode, steps: &'static [bool], fault: Fault) -> explorer::Scenario {
    let daemon = Daemon::new(Who::Daemon(1)).barrier(Work::Cas(other(mode)));
    Start::of(mode, &[LSI])
        .scenario(format!("level {steps:?} against CAS from {mode:?}"), fault)
        .thread(daemon.thread)
        .thread(levels("device", 1, LevelInput::Vmm, steps))
        .at_rest(levels_are(*steps.last().unwrap(), false, false))
}

#[test]
fn a_level_follows_a_change_of_mode() {
    for mode in MODES {
        for steps in [&[true][..], &[true, false], &[true, false, true]] {
            switched_level(mode, steps, Fault::None).explore();
        }
        let why = switched_level(mode, &[true, false], Fault::CopyOnce).refute();
        assert!(why.contains("level"), "{why}");
    }
}
