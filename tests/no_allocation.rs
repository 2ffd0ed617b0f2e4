//! Interrupts in mapped mode allocate nothing: an allocator that counts, around a guest's calls and accesses and
//! its devices' triggers.
#![allow(unsafe_code)] // `GlobalAlloc`; it only hands on to the system's allocator
#![allow(clippy::unwrap_used)] // a test says what it means with it

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine, membarrier};
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::protocol::state::model::*;
use papr_intc_frontend::{GuestRam, Intc, Launcher, Options, Source, Vcpu};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; the counter is a plain cell of the thread, which
// needs no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread in `f`.
fn allocations(mut f: impl FnMut()) -> u64 {
    // The first time may take what only first times take: the thread's epoch.
    f();
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

const MSI: u32 = 0x1300;
const PRIORITY: u8 = 5;

/// A machine with one vCPU and one source, which is routed to it.
struct Guest {
    vcpu: Vcpu,
    source: Source,
    kicks: Arc<AtomicU32>,
    intc: Intc,
}

impl Guest {
    fn new(ic_mode: IcMode) -> Self {
        let machine = Machine::pseries(ic_mode, Compat::Papr1, 1);
        let ram = Arc::new(GuestRam::new(&[(0, 1 << 16)]).unwrap());
        let kicks = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&kicks);
        let kick = Arc::new(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
        let launcher = Launcher::spawn(env!("CARGO_BIN_EXE_papr-intc"), Vec::new());
        let intc = Intc::start(Options::new(machine), launcher, ram, kick).unwrap();
        let vcpu = intc.connect_vcpu(0).unwrap();
        intc.quiesce(Duration::from_secs(10)).unwrap();
        intc.state_load(&routed(machine).encode().unwrap()).unwrap();
        intc.resume(None).unwrap();
        Self {
            source: intc.source(MSI).unwrap(),
            vcpu,
            kicks,
            intc,
        }
    }

    fn hcall(&self, opcode: u64, r4: u64, r5: u64) -> u64 {
        let mut args = [r4, r5, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(self.vcpu.hcall(opcode, &mut args).unwrap(), 0);
        args[0]
    }
}

fn routed(machine: Machine) -> State {
    let mut head = Head::new("test", machine);
    head.cas_xive = machine.ic_mode == IcMode::Xive;
    head.servers = vec![0];
    let mut state = State::reset(head);
    state.claims.push(Claims {
        first: MSI,
        count: 1,
        kind: Kind::Msi,
    });
    if machine.ic_mode == IcMode::Xics {
        state.xics.icps.push(Icp {
            cppr: 0xff,
            ..Icp::reset(0)
        });
        state.xics.sources.push(XicsSource {
            priority: PRIORITY,
            saved: PRIORITY,
            ..XicsSource::reset(MSI)
        });
        return state;
    }
    state.xive.sources.push(XiveSource {
        lisn: MSI,
        pq: 0,
        masked: false,
        end: PRIORITY.into(),
        eisn: MSI,
    });
    state.xive.rings.push(Ring {
        server: 0,
        bytes: Ring::RESET | 0xff << 48,
    });
    state.xive.ends.push(End {
        end: PRIORITY.into(),
        address: 0,
        size: 16,
        always_notify: true,
        generation: true,
        index: 0,
        esn: 0,
    });
    state
}

#[test]
fn the_counter_counts() {
    let count = allocations(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(count, 1);
}

#[test]
fn a_xics_interrupt_and_an_ipi_allocate_nothing() {
    let guest = Guest::new(IcMode::Xics);
    let count = allocations(|| {
        guest.source.trigger().unwrap();
        assert!(guest.vcpu.pending());
        let xirr = guest.hcall(opcode::H_XIRR, 0, 0);
        assert_eq!(xirr & 0xff_ffff, u64::from(MSI));
        // One that is refused, and presented by the EOI.
        guest.source.trigger().unwrap();
        guest.hcall(opcode::H_EOI, xirr, 0);
        let xirr = guest.hcall(opcode::H_XIRR, 0, 0);
        assert_eq!(xirr & 0xff_ffff, u64::from(MSI));
        guest.hcall(opcode::H_EOI, xirr, 0);
        guest.hcall(opcode::H_IPI, 0, 4);
        let xirr = guest.hcall(opcode::H_XIRR, 0, 0);
        assert_eq!(xirr & 0xff_ffff, 2);
        guest.hcall(opcode::H_IPI, 0, 0xff);
        guest.hcall(opcode::H_EOI, xirr, 0);
        guest.hcall(opcode::H_CPPR, 0xff, 0);
        guest.vcpu.sync_line(|_| ());
    });
    assert_eq!(count, 0);
    assert!(guest.kicks.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_xive_interrupt_allocates_nothing() {
    let guest = Guest::new(IcMode::Xive);
    let management = (u64::from(MSI) << 17) + 0x1_0000;
    let count = allocations(|| {
        // The second waits in Q, and is forwarded by the EOI.
        guest.source.trigger().unwrap();
        guest.source.trigger().unwrap();
        for _ in 0..2 {
            assert!(guest.vcpu.pending());
            let accepted = guest.vcpu.tima_load(0x2_0810, 2).unwrap();
            assert_eq!(accepted, 0x8000 | u64::from(PRIORITY));
            guest.vcpu.esb_load(management, 8).unwrap();
            guest.vcpu.tima_store(0x2_0011, 1, 0xff).unwrap();
        }
        assert!(!guest.vcpu.pending());
        guest.vcpu.esb_store(management + 0xd00, 8, 0).unwrap();
        guest.vcpu.esb_load(management + 0xc00, 8).unwrap();
        guest.vcpu.sync_line(|_| ());
    });
    assert_eq!(count, 0);
    assert!(guest.kicks.load(Ordering::Relaxed) > 0);
}

/// Nor is there a fence: the daemon of this build makes it for us.
#[test]
fn the_fence_of_a_transition_is_left_to_a_daemon_of_this_build() {
    let guest = Guest::new(IcMode::Xive);
    let pages = guest.intc.storage().unwrap();
    assert_eq!(pages.is_fenced_by_daemon(), membarrier::is_available());
}
