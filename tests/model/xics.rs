//! XICS: one presenter (ICP) a vCPU, one source controller (ICS) for all numbers.
//!
//! Every operation is written as the sequence of small steps of the rules: present, reject (here
//! *give back*), resend. A source is in exactly one place: in an XISR, or held by its status bits.

use super::ret;
use super::rules::Rules;

/// XISR of an inter-processor interrupt.
pub const IPI: u32 = 2;
/// The priority that masks a source and that no presenter takes.
pub const MASKED: u8 = 0xff;

/// Presentation state of one vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icp {
    /// Current processor priority: only strictly more favoured (lower) priorities are presented.
    pub cppr: u8,
    /// What is presented: 0 nothing, 2 the IPI, else a source number.
    pub xisr: u32,
    /// Priority of what XISR holds; ff when it holds nothing.
    pub pending: u8,
    /// Priority of the requested IPI; ff when there is none.
    pub mfrr: u8,
    /// Whether the vCPU exists.
    pub connected: bool,
    /// What was last done to the vCPU's line, until it is looked at. Only where the line is more than a
    /// function of XISR (F-CAS-LEVELS).
    pub line_set: Option<bool>,
}

impl Icp {
    fn reset(connected: bool) -> Icp {
        Icp {
            cppr: 0,
            xisr: 0,
            pending: 0xff,
            mfrr: 0xff,
            connected,
            line_set: None,
        }
    }

    fn takes(&self, prio: u8) -> bool {
        self.connected && prio < self.cppr && !(self.xisr != 0 && self.pending <= prio)
    }

    /// The register H_XIRR and H_IPOLL return.
    pub fn xirr(&self) -> u32 {
        u32::from(self.cppr) << 24 | self.xisr
    }
}

/// One interrupt source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Whether a device owns the number.
    pub claimed: bool,
    /// Level-sensitive, as opposed to a message.
    pub lsi: bool,
    /// Server the source is routed to.
    pub server: u32,
    /// Priority in force; ff masks.
    pub prio: u8,
    /// Priority that ibm,int-on restores.
    pub saved: u8,
    /// LSI: the line is high.
    pub asserted: bool,
    /// LSI: sent for this assertion, neither ended nor given back yet.
    pub sent: bool,
    /// MSI: a presenter refused it or dropped it for something better.
    pub rejected: bool,
    /// MSI: it came while the source was masked.
    pub masked_pending: bool,
}

impl Source {
    const RESET: Source = Source {
        claimed: false,
        lsi: false,
        server: 0,
        prio: MASKED,
        saved: MASKED,
        asserted: false,
        sent: false,
        rejected: false,
        masked_pending: false,
    };

    /// QEMU's status bits: 1 ASSERTED, 2 SENT, 4 REJECTED, 8 MASKED_PENDING.
    pub fn status(&self) -> u8 {
        u8::from(self.asserted)
            | u8::from(self.sent) << 1
            | u8::from(self.rejected) << 2
            | u8::from(self.masked_pending) << 3
    }

    /// It waits, and a presenter that opens may have it.
    fn takable(&self) -> bool {
        self.claimed
            && self.prio != MASKED
            && if self.lsi {
                self.asserted && !self.sent
            } else {
                self.rejected
            }
    }
}

/// The whole controller.
#[derive(Clone)]
pub struct Xics {
    rules: Rules,
    base: u32,
    /// By server number.
    pub icp: Vec<Icp>,
    /// By number minus the base.
    pub src: Vec<Source>,
}

impl Xics {
    /// `servers` presenters, none connected, and `count` unclaimed sources from number `base` on.
    pub fn new(rules: Rules, servers: u32, base: u32, count: u32) -> Xics {
        Xics {
            rules,
            base,
            icp: vec![Icp::reset(false); servers as usize],
            src: vec![Source::RESET; count as usize],
        }
    }

    /// Index of a source number, if it is one of this controller's.
    pub fn index(&self, number: u32) -> Option<usize> {
        let n = number.checked_sub(self.base)? as usize;
        (n < self.src.len()).then_some(n)
    }

    fn number(&self, n: usize) -> u32 {
        self.base + n as u32
    }

    fn server(&self, server: u64) -> Option<usize> {
        let s = if self.rules.truncate {
            server & 0xffff_ffff
        } else {
            server
        };
        (s < self.icp.len() as u64 && self.icp[s as usize].connected).then_some(s as usize)
    }

    // ---- machine level ----

    /// Gives a number to a device. False: it has one already.
    pub fn claim(&mut self, n: usize, lsi: bool) -> bool {
        if self.src[n].claimed {
            return false;
        }
        self.src[n].claimed = true;
        self.src[n].lsi = lsi;
        true
    }

