//! XIVE, plainly: PQ bits, event assignments, queues, rings.

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::papr::codes::{opcode, ret};

type Write<'a> = &'a dyn Fn(u64, u32) -> bool;

#[derive(Clone, Copy)]
struct Source {
    p: bool,
    q: bool,
    level: bool,
    lsi: bool,
    /// Server, priority and EISN; none while masked.
    to: Option<(u32, u8)>,
    eisn: u32,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    gpa: u64,
    entries: u64,
    index: u64,
    generation: u32,
}

#[derive(Clone, Copy, Default)]
struct Ring {
    exception: bool,
    cppr: u8,
    ipb: u8,
}

/// The controller.
pub struct Xive {
    sources: Vec<Source>,
    queues: Vec<Queue>,
    rings: Vec<Ring>,
    esb_base: u64,
    /// CAS has chosen it.
    pub chosen: bool,
}

impl Xive {
    pub fn new(machine: &Machine) -> Self {
        let off = Source {
            p: false,
            q: true,
            level: false,
            lsi: false,
            to: None,
            eisn: 0,
        };
        Self {
            sources: vec![off; machine.sources as usize],
            queues: vec![Queue::default(); 8 * machine.servers as usize],
            rings: vec![Ring::default(); machine.servers as usize],
            esb_base: machine.esb_base,
            chosen: false,
        }
    }

    pub fn claim(&mut self, lisn: u32, lsi: bool) {
        self.sources[lisn as usize].lsi = lsi;
    }

    pub fn line(&self, server: u32) -> bool {
        self.rings[server as usize].exception
    }

    pub fn trigger(&mut self, lisn: u32, write: Write<'_>) {
        let source = &mut self.sources[lisn as usize];
        match (source.p, source.q) {
            (false, false) => {
                source.p = true;
                self.forward(lisn, write);
            }
            (true, _) => source.q = true,
            (false, true) => {}
        }
    }

    pub fn set_level(&mut self, lisn: u32, level: bool, write: Write<'_>) {
        let source = &mut self.sources[lisn as usize];
        source.level = level;
        if level && !source.p && !source.q {
            source.p = true;
            self.forward(lisn, write);
        }
    }

    fn forward(&mut self, lisn: u32, write: Write<'_>) {
        let source = self.sources[lisn as usize];
        let Some((server, priority)) = source.to else {
            return;
        };
        let queue = &mut self.queues[end(server, priority)];
        if queue.entries == 0 {
            return;
        }
        write(
            queue.gpa + 4 * queue.index,
            queue.generation << 31 | source.eisn,
        );
        queue.index += 1;
        if queue.index == queue.entries {
            queue.index = 0;
            queue.generation ^= 1;
        }
        self.rings[server as usize].ipb |= 0x80 >> priority;
        self.notify(server);
    }

    fn notify(&mut self, server: u32) {
        let ring = &mut self.rings[server as usize];
        ring.exception |= (ring.ipb.leading_zeros() as u8) < ring.cppr && ring.ipb != 0;
    }

    pub fn acknowledge(&mut self, server: u32) -> u64 {
        let ring = &mut self.rings[server as usize];
        let exception = std::mem::take(&mut ring.exception);
        if exception {
            ring.cppr = ring.ipb.leading_zeros() as u8;
            ring.ipb &= !(0x80 >> ring.cppr);
        }
        u64::from(exception) << 15 | u64::from(ring.cppr)
    }

    pub fn set_cppr(&mut self, server: u32, cppr: u8) {
        self.rings[server as usize].cppr = if cppr > 7 { 0xff } else { cppr };
        self.notify(server);
    }

    pub fn esb_load(&mut self, offset: u64, write: Write<'_>) -> u64 {
        let lisn = (offset >> 17) as u32;
        let source = &mut self.sources[lisn as usize];
        let old = u64::from(source.p) << 1 | u64::from(source.q);
        match offset & 0xf00 {
            0..0x800 => {
                // End of interrupt: a queued event, or a level that is still high, comes again.
                let off = !source.p && source.q;
                let again = (source.p && source.q) || (source.level && !off);
                (source.p, source.q) = (again, off);
                if again {
                    self.forward(lisn, write);
                }
                u64::from(again)
            }
            0x800..0xc00 => old,
            set => {
                let pq = set >> 8 & 3;
                (source.p, source.q) = (pq & 2 != 0, pq & 1 != 0);
                old
            }
        }
    }

    pub fn hcall(&mut self, op: u64, args: &mut [u64; 9], write: Write<'_>) -> Option<i64> {
        if !self.chosen {
            return None;
        }
        let lisn = args[1] as u32;
        match op {
            opcode::H_INT_GET_SOURCE_INFO => {
                let page = self.esb_base + (u64::from(lisn) << 17);
                args[..4].copy_from_slice(&match self.sources[lisn as usize].lsi {
                    true => [0xc, u64::MAX, u64::MAX, 16],
                    false => [0, page + 0x1_0000, page, 16],
                });
            }
            opcode::H_INT_SET_SOURCE_CONFIG => {
                let source = &mut self.sources[lisn as usize];
                source.to = (args[3] != 0xff).then_some((args[2] as u32, args[3] as u8));
                source.eisn = args[4] as u32;
            }
            opcode::H_INT_GET_SOURCE_CONFIG => {
                let source = self.sources[lisn as usize];
                let (server, priority) = source.to.unwrap_or((0, 0xff));
                args[..3].copy_from_slice(&[server.into(), priority.into(), source.eisn.into()]);
            }
            opcode::H_INT_SET_QUEUE_CONFIG => {
                let entries = if args[4] == 0 { 0 } else { 1 << (args[4] - 2) };
                self.queues[end(args[1] as u32, args[2] as u8)] = Queue {
                    gpa: args[3],
                    entries,
                    index: 0,
                    generation: 1,
                };
            }
            opcode::H_INT_ESB => args[0] = self.esb_load(u64::from(lisn) << 17 | args[2], write),
            opcode::H_INT_RESET => {
                for source in &mut self.sources {
                    (source.p, source.q, source.to) = (false, true, None);
                }
                self.queues.fill(Queue::default());
            }
            opcode::H_INT_GET_QUEUE_INFO | opcode::H_INT_SYNC => {}
            _ => return None,
        }
        Some(ret::H_SUCCESS)
    }
}

fn end(server: u32, priority: u8) -> usize {
    8 * server as usize + usize::from(priority & 7)
}
