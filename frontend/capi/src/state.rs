//! Moving a guest: its interrupt controllers' state, and the pages that they write meanwhile.
#![allow(unsafe_code)] // exported names; what C hands in

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use papr_intc_frontend::LOG_PAGE;

use crate::boundary::done;
use crate::buffer::Buffer;
use crate::pointers::{array, given};
use crate::start::Intc;

/// The head of the state, to be shown to the destination while the guest still runs. To be freed.
/// -ENOTSUP: the machine has what its compat level cannot carry.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_state_header(
    intc: Option<&Intc>,
    head: Option<&mut MaybeUninit<Buffer>>,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Buffer::fill(given(head, "head")?, || Ok(intc.intc.state_header()?))
    })
}

/// May this machine take the state with that head? Asked of the destination before the source stops. An errno as
/// papr_intc_state_load would give it, with the reason in words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_state_check(
    intc: Option<&Intc>,
    head: *const u8,
    size: usize,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        // SAFETY: the caller has as many bytes as it says.
        Ok(intc
            .intc
            .state_check(unsafe { array(head, size, "head") }?)?)
    })
}

/// The whole state, to be freed. The machine is quiesced (else -EBUSY) and stays so; what devices trigger from now
/// on is not in it.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_state_save(
    intc: Option<&Intc>,
    state: Option<&mut MaybeUninit<Buffer>>,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Buffer::fill(given(state, "state")?, || Ok(intc.intc.state_save()?))
    })
}

/// All of state takes effect on this machine, or nothing. The machine is quiesced (else -EBUSY), has its vCPUs, has
/// claimed the numbers of its fixed devices and has not run a guest. -ENOTSUP: not for this machine; -EUCLEAN:
/// damaged. Afterwards papr_intc_resume.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_state_load(
    intc: Option<&Intc>,
    state: *const u8,
    size: usize,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        // SAFETY: the caller has as many bytes as it says.
        Ok(intc
            .intc
            .state_load(unsafe { array(state, size, "state") }?)?)
    })
}

/// Gives a move up. A source forgets what it handed out; a destination that has loaded is back to reset. Either stays
/// quiesced.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_state_abort(intc: Option<&Intc>) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.state_abort()?))
}

/// From now on the daemon marks the pages of guest RAM that it writes, over its restarts and upgrades too. Pages that
/// write_u32 stored to are marked by the VMM itself, always. Copy all of RAM after this, not before.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_dirty_log_start(intc: Option<&Intc>) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.start_dirty_log()?))
}

/// Stops dirty logging and forgets what was marked and not taken.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_dirty_log_stop(intc: Option<&Intc>) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.stop_dirty_log()?))
}

/// Takes the pages that the daemon has marked since the last call: page is called for each run of them, ascending,
/// with its guest physical address and its length, multiples of 4096 bytes. Copy them after this. Needs no daemon. The set is
/// final only if it was taken while the machine was quiesced.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_dirty_log_take(
    intc: Option<&Intc>,
    page: Option<extern "C" fn(opaque: *mut c_void, gpa: u64, bytes: u64)>,
    opaque: *mut c_void,
) -> c_int {
    done(|| {
        let (intc, page) = (given(intc, "intc")?, given(page, "page")?);
        let mut run: Option<(u64, u64)> = None;
        for gpa in intc.intc.take_dirty().iter() {
            match &mut run {
                Some((start, bytes)) if *start + *bytes == gpa => *bytes += LOG_PAGE,
                _ => {
                    if let Some((start, bytes)) = run.replace((gpa, LOG_PAGE)) {
                        page(opaque, start, bytes);
                    }
                }
            }
        }
        if let Some((start, bytes)) = run {
            page(opaque, start, bytes);
        }
        Ok(())
    })
}
