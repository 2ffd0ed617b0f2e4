//! What a guest does, one operation after the other, without saying on what: [`super::guest`] compiles it for QEMU.
//!
//! A [`Program`] has two halves. The first makes the state that is saved; the second runs after that, on the guest that
//! was saved, on QEMU that loaded it, and on whoever else did, and shows what is delivered.

use papr_intc_protocol::papr::codes::opcode::*;

/// What a vCPU does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A hypercall. Outcome: R3 to R8.
    Hcall { opcode: u64, args: Vec<u64> },
    /// An RTAS call. Outcome: the returned cells, status first.
    Rtas {
        token: u32,
        args: Vec<u32>,
        returns: u32,
    },
    /// Negotiation with this byte 23 of option vector 5. Outcome: R3.
    Cas { byte23: u8 },
    /// A load of memory or a device. Outcome: the value.
    Load { address: u64, size: u8 },
    /// A store. No outcome.
    Store { address: u64, size: u8, value: u64 },
    /// Accept what XICS presents and end it at once: H_XIRR, then H_EOI of that. Outcome: the XIRR, H_EOI's R3.
    AcceptAndEnd,
    /// `times` a trigger of a XIVE source by its ESB page, each followed by its EOI. No outcome.
    Burst { lisn: u32, times: u32 },
}

impl Op {
    /// Words of the outcome.
    pub fn outcome_len(&self) -> usize {
        match self {
            Self::Hcall { .. } => 6,
            Self::Rtas { returns, .. } => *returns as usize,
            Self::Cas { .. } | Self::Load { .. } => 1,
            Self::AcceptAndEnd => 2,
            Self::Store { .. } | Self::Burst { .. } => 0,
        }
    }

    /// Whether the outcome says that an interrupt was taken.
    pub fn delivered(&self, outcome: &[u64]) -> bool {
        match self {
            Self::AcceptAndEnd => outcome[0] & 0xff_ffff != 0,
            Self::Load { address, .. } if *address == TIMA_ACK => outcome[0] & 0x8000 != 0,
            _ => false,
        }
    }

    /// Whether the outcome says that it was done. A load cannot fail.
    pub fn succeeded(&self, outcome: &[u64]) -> bool {
        match self {
            Self::Hcall { .. } | Self::Rtas { .. } | Self::Cas { .. } => outcome[0] == 0,
            Self::AcceptAndEnd => outcome[1] == 0,
            Self::Load { .. } | Self::Store { .. } | Self::Burst { .. } => true,
        }
    }
}

/// An operation and the vCPU that does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub cpu: usize,
    pub op: Op,
}

/// Two lists of steps. Each step is done when the one before it is complete, whichever vCPU that was.
#[derive(Debug)]
pub struct Program {
    /// Before the state is saved.
    pub before: Vec<Step>,
    /// After it was loaded.
    pub after: Vec<Step>,
    vsmt: u32,
    cpu: usize,
    saved: bool,
}

const H_PUT_TCE: u64 = 0x20;
const H_REG_CRQ: u64 = 0xfc;
const H_FREE_CRQ: u64 = 0x100;
const H_VIO_SIGNAL: u64 = 0x104;
/// On a virtual SCSI adapter: one pulse of its interrupt.
pub const H_SEND_CRQ: u64 = 0x108;

const START_CPU: u32 = 0x2006;
pub const SET_XIVE: u32 = 0x200a;
pub const GET_XIVE: u32 = 0x200b;
pub const INT_OFF: u32 = 0x200c;
pub const INT_ON: u32 = 0x200d;
const WRITE_PCI_CONFIG: u32 = 0x2017;
const CHANGE_MSI: u32 = 0x2019;

/// ESB pages of LISN 0; two of 64 KiB for each LISN, first the one that triggers.
pub const ESB: u64 = 0x0006_0100_0000_0000;
/// The OS page of the TIMA.
pub const TIMA: u64 = 0x0006_0302_031a_0000;
const TIMA_ACK: u64 = TIMA + 0x810;
/// Of the host bridge: its number, and the window of its 32-bit memory.
const BUID: [u32; 2] = [0x0800_0000, 0x2000_0000];
const PCI_MEMORY: u64 = 0x0000_2000_0000_0000;

/// Unit of the first virtual SCSI adapter.
pub const VSCSI_UNIT: u32 = 0x7100_0001;
/// Its interrupt; the others follow.
pub const VSCSI: u32 = 0x1101;
/// Interrupts of the pins A of the slots 0 to 3.
pub const LINE: u32 = 0x1200;
/// The first MSI that is handed out.
pub const MSI: u32 = 0x1300;
/// Slots of the devices that use MSIs.
pub const MSI_SLOTS: [u32; 2] = [4, 5];

/// ESB management: offsets of a load.
pub mod esb {
    pub const EOI: u64 = 0;
    pub const GET: u64 = 0x800;
    pub const SET_00: u64 = 0xc00;
    pub const SET_01: u64 = 0xd00;
    pub const SET_10: u64 = 0xe00;
    pub const SET_11: u64 = 0xf00;
}

