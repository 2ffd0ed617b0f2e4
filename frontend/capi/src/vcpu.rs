//! A vCPU: its calls, its accesses, its line.
#![allow(unsafe_code)] // exported names; what C hands in

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::papr::dispatch::is_ours;

use crate::boundary::{Fail, call, done};
use crate::buffer::Buffer;
use crate::callbacks::Callbacks;
use crate::line::Giver;
use crate::memory::duplicate;
use crate::pointers::{Growing, array, array_mut, given, write};
use crate::start::Intc;
use crate::types;

// SAFETY: `repr(C)`, begins with `size: u32`, integers and a pointer.
unsafe impl Growing for types::CasReply {
    const NAME: &'static str = "papr_intc_cas_reply";
    const LEAST: usize = size_of::<types::CasReply>();
}

/// One vCPU. Its calls are made by one thread at a time; papr_intc_pending, papr_intc_sync_line and
/// papr_intc_vcpu_set_cancelled by any.
pub struct Vcpu {
    vcpu: papr_intc_frontend::Vcpu,
    callbacks: Arc<Callbacks>,
    line: Giver,
}

/// Connects the vCPU with this server number; *out is freed by papr_intc_disconnect_vcpu.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_connect_vcpu(
    intc: Option<&Intc>,
    server: u32,
    out: Option<&mut MaybeUninit<*mut Vcpu>>,
) -> c_int {
    done(|| {
        let (intc, out) = (given(intc, "intc")?, given(out, "out")?);
        let vcpu = intc.intc.connect_vcpu(server)?;
        let callbacks = Arc::clone(&intc.callbacks);
        if callbacks.time_base().is_some() {
            let theirs = Arc::clone(&callbacks);
            vcpu.set_time_base(move || theirs.time_base().map_or(0, |read| read(server)));
        }
        out.write(Box::into_raw(Box::new(Vcpu {
            vcpu,
            callbacks,
            line: Giver::default(),
        })));
        Ok(())
    })
}

/// The vCPU is unplugged, or the VMM ends. Frees the vCPU in any case, also if an errno is returned (after
/// papr_intc_shutdown: -ESHUTDOWN). No other thread is inside a function with it. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_disconnect_vcpu(vcpu: *mut Vcpu) -> c_int {
    done(|| {
        if vcpu.is_null() {
            return Ok(());
        }
        // SAFETY: made by Box::into_raw in papr_intc_connect_vcpu; freed once, as the caller promises.
        let Vcpu {
            vcpu, callbacks, ..
        } = *unsafe { Box::from_raw(vcpu) };
        callbacks.set_kick_fd(vcpu.server(), None);
        Ok(vcpu.disconnect()?)
    })
}

/// From now on every kick of this vCPU adds one to the eventfd fd, before kick is called (which may be NULL);
/// -1: no more. fd is duplicated, should be non-blocking, and may be the same for several vCPUs. For a VMM that
/// looks at lines in its main loop.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_vcpu_kick_fd(vcpu: Option<&Vcpu>, fd: c_int) -> c_int {
    done(|| {
        let vcpu = given(vcpu, "vcpu")?;
        let fd = match fd {
            -1 => None,
            fd => Some(duplicate(fd, "fd")?),
        };
        vcpu.callbacks.set_kick_fd(vcpu.vcpu.server(), fd);
        Ok(())
    })
}

/// As papr_intc_set_cancelled, for the calls of this vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_vcpu_set_cancelled(vcpu: Option<&Vcpu>, cancelled: c_int) -> c_int {
    done(|| {
        given(vcpu, "vcpu")?.vcpu.set_cancelled(cancelled != 0);
        Ok(())
    })
}

/// A hypercall: opcode is r3; args are nine, r4 to r12, and are changed as the call says; *ret is the new r3. The VMM has
/// checked that the guest was not in problem state. Returns 1: done; 0: this opcode is no interrupt call, nothing
/// was changed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_hcall(
    vcpu: Option<&Vcpu>,
    opcode: u64,
    args: *mut u64,
    ret: Option<&mut MaybeUninit<i64>>,
) -> c_int {
    call(|| {
        let (vcpu, ret) = (given(vcpu, "vcpu")?, given(ret, "ret")?);
        if !is_ours(opcode) {
            return Ok(0);
        }
        // SAFETY: the caller has nine registers there, and nobody else uses them.
        let registers = unsafe { array_mut(args, 9, "args") }?;
        let mut nine = [0; 9];
        nine.copy_from_slice(registers);
        ret.write(vcpu.vcpu.hcall(opcode, &mut nine)?);
        registers.copy_from_slice(&nine);
        Ok(1)
    })
}

