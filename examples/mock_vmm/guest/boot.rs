//! From reset to a running kernel: firmware that polls, CAS, and a kernel that sets up its
//! interrupts and its other vCPUs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};

use super::cpu::Core;
use super::{Choice, Kernel, Platform, call, hotplug};
use crate::board::{Cpu, Step};
use crate::rng::Rng;
use crate::tally::Tally;

/// What a boot is to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of the kernel.
    pub number: u64,
    /// The controller that the kernel wants.
    pub choice: Choice,
    /// Interrupts that the firmware polls before CAS.
    pub firmware_interrupts: usize,
    /// Times that CAS goes back and forth before it is final (dual only).
    pub flips: usize,
}

/// Index of the byte of option vector 5 that chooses, and its value for XIVE.
const BYTE: usize = 23;
const EXPLOITATION: u8 = 0x40;

/// Firmware and CAS, then the kernel.
pub fn firmware(platform: &Arc<Platform>, me: u32, plan: &Plan, mut rng: Rng) -> Step<Core> {
    let cpu = platform.cpus[me as usize].clone();
    let ic_mode = platform.board.machine().ic_mode;
    if ic_mode.has_xics() {
        poll_interrupts(platform, &*cpu, me, plan.firmware_interrupts, &mut rng)?;
    } else {
        // Before CAS nobody has asked for XIVE.
        let code = cpu.hcall(opcode::H_INT_GET_SOURCE_INFO, &mut [0; 9])?;
        if code != ret::H_FUNCTION {
            platform
                .tally
                .wrong(format!("a XIVE call before CAS answered {code}"));
        }
    }
    if ic_mode.has_xics() && ic_mode.has_xive() {
        for _ in 0..plan.flips {
            cas(platform, &*cpu, Choice::Xive)?;
            cas(platform, &*cpu, Choice::Xics)?;
        }
    }
    cas(platform, &*cpu, plan.choice)?;
    let kernel = Kernel::new(platform, plan.number, plan.choice);
    start_kernel(Arc::new(kernel), me, rng)
}

/// SLOF's way: one vCPU, no external interrupts, H_XIRR in a loop. The devices rest meanwhile, so
/// what is triggered is there when the trigger has returned.
fn poll_interrupts(
    platform: &Platform,
    cpu: &dyn Cpu,
    me: u32,
    times: usize,
    rng: &mut Rng,
) -> Step {
    let (devices, tally) = (&platform.devices, &*platform.tally);
    for _ in 0..times {
        let i = rng.below(devices.sources.len() as u64) as usize;
        if devices.sources[i].kind.is_elsewhere() || devices.cells.outstanding(i) {
            continue;
        }
        let lisn = devices.sources[i].lisn();
        call(cpu, tally, opcode::H_CPPR, &[0xff])?;
        rtas(
            cpu,
            tally,
            RtasCall::SetXive,
            &[lisn, me * platform.stride, 5],
        )?;
        rtas(cpu, tally, RtasCall::IntOn, &[lisn])?;
        devices.send(i, 1)?;
        let xirr = call(cpu, tally, opcode::H_XIRR, &[0xff])?[0];
        if xirr != 0xff00_0000 | u64::from(lisn) {
            tally.wrong(format!(
                "firmware triggered {lisn:#x} and read XIRR {xirr:#x}"
            ));
        }
        let found = devices.handler_reads(i)?;
        tally.ran(devices.sources[i].kind, found);
        call(cpu, tally, opcode::H_EOI, &[xirr])?;
        rtas(cpu, tally, RtasCall::IntOff, &[lisn])?;
    }
    call(cpu, tally, opcode::H_CPPR, &[0])?;
    Ok(())
}

fn rtas(cpu: &dyn Cpu, tally: &Tally, which: RtasCall, args: &[u32]) -> Step {
    Tally::one(&tally.configured);
    let rets = cpu.rtas(which, args, 1)?;
    if rets != [0] {
        tally.wrong(format!("firmware's {which:?} {args:x?} returned {rets:x?}"));
    }
    Ok(())
}

/// client-architecture-support, and whether the answer is of one piece.
fn cas(platform: &Platform, cpu: &dyn Cpu, choice: Choice) -> Step {
    let mut ov5 = [0; 27];
    ov5[0] = 25; // 26 bytes follow
    let (byte, node) = match choice {
        Choice::Xics => (0, "IBM,ppc-xicp"),
        Choice::Xive => (EXPLOITATION, "ibm,power-ivpe"),
    };
    ov5[BYTE] = byte;
    let answer = cpu.cas(&ov5)?;
    Tally::one(&platform.tally.cas);
    Tally::one(&platform.tally.configured);
    let names_it = answer.fdt.windows(node.len()).any(|w| w == node.as_bytes());
    if answer.ret != ret::H_SUCCESS || answer.byte_23 != u32::from(byte) || !names_it {
        platform.tally.wrong(format!(
            "CAS for {choice:?} answered {}, byte 23 {:#x}, {} bytes of device tree",
            answer.ret,
            answer.byte_23,
            answer.fdt.len()
        ));
    }
    Ok(())
}

/// A kernel's start on its first vCPU.
pub fn start_kernel(kernel: Arc<Kernel>, me: u32, rng: Rng) -> Step<Core> {
    let platform = kernel.platform.clone();
    platform.install(&kernel);
    let mut core = Core::new(kernel.clone(), me, rng);
    core.chip.prepare(me)?;
    {
        let mut topology = kernel
            .topology
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        topology.on[me as usize] = true;
    }
    core.chip.open()?;
    for irq in &kernel.irqs {
        let mut state = irq.lock();
        state.target = me;
        core.chip.startup(irq, &mut state)?;
        state.started = true;
    }
    for other in (0..platform.cpus.len() as u32).filter(|s| *s != me) {
        hotplug::bring_on(&mut core, other)?;
    }
    for irq in &kernel.irqs {
        let topology = kernel.online();
        let mut state = irq.lock();
        state.target = topology.pick(&mut core.rng, None).unwrap_or(me);
        core.chip.route(irq, &mut state)?;
    }
    for i in 0..kernel.irqs.len() {
        core.signal_again(i)?;
    }
    kernel.ready.store(true, Ordering::Release);
    Ok(core)
}
