//! What concerns the machine as a whole: its daemon, its executor, resets, questions.
#![allow(unsafe_code)] // exported names; what C hands in

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::time::Duration;

use papr_intc_frontend::Executor;

use crate::boundary::{Fail, call, done, look};
use crate::buffer::Buffer;
use crate::pointers::{Growing, given, text, texts, write};
use crate::start::{Intc, executor, spawn};
use crate::types::{self, PAPR_INTC_RESET_FREE_MSIS};

// SAFETY: `repr(C)`, begins with `size: u32`, integers.
unsafe impl Growing for types::Upgraded {
    const NAME: &'static str = "papr_intc_upgraded";
    const LEAST: usize = size_of::<types::Upgraded>();
}

/// Pid of the present daemon; 0 while there is none.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_daemon_pid(intc: Option<&Intc>) -> c_int {
    look(|| {
        let pid = given(intc, "intc")?.intc.daemon_pid().unwrap_or(0);
        Ok(pid.cast_signed())
    })
}

/// How many daemons after the first have served.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_restarts(intc: Option<&Intc>) -> u64 {
    intc.map_or(0, |intc| intc.intc.restarts())
}

/// 1: the daemon held the memory of an earlier VMM when this one came, and the guest goes on with it; 0: the
/// controllers are as after power-on.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_adopted(intc: Option<&Intc>) -> c_int {
    call(|| Ok(c_int::from(given(intc, "intc")?.intc.adopted())))
}

/// Both controllers as after power-on. No vCPU runs. flags: PAPR_INTC_RESET_*. Every vCPU is kicked.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_machine_reset(intc: Option<&Intc>, flags: u32) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        if flags & !PAPR_INTC_RESET_FREE_MSIS != 0 {
            return Err(Fail::invalid(format!(
                "reset with unknown flags {flags:#x}"
            )));
        }
        Ok(intc.intc.machine_reset(flags != 0)?)
    })
}

/// Stops the data plane: events and levels are recorded from now on, calls of the guest wait. Nests. -ETIMEDOUT
/// after deadline_ms milliseconds; then everything goes on as before.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_quiesce(intc: Option<&Intc>, deadline_ms: u32) -> c_int {
    done(|| {
        let deadline = Duration::from_millis(deadline_ms.into());
        Ok(given(intc, "intc")?.intc.quiesce(deadline)?)
    })
}

/// Undoes one quiesce; the last one replays what was recorded. by: 0, or PAPR_INTC_MAPPED or PAPR_INTC_REMOTE
/// from now on (at the last resume only).
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_resume(intc: Option<&Intc>, by: u32) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Ok(intc.intc.resume(executor(by)?)?)
    })
}

/// Who runs the data plane at present: PAPR_INTC_MAPPED or PAPR_INTC_REMOTE.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_executor(intc: Option<&Intc>) -> c_int {
    call(|| {
        let code = match given(intc, "intc")?.intc.executor() {
            Executor::FrontEnd => types::PAPR_INTC_MAPPED,
            Executor::Daemon => types::PAPR_INTC_REMOTE,
        };
        Ok(code.cast_signed())
    })
}

/// Mapped mode from now on, irqfds included. -EPROTONOSUPPORT if the daemon itself has asked for remote mode:
/// the wish is remembered for the next daemon.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_promote(intc: Option<&Intc>) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.promote()?))
}

/// Remote mode from now on, irqfds included.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_demote(intc: Option<&Intc>) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.demote()?))
}

/// While it is set (not 0), calls with this controller that wait for a daemon, events of sources among them, return
/// -ECANCELED; so do those that wait already. The same call, made again, goes on where it stopped and runs once.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_set_cancelled(intc: Option<&Intc>, cancelled: c_int) -> c_int {
    done(|| {
        given(intc, "intc")?.intc.set_cancelled(cancelled != 0);
        Ok(())
    })
}

/// Puts the daemon of another binary in the place of the one that serves and of those started later. In mapped
/// mode interrupts flow meanwhile; calls wait. daemon and daemon_args: as in papr_intc_options. upgraded
/// may be NULL. If it fails the old daemon serves, or is started again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_upgrade(
    intc: Option<&Intc>,
    daemon: *const c_char,
    daemon_args: *const *const c_char,
    upgraded: *mut types::Upgraded,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        // SAFETY: the caller's strings end, and so does the array.
        let (daemon, args) =
            unsafe { (text(daemon, "daemon")?, texts(daemon_args, "daemon_args")?) };
        let now = intc.intc.upgrade(spawn(given(daemon, "daemon")?, &args))?;
        if upgraded.is_null() {
            return Ok(());
        }
        let told = types::Upgraded {
            size: 0,
            reserved: 0,
            away_ns: now.away.as_nanos() as u64,
            generation: now.generation,
        };
        // SAFETY: the caller's struct has the size that it says.
        unsafe { write(upgraded, told) }
    })
}

/// What the daemon says to people. what: PAPR_INTC_QUERY_*. text->data is a string, to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_query(
    intc: Option<&Intc>,
    what: u32,
    argument: u64,
    text: Option<&mut MaybeUninit<Buffer>>,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Buffer::fill(given(text, "text")?, || {
            Ok(intc.intc.query(what, argument)?.into_bytes())
        })
    })
}

/// Device tree of a mode (PAPR_INTC_MODE_*; 0: the active one), as a flattened blob, to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_fdt(
    intc: Option<&Intc>,
    mode: u32,
    fdt: Option<&mut MaybeUninit<Buffer>>,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Buffer::fill(given(fdt, "fdt")?, || Ok(intc.intc.fdt(mode)?))
    })
}
