//! Structs and constants of the header.
//!
//! Structs that may grow begin with `size`; what an older VMM does not have is zero, and zero is the default.

use std::ffi::{c_char, c_int, c_void};

use crate::buffer::Buffer;

/// Version of this interface. Functions and fields are added; none changes while the number is the same.
pub const PAPR_INTC_API_VERSION: u32 = 1;

/// ic_mode: XICS only.
pub const PAPR_INTC_IC_XICS: u32 = 1;
/// ic_mode: XIVE only.
pub const PAPR_INTC_IC_XIVE: u32 = 2;
/// ic_mode: both; the guest chooses at CAS, XICS before it.
pub const PAPR_INTC_IC_DUAL: u32 = 3;

/// compat: PAPR, where QEMU 7.2 differs from it to the guest's disadvantage. The default.
pub const PAPR_INTC_COMPAT_PAPR_1: u32 = 1;
/// compat: QEMU 7.2 to the letter.
pub const PAPR_INTC_COMPAT_QEMU_7_2: u32 = 2;

/// Mapped mode: the VMM's threads run the data plane on shared pages.
pub const PAPR_INTC_MAPPED: u32 = 1;
/// Remote mode: the daemon runs it, every call is a message.
pub const PAPR_INTC_REMOTE: u32 = 2;

/// Flag of a machine: offer StoreEOI to the guest (never in QEMU's pseries).
pub const PAPR_INTC_MACHINE_STORE_EOI: u32 = 1;

/// Active controller: XICS.
pub const PAPR_INTC_MODE_XICS: u32 = 1;
/// Active controller: XIVE.
pub const PAPR_INTC_MODE_XIVE: u32 = 2;

/// ibm,set-xive: irq, server, priority; 1 result.
pub const PAPR_INTC_RTAS_SET_XIVE: u32 = 1;
/// ibm,get-xive: irq; 3 results: status, server, priority.
pub const PAPR_INTC_RTAS_GET_XIVE: u32 = 2;
/// ibm,int-on: irq; 1 result.
pub const PAPR_INTC_RTAS_INT_ON: u32 = 3;
/// ibm,int-off: irq; 1 result.
pub const PAPR_INTC_RTAS_INT_OFF: u32 = 4;

/// Flag of a claim: level-sensitive.
pub const PAPR_INTC_CLAIM_LSI: u32 = 1;
/// Flag of a claim: dynamic, a machine reset may release it.
pub const PAPR_INTC_CLAIM_MSI: u32 = 2;

/// Flag of a machine reset: release what was claimed with PAPR_INTC_CLAIM_MSI.
pub const PAPR_INTC_RESET_FREE_MSIS: u32 = 1;

/// For papr_intc_sync: every source.
pub const PAPR_INTC_ALL_SOURCES: u32 = 0xffff_ffff;

/// For a time limit in milliseconds: none.
pub const PAPR_INTC_NEVER: u32 = 0xffff_ffff;

/// Query: one JSON object: state, generation, uptime, counters.
pub const PAPR_INTC_QUERY_STATUS: u32 = 0;
/// Query: text, as a monitor's "info pic".
pub const PAPR_INTC_QUERY_PIC: u32 = 1;
/// Query: text, a line for each claimed source.
pub const PAPR_INTC_QUERY_SOURCES: u32 = 2;
/// Query: one JSON object, the vCPU whose server number is the argument.
pub const PAPR_INTC_QUERY_VCPU: u32 = 3;

/// Change: there is no daemon. In mapped mode interrupts go on; calls that configure wait.
pub const PAPR_INTC_LOST: u32 = 1;
/// Change: a daemon serves again.
pub const PAPR_INTC_BACK: u32 = 2;
/// Change: remote mode from now on, because the daemon wants it.
pub const PAPR_INTC_DEMOTED: u32 = 3;
/// Change: mapped mode again.
pub const PAPR_INTC_PROMOTED: u32 = 4;
/// Change: no daemon could be started in six attempts; calls that need one return -ENODEV from now on.
pub const PAPR_INTC_GAVE_UP: u32 = 5;

