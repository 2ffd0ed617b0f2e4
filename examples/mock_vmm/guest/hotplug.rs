//! CPU off and on, and kexec: the sequences of xive.md §9 and xics.md §9.1.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Kernel;
use super::cpu::{Core, Left, Role};
use crate::board::Step;
use crate::tally::{Kind, Tally};

/// Takes another vCPU off, or brings one on.
pub fn change(core: &mut Core) -> Step {
    let kernel = core.kernel.clone();
    let topology = kernel.online();
    if kernel.ending.load(Ordering::Acquire) {
        return Ok(());
    }
    let off = topology.on.iter().position(|on| !on);
    let victim = topology.pick(&mut core.rng, Some(core.me));
    match (off, victim) {
        (Some(vcpu), _) => {
            drop(topology);
            bring_on(core, vcpu as u32)
        }
        (None, Some(victim)) => {
            let mail = &kernel.mail[victim as usize];
            mail.go_off.store(true, Ordering::Release);
            mail.post();
            core.chip.send_ipi(victim)
        }
        _ => Ok(()),
    }
}

/// Prepares a stopped vCPU and starts it.
pub fn bring_on(core: &mut Core, vcpu: u32) -> Step {
    let kernel = core.kernel.clone();
    let mut topology = kernel
        .topology
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    if kernel.ending.load(Ordering::Acquire) || topology.on[vcpu as usize] {
        return Ok(());
    }
    core.chip.prepare(vcpu)?;
    topology.on[vcpu as usize] = true;
    core.platform.halts[vcpu as usize].start(Role::Secondary(kernel.clone()));
    Tally::one(&core.tally().cpu_on);
    Ok(())
}

/// This vCPU takes itself off; false if it has to stay.
pub fn go_off(core: &mut Core) -> Step<bool> {
    let kernel = core.kernel.clone();
    let mut topology = kernel
        .topology
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    if kernel.ending.load(Ordering::Acquire) || topology.count() < 2 {
        return Ok(false);
    }
    topology.on[core.me as usize] = false;
    core.chip.leave(&topology, &mut core.rng)?;
    while core.cpu.pending() || core.chip.more()? {
        core.interrupt()?;
    }
    // Messages whose IPIs will not be taken any more.
    let found = kernel.mail[core.me as usize].read();
    if let crate::tally::Found::New(_) = found {
        core.ran(Kind::Ipi, found);
    }
    core.chip.teardown()?;
    Tally::one(&core.tally().cpu_off);
    Ok(true)
}

/// kexec on the vCPU that was told: stops the others, shuts everything, and goes on alone.
pub fn next_kernel(core: &mut Core, crashed: bool) -> Step<Left> {
    let kernel = core.kernel.clone();
    let others = {
        let mut topology = kernel
            .topology
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        kernel.ending.store(true, Ordering::Release);
        topology.on[core.me as usize] = false;
        let others: Vec<usize> = (0..topology.on.len()).filter(|i| topology.on[*i]).collect();
        for &other in &others {
            kernel.mail[other].stop.store(true, Ordering::Release);
            kernel.mail[other].post();
            core.chip.send_ipi(other as u32)?;
        }
        others
    };
    wait_for(&kernel, others.len());
    core.chip.teardown()?;
    core.chip.shut_sources(crashed)?;
    Tally::one(&core.tally().kexecs);
    Ok(Left::NextKernel)
}

/// The others' part of it.
pub fn stop_for_next_kernel(core: &mut Core) -> Step<Left> {
    core.chip.teardown()?;
    let mut stopped = core
        .kernel
        .stopped
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *stopped += 1;
    core.kernel.one_stopped.notify_all();
    Ok(Left::Stopped)
}

fn wait_for(kernel: &Kernel, vcpus: usize) {
    let mut stopped = kernel
        .stopped
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    while *stopped < vcpus {
        stopped = kernel
            .one_stopped
            .wait(stopped)
            .unwrap_or_else(PoisonError::into_inner);
    }
}
