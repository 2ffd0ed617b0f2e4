//! A small machine in front of the daemon: handshake, guest RAM, vCPUs with eventfds, and the calls
//! that its guest makes, all by messages.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use papr_intc_protocol::layout::mapped::MappedStorage;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::papr::codes::{RtasCall, opcode, ret};
use papr_intc_protocol::wire::Rest;
use papr_intc_protocol::wire::guest::*;
use papr_intc_protocol::wire::handshake::*;
use papr_intc_protocol::wire::source::{Claim, claim_flag};
use papr_intc_protocol::wire::vcpu::*;
use vhost::vhost_user::message::FrontendReq;

use super::Daemon;
use super::client::{Answer, Client, borrow};

/// Bytes of guest RAM, from address 0.
pub const RAM: u64 = 16 << 20;
/// Device features that a front-end of this project acks: PAPR messages, protocol features, version 1.
pub const FEATURES: u64 = 1 | 1 << 30 | 1 << 32;
/// Protocol features: REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS.
pub const PROTOCOL_FEATURES: u64 = 1 << 3 | 1 << 9 | 1 << 15;

/// The machine of most tests: dual, 4 servers, the default numbers.
pub fn machine() -> Machine {
    Machine::pseries(IcMode::Dual, Compat::Papr1, 4)
}

/// A machine whose daemon serves.
pub struct Guest {
    /// The main socket.
    pub main: Client,
    /// As SET_MACHINE gave it.
    pub machine: Machine,
    /// Guest RAM.
    pub ram: File,
    /// What GET_SHM handed out.
    pub shm: File,
    /// Its shape.
    pub info: ShmInfo,
    /// One eventfd for each vCPU, by server number.
    pub kicks: Vec<EventFd>,
}

/// A memfd of `len` zero bytes.
pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// An eventfd as a VMM makes it for a vCPU or an irqfd.
pub fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

/// The eventfd has been written since the last look.
pub fn was_kicked(fd: &EventFd) -> bool {
    fd.read().is_ok()
}

/// SET_OWNER to SET_FEATURES.
pub fn negotiate(main: &Client) {
    let set = |code: FrontendReq, value: u64| {
        main.send(code.into(), 0, &value.to_ne_bytes(), &[]);
    };
    main.send(FrontendReq::SET_OWNER.into(), 0, &[], &[]);
    main.send(FrontendReq::GET_FEATURES.into(), 0, &[], &[]);
    let offered = main.standard_reply(FrontendReq::GET_FEATURES.into());
    assert_eq!(offered & FEATURES, FEATURES);
    set(FrontendReq::SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES);
    set(FrontendReq::SET_FEATURES, FEATURES);
}

/// SET_MEM_TABLE: all of `ram` at address 0.
pub fn share_ram(main: &Client, ram: &File) {
    let mut body = 1u64.to_ne_bytes().to_vec();
    for field in [0, RAM, 0x7000_0000_0000, 0] {
        body.extend(field.to_ne_bytes());
    }
    let done = main.standard(FrontendReq::SET_MEM_TABLE.into(), &body, &[ram.as_fd()]);
    assert_eq!(done, 0);
}

/// SET_MACHINE.
pub fn set_machine(main: &Client, machine: &Machine) -> Answer<SetMachine> {
    let words = machine.to_words();
    main.call(&SetMachine { words })
}

/// GET_SHM.
pub fn get_shm(main: &Client) -> Answer<(ShmInfo, File)> {
    let (info, fds) = main.call_fds(&GetShm {}, &[])?;
    let [fd] = <[OwnedFd; 1]>::try_from(fds).expect("one memfd");
    Ok((info, File::from(fd)))
}

/// START.
pub fn start(main: &Client, executor: u32) -> Answer<StartReply> {
    main.call(&Start { executor, flags: 0 })
}

impl Guest {
    /// From nothing to a serving daemon in remote mode, on one socket.
    pub fn boot(socket: UnixStream, machine: Machine) -> Self {
        Self::boot_as(socket, machine, executor::DAEMON)
    }

    /// As [`Self::boot`] with another executor.
    pub fn boot_as(socket: UnixStream, machine: Machine, executor: u32) -> Self {
        let guest = Self::prepare(socket, machine);
        start(&guest.main, executor).unwrap();
        guest
    }

