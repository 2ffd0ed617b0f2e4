//! The same guest on this controller: a daemon with a front-end, whose state came from elsewhere.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use papr_intc_frontend::protocol::layout::{Compat, Machine};
use papr_intc_frontend::protocol::papr::codes::RtasCall;
use papr_intc_frontend::protocol::papr::codes::opcode::{H_EOI, H_XIRR};
use papr_intc_frontend::protocol::state::State;
use papr_intc_frontend::protocol::wire::source::{Claim, claim_flag};
use papr_intc_frontend::{Executor, GuestRam, Intc, Launcher, Options, Vcpu};

use super::guest::CPUS;
use super::op::{self, Op, QUEUES, Step};
use super::qemu::Shape;

const RAM: u64 = 256 << 20;
const LIMIT: Duration = Duration::from_secs(10);

/// What the machine claims when it is made: its own events, virtual devices, pins of the host bridge.
const FIXED: [(u32, u32, u32); 3] = [
    (0x1000, 2, 0),
    (0x1100, 7, 0),
    (op::LINE, 4, claim_flag::LSI),
];

/// A machine like QEMU's, with the daemon of this build.
pub struct Ours {
    pub intc: Intc,
    pub vcpus: Vec<Vcpu>,
    ram: Arc<GuestRam>,
}

impl Ours {
    /// A machine that never ran; its RAM has these event queues.
    pub fn start(shape: Shape, queues: &[u8], executor: Executor) -> Self {
        let machine = Machine::pseries(shape.mode, Compat::Qemu72, shape.servers());
        let ram = Arc::new(GuestRam::new(&[(0, RAM)]).unwrap());
        assert!(ram.write(QUEUES, queues));
        let binary = OsString::from(env!("CARGO_BIN_EXE_papr-intc"));
        let launcher = Launcher::spawn(binary, Vec::new());
        let kick = Arc::new(|_| {});
        let options = Options {
            executor,
            ..Options::new(machine)
        };
        let intc = Intc::start(options, launcher, Arc::clone(&ram), kick).unwrap();
        for (first, count, flags) in FIXED {
            let claim = Claim {
                first,
                count,
                align: 1,
                flags,
                low: 0,
                high: 0,
            };
            intc.claim(&claim).unwrap();
        }
        let vcpu = |cpu| intc.connect_vcpu(cpu * shape.vsmt).unwrap();
        Self {
            vcpus: (0..CPUS as u32).map(vcpu).collect(),
            intc,
            ram,
        }
    }

    /// Takes a state over, and lets the guest run.
    pub fn load(&self, state: &State) {
        let head = state.head.encode().unwrap();
        self.intc.state_check(&head).unwrap();
        self.intc.quiesce(LIMIT).unwrap();
        self.intc.state_load(&state.encode().unwrap()).unwrap();
        self.intc.resume(None).unwrap();
    }

    /// The state, of a machine that goes on afterwards.
    pub fn save(&self) -> State {
        self.intc.quiesce(LIMIT).unwrap();
        let state = self.intc.state_save().unwrap();
        self.intc.resume(None).unwrap();
        State::decode(&state).unwrap()
    }

    /// A word of guest memory.
    pub fn word(&self, gpa: u64) -> u32 {
        self.ram.read_u32_be(gpa).unwrap()
    }

    /// Does a step as QEMU's guest would. `None`: what it shows is not the interrupt controller's.
    pub fn step(&self, step: &Step) -> Option<Vec<u64>> {
        let vcpu = &self.vcpus[step.cpu];
        match &step.op {
            Op::Hcall { opcode, args } if *opcode == op::H_SEND_CRQ => {
                let n = args[0] as u32 - op::VSCSI_UNIT;
                self.intc.source(op::VSCSI + n).unwrap().trigger().unwrap();
                None
            }
            Op::Hcall { opcode, args } => Some(hcall(vcpu, *opcode, args)),
            Op::Rtas {
                token,
                args,
                returns,
            } => Some(rtas(vcpu, *token, args, *returns)),
            Op::AcceptAndEnd => {
                let xirr = hcall(vcpu, H_XIRR, &[])[1];
                Some(vec![xirr, hcall(vcpu, H_EOI, &[xirr])[0]])
            }
            Op::Load { address, size } => Some(vec![self.load_at(vcpu, *address, *size)]),
            Op::Store {
                address,
                size,
                value,
            } => {
                store_at(vcpu, *address, *size, *value);
                Some(Vec::new())
            }
            op @ (Op::Cas { .. } | Op::Burst { .. }) => panic!("{op:?} belongs before the save"),
        }
    }

    fn load_at(&self, vcpu: &Vcpu, address: u64, size: u8) -> u64 {
        match Place::of(address) {
            Place::Tima(offset) => vcpu.tima_load(offset, size).unwrap(),
            Place::Esb(offset) => vcpu.esb_load(offset, size).unwrap(),
            Place::Ram => self.word(address).into(),
        }
    }
}

fn store_at(vcpu: &Vcpu, address: u64, size: u8, value: u64) {
    match Place::of(address) {
        Place::Tima(offset) => vcpu.tima_store(offset, size, value).unwrap(),
        Place::Esb(offset) => vcpu.esb_store(offset, size, value).unwrap(),
        Place::Ram => panic!("the guest stores to {address:#x}"),
    }
}

/// What is at an address, and how far into it.
enum Place {
    Tima(u64),
    Esb(u64),
    Ram,
}

impl Place {
    fn of(address: u64) -> Self {
        /// The OS page is the third.
        const TIMA: u64 = op::TIMA - 0x2_0000;
        match address {
            TIMA.. => Self::Tima(address - TIMA),
            op::ESB.. => Self::Esb(address - op::ESB),
            _ => Self::Ram,
        }
    }
}

/// R3 to R8.
fn hcall(vcpu: &Vcpu, opcode: u64, inputs: &[u64]) -> Vec<u64> {
    let mut args = [0; 9];
    args[..inputs.len()].copy_from_slice(inputs);
    let r3 = vcpu.hcall(opcode, &mut args).unwrap();
    let mut outcome = vec![r3 as u64];
    outcome.extend(&args[..5]);
    outcome
}

fn rtas(vcpu: &Vcpu, token: u32, args: &[u32], returns: u32) -> Vec<u64> {
    let call = match token {
        op::SET_XIVE => RtasCall::SetXive,
        op::GET_XIVE => RtasCall::GetXive,
        op::INT_OFF => RtasCall::IntOff,
        op::INT_ON => RtasCall::IntOn,
        _ => panic!("RTAS token {token:#x}"),
    };
    let cells = vcpu.rtas(call, args, returns).unwrap();
    cells.into_iter().map(u64::from).collect()
}
