//! XIVE: sources with their PQ bits, routing entries (EAS), event queues (END), one thread context a vCPU.
//!
//! A trigger runs to its end at once: PQ, routing, queue entry, priority bits of the target, line.

use super::memory::Memory;
use super::rules::Rules;

/// Number of priorities an END can have; 7 belongs to the hypervisor.
pub const PRIORITIES: u8 = 8;

/// The two bits of an event state buffer, as the number PQ.
pub mod pq {
    /// Ready: the next trigger is forwarded.
    pub const RESET: u8 = 0;
    /// Off: triggers are ignored.
    pub const OFF: u8 = 1;
    /// One event forwarded and not ended yet.
    pub const PENDING: u8 = 2;
    /// The same, and another one came meanwhile.
    pub const QUEUED: u8 = 3;
}

/// Trigger rule: the new PQ, and whether the event is forwarded.
fn triggered(old: u8) -> (u8, bool) {
    match old {
        pq::RESET => (pq::PENDING, true),
        pq::OFF => (pq::OFF, false),
        _ => (pq::QUEUED, false),
    }
}

/// End-of-interrupt rule: the new PQ, and whether an event is forwarded.
fn ended(old: u8) -> (u8, bool) {
    match old {
        pq::QUEUED => (pq::PENDING, true),
        pq::OFF => (pq::OFF, false),
        _ => (pq::RESET, false),
    }
}

/// A source and its routing entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// A device (or the machine) owns the number; otherwise nothing is routed.
    pub valid: bool,
    /// Level-sensitive.
    pub lsi: bool,
    /// The level, if level-sensitive.
    pub asserted: bool,
    /// Event state, 0 to 3.
    pub pq: u8,
    /// Forwarded events are dropped.
    pub masked: bool,
    /// Server of the queue the source points at.
    pub server: u32,
    /// Priority of that queue.
    pub prio: u8,
    /// What the queue entry says, 31 bits.
    pub eisn: u32,
}

impl Source {
    const RESET: Source = Source {
        valid: false,
        lsi: false,
        asserted: false,
        pq: pq::OFF,
        masked: true,
        server: 0,
        prio: 0,
        eisn: 0,
    };

    /// Routing forgotten, as a masking priority leaves it.
    pub fn unroute(&mut self) {
        *self = Source {
            valid: self.valid,
            lsi: self.lsi,
            asserted: self.asserted,
            pq: self.pq,
            ..Source::RESET
        };
    }
}

/// One event queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Set up by the guest.
    pub valid: bool,
    /// Every event notifies; otherwise only what the END's own PQ lets through.
    pub always: bool,
    /// Guest address of the entries.
    pub page: u64,
    /// Log2 of the size in bytes.
    pub size: u64,
    /// Next entry.
    pub index: u64,
    /// Top bit of the next entry.
    pub generation: u32,
    /// The END's own PQ.
    pub esn: u8,
}

impl End {
    /// As after machine reset, or after a queue was disabled.
    pub const RESET: End = End {
        valid: false,
        always: false,
        page: 0,
        size: 0,
        index: 0,
        generation: 0,
        esn: pq::OFF,
    };
}

/// The operating system's ring of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// 80: an exception is pending. It is also the line.
    pub nsr: u8,
    /// Only priorities more favoured than this one are presented.
    pub cppr: u8,
    /// A bit for each priority that has events: 80 for 0, 01 for 7.
    pub ipb: u8,
    /// Most favoured bit of IPB; ff if there is none.
    pub pipr: u8,
    /// Whether the vCPU exists.
    pub connected: bool,
    /// What was last done to the vCPU's line, until it is looked at. Only where the line is more than a
    /// function of NSR (F-CAS-LEVELS).
    pub line_set: Option<bool>,
}

impl Ring {
    fn reset(connected: bool) -> Ring {
        Ring {
            nsr: 0,
            cppr: 0,
            ipb: 0,
            pipr: 0xff,
            connected,
            line_set: None,
        }
    }

    fn update(&mut self) {
        self.pipr = (0..8)
            .find(|&p| self.ipb & (0x80 >> p) != 0)
            .unwrap_or(0xff);
    }

    fn notify(&mut self) {
        if self.pipr < self.cppr {
            self.nsr = 0x80;
            self.line_set = Some(true);
        }
    }

    /// An event of a priority arrives; above 7 nothing is added.
    pub fn pend(&mut self, prio: u8) {
        if prio < 8 {
            self.ipb |= 0x80 >> prio;
        }
        self.update();
        self.notify();
    }

    /// The byte store to CPPR.
    pub fn set_cppr(&mut self, value: u8) {
        self.cppr = if value > 7 { 0xff } else { value };
        self.notify();
    }

    /// The acknowledge load: NSR as it was, then CPPR.
    pub fn acknowledge(&mut self) -> u16 {
        let nsr = self.nsr;
        self.line_set = Some(false);
        if nsr & 0x80 != 0 {
            self.cppr = self.pipr;
            if self.cppr < 8 {
                self.ipb &= !(0x80 >> self.cppr);
            }
            self.update();
            self.nsr = 0;
        }
        u16::from(nsr) << 8 | u16::from(self.cppr)
    }
}

/// Addresses and options the guest can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Guest address of the source pages.
    pub esb_base: u64,
    /// Guest address of the END pages, which are reported and never mapped.
    pub end_base: u64,
    /// Whether a store to management offset 400 ends an interrupt.
    pub store_eoi: bool,
}

