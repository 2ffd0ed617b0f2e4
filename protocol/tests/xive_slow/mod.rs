//! XIVE as a book would tell it: objects, no words, one thread (xive.md §2-§5). Slow and obvious.

pub const SOURCES: u32 = 20;
pub const SERVERS: u32 = 3;
/// LSIs are numbered from here.
pub const FIRST_LSI: u32 = 14;
/// Queues may be anywhere below; entries above are refused.
pub const RAM: u64 = 0x8_0000;

/// An operation. Numbers are reduced to what exists, or a little beyond where that is checked.
#[derive(Clone, Debug)]
pub enum Op {
    Trigger(u32),
    Level(u32, bool, bool),
    Pulse(u32),
    Latch(u32, bool),
    Replay(u32),
    EsbLoad(u64, u8),
    EsbStore(u64, u8),
    TimaLoad(u32, u64, u8),
    TimaStore(u32, u64, u8, u64),
    SourceConfig(u32, u32, u32, bool),
    QueueConfig(u32, u8, Option<(u64, u32, bool)>),
    Claim(u32),
    Free(u32),
    Connect(u32),
    Disconnect(u32),
    VcpuReset(u32),
}

#[derive(Clone, Default)]
pub struct Source {
    pub claimed: bool,
    /// Given by the claim, and never taken away again by `free`.
    pub lsi: bool,
    pub masked: bool,
    pub server: u32,
    pub priority: u8,
    pub eisn: u32,
    pub p: bool,
    pub q: bool,
    pub vmm: bool,
    pub irqfd: bool,
    pub latched: bool,
}

#[derive(Clone, Default)]
pub struct Queue {
    pub address: u64,
    pub entries: u64,
    pub size: u32,
    pub always_notify: bool,
    pub index: u64,
    pub generation: bool,
    /// Events of a queue without `always_notify` so far; the first one tells.
    pub events: u32,
}

#[derive(Clone, Default)]
pub struct Vcpu {
    pub exists: bool,
    pub told: bool,
    pub cppr: u8,
    pub pending: [bool; 8],
}

impl Vcpu {
    fn most_favoured(&self) -> u8 {
        self.pending
            .iter()
            .position(|p| *p)
            .map_or(0xff, |p| p as u8)
    }
    fn look(&mut self) {
        self.told |= self.most_favoured() < self.cppr;
    }
    pub fn ring(&self) -> [u8; 8] {
        let nsr = if self.told { 0x80 } else { 0 };
        let ipb = (0..8).fold(0, |ipb, p| ipb | u8::from(self.pending[p]) << (7 - p));
        [nsr, self.cppr, ipb, 0xff, 0xff, 0, 0, self.most_favoured()]
    }
    fn acknowledge(&mut self) -> u64 {
        let nsr = if self.told { 0x80 } else { 0 };
        if self.told {
            self.cppr = self.most_favoured();
            self.pending[usize::from(self.cppr)] = false;
            self.told = false;
        }
        nsr << 8 | u64::from(self.cppr)
    }
    fn pend(&mut self, priority: u64) {
        if let Some(p) = self.pending.get_mut(priority as usize) {
            *p = true;
        }
        self.look();
    }
}

/// The machine, as a book would tell it.
pub struct Model {
    pub qemu: bool,
    pub store_eoi: bool,
    pub sources: Vec<Source>,
    pub queues: Vec<Option<Queue>>,
    pub vcpus: Vec<Vcpu>,
    pub written: Vec<(u64, u32)>,
}

impl Model {
    pub fn new(qemu: bool, store_eoi: bool) -> Self {
        let off = Source {
            q: true,
            ..Source::default()
        };
        Self {
            qemu,
            store_eoi,
            sources: vec![off; SOURCES as usize],
            queues: vec![None; SERVERS as usize * 8],
            vcpus: vec![Vcpu::default(); SERVERS as usize],
            written: Vec::new(),
        }
    }

    fn source(&mut self, lisn: u32) -> &mut Source {
        &mut self.sources[lisn as usize]
    }

