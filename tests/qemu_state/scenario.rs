//! Guests with something pending: what they do, and what the monitor must then show.

use papr_intc_protocol::layout::IcMode;

mod dual;
mod xics;
mod xive;

use super::op::{MSI_SLOTS, Program};
use super::pic::Pic;
use super::qemu::Shape;

/// A class of pending interrupts, and whether a controller shows it.
pub type Class = (&'static str, fn(&Pic) -> bool);

/// One guest.
pub struct Scenario {
    pub name: &'static str,
    pub shape: Shape,
    /// What it does after its devices are set up.
    pub program: fn(&mut Program),
    /// All of them are shown when the guest is saved.
    pub classes: Vec<Class>,
    /// Its stream becomes our state without a word, and comes out again as it was.
    pub exact: bool,
    /// What QEMU makes of it when it loads it.
    pub on_load: fn(&mut Pic),
}

impl Scenario {
    fn new(
        name: &'static str,
        mode: IcMode,
        program: fn(&mut Program),
        classes: Vec<Class>,
    ) -> Self {
        Self {
            name,
            shape: Shape {
                mode,
                vsmt: 1,
                late_vcpu: false,
            },
            program,
            classes,
            exact: true,
            on_load: |_| {},
        }
    }

    /// The same with gaps between the server numbers.
    fn with_gaps(mut self) -> Self {
        self.shape.vsmt = 4;
        self
    }

    /// The same with a vCPU that was plugged in.
    fn with_late_vcpu(mut self) -> Self {
        self.shape.late_vcpu = true;
        self
    }

    /// All that it does.
    pub fn compose(&self) -> Program {
        let mut program = Program::new(self.shape.vsmt);
        set_up_devices(&mut program);
        (self.program)(&mut program);
        program
    }
}

/// Every guest.
pub fn all() -> Vec<Scenario> {
    let mut all = xics::all();
    all.extend(xive::all());
    all.extend(dual::all());
    all
}

/// Devices ready to interrupt: six virtual SCSI adapters, four pins, two MSIs.
fn set_up_devices(program: &mut Program) {
    program.on(0);
    for n in 0..6 {
        program.set_up_vscsi(n);
    }
    for slot in 0..6 {
        program.set_up_pci(slot);
    }
    for slot in MSI_SLOTS {
        program.set_up_msi(slot);
    }
}