/// The whole controller.
pub struct Xive {
    pub(super) rules: Rules,
    pub(super) layout: Layout,
    /// By number.
    pub src: Vec<Source>,
    /// By server times 8 plus priority.
    pub end: Vec<End>,
    /// By server.
    pub ring: Vec<Ring>,
}

impl Xive {
    /// `servers` vCPU slots, none connected, and `count` unclaimed sources.
    pub fn new(rules: Rules, layout: Layout, servers: u32, count: u32) -> Xive {
        Xive {
            rules,
            layout,
            src: vec![Source::RESET; count as usize],
            end: vec![End::RESET; servers as usize * PRIORITIES as usize],
            ring: vec![Ring::reset(false); servers as usize],
        }
    }

    // ---- machine level ----

    /// Gives a number to a device. False: it has one already.
    pub fn claim(&mut self, n: usize, lsi: bool) -> bool {
        let s = &mut self.src[n];
        if s.valid {
            return false;
        }
        if !self.rules.reclaim_keeps_state {
            *s = Source::RESET;
        }
        s.lsi = lsi;
        s.valid = true;
        s.masked = true;
        true
    }

    /// Takes a number back. Its device is gone, and so is the level.
    pub fn free(&mut self, n: usize) {
        self.src[n].valid = false;
        self.src[n].asserted = false;
    }

    /// A vCPU comes or goes. Its queues stay as they are.
    pub fn connect(&mut self, server: usize, connected: bool) {
        self.ring[server] = Ring::reset(connected);
    }

    /// vCPU reset.
    pub fn reset_ring(&mut self, server: usize) {
        self.ring[server] = Ring::reset(self.ring[server].connected);
    }

    /// Machine reset: everything but claims and connections.
    pub fn reset(&mut self) {
        for s in &mut self.src {
            *s = Source {
                valid: s.valid,
                lsi: s.lsi,
                ..Source::RESET
            };
        }
        self.end.fill(End::RESET);
        for r in &mut self.ring {
            *r = Ring::reset(r.connected);
        }
    }

    // ---- events ----

    /// The trigger rule on a source: a device's message, or a store to its trigger page.
    pub fn trigger(&mut self, n: usize, mem: &mut Memory) {
        let (new, forward) = triggered(self.src[n].pq);
        self.src[n].pq = new;
        if forward {
            self.route(n, mem);
        }
    }

    /// A device's line changes, or says again what it is.
    pub fn set_level(&mut self, n: usize, level: bool, mem: &mut Memory) {
        let s = &mut self.src[n];
        s.asserted = level;
        if level && s.pq == pq::RESET {
            s.pq = pq::PENDING;
            self.route(n, mem);
        }
    }

    /// End of interrupt; true if it forwarded an event. While an LSI's line is high the assert rule comes
    /// after, which sends from PQ 00; by QEMU's rule its word is the last, and the event that 11 would
    /// send is not sent.
    pub fn eoi(&mut self, n: usize, mem: &mut Memory) -> bool {
        let s = &mut self.src[n];
        let (new, mut forward) = ended(s.pq);
        s.pq = new;
        if s.lsi && s.asserted {
            let asserts = s.pq == pq::RESET;
            if asserts {
                s.pq = pq::PENDING;
            }
            forward = asserts || forward && !self.rules.lsi_eoi_forgets;
        }
        if forward {
            self.route(n, mem);
        }
        forward
    }

    /// The guest sets PQ; returns what it was.
    pub fn set_pq(&mut self, n: usize, to: u8, mem: &mut Memory) -> u8 {
        let s = &mut self.src[n];
        let old = s.pq;
        s.pq = to;
        if s.lsi && s.asserted && to == pq::RESET && !self.rules.lsi_ready_forgets {
            s.pq = pq::PENDING;
            self.route(n, mem);
        }
        old
    }

    /// A forwarded event: queue entry, then notification.
    pub fn route(&mut self, n: usize, mem: &mut Memory) {
        let s = self.src[n];
        if !s.valid || s.masked {
            return;
        }
        let Some(q) = self.end_index(s.server, s.prio).map(|e| &mut self.end[e]) else {
            return;
        };
        if !q.valid {
            return;
        }
        // A write that fails leaves the queue where it is; the vCPU is notified all the same.
        if mem.write_entry(q.page + q.index * 4, q.generation << 31 | s.eisn) {
            q.index += 1;
            if q.index == 1 << (q.size - 2) {
                q.index = 0;
                q.generation ^= 1;
            }
        }
        if !q.always {
            let (new, forward) = triggered(q.esn);
            q.esn = new;
            if !forward {
                return;
            }
        }
        let ring = &mut self.ring[s.server as usize];
        if ring.connected {
            ring.pend(s.prio);
        }
    }

    pub(super) fn end_index(&self, server: u32, prio: u8) -> Option<usize> {
        let e = server as usize * PRIORITIES as usize + prio as usize;
        (prio < PRIORITIES && e < self.end.len()).then_some(e)
    }

    /// Which queue is it: server and priority.
    pub(super) fn end_of(&self, s: &Source) -> &End {
        // A source's server and priority were checked when they were stored.
        &self.end[s.server as usize * PRIORITIES as usize + s.prio as usize]
    }
}
