//! QEMU 7.2's XICS, restated slowly: one state, no index, every pass scans every source.
//!
//! Sources are places in the list of those used, in ascending order of their numbers.

pub mod bench;

use papr_intc_protocol::plane::LevelInput;

const ASSERTED: u8 = 1;
const SENT: u8 = 2;
const REJECTED: u8 = 4;
const MASKED_PENDING: u8 = 8;
const IPI: u32 = 2;
const MASKED: u8 = 0xff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Msi,
    Lsi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icp {
    pub connected: bool,
    pub cppr: u8,
    pub xisr: u32,
    pub pp: u8,
    pub mfrr: u8,
}

#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub claimed: bool,
    pub server: u32,
    pub priority: u8,
    pub saved: u8,
    pub status: u8,
    levels: [bool; 2],
}

pub struct Model {
    pub icps: Vec<Icp>,
    pub sources: Vec<Source>,
    numbers: Vec<u32>,
    kinds: Vec<Kind>,
}

const ICP_RESET: Icp = Icp {
    connected: false,
    cppr: 0,
    xisr: 0,
    pp: MASKED,
    mfrr: 0xff,
};

impl Model {
    pub fn new(servers: u32, numbers: &[u32], kinds: &[Kind]) -> Self {
        let connected = Icp {
            connected: true,
            ..ICP_RESET
        };
        let source = Source {
            claimed: true,
            server: 0,
            priority: MASKED,
            saved: MASKED,
            status: 0,
            levels: [false; 2],
        };
        Self {
            icps: vec![connected; servers as usize],
            sources: vec![source; numbers.len()],
            numbers: numbers.to_vec(),
            kinds: kinds.to_vec(),
        }
    }

    /// A source of the kind, and claimed.
    fn is(&self, n: usize, kind: Kind) -> bool {
        self.sources[n].claimed && self.kinds[n] == kind
    }

    /// The ICP refused or displaced what it held.
    fn reject(&mut self, number: u32) {
        let Some(n) = self.numbers.iter().position(|x| *x == number) else {
            return;
        };
        if self.is(n, Kind::Lsi) {
            self.sources[n].status &= !SENT;
        } else if self.is(n, Kind::Msi) {
            self.sources[n].status |= REJECTED;
        }
    }

    fn present(&mut self, n: usize) {
        let Source {
            server, priority, ..
        } = self.sources[n];
        let icp = self.icps[server as usize];
        let refused = priority >= icp.cppr || icp.xisr != 0 && icp.pp <= priority || !icp.connected;
        if refused {
            self.reject(self.numbers[n]);
            return;
        }
        self.reject(icp.xisr);
        let icp = &mut self.icps[server as usize];
        icp.xisr = self.numbers[n];
        icp.pp = priority;
    }

    fn check_ipi(&mut self, server: u32) {
        let icp = self.icps[server as usize];
        if icp.mfrr >= icp.cppr || icp.xisr != 0 && icp.pp <= icp.mfrr {
            return;
        }
        self.reject(icp.xisr);
        let icp = &mut self.icps[server as usize];
        icp.xisr = IPI;
        icp.pp = icp.mfrr;
    }

    /// An LSI that is asserted and not sent is sent.
    fn resend_lsi(&mut self, n: usize) {
        let s = self.sources[n];
        if s.priority != MASKED && s.status & (ASSERTED | SENT) == ASSERTED {
            self.sources[n].status |= SENT;
            self.present(n);
        }
    }

    fn resend_msi(&mut self, n: usize) {
        if self.sources[n].status & REJECTED != 0 {
            self.sources[n].status &= !REJECTED;
            if self.sources[n].priority != MASKED {
                self.present(n);
            }
        }
    }

    /// The IPI first, then every source of every server in ascending order.
    fn resend(&mut self, server: u32) {
        self.check_ipi(server);
        for n in 0..self.sources.len() {
            if self.is(n, Kind::Lsi) {
                self.resend_lsi(n);
            } else if self.is(n, Kind::Msi) {
                self.resend_msi(n);
            }
        }
    }

