//! The guest moves to another daemon while it runs: what a VMM does on both sides of a migration, in one
//! process and with the same RAM.
//!
//! | step | guest | what |
//! |---|---|---|
//! | 1 | runs | the target is started, its vCPUs are connected, its fixed numbers claimed |
//! | 2 | runs | the target says whether it can take what the source has: *checked* |
//! | 3 | stops | vCPUs stop; devices go on, the source latches what they send: *quiesced* |
//! | 4 | stopped | devices stop, irqfds leave the source and keep their counts: *saved* |
//! | 5 | stopped | the target has everything and has not run: *loaded* |
//! | 6 | goes on | vCPUs and devices find the target, irqfds join it, it resumes |
//!
//! At each of the words in italics the move may be given up: the source has it all and goes on. A daemon
//! that is killed, on either side, is no reason to.

use std::sync::atomic::Ordering;
use std::time::Instant;

use papr_intc_frontend::{Intc, Vcpu};

use super::{QUIESCE_LIMIT, Real, Wiring, fixed, lock, write};
use crate::board::Step;
use crate::moves::{GoesOn, Moved, Phase};

/// Where the guest goes.
struct Target {
    intc: Intc,
    /// In the order of the seats.
    vcpus: Vec<Vcpu>,
}

impl Real {
    pub(super) fn migrate(&self, goes_on: &GoesOn) -> Step<Moved> {
        let source = self.intc().clone();
        let Target { intc, vcpus } = self.prepare()?;
        lock(&self.alive).push(intc.clone());
        let moved = self.carry(&source, &intc, vcpus, goes_on);
        let (stays, leaves) = match &moved {
            Ok(Moved { aborted: None, .. }) => (intc, source),
            _ => (source, intc),
        };
        *lock(&self.alive) = vec![stays];
        leaves.shutdown();
        moved
    }

    /// Another daemon for the same machine, after power-on.
    fn prepare(&self) -> Step<Target> {
        let mut options = self.options.clone();
        let (seats, numbers) = {
            let wiring = lock(&self.wiring);
            options.executor = wiring.executor;
            (wiring.seats.clone(), wiring.fixed.clone())
        };
        let release = self.release.load(Ordering::Relaxed) % 2;
        let release = self.releases[release].clone();
        let intc = Intc::start(options, release, self.ram.clone(), self.kick.clone())?;
        let vcpus = seats.iter().map(|seat| intc.connect_vcpu(seat.server));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        for (lisn, lsi) in numbers {
            intc.claim(&fixed(lisn, lsi))?;
        }
        Ok(Target { intc, vcpus })
    }

    fn carry(
        &self,
        source: &Intc,
        target: &Intc,
        vcpus: Vec<Vcpu>,
        goes_on: &GoesOn,
    ) -> Step<Moved> {
        let head = {
            // No vCPU is being plugged in or out.
            let _still = lock(&self.wiring);
            source.state_header()?
        };
        target.state_check(&head)?;
        if !goes_on(Phase::Checked) {
            return Ok(Moved::given_up(Phase::Checked));
        }
        let mut wiring = lock(&self.wiring);
        let begun = Instant::now();
        let seats = wiring.seats.clone();
        let mut seats: Vec<_> = seats.iter().map(|seat| write(&seat.vcpu)).collect();
        source.quiesce(QUIESCE_LIMIT)?;
        if !goes_on(Phase::Quiesced) {
            source.resume(None)?;
            return Ok(Moved {
                stopped: begun.elapsed(),
                ..Moved::given_up(Phase::Quiesced)
            });
        }
        let mut place = write(&self.place);
        let moved = hand_over(source, target, &wiring, goes_on);
        let next = if let Ok(Moved { aborted: None, .. }) = &moved {
            *place = target.clone();
            wiring.executor = target.executor();
            for (seat, vcpu) in seats.iter_mut().zip(vcpus) {
                **seat = vcpu;
            }
            target
        } else {
            source.state_abort()?;
            source
        };
        for (lisn, event) in &wiring.irqfds {
            next.add_irqfd(*lisn, event)?;
        }
        // From here on it latches what devices send.
        drop(place);
        next.resume(None)?;
        Ok(Moved {
            stopped: begun.elapsed(),
            ..moved?
        })
    }
}

/// Steps 4 and 5.
fn hand_over(source: &Intc, target: &Intc, wiring: &Wiring, goes_on: &GoesOn) -> Step<Moved> {
    for lisn in wiring.irqfds.keys() {
        source.remove_irqfd(*lisn)?;
    }
    let state = source.state_save()?;
    let moved = |aborted| Moved {
        aborted,
        bytes: state.len(),
        ..Moved::default()
    };
    if !goes_on(Phase::Saved) {
        return Ok(moved(Some(Phase::Saved)));
    }
    target.quiesce(QUIESCE_LIMIT)?;
    target.state_load(&state)?;
    if !goes_on(Phase::Loaded) {
        target.state_abort()?;
        return Ok(moved(Some(Phase::Loaded)));
    }
    Ok(moved(None))
}
