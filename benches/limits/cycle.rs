//! From a device's trigger to the line of a vCPU, and on to the end of the interrupt, by one thread, beside
//! the same atomics bare.

use std::sync::atomic::{AtomicU64, Ordering};

use papr_intc_frontend::protocol::layout::Page;
use papr_intc_frontend::protocol::layout::words::cursor;
use papr_intc_frontend::protocol::papr::codes::opcode;
use papr_intc_frontend::{Source, Vcpu};

use crate::case::Case;
use crate::rig::{PRIORITY, Rig, end_of, management, swap, trigger_page};

const BATCH: u32 = 64;
pub const ACKNOWLEDGE: u64 = 0x2_0810;
pub const CPPR: u64 = 0x2_0011;

/// What a XIVE event does at least: a swap of the source's word, lock and unlock of its queue, four bytes
/// stored, a swap of the vCPU's word.
pub struct Bare<'a> {
    pub source: &'a AtomicU64,
    pub cursor: &'a AtomicU64,
    pub entry: &'a AtomicU64,
    pub vcpu: &'a AtomicU64,
}

impl<'a> Bare<'a> {
    /// Those of a source and of the server that it is routed to.
    pub fn of(rig: &'a Rig, lisn: u32) -> Self {
        let server = lisn % rig.machine.servers;
        Self {
            source: rig.word(Page::Source(lisn)),
            cursor: rig.word(Page::EndCursor(end_of(server))),
            // A line that nothing else here uses.
            entry: rig.word(Page::Delivered(server)),
            vcpu: rig.word(Page::Tima(server)),
        }
    }

    #[inline]
    pub fn event(&self) {
        swap(self.source, 2);
        let free = self.cursor.load(Ordering::Relaxed);
        let taken = self.cursor.compare_exchange(
            free,
            free | cursor::LOCKED,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        self.entry.store(free, Ordering::Relaxed);
        self.cursor.store(taken.unwrap_or(0), Ordering::Release);
        swap(self.vcpu, 0x40);
    }

    /// Acknowledge, EOI, CPPR.
    #[inline]
    pub fn end(&self) {
        swap(self.vcpu, 0x40);
        swap(self.source, 2);
        swap(self.vcpu, 0x80);
    }
}

/// Acknowledge, EOI, CPPR of a vCPU.
#[inline]
pub fn end(vcpu: &Vcpu, lisn: u32) {
    _ = vcpu.tima_load(ACKNOWLEDGE, 2);
    _ = vcpu.esb_load(management(lisn), 8);
    _ = vcpu.tima_store(CPPR, 1, 0xff);
}

/// On a machine with XIVE: sources of server 0, which share its queue.
pub fn xive(rig: &Rig) -> Vec<Case<'_>> {
    let lisn = move |i: u32| rig.first() + i * rig.machine.servers;
    let sources: Vec<Source> = (0..BATCH).map(|i| rig.source(lisn(i))).collect();
    let bare = || {
        (0..BATCH)
            .map(|i| Bare::of(rig, lisn(i)))
            .collect::<Vec<_>>()
    };
    let (by_device, by_guest, hot) = (bare(), bare(), Bare::of(rig, lisn(0)));
    let vcpu = &rig.vcpus[0];
    let ready = move || {
        (0..BATCH).for_each(|i| _ = vcpu.esb_load(management(lisn(i)) + 0xc00, 8));
    };
    let one = rig.source(lisn(0));
    vec![
        Case::new(
            "XIVE: trigger, route, queue write, present",
            2.0,
            BATCH,
            move || sources.iter().for_each(|s| _ = s.trigger()),
            move || by_device.iter().for_each(Bare::event),
        )
        .after(ready),
        Case::new(
            "XIVE: the same by a guest's ESB store",
            2.0,
            BATCH,
            move || (0..BATCH).for_each(|i| _ = vcpu.esb_store(trigger_page(lisn(i)), 8, 0)),
            move || by_guest.iter().for_each(Bare::event),
        )
        .after(ready),
        Case::new(
            "XIVE: trigger to EOI",
            2.0,
            BATCH,
            move || {
                (0..BATCH).for_each(|_| {
                    _ = one.trigger();
                    end(vcpu, lisn(0));
                });
            },
            move || {
                (0..BATCH).for_each(|_| {
                    hot.event();
                    hot.end();
                });
            },
        )
        .after(move || {
            ready();
            end(vcpu, lisn(0));
        }),
    ]
}

/// H_XIRR and H_EOI of what it returned.
#[inline]
pub fn accept_and_end(vcpu: &Vcpu) {
    let mut args = [0; 9];
    _ = vcpu.hcall(opcode::H_XIRR, &mut args);
    _ = vcpu.hcall(opcode::H_EOI, &mut args);
}

/// On a machine with XICS: one source for each vCPU.
pub fn xics(rig: &Rig) -> Vec<Case<'_>> {
    let servers = rig.machine.servers;
    let lisn = move |server: u32| rig.first() + server;
    let sources: Vec<Source> = (0..servers).map(|s| rig.source(lisn(s))).collect();
    let target = move |s| (rig.word(Page::IcsSource(s)), rig.word(Page::Icp(s)));
    let one = rig.source(lisn(0));
    vec![
        Case::new(
            "XICS: trigger, present",
            2.0,
            servers,
            move || sources.iter().for_each(|s| _ = s.trigger()),
            move || {
                (0..servers).for_each(|s| {
                    let (source, icp) = target(s);
                    std::hint::black_box(source.load(Ordering::Acquire));
                    swap(icp, u64::from(PRIORITY));
                });
            },
        )
        .after(move || rig.vcpus.iter().for_each(accept_and_end)),
        Case::new(
            "XICS: trigger, H_XIRR, H_EOI",
            2.0,
            BATCH,
            move || {
                (0..BATCH).for_each(|_| {
                    _ = one.trigger();
                    accept_and_end(&rig.vcpus[0]);
                });
            },
            move || {
                let (source, icp) = target(0);
                (0..BATCH).for_each(|_| {
                    std::hint::black_box(source.load(Ordering::Acquire));
                    (0..3).for_each(|_| _ = swap(icp, u64::from(PRIORITY)));
                });
            },
        )
        .after(move || rig.vcpus.iter().for_each(accept_and_end)),
    ]
}