    pub fn pulse(&mut self, n: usize) {
        if !self.is(n, Kind::Msi) {
            return;
        }
        if self.sources[n].priority == MASKED {
            self.sources[n].status |= MASKED_PENDING;
        } else {
            self.present(n);
        }
    }

    pub fn set_level(&mut self, n: usize, input: LevelInput, level: bool) {
        if self.is(n, Kind::Lsi) {
            self.sources[n].levels[usize::from(input == LevelInput::Irqfd)] = level;
            self.assert_level(n);
            self.resend_lsi(n);
        }
    }

    fn assert_level(&mut self, n: usize) {
        let s = &mut self.sources[n];
        s.status &= !ASSERTED;
        if s.levels.contains(&true) {
            s.status |= ASSERTED;
        }
    }

    /// 0 if the vCPU does not exist.
    pub fn accept(&mut self, server: u32) -> u32 {
        if !self.icps[server as usize].connected {
            return 0;
        }
        let icp = &mut self.icps[server as usize];
        let xirr = u32::from(icp.cppr) << 24 | icp.xisr;
        icp.cppr = icp.pp;
        icp.xisr = 0;
        icp.pp = MASKED;
        xirr
    }

    pub fn set_cppr(&mut self, server: u32, cppr: u8) {
        if !self.icps[server as usize].connected {
            return;
        }
        let icp = &mut self.icps[server as usize];
        let old = std::mem::replace(&mut icp.cppr, cppr);
        if cppr < old {
            if icp.xisr != 0 && cppr <= icp.pp {
                let rejected = std::mem::take(&mut icp.xisr);
                icp.pp = MASKED;
                self.reject(rejected);
            }
        } else if icp.xisr == 0 {
            self.resend(server);
        }
    }

    /// `n`: the source that the XIRR names. Level irqfds fall at the EOI: their devices raise them
    /// again if they have to.
    pub fn eoi(&mut self, server: u32, cppr: u8, n: Option<usize>) {
        if !self.icps[server as usize].connected {
            return;
        }
        self.icps[server as usize].cppr = cppr;
        if let Some(n) = n
            && self.is(n, Kind::Lsi)
        {
            self.sources[n].status &= !SENT;
            self.sources[n].levels[1] = false;
            self.assert_level(n);
        }
        if self.icps[server as usize].xisr == 0 {
            self.resend(server);
        }
    }

    pub fn set_mfrr(&mut self, target: u32, mfrr: u8) -> bool {
        match self.icps.get_mut(target as usize) {
            Some(icp) if icp.connected => {
                icp.mfrr = mfrr;
                self.check_ipi(target);
                true
            }
            _ => false,
        }
    }

    pub fn write(&mut self, n: usize, server: u32, priority: u8, saved: u8) {
        let s = &mut self.sources[n];
        (s.server, s.priority, s.saved) = (server, priority, saved);
        if self.is(n, Kind::Lsi) {
            self.resend_lsi(n);
        } else if self.is(n, Kind::Msi)
            && self.sources[n].status & MASKED_PENDING != 0
            && priority != MASKED
        {
            self.sources[n].status &= !MASKED_PENDING;
            self.present(n);
        }
    }

    /// Unplug or reset of a vCPU. What it had presented waits again; QEMU crashes on what is sent to
    /// an unplugged vCPU, here it is refused.
    pub fn reset_icp(&mut self, server: u32, connected: bool) {
        let icp = &mut self.icps[server as usize];
        let presented = icp.xisr;
        *icp = Icp {
            connected,
            ..ICP_RESET
        };
        self.reject(presented);
    }

    pub fn free(&mut self, n: usize) {
        self.sources[n] = Source {
            claimed: false,
            server: 0,
            priority: 0,
            saved: 0,
            status: 0,
            levels: [false; 2],
        };
    }
}