    /// Everything up to, but without, START.
    pub fn prepare(socket: UnixStream, machine: Machine) -> Self {
        let main = Client::new(socket);
        negotiate(&main);
        main.hello();
        Self::prepare_on(main, machine)
    }

    /// As [`prepare`](Self::prepare), on a connection that has said HELLO.
    pub fn prepare_on(main: Client, machine: Machine) -> Self {
        set_machine(&main, &machine).unwrap();
        let ram = memfd(RAM);
        share_ram(&main, &ram);
        let (info, shm) = get_shm(&main).unwrap();
        let kicks = (0..machine.servers).map(|_| eventfd()).collect();
        let guest = Self {
            main,
            machine,
            ram,
            shm,
            info,
            kicks,
        };
        guest.connect_all();
        guest
    }

    /// A daemon of its own, and the machine in front of it.
    pub fn new(machine: Machine) -> (Daemon, Self) {
        let (daemon, socket) = Daemon::connected(&[]);
        (daemon, Self::boot(socket, machine))
    }

    /// Connects the same machine to the next daemon: handshake, SET_SHM, vCPUs, START.
    pub fn reconnect(&mut self, socket: UnixStream, executor: u32) -> (SetShmReply, StartReply) {
        let seq = self.main.last_seq();
        self.main = Client::new(socket);
        self.main.go_on_from(seq);
        negotiate(&self.main);
        self.main.hello();
        set_machine(&self.main, &self.machine).unwrap();
        share_ram(&self.main, &self.ram);
        let taken = self.set_shm().unwrap();
        self.info.generation = taken.generation;
        self.connect_all();
        let started = start(&self.main, executor).unwrap();
        (taken, started)
    }

    /// SET_SHM with the memory that this machine holds.
    pub fn set_shm(&self) -> Answer<SetShmReply> {
        let (reply, _) = self
            .main
            .call_fds(&self.shm_request(), &[self.shm.as_fd()])?;
        Ok(reply)
    }

    /// What SET_SHM says about the memory.
    pub fn shm_request(&self) -> SetShm {
        let (layout, generation, size) = (self.info.layout, self.info.generation, self.info.size);
        SetShm {
            layout,
            zero: 0,
            generation,
            size,
        }
    }

    /// VCPU_CONNECT of all servers with their eventfds.
    pub fn connect_all(&self) {
        let servers = (0..self.machine.servers).collect();
        let request = VcpuConnect { servers };
        let (reply, _) = self.main.call_fds(&request, &borrow(&self.kicks)).unwrap();
        assert_eq!(reply.connected, self.machine.servers);
    }

