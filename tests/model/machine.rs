//! The machine around the controllers: ic-mode, CAS, claims, levels, reset, memory.
//!
//! LSI levels live here and are told to whichever controller becomes active; a vCPU's line is a function
//! of the active controller's state.

use std::collections::BTreeSet;

use super::memory::Memory;
use super::ret;
use super::rules::Rules;
use super::xics::Xics;
use super::xive::{Layout, Xive};

/// Which controllers the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcMode {
    /// XICS only.
    Xics,
    /// XIVE only.
    Xive,
    /// Both; the guest chooses at CAS.
    Dual,
}

/// The four RTAS calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rtas {
    /// ibm,set-xive
    SetXive,
    /// ibm,get-xive
    GetXive,
    /// ibm,int-on
    IntOn,
    /// ibm,int-off
    IntOff,
}

/// What the machine is built from.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Which controllers.
    pub ic_mode: IcMode,
    /// Which behaviours.
    pub rules: Rules,
    /// Number of server numbers: vCPUs are below it.
    pub servers: u32,
    /// Number of interrupt numbers.
    pub lisns: u32,
    /// First number that XICS has.
    pub xics_base: u32,
    /// XIVE's addresses and options.
    pub layout: Layout,
    /// Bytes of RAM, from address 0.
    pub ram: u64,
}

/// Answer to CAS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CasReply {
    /// H_CAS's return code.
    pub ret: i64,
    /// Byte 23 of the negotiated option vector 5.
    pub byte23: u8,
    /// Whether XIVE is active from now on.
    pub xive: bool,
}

const PLATFORM_XIVE: u8 = 0x40;
const PLATFORM_BOTH: u8 = 0x80;

/// A whole machine.
pub struct Machine {
    /// Guest memory.
    pub mem: Memory,
    /// If the machine has it.
    pub xics: Option<Xics>,
    /// If the machine has it.
    pub xive: Option<Xive>,
    rules: Rules,
    level: Vec<bool>,
    lsi: Vec<bool>,
    cas_xive: bool,
    /// F-MMIO-XICS: the controllers have not changed yet.
    mmio_open: bool,
    /// F-CAS-LEVELS: the lines, by server.
    lines: Vec<bool>,
}

impl Machine {
    /// The machine after power-on: nothing claimed, no vCPU.
    pub fn new(shape: &Shape) -> Machine {
        let xics = (shape.ic_mode != IcMode::Xive).then(|| {
            Xics::new(
                shape.rules,
                shape.servers,
                shape.xics_base,
                shape.lisns - shape.xics_base,
            )
        });
        let xive = (shape.ic_mode != IcMode::Xics)
            .then(|| Xive::new(shape.rules, shape.layout, shape.servers, shape.lisns));
        Machine {
            mem: Memory::new(shape.ram),
            xics,
            xive,
            rules: shape.rules,
            level: vec![false; shape.lisns as usize],
            lsi: vec![false; shape.lisns as usize],
            cas_xive: false,
            mmio_open: shape.rules.mmio_under_xics,
            lines: vec![false; shape.servers as usize],
        }
    }

    /// Whether XIVE is the active controller.
    pub fn xive_active(&self) -> bool {
        self.cas_xive || self.xics.is_none()
    }

    /// A vCPU comes.
    pub fn connect(&mut self, server: u32, connected: bool) {
        if let Some(x) = &mut self.xics {
            x.connect(server as usize, connected);
        }
        if let Some(x) = &mut self.xive {
            x.connect(server as usize, connected);
        }
    }

    /// vCPU reset, in both controllers.
    pub fn vcpu_reset(&mut self, server: u32) {
        if let Some(x) = &mut self.xics {
            x.reset_presenter(server as usize);
        }
        if let Some(x) = &mut self.xive {
            x.reset_ring(server as usize);
        }
    }

