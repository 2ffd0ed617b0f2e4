//! What the kernel asks of its interrupt controller's driver, whichever it is.
//!
//! Each vCPU has one, used by its own thread only. What is kept of an interrupt is passed in under
//! that interrupt's lock.

use super::{Irq, IrqState, Topology};
use crate::board::Step;
use crate::rng::Rng;

/// What a vCPU was interrupted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vector {
    /// Another vCPU.
    Ipi,
    /// An interrupt, by index.
    Irq(usize),
}

/// A driver.
pub trait Chip: Send {
    /// Before another vCPU is started: what must exist for it.
    fn prepare(&mut self, vcpu: u32) -> Step;
    /// The vCPU opens itself for interrupts.
    fn open(&mut self) -> Step;
    /// An interrupt entry: what for. `None`: nothing there.
    fn next(&mut self) -> Step<Option<Vector>>;
    /// The IPI's own acknowledge, before the messages are read.
    fn begin_ipi(&mut self) -> Step;
    /// End of interrupt. Of an interrupt that was found disabled only the vCPU's side ends.
    fn end(&mut self, vector: Vector, source_too: bool) -> Step;
    /// More waits that no new interrupt entry will announce.
    fn more(&mut self) -> Step<bool>;
    /// Interrupts another vCPU.
    fn send_ipi(&mut self, to: u32) -> Step;
    /// Routes an interrupt to `state.target` and opens it.
    fn startup(&mut self, irq: &Irq, state: &mut IrqState) -> Step;
    /// Closes it.
    fn shutdown(&mut self, irq: &Irq, state: &mut IrqState) -> Step;
    /// Masks.
    fn mask(&mut self, irq: &Irq, state: &mut IrqState) -> Step;
    /// Unmasks.
    fn unmask(&mut self, irq: &Irq, state: &mut IrqState) -> Step;
    /// Makes an interrupt that came while disabled come again, after it was unmasked.
    fn resend(&mut self, irq: &Irq) -> Step;
    /// Whether triggers are kept while masked; if not, a driver disables lazily.
    fn masked_triggers_are_kept(&self) -> bool;
    /// Routes to `state.target`, whatever the interrupt is doing.
    fn route(&mut self, irq: &Irq, state: &mut IrqState) -> Step;
    /// Looks at what the controller says of an interrupt, and compares.
    fn check(&mut self, irq: &Irq, state: &IrqState) -> Step;
    /// CPU off: nothing is routed here any more; what had come is sent on.
    fn leave(&mut self, topology: &Topology, rng: &mut Rng) -> Step;
    /// The vCPU's side is taken down, for CPU off and for kexec.
    fn teardown(&mut self) -> Step;
    /// kexec, on the last vCPU: the sources. `crashed`: nobody has tidied up.
    fn shut_sources(&mut self, crashed: bool) -> Step;
}