    /// VCPU_CHANNEL: our end of a new channel for `server`.
    pub fn channel(&self, server: u32) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = VcpuChannel { server, zero: 0 };
        self.main.call_fds(&request, &[theirs.as_fd()]).unwrap();
        Client::new(ours)
    }

    /// Every byte of the shared memory.
    pub fn words(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.info.size as usize];
        self.shm.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The VMM's view of the shared memory.
    pub fn map(&self) -> MappedStorage {
        MappedStorage::map(&self.shm, self.machine.geometry().unwrap()).unwrap()
    }

    /// A big-endian word of guest RAM.
    pub fn ram_word(&self, gpa: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ram.read_exact_at(&mut bytes, gpa).unwrap();
        u32::from_be_bytes(bytes)
    }

    /// CLAIM of one MSI by number.
    pub fn claim_msi(&self, lisn: u32) {
        self.claim(lisn, claim_flag::MSI).unwrap();
    }

    /// CLAIM of one LSI by number.
    pub fn claim_lsi(&self, lisn: u32) {
        self.claim(lisn, claim_flag::LSI).unwrap();
    }

    /// CLAIM of one number.
    pub fn claim(&self, first: u32, flags: u32) -> Answer<u32> {
        let reply = self.main.call(&claim(first, 1, flags))?;
        Ok(reply.first)
    }

    /// An hcall: r3, r4 to r12 and the line.
    pub fn hcall_reply(&self, server: u32, opcode: u64, args: &[u64]) -> HcallReply {
        self.main.call(&hcall(server, opcode, args)).unwrap()
    }

    /// An hcall: r3 and r4.
    pub fn hcall(&self, server: u32, opcode: u64, args: &[u64]) -> (i64, u64) {
        let reply = self.hcall_reply(server, opcode, args);
        (reply.ret, reply.args[0])
    }

    /// An hcall that must succeed: r4.
    pub fn must(&self, server: u32, opcode: u64, args: &[u64]) -> u64 {
        let (status, r4) = self.hcall(server, opcode, args);
        assert_eq!(status, ret::H_SUCCESS, "hcall {opcode:#x} {args:x?}");
        r4
    }

    /// An RTAS call with one result: its status.
    pub fn rtas(&self, call: RtasCall, args: &[u32]) -> i32 {
        self.main.call(&rtas(call as u32, args, 1)).unwrap().rets[0] as i32
    }

    /// A load or store.
    pub fn mmio(&self, access: Mmio) -> MmioReply {
        self.main.call(&access).unwrap()
    }

    /// CAS with byte 23.
    pub fn cas(&self, byte_23: u8) -> CasReply {
        self.main.call(&cas(0, byte_23)).unwrap()
    }

    /// CAS to XIVE.
    pub fn choose_xive(&self) {
        assert_eq!(self.cas(0x40).mode, mode::XIVE);
    }

    /// A queue of 4 KiB entries at `gpa` for (server, priority), notifying always.
    pub fn set_queue(&self, server: u32, priority: u64, gpa: u64) {
        let args = [1, server.into(), priority, gpa, 12];
        self.must(0, opcode::H_INT_SET_QUEUE_CONFIG, &args);
    }

    /// Routes a source to (server, priority) with event data `eisn`.
    pub fn set_source(&self, lisn: u32, server: u32, priority: u64, eisn: u64) {
        let args = [2, lisn.into(), server.into(), priority, eisn];
        self.must(0, opcode::H_INT_SET_SOURCE_CONFIG, &args);
    }

    /// Opens a vCPU for every priority: the CPPR byte of its TIMA.
    pub fn open(&self, server: u32) {
        self.mmio(tima_store(server, 0x2_0011, 1, 0xff));
    }
}

/// CLAIM of numbers from `first`.
pub fn claim(first: u32, count: u32, flags: u32) -> Claim {
    Claim {
        first,
        count,
        align: 1,
        flags,
        low: 0,
        high: 0,
    }
}

/// An hcall's message.
pub fn hcall(server: u32, opcode: u64, args: &[u64]) -> Hcall {
    let mut registers = [0; 9];
    registers[..args.len()].copy_from_slice(args);
    Hcall {
        server,
        zero: 0,
        opcode,
        args: registers,
        time_base: 0x1234_5678,
    }
}

/// An RTAS call's message.
pub fn rtas(call: u32, args: &[u32], nret: u32) -> Rtas {
    let mut cells = [0; 16];
    cells[..args.len()].copy_from_slice(args);
    Rtas {
        server: 0,
        call,
        nargs: args.len() as u32,
        nret,
        args: cells,
    }
}

/// CAS of `server` with a vector of 26 bytes.
pub fn cas(server: u32, byte_23: u8) -> Cas {
    let mut ov5 = vec![0; 27];
    ov5[0] = 25;
    ov5[23] = byte_23;
    Cas {
        server,
        zero: 0,
        ov5: Rest(ov5),
    }
}

/// A load from the ESB space: page 0 trigger, page 1 management.
pub fn esb_load(lisn: u32, page: u64, offset: u64) -> Mmio {
    Mmio {
        server: 0,
        space: space::ESB,
        offset: (u64::from(lisn) << 17) + (page << 16) + offset,
        size: 8,
        store: 0,
        value: 0,
    }
}

/// A store to the ESB space.
pub fn esb_store(lisn: u32, page: u64, offset: u64) -> Mmio {
    Mmio {
        store: 1,
        ..esb_load(lisn, page, offset)
    }
}

/// A load from the TIMA.
pub fn tima_load(server: u32, offset: u64, size: u32) -> Mmio {
    Mmio {
        server,
        space: space::TIMA,
        offset,
        size,
        store: 0,
        value: 0,
    }
}

/// A store to the TIMA.
pub fn tima_store(server: u32, offset: u64, size: u32, value: u64) -> Mmio {
    Mmio {
        store: 1,
        value,
        ..tima_load(server, offset, size)
    }
}