    /// A device gets a number, in both controllers or in neither. XICS has none below its base.
    pub fn claim(&mut self, lisn: u32, lsi: bool) -> bool {
        let xics = self
            .xics
            .as_ref()
            .and_then(|x| Some(x.src[x.index(lisn)?].claimed));
        let xive = self
            .xive
            .as_ref()
            .and_then(|x| Some(x.src.get(lisn as usize)?.valid));
        if xics == Some(true) || xive == Some(true) || (xics, xive) == (None, None) {
            return false;
        }
        if let Some(x) = &mut self.xics
            && let Some(n) = x.index(lisn)
        {
            x.claim(n, lsi);
        }
        if let Some(x) = &mut self.xive {
            x.claim(lisn as usize, lsi);
        }
        self.lsi[lisn as usize] = lsi;
        true
    }

    /// A number is taken back from its device.
    pub fn free(&mut self, lisn: u32) {
        if let Some(x) = &mut self.xics
            && let Some(n) = x.index(lisn)
        {
            x.free(n);
        }
        if let Some(x) = &mut self.xive {
            x.free(lisn as usize);
        }
        self.level[lisn as usize] = false;
    }

    /// A device's message.
    pub fn pulse(&mut self, lisn: u32) {
        if self.xive_active() {
            if let Some(x) = &mut self.xive {
                x.trigger(lisn as usize, &mut self.mem);
            }
        } else if let Some(x) = &mut self.xics
            && let Some(n) = x.index(lisn)
        {
            x.pulse(n);
        }
    }

    /// A device's line.
    pub fn set_level(&mut self, lisn: u32, level: bool) {
        self.level[lisn as usize] = level;
        if self.xive_active() {
            if let Some(x) = &mut self.xive {
                x.set_level(lisn as usize, level, &mut self.mem);
            }
        } else if let Some(x) = &mut self.xics
            && let Some(n) = x.index(lisn)
        {
            x.set_level(n, level);
        }
    }

    /// What the controllers did to the lines since last time. One is idle and does nothing, so there is no
    /// order to keep; a call that reaches the idle one looks before and after.
    pub fn look_at_lines(&mut self) {
        for (s, line) in self.lines.iter_mut().enumerate() {
            let ring = self.xive.as_mut().and_then(|x| x.ring[s].line_set.take());
            let icp = self.xics.as_mut().and_then(|x| x.icp[s].line_set.take());
            *line = ring.or(icp).unwrap_or(*line);
        }
    }

    fn mmio_answers(&self) -> bool {
        self.xive_active() || self.mmio_open
    }

    /// Tells the active controller the levels, which may have changed while it was not active.
    fn replay_levels(&mut self) {
        if self.rules.levels_stay {
            return;
        }
        for lisn in 0..self.level.len() {
            if self.lsi[lisn] {
                self.set_level(lisn as u32, self.level[lisn]);
            }
        }
    }

    /// Devices act while the machine is quiesced, then it resumes. Levels are what they are at the end;
    /// what was raised, and one message a source, count when it resumes, in ascending order.
    pub fn quiesced(&mut self, events: &[(u32, bool)]) {
        for &(lisn, level) in events.iter().filter(|(lisn, _)| self.lsi[*lisn as usize]) {
            self.level[lisn as usize] = level;
            if let Some(x) = self.xive.as_mut() {
                x.src[lisn as usize].asserted = level;
            }
            if let Some(x) = self.xics.as_mut()
                && let Some(n) = x.index(lisn)
            {
                x.src[n].asserted = level;
            }
        }
        let raised: BTreeSet<u32> = events.iter().filter(|e| e.1).map(|e| e.0).collect();
        for lisn in raised {
            if !self.lsi[lisn as usize] {
                self.pulse(lisn);
            } else if self.level[lisn as usize] {
                self.set_level(lisn, true);
            }
        }
    }

    /// A vCPU's external interrupt line.
    pub fn line(&self, server: u32) -> bool {
        let s = server as usize;
        if self.rules.levels_stay {
            self.lines[s]
        } else if self.xive_active() {
            self.xive
                .as_ref()
                .is_some_and(|x| x.ring[s].nsr & 0x80 != 0)
        } else {
            self.xics.as_ref().is_some_and(|x| x.icp[s].xisr != 0)
        }
    }

