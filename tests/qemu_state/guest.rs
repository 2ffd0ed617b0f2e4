//! A [`Program`] as a big-endian image that QEMU enters as its firmware, and what it left in RAM.
//!
//! The vCPUs take turns: a word of RAM says how many runs of steps are complete, and each waits for its own. When
//! the first half is complete they spin with interrupts off. An injected NMI brings them to 100 again,
//! where SPRG0, which migrates, holds the address of the second half.

use papr_intc_protocol::papr::codes::opcode::{H_EOI, H_XIRR};

use super::asm::{Code, DEC, Label, Reg, SPRG0, When};
use super::op::{CPU_ENTRIES, Op, Program, Step, trigger_page};

/// vCPUs of every guest.
pub const CPUS: usize = 2;

/// How many runs of steps are complete.
pub const TURN: u64 = 0x00f0_0000;
/// Not zero: a vCPU met an exception; the address behind its vector.
pub const FAULT: u64 = TURN + 8;
const BOOTED: u64 = TURN + 16;
/// Outcomes of all steps, eight bytes a word.
pub const OUTCOMES: u64 = 0x0100_0000;
const CODE: u32 = 0x2000;
/// RTAS blocks and the vector of CAS.
const DATA: u32 = 0x10_0000;
const CAS_REPLY: u64 = 0x0200_0000;
const CAS_REPLY_LEN: u64 = 0x10_0000;

const H_RTAS: u64 = 0xf000;
const H_CAS: u64 = 0xf002;

/// Registers that hypercalls leave alone.
const A: Reg = 29;
const B: Reg = 30;

/// A compiled [`Program`].
pub struct Guest {
    /// The firmware.
    pub image: Vec<u8>,
    /// [`TURN`] when the first half is complete, and when both are.
    pub turns: [u64; 2],
    /// Words of outcome of both halves.
    pub outcome_words: usize,
}

impl Guest {
    pub fn compile(program: &Program) -> Self {
        let mut compiler = Compiler::new();
        let halves = [&program.before, &program.after];
        let (runs, turns) = take_turns(halves);
        let mut entries = Vec::new();
        for cpu in 0..CPUS {
            entries.push(compiler.vcpu(&runs, cpu));
        }
        Self {
            image: compiler.image(&entries),
            turns,
            outcome_words: halves.iter().map(|half| words(half)).sum(),
        }
    }
}

/// Words of the outcomes of these steps.
pub fn words(steps: &[Step]) -> usize {
    steps.iter().map(|step| step.op.outcome_len()).sum()
}

/// Steps in a row of one vCPU.
struct Run<'a> {
    cpu: usize,
    /// Which half.
    after: bool,
    turn: u64,
    /// Of its first outcome, in words.
    outcome: usize,
    steps: &'a [Step],
}

fn take_turns(halves: [&Vec<Step>; 2]) -> (Vec<Run<'_>>, [u64; 2]) {
    let (mut runs, mut turns) = (Vec::new(), [0; 2]);
    let (mut turn, mut outcome) = (0, 0);
    for (half, steps) in halves.into_iter().enumerate() {
        for run in steps.chunk_by(|a, b| a.cpu == b.cpu) {
            runs.push(Run {
                cpu: run[0].cpu,
                after: half == 1,
                turn,
                outcome,
                steps: run,
            });
            turn += 1;
            outcome += words(run);
        }
        turns[half] = turn;
    }
    (runs, turns)
}

struct Compiler {
    code: Code,
    data: Vec<u8>,
}

impl Compiler {
    fn new() -> Self {
        Self {
            code: Code::at(CODE),
            data: Vec::new(),
        }
    }