    /// Takes a number back.
    pub fn free(&mut self, n: usize) {
        let prio = self.rules.freed_priority;
        self.src[n] = Source {
            prio,
            saved: prio,
            ..Source::RESET
        };
    }

    /// A vCPU comes or goes. One that goes gives back what was presented to it.
    pub fn connect(&mut self, server: usize, connected: bool) {
        self.reset_presenter(server);
        self.icp[server].connected = connected;
    }

    /// vCPU reset: registers at reset value; what was presented goes back to its source.
    pub fn reset_presenter(&mut self, server: usize) {
        let old = self.icp[server];
        self.icp[server] = Icp::reset(old.connected);
        self.give_back_number(old.xisr);
    }

    /// Machine reset: everything but claims and connections.
    pub fn reset(&mut self) {
        for p in &mut self.icp {
            *p = Icp::reset(p.connected);
        }
        for s in &mut self.src {
            *s = Source {
                claimed: s.claimed,
                lsi: s.lsi,
                ..Source::RESET
            };
        }
    }

    // ---- sources ----

    /// A device's message.
    pub fn pulse(&mut self, n: usize) {
        if self.src[n].claimed {
            self.deliver(n);
        }
    }

    /// A device's line changes, or says again what it is.
    pub fn set_level(&mut self, n: usize, level: bool) {
        self.src[n].asserted = level;
        self.take(n);
    }

    /// The source has an event in hand: mask it away, present it, or refuse it.
    fn deliver(&mut self, n: usize) {
        let s = self.src[n];
        if s.prio == MASKED {
            if s.lsi {
                self.src[n].sent = false;
            } else {
                self.src[n].masked_pending = true;
            }
            return;
        }
        let number = self.number(n);
        match self.icp.get_mut(s.server as usize) {
            Some(p) if p.takes(s.prio) => {
                let victim = p.xisr;
                p.xisr = number;
                p.pending = s.prio;
                p.line_set = Some(true);
                self.give_back_number(victim);
            }
            _ => self.give_back(n),
        }
    }

    fn give_back_number(&mut self, number: u32) {
        // Nothing and the IPI have no source to go back to; MFRR still asks for the IPI.
        if let Some(n) = self.index(number) {
            self.give_back(n);
        }
    }

    /// An event in hand goes back to its source, to wait there.
    fn give_back(&mut self, n: usize) {
        let s = &mut self.src[n];
        if !s.claimed {
            return;
        }
        if s.lsi {
            s.sent = false;
        } else if s.prio == MASKED && !self.rules.drop_masked {
            s.masked_pending = true;
        } else {
            s.rejected = true;
        }
        if self.rules.retry_given_back && self.could_be_presented(n) {
            self.take(n);
        }
    }

    fn could_be_presented(&self, n: usize) -> bool {
        let s = &self.src[n];
        s.takable()
            && self
                .icp
                .get(s.server as usize)
                .is_some_and(|p| p.takes(s.prio))
    }

    /// If the source waits, take its event in hand and deliver it.
    fn take(&mut self, n: usize) {
        if !self.src[n].takable() {
            return;
        }
        if self.src[n].lsi {
            self.src[n].sent = true;
        } else {
            self.src[n].rejected = false;
        }
        self.deliver(n);
    }

    /// New routing for a source.
    fn write(&mut self, n: usize, server: u32, prio: u8, saved: u8) {
        let takes_rejected = self.rules.write_takes_rejected;
        let keeps = !self.rules.drop_masked;
        let s = &mut self.src[n];
        (s.server, s.prio, s.saved) = (server, prio, saved);
        if s.lsi {
            return self.take(n);
        }
        if !s.claimed {
            return;
        }
        if prio == MASKED {
            if keeps && s.rejected {
                (s.rejected, s.masked_pending) = (false, true);
            }
        } else if s.masked_pending || takes_rejected && s.rejected {
            s.masked_pending = false;
            if takes_rejected {
                s.rejected = false;
            }
            self.deliver(n);
        }
    }

    // ---- presenters ----

    /// Presents the IPI if MFRR asks for it and nothing as favoured is there.
    fn check_ipi(&mut self, k: usize) {
        let p = &mut self.icp[k];
        if p.mfrr < p.cppr && !(p.xisr != 0 && p.pending <= p.mfrr) {
            let victim = p.xisr;
            p.xisr = IPI;
            p.pending = p.mfrr;
            p.line_set = Some(true);
            self.give_back_number(victim);
        }
    }

    /// Looks for waiting sources, in ascending order.
    fn pass(&mut self, k: usize) {
        for n in 0..self.src.len() {
            if self.rules.resend_all {
                if self.rules.drop_masked && self.src[n].prio == MASKED {
                    self.src[n].rejected = false;
                }
                self.take(n);
            } else if self.src[n].server as usize == k && self.could_be_presented(n) {
                self.take(n);
            }
        }
    }

