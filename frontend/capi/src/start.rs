//! A machine's controller begins and ends.
#![allow(unsafe_code)] // exported names; what C hands in

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use papr_intc_frontend::protocol::layout::machine::ESB_SHIFT;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};
use papr_intc_frontend::{Absence, Executor, Launcher, OnChange, OnThread, Options};

use crate::boundary::{Fail, done};
use crate::callbacks::Callbacks;
use crate::memory::Memory;
use crate::pointers::{Growing, array, given, read, text, texts};
use crate::types;

// SAFETY: `repr(C)`, begins with `size: u32`, integers.
unsafe impl Growing for types::Machine {
    const NAME: &'static str = "papr_intc_machine";
    const LEAST: usize = size_of::<types::Machine>();
}

// SAFETY: `repr(C)`, begins with `size: u32`, integers and pointers.
unsafe impl Growing for types::Options {
    const NAME: &'static str = "papr_intc_options";
    const LEAST: usize = size_of::<types::Options>();
}

/// One guest's interrupt controller. Every function may be called from any thread.
pub struct Intc {
    pub(crate) intc: papr_intc_frontend::Intc,
    pub(crate) callbacks: Arc<Callbacks>,
}

/// Starts a daemon, or connects to one, and shakes hands; *out is the controller. The callbacks may be called
/// before this returns. Fails with whatever keeps the first daemon from serving.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_start(
    options: *const types::Options,
    callbacks: *const types::Callbacks,
    out: Option<&mut MaybeUninit<*mut Intc>>,
) -> c_int {
    done(|| {
        let out = given(out, "out")?;
        // SAFETY: the caller's structs have the size that they say.
        let (options, callbacks) = unsafe { (read(options)?, read(callbacks)?) };
        let callbacks = Arc::new(Callbacks::new(callbacks)?);
        let intc = start(&options, &callbacks)?;
        out.write(Box::into_raw(Box::new(Intc { intc, callbacks })));
        Ok(())
    })
}

fn start(
    theirs: &types::Options,
    callbacks: &Arc<Callbacks>,
) -> Result<papr_intc_frontend::Intc, Fail> {
    // SAFETY: the caller's regions are as many as it says, and stay during the call.
    let regions = unsafe { array(theirs.regions, theirs.region_count, "regions") }?;
    // SAFETY: the caller's struct has the size that it says.
    let machine = machine(&unsafe { read(theirs.machine) }?, !regions.is_empty())?;
    let ram = Arc::new(Memory::new(regions, Arc::clone(callbacks))?);
    let options = options(theirs, machine, callbacks)?;
    // SAFETY: the caller's strings end.
    let daemon = unsafe { text(theirs.daemon, "daemon") }?;
    // SAFETY: the caller's strings end, and so does the array.
    let args = unsafe { texts(theirs.daemon_args, "daemon_args") }?;
    // SAFETY: the caller's strings end.
    let socket = unsafe { text(theirs.socket, "socket") }?;
    let launcher = match (daemon, socket) {
        (Some(binary), None) => spawn(binary, &args),
        (None, Some(path)) => Launcher::connect(path),
        _ => return Err(Fail::invalid("either daemon or socket is to be given")),
    };
    let kicked = Arc::clone(callbacks);
    let kick = Arc::new(move |server| kicked.kick(server));
    Ok(papr_intc_frontend::Intc::start(
        options, launcher, ram, kick,
    )?)
}

/// A daemon of this binary.
pub(crate) fn spawn(binary: &str, args: &[&str]) -> Launcher {
    Launcher::spawn(binary, args.iter().map(Into::into).collect())
}

fn options(
    theirs: &types::Options,
    machine: Machine,
    callbacks: &Arc<Callbacks>,
) -> Result<Options, Fail> {
    let mut options = Options::new(machine);
    options.executor = executor(theirs.executor)?.unwrap_or(Executor::FrontEnd);
    // SAFETY: the caller's strings end.
    if let Some(name) = unsafe { text(theirs.name, "name") }? {
        options.name = name.to_owned();
    }
    let limit = |ms: u32, default: &mut Duration| {
        if ms != 0 {
            *default = Duration::from_millis(ms.into());
        }
    };
    limit(theirs.patience_ms, &mut options.watch.patience);
    limit(theirs.answer_ms, &mut options.watch.answer);
    limit(theirs.message_ms, &mut options.watch.message);
    match theirs.idle_ms {
        0 => {}
        types::PAPR_INTC_NEVER => options.watch.idle = None,
        ms => options.watch.idle = Some(Duration::from_millis(ms.into())),
    }
    if theirs.busy_after_ms != 0 {
        options.absence = Absence::Busy(Duration::from_millis(theirs.busy_after_ms.into()));
    }
    let told = Arc::clone(callbacks);
    options.on_change = OnChange::call(move |change| told.changed(change));
    let told = Arc::clone(callbacks);
    options.on_thread = OnThread::call(move |begins| told.thread(begins));
    Ok(options)
}