    /// A hypercall of either controller: return code, and r4 to r12 afterwards.
    pub fn hcall(&mut self, server: u32, opcode: u64, mut args: [u64; 9]) -> (i64, [u64; 9]) {
        let code = match opcode {
            0x64 | 0x68 | 0x6c | 0x70 | 0x74 | 0x2fc => self.xics_call(server, opcode, &mut args),
            0x3a8..=0x3d0 if opcode.is_multiple_of(4) && self.cas_xive => match &mut self.xive {
                Some(x) => x.hcall(opcode, &mut args, &mut self.mem),
                None => ret::FUNCTION,
            },
            _ => ret::FUNCTION,
        };
        (code, args)
    }

    fn xics_call(&mut self, server: u32, opcode: u64, args: &mut [u64; 9]) -> i64 {
        let active = !self.xive_active();
        if !active {
            self.look_at_lines();
        }
        let accept = self.rules.accept_in_wrong_mode && matches!(opcode, 0x74 | 0x2fc);
        match &mut self.xics {
            None => ret::FUNCTION,
            Some(x) if active => x.hcall(server, opcode, args),
            Some(x) => {
                if accept {
                    x.accept(server as usize);
                    self.look_at_lines();
                }
                ret::HARDWARE
            }
        }
    }

    /// An RTAS call: the cells it writes, status first.
    pub fn rtas(&mut self, call: Rtas, args: &[u32], nret: u32) -> Vec<u32> {
        let active = !self.xive_active();
        match &mut self.xics {
            None => vec![-3i32 as u32],
            Some(x) if active => x.rtas(call, args, nret),
            Some(_) => vec![-1i32 as u32],
        }
    }

    /// A load from the source pages; they are there only while XIVE is active.
    pub fn esb_load(&mut self, offset: u64, size: u8) -> u64 {
        let active = self.mmio_answers();
        match &mut self.xive {
            Some(x) if active => x.esb_load(offset, size, &mut self.mem),
            _ => 0,
        }
    }

    /// A store to the source pages.
    pub fn esb_store(&mut self, offset: u64, size: u8) {
        let active = self.mmio_answers();
        if let Some(x) = self.xive.as_mut().filter(|_| active) {
            x.esb_store(offset, size, &mut self.mem);
        }
    }

    /// A load from the TIMA.
    pub fn tima_load(&mut self, server: u32, offset: u64, size: u8) -> u64 {
        let active = self.mmio_answers();
        self.xive
            .as_mut()
            .filter(|_| active)
            .map_or(0, |x| x.tima_load(server as usize, offset, size))
    }

    /// A store to the TIMA.
    pub fn tima_store(&mut self, server: u32, offset: u64, size: u8, value: u64) {
        let active = self.mmio_answers();
        if let Some(x) = self.xive.as_mut().filter(|_| active) {
            x.tima_store(server as usize, offset, size, value);
        }
    }

    /// CAS, with the guest's raw option vector 5: a length byte, then the vector from byte 1 on.
    pub fn cas(&mut self, ov5: &[u8]) -> CasReply {
        let wanted = ov5.get(23).copied().unwrap_or(0);
        let xive = wanted & PLATFORM_XIVE != 0;
        let possible = if xive {
            self.xive.is_some()
        } else {
            self.xics.is_some()
        };
        let current = if self.cas_xive { PLATFORM_XIVE } else { 0 };
        if wanted & PLATFORM_BOTH != 0 || !possible {
            return CasReply {
                ret: ret::PARAMETER,
                byte23: current,
                xive: self.xive_active(),
            };
        }
        let before = self.xive_active();
        self.look_at_lines();
        self.cas_xive = xive;
        if self.xive_active() != before {
            self.mmio_open &= xive;
            self.replay_levels();
        }
        CasReply {
            ret: ret::SUCCESS,
            byte23: wanted & PLATFORM_XIVE,
            xive,
        }
    }

    /// Machine reset: both controllers, then the mode, then the levels that are still high.
    pub fn reset(&mut self) {
        if let Some(x) = &mut self.xics {
            x.reset();
        }
        if let Some(x) = &mut self.xive {
            x.reset();
        }
        self.mmio_open &= !self.cas_xive;
        self.cas_xive = false;
        self.lines.fill(false);
        self.replay_levels();
    }
}