/// An RTAS call (PAPR_INTC_RTAS_*) with nargs argument cells and room for nret results, at most 16 each, in
/// host byte order. Returns how many of rets were set (write no more to the guest); the first is the status.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_rtas(
    vcpu: Option<&Vcpu>,
    rtas: u32,
    args: *const u32,
    nargs: u32,
    rets: *mut u32,
    nret: u32,
) -> c_int {
    call(|| {
        let vcpu = given(vcpu, "vcpu")?;
        let rtas = RtasCall::from_id(rtas)
            .ok_or_else(|| Fail::invalid(format!("{rtas} is no RTAS call of interrupts")))?;
        if nargs > 16 || nret > 16 {
            return Err(Fail::invalid("more than 16 cells for an RTAS call"));
        }
        // SAFETY: the caller has as many cells as it says.
        let args = unsafe { array(args, nargs as usize, "args") }?;
        // SAFETY: as above, and nobody else uses them.
        let rets = unsafe { array_mut(rets, nret as usize, "rets") }?;
        let cells = vcpu.vcpu.rtas(rtas, args, nret)?;
        let count = cells.len().min(rets.len());
        rets[..count].copy_from_slice(&cells[..count]);
        Ok(count as c_int)
    })
}

/// Client-architecture-support: ov5 is option vector 5 as in the guest's table (its length byte, then that many
/// bytes + 1), NULL and 0 if the guest gave none. The VMM has checked that no other vCPU runs. reply->size is
/// set by the VMM; reply->fdt is to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_cas(
    vcpu: Option<&Vcpu>,
    ov5: *const u8,
    len: usize,
    reply: *mut types::CasReply,
) -> c_int {
    done(|| {
        let vcpu = given(vcpu, "vcpu")?;
        // SAFETY: the caller has as many bytes as it says.
        let ov5 = unsafe { array(ov5, len, "ov5") }?;
        // SAFETY: the caller's struct has the size that it says.
        unsafe { write(reply, NO_CHOICE) }?;
        let chosen = vcpu.vcpu.cas(ov5)?;
        let told = types::CasReply {
            byte_23: chosen.byte_23,
            mode: chosen.mode,
            ret: chosen.ret,
            fdt: Buffer::of(&chosen.fdt.0)?,
            ..NO_CHOICE
        };
        // SAFETY: as above.
        unsafe { write(reply, told) }
    })
}

/// What is in a reply before there is one, or if there is none.
const NO_CHOICE: types::CasReply = types::CasReply {
    size: 0,
    byte_23: 0,
    mode: 0,
    reserved: 0,
    ret: 0,
    fdt: Buffer::NONE,
};

/// Accesses of 1, 2, 4 and 8 bytes.
fn width(size: u32) -> Result<u8, Fail> {
    match size {
        1 | 2 | 4 | 8 => Ok(size as u8),
        n => Err(Fail::invalid(format!("an access of {n} bytes"))),
    }
}

/// A load of the guest, of size 1, 2, 4 or 8 bytes, at offset from the machine's esb_base. *value is the number that
/// a big-endian guest loads.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_esb_load(
    vcpu: Option<&Vcpu>,
    offset: u64,
    size: u32,
    value: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    done(|| {
        let (vcpu, value) = (given(vcpu, "vcpu")?, given(value, "value")?);
        value.write(vcpu.vcpu.esb_load(offset, width(size)?)?);
        Ok(())
    })
}

/// A store of the guest at offset from the machine's esb_base; otherwise as papr_intc_esb_load.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_esb_store(
    vcpu: Option<&Vcpu>,
    offset: u64,
    size: u32,
    value: u64,
) -> c_int {
    done(|| {
        let vcpu = given(vcpu, "vcpu")?;
        Ok(vcpu.vcpu.esb_store(offset, width(size)?, value)?)
    })
}

/// A load of this vCPU at offset from the machine's tima_base; otherwise as papr_intc_esb_load.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_tima_load(
    vcpu: Option<&Vcpu>,
    offset: u64,
    size: u32,
    value: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    done(|| {
        let (vcpu, value) = (given(vcpu, "vcpu")?, given(value, "value")?);
        value.write(vcpu.vcpu.tima_load(offset, width(size)?)?);
        Ok(())
    })
}

/// A store of this vCPU at offset from the machine's tima_base; otherwise as papr_intc_esb_load.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_tima_store(
    vcpu: Option<&Vcpu>,
    offset: u64,
    size: u32,
    value: u64,
) -> c_int {
    done(|| {
        let vcpu = given(vcpu, "vcpu")?;
        Ok(vcpu.vcpu.tima_store(offset, width(size)?, value)?)
    })
}

/// The level of the vCPU's external-interrupt line: 1 or 0. Never waits for an absent daemon.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_pending(vcpu: Option<&Vcpu>) -> c_int {
    call(|| Ok(c_int::from(given(vcpu, "vcpu")?.vcpu.pending())))
}

/// Calls set with the line's level, and again while it is not what was set last. If another thread is doing so at
/// present for this vCPU, that one goes on with it and this one returns at once: when all of them have returned, the
/// last level set is the line's. set is called with no lock held and may call any function of this header.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_sync_line(
    vcpu: Option<&Vcpu>,
    set: Option<extern "C" fn(opaque: *mut c_void, level: c_int)>,
    opaque: *mut c_void,
) -> c_int {
    done(|| {
        let (vcpu, set) = (given(vcpu, "vcpu")?, given(set, "set")?);
        let pending = || vcpu.vcpu.pending();
        vcpu.line
            .give(pending, |level| set(opaque, c_int::from(level)));
        Ok(())
    })
}

/// The vCPU's part of both controllers as after power-on.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_vcpu_reset(vcpu: Option<&Vcpu>) -> c_int {
    done(|| Ok(given(vcpu, "vcpu")?.vcpu.reset()?))
}