    fn trigger(&mut self, lisn: u32) {
        let s = self.source(lisn);
        match (s.p, s.q) {
            (false, false) => {
                s.p = true;
                self.route(lisn);
            }
            (true, _) => s.q = true,
            (false, true) => (),
        }
    }

    /// The level is high: a source that is ready becomes pending.
    fn assert(&mut self, lisn: u32) -> bool {
        let s = self.source(lisn);
        let due = !s.p && !s.q;
        if due {
            s.p = true;
            self.route(lisn);
        }
        due
    }

    fn level(&mut self, lisn: u32, irqfd: bool, level: bool) {
        if !self.source(lisn).lsi {
            if level {
                self.trigger(lisn);
            }
            return;
        }
        let s = self.source(lisn);
        *(if irqfd { &mut s.irqfd } else { &mut s.vmm }) = level;
        if level {
            self.assert(lisn);
        }
    }

    fn eoi(&mut self, lisn: u32) -> bool {
        let s = self.source(lisn);
        let queued = s.p && s.q;
        // Whoever still drives it says so again.
        s.irqfd = false;
        let high = s.vmm || s.irqfd;
        if s.p {
            (s.p, s.q) = (queued, false);
        }
        if !high {
            if queued {
                self.route(lisn);
            }
            return queued;
        }
        if queued {
            // Pending again already: QEMU looks at the level only, and finds nothing to do.
            if !self.qemu {
                self.route(lisn);
            }
            return !self.qemu;
        }
        self.assert(lisn)
    }

    fn route(&mut self, lisn: u32) {
        let s = self.source(lisn).clone();
        if !s.claimed || s.masked {
            return;
        }
        let end = s.server as usize * 8 + usize::from(s.priority);
        let Some(queue) = self.queues.get_mut(end).and_then(|q| q.as_mut()) else {
            return;
        };
        let at = queue.address + 4 * queue.index;
        if at < RAM {
            self.written
                .push((at, s.eisn | u32::from(queue.generation) << 31));
            queue.index += 1;
            if queue.index == queue.entries {
                queue.index = 0;
                queue.generation = !queue.generation;
            }
        }
        queue.events += 1;
        let tells = queue.always_notify || queue.events == 1;
        let vcpu = &mut self.vcpus[s.server as usize];
        if tells && vcpu.exists {
            vcpu.pend(s.priority.into());
        }
    }

    fn esb(&mut self, offset: u64, size: u8, store: bool) -> u64 {
        let lisn = offset / 0x20000;
        let size_ok = if self.qemu { size == 8 } else { size != 3 };
        if lisn >= u64::from(SOURCES) || !size_ok {
            return 0;
        }
        let lisn = lisn as u32;
        if offset & 0x10000 == 0 {
            if store {
                self.trigger(lisn);
                return 0;
            }
            return u64::MAX >> (64 - 8 * u32::from(size));
        }
        match (offset & 0xfff, store) {
            (0..0x400, true) => self.trigger(lisn),
            (0..0x800, false) => return u64::from(self.eoi(lisn)),
            (0x400..0x800, true) => {
                if self.store_eoi {
                    self.eoi(lisn);
                }
            }
            (0x800..0xc00, true) => {
                if self.qemu {
                    self.route(lisn);
                }
            }
            (0x800..0xc00, false) => {
                let s = self.source(lisn);
                return u64::from(s.p) << 1 | u64::from(s.q);
            }
            (set, _) => {
                let qemu = self.qemu;
                let s = self.source(lisn);
                let old = u64::from(s.p) << 1 | u64::from(s.q);
                (s.p, s.q) = (set & 0x200 != 0, set & 0x100 != 0);
                if !qemu && (s.vmm || s.irqfd) {
                    self.assert(lisn);
                }
                return if store { 0 } else { old };
            }
        }
        0
    }

