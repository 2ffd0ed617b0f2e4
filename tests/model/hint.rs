//! The H_INT_* hypercalls: checks in order, outputs, effects.

use super::memory::Memory;
use super::ret;
use super::xive::{End, PRIORITIES, Xive, pq};

/// The most favoured priority that belongs to the hypervisor.
const RESERVED: u64 = 7;
const MASK_PRIORITY: u64 = 0xff;
const NOT_THERE: u64 = u64::MAX;

type Args = [u64; 9];
/// An error code to return, the arguments left as they are.
type Checked<T> = Result<T, i64>;

impl Xive {
    /// One of the calls 3a8 to 3d0, once CAS has enabled them. Outputs replace arguments, r4 first; after
    /// an error the arguments are unchanged.
    pub fn hcall(&mut self, opcode: u64, args: &mut Args, mem: &mut Memory) -> i64 {
        let saved = *args;
        let done = match opcode {
            0x3a8 => self.get_source_info(args),
            0x3ac => self.set_source_config(args),
            0x3b0 => self.get_source_config(args),
            0x3b4 => self.get_queue_info(args),
            0x3b8 => self.set_queue_config(args, mem),
            0x3bc => self.get_queue_config(args),
            0x3c8 => self.esb_call(args, mem),
            0x3cc => flags(args, 0)
                .and_then(|()| self.source(args[1]))
                .map(|_| ()),
            0x3d0 => flags(args, 0).map(|()| self.int_reset()),
            _ => Err(ret::FUNCTION),
        };
        match done {
            Ok(()) => ret::SUCCESS,
            Err(code) => {
                *args = saved;
                code
            }
        }
    }

    fn source(&self, lisn: u64) -> Checked<usize> {
        match self.src.get(lisn as usize) {
            Some(s) if lisn < self.src.len() as u64 && s.valid => Ok(lisn as usize),
            _ => Err(ret::P2),
        }
    }

    fn priority(&self, prio: u64, error: i64) -> Checked<u8> {
        let p = if self.rules.truncate {
            prio & 0xff
        } else {
            prio
        };
        if p < RESERVED {
            Ok(p as u8)
        } else {
            Err(error)
        }
    }

    fn target(&self, server: u64, error: i64) -> Checked<u32> {
        let s = if self.rules.truncate {
            server & 0xffff_ffff
        } else {
            server
        };
        match self.ring.get(s as usize) {
            Some(r) if r.connected => Ok(s as u32),
            _ => Err(error),
        }
    }

    /// Priority is looked at before the target in all queue calls.
    fn queue(&self, args: &Args) -> Checked<usize> {
        let prio = self.priority(args[2], ret::P3)?;
        let server = self.target(args[1], ret::P2)?;
        Ok(server as usize * PRIORITIES as usize + prio as usize)
    }

    fn get_source_info(&self, args: &mut Args) -> Checked<()> {
        flags(args, 0)?;
        let n = self.source(args[1])?;
        let eoi = u64::from(self.layout.store_eoi);
        let page = self.layout.esb_base + ((n as u64) << 17);
        if self.src[n].lsi {
            args[..4].copy_from_slice(&[0xc | eoi, NOT_THERE, NOT_THERE, 16]);
        } else {
            args[..4].copy_from_slice(&[eoi, page + 0x10000, page, 16]);
        }
        Ok(())
    }

    fn set_source_config(&mut self, args: &Args) -> Checked<()> {
        flags(args, 3)?;
        let n = self.source(args[1])?;
        if args[3] == MASK_PRIORITY {
            self.src[n].unroute();
            return Ok(());
        }
        let prio = self.priority(args[3], ret::P4)?;
        let server = self.target(args[2], ret::P3)?;
        let s = &mut self.src[n];
        (s.server, s.prio) = (server, prio);
        s.masked = args[0] & 1 != 0;
        if args[0] & 2 != 0 {
            s.eisn = (args[4] & 0x7fff_ffff) as u32;
        }
        Ok(())
    }

    fn get_source_config(&self, args: &mut Args) -> Checked<()> {
        flags(args, 0)?;
        let s = self.src[self.source(args[1])?];
        let (mut server, mut prio) = (u64::from(s.server), u64::from(s.prio));
        if self.rules.source_config_from_end && !self.end_of(&s).valid {
            // The END's words are zero: thread number 0 less the offset 400 of vCPU 0.
            (server, prio) = (u64::from(0u32.wrapping_sub(0x400)), 0);
        }
        if s.masked {
            prio = MASK_PRIORITY;
        }
        args[..3].copy_from_slice(&[server, prio, u64::from(s.eisn)]);
        Ok(())
    }

    fn get_queue_info(&self, args: &mut Args) -> Checked<()> {
        flags(args, 0)?;
        let e = self.queue(args)?;
        args[0] = self.layout.end_base + ((e as u64) << 17);
        args[1] = self.end[e].size;
        Ok(())
    }

    fn set_queue_config(&mut self, args: &Args, mem: &Memory) -> Checked<()> {
        flags(args, 1)?;
        let e = self.queue(args)?;
        let (page, size) = (args[3], args[4]);
        if size == 0 {
            self.end[e] = End::RESET;
            return Ok(());
        }
        if !matches!(size, 12 | 16 | 21 | 24) {
            return Err(ret::P5);
        }
        let bytes = 1u64 << size;
        let anywhere = self.rules.queue_anywhere && size == 12;
        if !page.is_multiple_of(bytes) || !(anywhere || mem.contains(page, bytes)) {
            return Err(ret::P4);
        }
        let always = args[0] & 1 != 0;
        self.end[e] = End {
            valid: true,
            always,
            page,
            size,
            index: 0,
            generation: 1,
            esn: pq::RESET,
        };
        Ok(())
    }

    fn get_queue_config(&self, args: &mut Args) -> Checked<()> {
        flags(args, 1)?;
        let q = self.end[self.queue(args)?];
        let debug = args[0] & 1 != 0;
        let shift = if self.rules.generation_at_bit_62 {
            62
        } else {
            1
        };
        let generation = if debug {
            u64::from(q.generation) << shift
        } else {
            0
        };
        let index = if debug { q.index } else { 0 };
        args[..4].copy_from_slice(&[u64::from(q.always) | generation, q.page, q.size, index]);
        Ok(())
    }

    fn esb_call(&mut self, args: &mut Args, mem: &mut Memory) -> Checked<()> {
        flags(args, 1)?;
        let n = self.source(args[1])?;
        let offset = args[2];
        if offset >= 0x10000 && !(self.rules.esb_crosses && offset <= 0x20000) {
            return Err(ret::P3);
        }
        if !offset.is_multiple_of(8) {
            return Err(ret::HARDWARE);
        }
        // Counted from this source's management page, so that 10000 is the next one's trigger page.
        let at = ((n as u64) << 17) + 0x10000 + offset;
        if args[0] & 1 != 0 {
            self.esb_store(at, 8, mem);
            args[0] = NOT_THERE;
        } else {
            args[0] = self.esb_load(at, 8, mem);
        }
        Ok(())
    }

    /// H_INT_RESET: configuration of sources and queues is lost; levels and thread contexts are not.
    fn int_reset(&mut self) {
        if self.rules.int_reset_does_nothing {
            return;
        }
        for s in self.src.iter_mut().filter(|s| s.valid) {
            s.unroute();
            s.pq = pq::OFF;
        }
        self.end.fill(End::RESET);
    }
}

fn flags(args: &Args, allowed: u64) -> Checked<()> {
    if args[0] & !allowed == 0 {
        Ok(())
    } else {
        Err(ret::PARAMETER)
    }
}