    /// Both halves of one vCPU; where the first begins.
    fn vcpu(&mut self, runs: &[Run<'_>], cpu: usize) -> Label {
        let own = |after| {
            let of = move |run: &&Run<'_>| run.cpu == cpu && run.after == after;
            runs.iter().filter(of)
        };
        let second = self.code.here();
        own(true).for_each(|run| self.run(run));
        self.spin();
        let first = self.code.here();
        self.code.load_immediate(A, second.0.into());
        self.code.move_to_spr(SPRG0, A);
        self.code.load_immediate(A, 0x7fff_ffff);
        self.code.move_to_spr(DEC, A);
        own(false).for_each(|run| self.run(run));
        self.spin();
        first
    }

    fn spin(&mut self) {
        let here = self.code.here();
        self.code.branch(here);
    }

    fn run(&mut self, run: &Run<'_>) {
        self.code.load_immediate(B, TURN);
        let wait = self.code.here();
        self.code.load(8, A, 0, B);
        self.code.compare(A, run.turn as u16);
        self.code.branch_if(When::Equal, Label(wait.0 + 5 * 4));
        self.code.pause();
        self.code.branch(wait);
        let mut outcome = OUTCOMES + 8 * run.outcome as u64;
        for step in run.steps {
            self.op(&step.op, outcome);
            outcome += 8 * step.op.outcome_len() as u64;
        }
        self.code.load_immediate(B, TURN);
        self.code.load_immediate(A, run.turn + 1);
        self.code.sync();
        self.code.store(8, A, 0, B);
    }

    fn op(&mut self, op: &Op, outcome: u64) {
        match op {
            Op::Hcall { opcode, args } => {
                self.hcall(*opcode, args);
                self.keep(outcome, 3, 6);
            }
            Op::Rtas {
                token,
                args,
                returns,
            } => self.rtas(*token, args, *returns, outcome),
            Op::Cas { byte23 } => {
                let vector = self.place(&architecture_vector(*byte23));
                self.hcall(H_CAS, &[vector, CAS_REPLY, CAS_REPLY_LEN]);
                self.keep(outcome, 3, 1);
            }
            Op::Load { address, size } => {
                self.code.load_immediate(B, *address);
                self.code.load(*size, 3, 0, B);
                self.code.sync();
                self.keep(outcome, 3, 1);
            }
            Op::Store {
                address,
                size,
                value,
            } => {
                self.code.load_immediate(B, *address);
                self.code.load_immediate(A, *value);
                self.code.store(*size, A, 0, B);
                self.code.sync();
            }
            Op::AcceptAndEnd => self.accept_and_end(outcome),
            Op::Burst { lisn, times } => self.burst(*lisn, *times),
        }
    }

    /// Arguments that are not given are zero.
    fn hcall(&mut self, opcode: u64, args: &[u64]) {
        self.code.load_immediate(3, opcode);
        for n in 0..9 {
            let value = args.get(n).copied().unwrap_or(0);
            self.code.load_immediate(4 + n as Reg, value);
        }
        self.code.hypercall();
    }

    /// Registers from `first` on become the outcome.
    fn keep(&mut self, outcome: u64, first: Reg, count: u32) {
        self.code.load_immediate(B, outcome);
        for n in 0..count {
            self.code.store(8, first + n, 8 * n as u16, B);
        }
    }

    fn rtas(&mut self, token: u32, args: &[u32], returns: u32, outcome: u64) {
        let mut cells = vec![token, args.len() as u32, returns];
        cells.extend(args);
        let first = 4 * cells.len();
        // What RTAS does not write reads as this.
        cells.extend((0..returns).map(|_| 0xdead_beef_u32));
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        let block = self.place(&bytes);
        self.hcall(H_RTAS, &[block]);
        self.code.load_immediate(A, block + first as u64);
        self.code.load_immediate(B, outcome);
        for n in 0..returns as u16 {
            self.code.load(4, 3, 4 * n, A);
            self.code.store(8, 3, 8 * n, B);
        }
    }

    fn accept_and_end(&mut self, outcome: u64) {
        self.hcall(H_XIRR, &[]);
        self.keep(outcome, 4, 1);
        self.code.load_immediate(3, H_EOI);
        self.code.hypercall(); // R4 still holds the XIRR
        self.keep(outcome + 8, 3, 1);
    }

    fn burst(&mut self, lisn: u32, times: u32) {
        let page = trigger_page(lisn);
        self.code.load_immediate(A, page);
        self.code.load_immediate(B, page + 0x1_0000);
        self.code.load_immediate(3, times.into());
        self.code.move_to_count(3);
        let again = self.code.here();
        self.code.store(8, 3, 0, A);
        self.code.load(8, 4, 0, B);
        self.code.branch_if(When::CountLeft, again);
    }

    /// Where these bytes are in the image.
    fn place(&mut self, bytes: &[u8]) -> u64 {
        let at = u64::from(DATA) + self.data.len() as u64;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(64), 0);
        at
    }

    fn image(self, entries: &[Label]) -> Vec<u8> {
        let mut image = vec![0; DATA as usize];
        let mut put = |at: u32, code: &Code| {
            let bytes = code.bytes();
            image[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        };
        let fault = fault(&mut put);
        for vector in (0x200..0x1000_u32).step_by(0x20) {
            let mut code = Code::at(vector);
            code.call(fault);
            put(vector, &code);
        }
        for (entry, at) in entries.iter().zip((CPU_ENTRIES..).step_by(16)) {
            let mut code = Code::at(at);
            code.branch(*entry);
            put(at, &code);
        }
        put(0x100, &boot(entries[0]));
        assert!(self.code.here().0 <= DATA, "the program is too long");
        put(CODE, &self.code);
        image.extend(&self.data);
        image
    }
}

/// Entered by the first vCPU in 32-bit mode, and by an NMI.
fn boot(first: Label) -> Code {
    let mut code = Code::at(0x100);
    let set_up = Label(0x100 + 5 * 4);
    code.move_from_spr(4, SPRG0);
    code.compare(4, 0);
    code.branch_if(When::Equal, set_up);
    code.move_to_count(4);
    code.branch_to_count();
    assert_eq!(code.here(), set_up);
    code.move_from_msr(4);
    code.load_immediate(5, 1 << 63); // MSR[SF]
    code.or(4, 4, 5);
    code.move_to_msr(4);
    // A vCPU that was never started comes here by an NMI only.
    code.load_immediate(5, BOOTED);
    code.load(8, 4, 0, 5);
    code.compare(4, 0);
    let spin = code.here();
    code.branch_if(When::NotEqual, spin);
    code.load_immediate(4, 1);
    code.store(8, 4, 0, 5);
    code.branch(first);
    code
}

/// Reports an exception and stays there.
fn fault(put: &mut impl FnMut(u32, &Code)) -> Label {
    let at = Label(CPU_ENTRIES + 0x100);
    let mut code = Code::at(at.0);
    code.move_from_link(3);
    code.load_immediate(4, FAULT);
    code.store(8, 3, 0, 4);
    let here = code.here();
    code.branch(here);
    put(at.0, &code);
    at
}

/// What Linux hands to `ibm,client-architecture-support`, as little of it as will do.
fn architecture_vector(byte23: u8) -> Vec<u8> {
    // A POWER9, and the end of that list; five vectors, of which the first four are a byte of zero.
    let processors: [u32; 4] = [0xffff_0000, 0x004e_0000, 0, u32::MAX];
    let mut vector: Vec<u8> = processors.iter().flat_map(|w| w.to_be_bytes()).collect();
    vector.push(5 - 1);
    vector.extend([0; 8]);
    let mut five = [0; 26];
    five[22] = byte23;
    five[23] = 0x40; // radix
    vector.push(five.len() as u8 - 1);
    vector.extend(five);
    vector
}