/// Where the programs of the vCPUs begin, for RTAS start-cpu; 16 bytes each.
pub const CPU_ENTRIES: u32 = 0x1000;
/// A page of messages for each virtual SCSI adapter.
const CRQ: u64 = 0x0300_0000;
/// Event queues: [`QUEUE_STRIDE`] apart, those of two vCPUs.
pub const QUEUES: u64 = 0x0400_0000;
pub const QUEUE_STRIDE: u64 = 0x20_0000;
/// Bytes of all of them.
pub const QUEUES_LEN: usize = 16 * QUEUE_STRIDE as usize;

/// vCPUs are named by their index; a call of the guest has the server number.
impl Program {
    /// Nothing yet. Server numbers are multiples of `vsmt`.
    pub fn new(vsmt: u32) -> Self {
        Self {
            before: Vec::new(),
            after: Vec::new(),
            vsmt,
            cpu: 0,
            saved: false,
        }
    }

    fn server(&self, cpu: usize) -> u32 {
        cpu as u32 * self.vsmt
    }

    /// What follows is done by this vCPU.
    pub fn on(&mut self, cpu: usize) -> &mut Self {
        self.cpu = cpu;
        self
    }

    /// What follows is done after the state was loaded.
    pub fn save_here(&mut self) {
        self.saved = true;
    }

    pub fn add(&mut self, op: Op) -> &mut Self {
        let step = Step { cpu: self.cpu, op };
        if self.saved {
            self.after.push(step);
        } else {
            self.before.push(step);
        }
        self
    }

    pub fn hcall(&mut self, opcode: u64, args: &[u64]) -> &mut Self {
        let args = args.to_vec();
        self.add(Op::Hcall { opcode, args })
    }

    fn rtas(&mut self, token: u32, args: &[u32], returns: u32) -> &mut Self {
        let args = args.to_vec();
        self.add(Op::Rtas {
            token,
            args,
            returns,
        })
    }

    pub fn load(&mut self, address: u64, size: u8) -> &mut Self {
        self.add(Op::Load { address, size })
    }

    pub fn store(&mut self, address: u64, size: u8, value: u64) -> &mut Self {
        self.add(Op::Store {
            address,
            size,
            value,
        })
    }

    pub fn cas(&mut self, byte23: u8) -> &mut Self {
        self.add(Op::Cas { byte23 })
    }

    pub fn start_cpu(&mut self, cpu: usize) -> &mut Self {
        let entry = CPU_ENTRIES + 16 * cpu as u32;
        self.rtas(START_CPU, &[self.server(cpu), entry, 0], 1)
    }
}

/// XICS.
impl Program {
    pub fn cppr(&mut self, cppr: u64) -> &mut Self {
        self.hcall(H_CPPR, &[cppr])
    }

    pub fn ipi(&mut self, cpu: usize, mfrr: u64) -> &mut Self {
        self.hcall(H_IPI, &[self.server(cpu).into(), mfrr])
    }

    pub fn poll(&mut self, cpu: usize) -> &mut Self {
        self.hcall(H_IPOLL, &[self.server(cpu).into()])
    }

    pub fn accept(&mut self) -> &mut Self {
        self.hcall(H_XIRR, &[])
    }

    pub fn end(&mut self, xirr: u64) -> &mut Self {
        self.hcall(H_EOI, &[xirr])
    }

    pub fn accept_and_end(&mut self, times: usize) -> &mut Self {
        for _ in 0..times {
            self.add(Op::AcceptAndEnd);
        }
        self
    }

    pub fn set_xive(&mut self, lisn: u32, cpu: usize, priority: u32) -> &mut Self {
        self.rtas(SET_XIVE, &[lisn, self.server(cpu), priority], 1)
    }

    pub fn get_xive(&mut self, lisn: u32) -> &mut Self {
        self.rtas(GET_XIVE, &[lisn], 3)
    }

    pub fn int_off(&mut self, lisn: u32) -> &mut Self {
        self.rtas(INT_OFF, &[lisn], 1)
    }

    pub fn int_on(&mut self, lisn: u32) -> &mut Self {
        self.rtas(INT_ON, &[lisn], 1)
    }
}

/// XIVE.
impl Program {
    /// Route a source; its EISN is its LISN. Priority ff masks.
    pub fn route(&mut self, lisn: u32, cpu: usize, priority: u64) -> &mut Self {
        let (lisn, server) = (u64::from(lisn), self.server(cpu).into());
        self.hcall(H_INT_SET_SOURCE_CONFIG, &[2, lisn, server, priority, lisn])
    }

    pub fn get_route(&mut self, lisn: u32) -> &mut Self {
        self.hcall(H_INT_GET_SOURCE_CONFIG, &[0, lisn.into()])
    }

    /// A queue of `1 << shift` bytes; each event notifies if `always`, else the first only.
    pub fn queue(&mut self, cpu: usize, priority: u64, shift: u64, always: bool) -> &mut Self {
        let (flags, server) = (u64::from(always), self.server(cpu).into());
        let page = queue_page(cpu, priority);
        let args = [flags, server, priority, page, shift];
        self.hcall(H_INT_SET_QUEUE_CONFIG, &args)
    }