/// PAPR_INTC_MAPPED or PAPR_INTC_REMOTE; none for 0.
pub(crate) fn executor(code: u32) -> Result<Option<Executor>, Fail> {
    match code {
        0 => Ok(None),
        types::PAPR_INTC_MAPPED => Ok(Some(Executor::FrontEnd)),
        types::PAPR_INTC_REMOTE => Ok(Some(Executor::Daemon)),
        n => Err(Fail::invalid(format!("{n} is no executor"))),
    }
}

fn machine(theirs: &types::Machine, ram_shared: bool) -> Result<Machine, Fail> {
    let ic_mode = match theirs.ic_mode {
        types::PAPR_INTC_IC_XICS => IcMode::Xics,
        types::PAPR_INTC_IC_XIVE => IcMode::Xive,
        types::PAPR_INTC_IC_DUAL => IcMode::Dual,
        n => return Err(Fail::invalid(format!("{n} is no ic_mode"))),
    };
    let compat = match theirs.compat {
        0 | types::PAPR_INTC_COMPAT_PAPR_1 => Compat::Papr1,
        types::PAPR_INTC_COMPAT_QEMU_7_2 => Compat::Qemu72,
        n => return Err(Fail::invalid(format!("{n} is no compat"))),
    };
    if !ram_shared && ic_mode.has_xive() {
        let why = "XIVE needs RAM that is shared with the daemon: no regions are given";
        return Err(Fail::new(Errno::ENOTSUP, why));
    }
    if theirs.flags & !types::PAPR_INTC_MACHINE_STORE_EOI != 0 || theirs.reserved != 0 {
        let why = "papr_intc_machine.flags or .reserved has what this library does not know";
        return Err(Fail::invalid(why));
    }
    let default = Machine::pseries(ic_mode, compat, theirs.servers);
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let or_at = |value: u64, default: u64| if value == 0 { default } else { value };
    let sources = or(theirs.sources, default.sources);
    let esb_base = or_at(theirs.esb_base, default.esb_base);
    let after_esb = esb_base.wrapping_add(u64::from(sources) << ESB_SHIFT);
    let hv_prio = u8::try_from(or(theirs.hv_prio, default.hv_prio.into()))
        .map_err(|_| Fail::invalid("hv_prio is not within 1 to 7"))?;
    Ok(Machine {
        sources,
        xics_base: or(theirs.xics_base, default.xics_base),
        phandle: or(theirs.phandle, default.phandle),
        esb_base,
        end_base: or_at(theirs.end_base, after_esb),
        tima_base: or_at(theirs.tima_base, default.tima_base),
        hv_prio,
        store_eoi: theirs.flags & types::PAPR_INTC_MACHINE_STORE_EOI != 0,
        ram_shared,
        ..default
    })
}

/// Ends the daemon and the front-end's threads: when this returns they call no callback any more (unless it was called
/// on one of them). Every call that waits returns -ESHUTDOWN; what can be done without a daemon still works. Idempotent.
/// At the end of a VMM: this, then papr_intc_disconnect_vcpu for each vCPU, then papr_intc_free.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_shutdown(intc: Option<&Intc>) -> c_int {
    done(|| {
        given(intc, "intc")?.intc.shutdown();
        Ok(())
    })
}

/// Shuts down and frees. No other thread is inside a function with this controller or will call one, and all
/// vCPUs are disconnected. Afterwards no callback is called. Not to be called from a callback. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn papr_intc_free(intc: *mut Intc) {
    done(|| {
        if !intc.is_null() {
            // SAFETY: made by Box::into_raw in papr_intc_start; freed once, as the caller promises.
            let intc = unsafe { Box::from_raw(intc) };
            intc.intc.shutdown();
        }
        Ok(())
    });
}