    /// After CPPR went from `old` to its present value: is a pass due, by the level's rule?
    fn pass_after(&mut self, k: usize, old: u8, was_empty: bool) {
        let due = if self.rules.pass_if_empty {
            was_empty
        } else {
            self.icp[k].cppr > old
        };
        if due {
            self.pass(k);
        }
    }

    /// H_CPPR.
    pub fn set_cppr(&mut self, k: usize, value: u8) {
        let old = self.icp[k];
        self.icp[k].cppr = value;
        if value < old.cppr {
            if old.xisr != 0 && value <= old.pending {
                self.icp[k].xisr = 0;
                self.icp[k].pending = 0xff;
                self.icp[k].line_set = Some(false);
                if !self.rules.pass_if_empty {
                    self.check_ipi(k);
                }
                self.give_back_number(old.xisr);
            }
        } else {
            if old.xisr == 0 {
                self.check_ipi(k);
            }
            self.pass_after(k, old.cppr, old.xisr == 0);
        }
    }

    /// H_IPI.
    pub fn set_mfrr(&mut self, k: usize, value: u8) {
        self.icp[k].mfrr = value;
        self.check_ipi(k);
    }

    /// H_XIRR: the guest takes what is presented.
    pub fn accept(&mut self, k: usize) -> u32 {
        let old = self.icp[k];
        let p = &mut self.icp[k];
        (p.cppr, p.xisr, p.pending) = (old.pending, 0, 0xff);
        p.line_set = Some(false);
        if !self.rules.pass_if_empty {
            self.check_ipi(k);
            self.pass_after(k, old.cppr, false);
        }
        old.xirr()
    }

    /// H_EOI.
    pub fn eoi(&mut self, k: usize, xirr: u32) {
        let old = self.icp[k];
        self.icp[k].cppr = (xirr >> 24) as u8;
        if old.xisr == 0 && !self.rules.pass_if_empty {
            self.check_ipi(k);
        }
        if let Some(n) = self.index(xirr & 0xff_ffff).filter(|&n| self.src[n].lsi) {
            self.give_back(n);
        }
        if old.xisr == 0 && self.rules.pass_if_empty {
            self.check_ipi(k);
        }
        self.pass_after(k, old.cppr, old.xisr == 0);
    }

    // ---- calls ----

    /// One of the six hypercalls, by a connected vCPU. Outputs replace arguments, r4 first.
    pub fn hcall(&mut self, server: u32, opcode: u64, args: &mut [u64; 9]) -> i64 {
        let k = server as usize;
        match opcode {
            0x64 => self.eoi(k, args[0] as u32),
            0x68 => self.set_cppr(k, args[0] as u8),
            0x6c => match self.server(args[0]) {
                Some(target) => self.set_mfrr(target, args[1] as u8),
                None => return ret::PARAMETER,
            },
            0x70 => match self.server(args[0]) {
                Some(target) => {
                    args[0] = u64::from(self.icp[target].xirr());
                    args[1] = u64::from(self.icp[target].mfrr);
                }
                None => return ret::PARAMETER,
            },
            0x74 => args[0] = u64::from(self.accept(k)),
            0x2fc => {
                args[0] = u64::from(self.accept(k));
                args[1] = 0;
            }
            _ => return ret::FUNCTION,
        }
        ret::SUCCESS
    }

    /// One of the four RTAS calls: the cells written, status first.
    pub fn rtas(&mut self, call: super::machine::Rtas, args: &[u32], nret: u32) -> Vec<u32> {
        use super::machine::Rtas;
        const WRONG: [u32; 1] = [-3i32 as u32];
        let want = match call {
            Rtas::SetXive => (3, 1),
            Rtas::GetXive => (1, 3),
            Rtas::IntOn | Rtas::IntOff => (1, 1),
        };
        if (args.len(), nret) != want {
            return WRONG.to_vec();
        }
        let Some(n) = self.index(args[0]) else {
            return WRONG.to_vec();
        };
        let s = self.src[n];
        match call {
            Rtas::SetXive => {
                if self.server(u64::from(args[1])).is_none() || args[2] > 0xff {
                    return WRONG.to_vec();
                }
                self.write(n, args[1], args[2] as u8, args[2] as u8);
            }
            Rtas::GetXive => return vec![0, s.server, u32::from(s.prio)],
            Rtas::IntOff => self.write(n, s.server, MASKED, s.prio),
            Rtas::IntOn => self.write(n, s.server, s.saved, s.saved),
        }
        vec![0]
    }
}
