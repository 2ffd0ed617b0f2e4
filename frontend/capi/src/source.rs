//! Interrupt sources: claims, events, levels, irqfds.
#![allow(unsafe_code)] // exported names

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;

use papr_intc_frontend::protocol::wire::source::{ANY, Claim, claim_flag};
use vmm_sys_util::eventfd::EventFd;

use crate::boundary::{Fail, done};
use crate::memory::duplicate;
use crate::pointers::given;
use crate::start::Intc;
use crate::types::{PAPR_INTC_CLAIM_LSI, PAPR_INTC_CLAIM_MSI};

const _: () =
    assert!(PAPR_INTC_CLAIM_LSI == claim_flag::LSI && PAPR_INTC_CLAIM_MSI == claim_flag::MSI);

/// Claims the LISNs first to first + count - 1 in both controllers, all or none. flags: PAPR_INTC_CLAIM_*.
/// -EBUSY or another errno of the daemon if one is not free.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_claim(
    intc: Option<&Intc>,
    first: u32,
    count: u32,
    flags: u32,
) -> c_int {
    done(|| {
        if first == ANY {
            return Err(Fail::invalid("a claim of LISN 0xffffffff"));
        }
        given(intc, "intc")?.intc.claim(&Claim {
            first,
            count,
            align: 1,
            flags,
            low: 0,
            high: 0,
        })?;
        Ok(())
    })
}

/// Claims count LISNs that are free, the first a multiple of align (a power of two) and all within low to high - 1.
/// *first is the first of them.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_claim_any(
    intc: Option<&Intc>,
    count: u32,
    align: u32,
    low: u32,
    high: u32,
    flags: u32,
    first: Option<&mut MaybeUninit<u32>>,
) -> c_int {
    done(|| {
        let (intc, out) = (given(intc, "intc")?, given(first, "first")?);
        out.write(intc.intc.claim(&Claim {
            first: ANY,
            count,
            align,
            flags,
            low,
            high,
        })?);
        Ok(())
    })
}

/// Releases LISNs in both controllers, all or none.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_unclaim(intc: Option<&Intc>, first: u32, count: u32) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.free(first, count)?))
}

/// One event of an MSI. In mapped mode no daemon is needed.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_trigger(intc: Option<&Intc>, lisn: u32) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.source(lisn)?.trigger()?))
}

/// The level (0 or not) of the input of an LSI that the VMM drives. Devices that share it are OR-ed by the VMM, or
/// have a level irqfd each.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_set_irq(intc: Option<&Intc>, lisn: u32, level: c_int) -> c_int {
    done(|| {
        let source = given(intc, "intc")?.intc.source(lisn)?;
        Ok(source.set_level(level != 0)?)
    })
}

/// Returns when every event of the source (PAPR_INTC_ALL_SOURCES: of all) accepted before is in its queue.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_sync(intc: Option<&Intc>, lisn: u32) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.sync(lisn)?))
}

fn event(fd: c_int, name: &str) -> Result<EventFd, Fail> {
    let fd = duplicate(fd, name)?;
    // SAFETY: the number of a descriptor that we have just made and own.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd.into_raw_fd()) })
}

/// From now on every count of the eventfd fd triggers the source. Replaces what the source had. fd is duplicated; it
/// should be non-blocking.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_add_irqfd(intc: Option<&Intc>, lisn: u32, fd: c_int) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        Ok(intc.intc.add_irqfd(lisn, &event(fd, "fd")?)?)
    })
}

/// From now on a count of the eventfd trigger raises the level of an LSI. It falls when the guest ends the
/// interrupt; then the eventfd resample is written, and a device that still has a reason writes trigger
/// again. Several inputs (any numbers) and papr_intc_set_irq share an LSI: it is asserted while one of them
/// is. Both are duplicated.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_add_level_irqfd(
    intc: Option<&Intc>,
    lisn: u32,
    input: u32,
    trigger: c_int,
    resample: c_int,
) -> c_int {
    done(|| {
        let intc = given(intc, "intc")?;
        let (trigger, resample) = (event(trigger, "trigger")?, event(resample, "resample")?);
        Ok(intc
            .intc
            .add_level_irqfd(lisn, input, &trigger, &resample)?)
    })
}

/// The irqfd of the source, or of one input of an LSI (0 for an edge), is not read any more, and none of its
/// counts is on its way. A level that it had raised stays until the guest has ended the interrupt.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_remove_irqfd(intc: Option<&Intc>, lisn: u32, input: u32) -> c_int {
    done(|| Ok(given(intc, "intc")?.intc.remove_level_irqfd(lisn, input)?))
}