    fn tima_load(&mut self, server: u32, offset: u64, size: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size));
        let Some(vcpu) = self.vcpus.get_mut(server as usize) else {
            return ones;
        };
        if !vcpu.exists || offset / 0x10000 != 2 {
            return ones;
        }
        let offset = offset % 0x1000;
        if (offset, size) == (0x810, 2) {
            return vcpu.acknowledge();
        }
        let ring = u64::from_be_bytes(vcpu.ring());
        match (offset < 0x800, offset % 0x40, size) {
            (true, 0x10, 8) => ring,
            (true, 0x10, 4) => ring >> 32,
            (true, 0x14, 4) => ring & 0xffff_ffff,
            _ => ones,
        }
    }

    fn tima_store(&mut self, server: u32, offset: u64, size: u8, value: u64) {
        let Some(vcpu) = self.vcpus.get_mut(server as usize) else {
            return;
        };
        if !vcpu.exists || offset / 0x10000 != 2 {
            return;
        }
        let offset = offset % 0x1000;
        match (offset, size) {
            (0x11, 1) => {
                let value = value as u8;
                vcpu.cppr = if value > 7 { 0xff } else { value };
                vcpu.look();
            }
            (0x812, 1) => vcpu.pend(value & 0xff),
            (0..0x800, 4 | 8) if offset % 0x40 == 0x10 => {
                vcpu.cppr = (value >> (8 * (u32::from(size) - 2))) as u8;
            }
            _ => (),
        }
    }

    pub fn run(&mut self, op: &Op) -> u64 {
        match *op {
            Op::Trigger(lisn) => self.trigger(lisn),
            Op::Level(lisn, irqfd, level) => self.level(lisn, irqfd, level),
            Op::Pulse(lisn) => {
                self.level(lisn, false, true);
                self.level(lisn, false, false);
            }
            Op::Latch(lisn, level) => {
                let s = self.source(lisn);
                if s.lsi {
                    s.vmm = level;
                }
                s.latched |= level;
            }
            Op::Replay(lisn) => {
                let s = self.source(lisn);
                let (latched, lsi) = (std::mem::take(&mut s.latched), s.lsi);
                let high = s.vmm || s.irqfd;
                if latched && !lsi {
                    self.trigger(lisn);
                } else if latched && high {
                    self.assert(lisn);
                }
            }
            Op::EsbLoad(offset, size) => return self.esb(offset, size, false),
            Op::EsbStore(offset, size) => return self.esb(offset, size, true),
            Op::TimaLoad(server, offset, size) => return self.tima_load(server, offset, size),
            Op::TimaStore(server, offset, size, value) => {
                self.tima_store(server, offset, size, value);
            }
            Op::SourceConfig(lisn, end, eisn, masked) => {
                let s = self.source(lisn);
                if s.claimed {
                    (s.server, s.priority) = (end / 8, (end % 8) as u8);
                    (s.eisn, s.masked) = (eisn, masked);
                }
            }
            Op::QueueConfig(server, priority, queue) => {
                let at = server as usize * 8 + usize::from(priority);
                self.queues[at] = queue.map(|(address, size, always_notify)| Queue {
                    address,
                    entries: 1 << (size - 2),
                    size,
                    always_notify,
                    generation: true,
                    ..Queue::default()
                });
            }
            Op::Claim(lisn) => {
                let s = self.source(lisn);
                (s.claimed, s.masked, s.lsi) = (true, true, lisn >= FIRST_LSI);
            }
            Op::Free(lisn) => {
                // Its device is gone, and with it the levels.
                let s = self.source(lisn);
                (s.claimed, s.vmm, s.irqfd, s.latched) = (false, false, false, false);
            }
            Op::Connect(server) => {
                self.vcpus[server as usize] = Vcpu {
                    exists: true,
                    ..Vcpu::default()
                };
            }
            Op::Disconnect(server) => self.vcpus[server as usize] = Vcpu::default(),
            Op::VcpuReset(server) => {
                let vcpu = &mut self.vcpus[server as usize];
                *vcpu = Vcpu {
                    exists: vcpu.exists,
                    ..Vcpu::default()
                };
            }
        }
        0
    }
}