    /// The queue is there no more.
    pub fn drop_queue(&mut self, cpu: usize, priority: u64) -> &mut Self {
        let server = self.server(cpu).into();
        self.hcall(H_INT_SET_QUEUE_CONFIG, &[0, server, priority, 0, 0])
    }

    /// Address, size, generation and index of a queue.
    pub fn get_queue(&mut self, cpu: usize, priority: u64) -> &mut Self {
        let server = self.server(cpu).into();
        self.hcall(H_INT_GET_QUEUE_CONFIG, &[1, server, priority])
    }

    /// A load of the management page.
    pub fn esb(&mut self, lisn: u32, offset: u64) -> &mut Self {
        self.load(ESB + u64::from(lisn) * 0x2_0000 + 0x1_0000 + offset, 8)
    }

    pub fn trigger(&mut self, lisn: u32) -> &mut Self {
        self.store(trigger_page(lisn), 8, 0)
    }

    pub fn burst(&mut self, lisn: u32, times: u32) -> &mut Self {
        self.add(Op::Burst { lisn, times })
    }

    pub fn tima_cppr(&mut self, cppr: u64) -> &mut Self {
        self.store(TIMA + 0x11, 1, cppr)
    }

    /// Acknowledge; outcome: NSR and the new CPPR.
    pub fn tima_ack(&mut self) -> &mut Self {
        self.load(TIMA_ACK, 2)
    }

    /// Store four bytes, of which CPPR is one; nothing is looked at anew.
    pub fn tima_raw_cppr(&mut self, cppr: u64) -> &mut Self {
        self.store(TIMA + 0x10, 4, cppr << 16)
    }

    /// Have an interrupt of this priority pending without any source.
    pub fn tima_pend(&mut self, priority: u64) -> &mut Self {
        self.store(TIMA + 0x812, 1, priority)
    }

    /// The first bytes of the OS ring.
    pub fn tima_ring(&mut self) -> &mut Self {
        self.load(TIMA + 0x10, 8)
    }
}

/// The ESB page that triggers a source.
pub fn trigger_page(lisn: u32) -> u64 {
    ESB + u64::from(lisn) * 0x2_0000
}

/// Where the queue of a vCPU and priority is.
pub fn queue_page(cpu: usize, priority: u64) -> u64 {
    QUEUES + (cpu as u64 * 8 + priority) * QUEUE_STRIDE
}

/// Devices.
impl Program {
    /// Have the virtual SCSI adapter `n` ready to answer messages, with interrupts.
    pub fn set_up_vscsi(&mut self, n: u32) -> &mut Self {
        let unit = u64::from(VSCSI_UNIT + n);
        let page = CRQ + u64::from(n) * 0x1000;
        self.hcall(H_PUT_TCE, &[unit, 0, page | 3])
            .hcall(H_FREE_CRQ, &[unit])
            .hcall(H_REG_CRQ, &[unit, 0, 0x1000])
            .hcall(H_VIO_SIGNAL, &[unit, 1])
    }

    /// One interrupt of the virtual SCSI adapter `n`: it answers a message.
    pub fn pulse_vscsi(&mut self, n: u32) -> &mut Self {
        let unit = u64::from(VSCSI_UNIT + n);
        self.hcall(H_SEND_CRQ, &[unit, 0xc001_0000_0000_0000, 0])
    }

    fn write_config(&mut self, slot: u32, register: u32, size: u32, value: u32) -> &mut Self {
        let args = [slot << 11 | register, BUID[0], BUID[1], size, value];
        self.rtas(WRITE_PCI_CONFIG, &args, 1)
    }

    /// Have the device in `slot` answer in memory.
    pub fn set_up_pci(&mut self, slot: u32) -> &mut Self {
        self.write_config(slot, 0x10, 4, bar(slot))
            .write_config(slot, 4, 2, 6)
    }

    /// Have it signal by the next MSI that is free.
    pub fn set_up_msi(&mut self, slot: u32) -> &mut Self {
        self.rtas(CHANGE_MSI, &[slot << 11, BUID[0], BUID[1], 3, 1, 1], 4)
            .write_config(slot, 0x42, 2, 0x81)
    }

    /// The driver has gone.
    pub fn free_msi(&mut self, slot: u32) -> &mut Self {
        self.write_config(slot, 0x42, 2, 0x80);
        self.rtas(CHANGE_MSI, &[slot << 11, BUID[0], BUID[1], 3, 0, 1], 4)
    }

    /// The pin of the device in `slot`, or one MSI of it: its registers 60 and 64, little endian.
    pub fn raise(&mut self, slot: u32) -> &mut Self {
        self.store(PCI_MEMORY + u64::from(bar(slot)) + 0x60, 4, 1 << 24)
    }

    pub fn lower(&mut self, slot: u32) -> &mut Self {
        self.store(PCI_MEMORY + u64::from(bar(slot)) + 0x64, 4, 1 << 24)
    }

    pub fn pulse_msi(&mut self, slot: u32) -> &mut Self {
        self.raise(slot).lower(slot)
    }
}

fn bar(slot: u32) -> u32 {
    0x8000_0000 + slot * 0x10_0000
}