/// Why a daemon was lost: its process ended.
pub const PAPR_INTC_REASON_ENDED: u32 = 1;
/// Why a daemon was lost: it closed its socket.
pub const PAPR_INTC_REASON_HUNG_UP: u32 = 2;
/// Why a daemon was lost: it sent what is no reply.
pub const PAPR_INTC_REASON_BROKEN: u32 = 3;
/// Why a daemon was lost: it did not answer in time.
pub const PAPR_INTC_REASON_SILENT: u32 = 4;
/// Why a daemon was lost: papr_intc_upgrade replaced it.
pub const PAPR_INTC_REASON_REPLACED: u32 = 5;

/// The machine, the same for the life of the guest. Zero means the default of QEMU's pseries machine, where one
/// is named.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Machine {
    /// sizeof(papr_intc_machine).
    pub size: u32,
    /// PAPR_INTC_IC_*. No default.
    pub ic_mode: u32,
    /// PAPR_INTC_COMPAT_*; 0: PAPR_INTC_COMPAT_PAPR_1.
    pub compat: u32,
    /// Server numbers (vCPUs) are 0 to servers - 1. No default.
    pub servers: u32,
    /// LISNs are 0 to sources - 1; 0: 0x2000.
    pub sources: u32,
    /// XICS serves xics_base to sources - 1, LISNs 0 to servers - 1 are XIVE's IPIs; 0: 0x1000.
    pub xics_base: u32,
    /// Phandle of the interrupt controller's device-tree node; 0: 0x1111.
    pub phandle: u32,
    /// First priority reserved to the hypervisor, 1 to 7; 0: 7.
    pub hv_prio: u32,
    /// PAPR_INTC_MACHINE_*.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// Guest physical address of the source ESB pages; 0: 0x6010000000000.
    pub esb_base: u64,
    /// Guest physical address that H_INT_GET_QUEUE_INFO hands out; 0: after the ESB pages.
    pub end_base: u64,
    /// Guest physical address of the four TIMA pages; 0: 0x6030203180000.
    pub tima_base: u64,
}

/// A region of guest RAM.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Region {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// A file that the daemon can map shared: a memfd, or a file on hugetlbfs or tmpfs. It is duplicated.
    pub fd: c_int,
    /// Where the region begins in the file, in bytes.
    pub offset: u64,
    /// Where the VMM has it mapped. Told to the daemon as vhost-user wants it, and not used; may be NULL.
    pub host: *mut c_void,
}

/// What papr_intc_start is asked for. Strings are UTF-8 and are copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Options {
    /// sizeof(papr_intc_options).
    pub size: u32,
    /// PAPR_INTC_MAPPED or PAPR_INTC_REMOTE; 0: mapped.
    pub executor: u32,
    /// The machine.
    pub machine: *const Machine,
    /// Guest RAM that the daemon maps: all in which the guest can have event queues. None (NULL): no RAM is
    /// shared; then the machine must be XICS only, or papr_intc_start returns -ENOTSUP: also in mapped mode
    /// the daemon writes queue entries of XIVE, when it finishes what a predecessor began.
    pub regions: *const Region,
    /// How many.
    pub region_count: usize,
    /// Path of the daemon, which is spawned, and spawned again when it ends; or NULL, see socket.
    pub daemon: *const c_char,
    /// Further arguments for it, the last followed by NULL; may be NULL.
    pub daemon_args: *const *const c_char,
    /// If daemon is NULL: path of the socket on which somebody else's daemons listen. One whose
    /// connection was lost is killed before the next is connected to, so the VMM must be allowed to.
    pub socket: *const c_char,
    /// Name of the VMM or guest, for the daemon's log; NULL: "guest".
    pub name: *const c_char,
    /// A caller that waits longer than this for a reply makes the front-end ask whether the daemon still runs.
    /// In milliseconds; 0: 200.
    pub patience_ms: u32,
    /// The answer to that may take so long. In milliseconds; 0: 250.
    pub answer_ms: u32,
    /// In remote mode the daemon is asked this often without a reason, at most 65000. In milliseconds; 0: 1000.
    pub idle_ms: u32,
    /// One message of a handshake may take so long. In milliseconds; 0: 1000.
    pub message_ms: u32,
    /// While there is no daemon, the guest's H_INT_* calls return H_BUSY to it after this time, and it makes
    /// them again. In milliseconds; 0: they wait.
    pub busy_after_ms: u32,
    /// Zero.
    pub reserved: u32,
}

