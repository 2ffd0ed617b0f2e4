//! XICS, plainly: what waits at a source waits until its vCPU would take it; `settle` looks at
//! everything after every step.

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};

#[derive(Clone, Copy)]
struct Source {
    server: u32,
    priority: u8,
    saved: u8,
    lsi: bool,
    level: bool,
    /// MSI: an event waits. LSI: nothing has been sent for this level yet (with `level`).
    waits: bool,
}

#[derive(Clone, Copy)]
struct Icp {
    cppr: u8,
    mfrr: u8,
    xisr: u32,
    /// Priority of `xisr`, 0xff for none.
    priority: u8,
}

/// The controller.
pub struct Xics {
    base: u32,
    sources: Vec<Source>,
    icps: Vec<Icp>,
}

impl Xics {
    pub fn new(machine: &Machine) -> Self {
        let source = Source {
            server: 0,
            priority: 0xff,
            saved: 0xff,
            lsi: false,
            level: false,
            waits: false,
        };
        let icp = Icp {
            cppr: 0,
            mfrr: 0xff,
            xisr: 0,
            priority: 0xff,
        };
        Self {
            base: machine.xics_base,
            sources: vec![source; (machine.sources - machine.xics_base) as usize],
            icps: vec![icp; machine.servers as usize],
        }
    }

    fn source(&mut self, n: u32) -> Option<&mut Source> {
        self.sources.get_mut(n.checked_sub(self.base)? as usize)
    }

    pub fn claim(&mut self, n: u32, lsi: bool) {
        if let Some(source) = self.source(n) {
            source.lsi = lsi;
            source.waits = lsi;
        }
    }

    pub fn line(&self, server: u32) -> bool {
        self.icps[server as usize].xisr != 0
    }

    pub fn trigger(&mut self, n: u32) {
        if let Some(source) = self.source(n) {
            source.waits = true;
        }
    }

    pub fn set_level(&mut self, n: u32, level: bool) {
        if let Some(source) = self.source(n) {
            source.level = level;
        }
    }

    /// The token of what was presented goes back to where it came from.
    fn give_back(&mut self, n: u32) {
        if let Some(source) = self.source(n) {
            source.waits = true;
        }
    }

    /// Presents whatever can be presented.
    pub fn settle(&mut self) {
        for i in 0..self.sources.len() {
            let s = self.sources[i];
            if s.waits && s.priority != 0xff && (!s.lsi || s.level) {
                let icp = self.icps[s.server as usize];
                if s.priority < icp.cppr && s.priority < icp.priority {
                    self.sources[i].waits = false;
                    self.present(s.server, self.base + i as u32, s.priority);
                }
            }
        }
        for server in 0..self.icps.len() as u32 {
            let icp = self.icps[server as usize];
            if icp.mfrr < icp.cppr && icp.mfrr < icp.priority {
                self.present(server, 2, icp.mfrr);
            }
        }
    }

    fn present(&mut self, server: u32, n: u32, priority: u8) {
        let icp = &mut self.icps[server as usize];
        let old = std::mem::replace(&mut icp.xisr, n);
        icp.priority = priority;
        self.give_back(old);
    }

    fn set_cppr(&mut self, server: u32, cppr: u8) {
        let icp = &mut self.icps[server as usize];
        icp.cppr = cppr;
        if icp.xisr != 0 && cppr <= icp.priority {
            let old = std::mem::take(&mut icp.xisr);
            icp.priority = 0xff;
            self.give_back(old);
        }
    }

    pub fn hcall(&mut self, server: u32, op: u64, args: &mut [u64; 9]) -> Option<i64> {
        match op {
            opcode::H_CPPR => self.set_cppr(server, args[0] as u8),
            opcode::H_IPI => self.icps[args[0] as usize].mfrr = args[1] as u8,
            opcode::H_IPOLL => {}
            opcode::H_XIRR => {
                let icp = &mut self.icps[server as usize];
                args[0] = u64::from(icp.cppr) << 24 | u64::from(icp.xisr);
                icp.cppr = icp.priority;
                (icp.xisr, icp.priority) = (0, 0xff);
            }
            opcode::H_EOI => {
                self.icps[server as usize].cppr = (args[0] >> 24) as u8;
                if let Some(source) = self.source(args[0] as u32 & 0xff_ffff) {
                    source.waits |= source.lsi;
                }
            }
            _ => return None,
        }
        Some(ret::H_SUCCESS)
    }

    pub fn rtas(&mut self, call: RtasCall, args: &[u32]) -> Vec<u32> {
        let Some(source) = args.first().copied().and_then(|n| self.source(n)) else {
            return vec![-3i32 as u32];
        };
        match call {
            RtasCall::SetXive => {
                source.server = args[1];
                source.priority = args[2] as u8;
                source.saved = source.priority;
            }
            RtasCall::GetXive => return vec![0, source.server, source.priority.into()],
            RtasCall::IntOn => source.priority = source.saved,
            RtasCall::IntOff => {
                source.saved = source.priority;
                source.priority = 0xff;
            }
        }
        vec![0]
    }
}