/// A change of the daemon.
#[repr(C)]
pub struct Change {
    /// sizeof(papr_intc_change) of the library: how much of this struct there is.
    pub size: u32,
    /// PAPR_INTC_LOST, PAPR_INTC_BACK, ...; there may be more in later versions.
    pub what: u32,
    /// PAPR_INTC_LOST: PAPR_INTC_REASON_*.
    pub reason: u32,
    /// PAPR_INTC_BACK: operations of its predecessor that it finished.
    pub redone: u32,
    /// PAPR_INTC_BACK: lines that were up and were signalled again.
    pub resignalled: u32,
    /// PAPR_INTC_BACK: sources whose last event may have been under way.
    pub in_doubt: u32,
    /// PAPR_INTC_BACK: how long there was none, in nanoseconds.
    pub outage_ns: u64,
    /// PAPR_INTC_BACK: generation of the shared memory.
    pub generation: u64,
    /// For people: how the process ended, or why none could be started. Never NULL; gone when the callback
    /// returns.
    pub text: *const c_char,
}

/// The VMM's functions. They stay callable, with opaque, until papr_intc_free has returned.
///
/// Two threads are the front-end's own: "watch" (daemons that go and come) and "io" (irqfds, and the eventfds by
/// which the daemon kicks). All other calls of these functions are made by threads of the VMM, inside a function of
/// this header.
///
/// All but write_u32 are called with no lock of the front-end held: they may call any function of this header but
/// papr_intc_free. On the watch thread, which brings daemons back, functions that may wait for one return -EDEADLK.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Callbacks {
    /// sizeof(papr_intc_callbacks).
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Given to each of them.
    pub opaque: *mut c_void,
    /// The line of the vCPU may have changed: make its thread leave the guest or its halt, and look at
    /// papr_intc_pending. Must not block (loads, stores and hypercalls wait while the machine is quiesced, here too).
    /// May be NULL if every vCPU has an eventfd (papr_intc_vcpu_kick_fd).
    /// Threads: watch, io, any that is inside a function of this header.
    pub kick: Option<extern "C" fn(opaque: *mut c_void, server: u32)>,
    /// Store value big-endian, in one access, at the guest physical address gpa (a multiple of 4), mark its page
    /// dirty for a migration, and return 0; return another number if there is no RAM, and store nothing.
    /// Mandatory. Threads: io, any that is inside a function of this header.
    ///
    /// This one is called in the middle of a step that other threads wait for: it must not block (take no lock
    /// that is held over functions of this header, such as a VMM's big lock), and functions of this header that
    /// are called from it return -EDEADLK.
    pub write_u32: Option<extern "C" fn(opaque: *mut c_void, gpa: u64, value: u32) -> c_int>,
    /// The daemon was lost, is back, ... May be NULL. Thread: watch; during papr_intc_start the caller's.
    pub changed: Option<extern "C" fn(opaque: *mut c_void, change: *const Change)>,
    /// The guest's time base (512 MHz), for H_XIRR_X. NULL: from the host's monotonic clock. Thread: the vCPU's.
    pub time_base: Option<extern "C" fn(opaque: *mut c_void, server: u32) -> u64>,
    /// A thread of the front-end's own begins (1), before anything else is called on it, or ends (0). For a
    /// VMM whose threads have to be registered somewhere, as QEMU's with RCU. May be NULL.
    pub thread: Option<extern "C" fn(opaque: *mut c_void, begins: c_int)>,
}

/// What the guest's choice at CAS led to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CasReply {
    /// In: sizeof(papr_intc_cas_reply).
    pub size: u32,
    /// Byte 23 of the negotiated option vector 5.
    pub byte_23: u32,
    /// PAPR_INTC_MODE_* from now on.
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
    /// H_SUCCESS (0), or H_PARAMETER (-4) for a mode that the machine does not have; then nothing changed.
    pub ret: i64,
    /// Device tree of the mode, as a flattened blob. To be freed.
    pub fdt: Buffer,
}

/// A planned upgrade that went well.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Upgraded {
    /// In: sizeof(papr_intc_upgraded).
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// From the old daemon's goodbye to the new one's open channels, in nanoseconds.
    pub away_ns: u64,
    /// Generation of the shared memory.
    pub generation: u64,
}
