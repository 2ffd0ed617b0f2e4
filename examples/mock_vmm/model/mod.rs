//! A plain model of both controllers in this process, behind one lock: what `--model` runs on.
//!
//! It exists to tell mistakes of the guest from mistakes of the controller: the guest has to come out
//! with `lost=0` here as well. It is slow and obvious (it scans everything after every step), shares no
//! code with papr-intc, and implements the calls that the guest uses, at level `papr-1`, from
//! xive.md §2-5 and xics.md §1-4.

mod xics;
mod xive;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::papr::codes::{RtasCall, ret};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, CasAnswer, Cpu, Gone, Numbers, Step};

/// The callback of the VMM.
pub type Kick = Arc<dyn Fn(u32) + Send + Sync>;

/// Guest RAM, 32-bit words in host order.
struct Ram(Vec<AtomicU32>);

impl Ram {
    fn word(&self, gpa: u64) -> Option<&AtomicU32> {
        self.0.get(usize::try_from(gpa / 4).ok()?)
    }
}

struct State {
    exploitation: bool,
    /// Number → is level-sensitive.
    claimed: HashMap<u32, bool>,
    msis: Vec<u32>,
    levels: HashMap<u32, bool>,
    xive: xive::Xive,
    xics: xics::Xics,
}

/// The model and its machine.
pub struct Model {
    machine: Machine,
    ram: Ram,
    kick: Kick,
    state: Mutex<State>,
}

impl Model {
    /// A machine after power-on with so much RAM.
    pub fn new(machine: Machine, ram: u64, kick: Kick) -> Arc<Self> {
        let state = State {
            exploitation: !machine.ic_mode.has_xics(),
            claimed: (0..machine.servers).map(|n| (n, false)).collect(),
            msis: Vec::new(),
            levels: HashMap::new(),
            xive: xive::Xive::new(&machine),
            xics: xics::Xics::new(&machine),
        };
        Arc::new(Self {
            machine,
            ram: Ram((0..ram / 4).map(|_| AtomicU32::new(0)).collect()),
            kick,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a step; afterwards every vCPU whose line is high is told to look.
    fn step<T>(&self, f: impl FnOnce(&mut State, &Self) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state, self);
        state.xics.settle();
        let high: Vec<u32> = (0..self.machine.servers)
            .filter(|s| state.line(*s))
            .collect();
        drop(state);
        high.into_iter().for_each(|server| (self.kick)(server));
        result
    }

    fn write(&self, gpa: u64, value: u32) -> bool {
        // Relaxed: the model's lock orders it before the line.
        self.ram
            .word(gpa)
            .map(|w| w.store(value, Ordering::Relaxed))
            .is_some()
    }
}

impl State {
    fn line(&self, server: u32) -> bool {
        if self.exploitation {
            self.xive.line(server)
        } else {
            self.xics.line(server)
        }
    }

    fn set_level(&mut self, lisn: u32, level: bool, model: &Model) {
        self.levels.insert(lisn, level);
        if self.exploitation {
            self.xive
                .set_level(lisn, level, &|gpa, v| model.write(gpa, v));
        } else {
            self.xics.set_level(lisn, level);
        }
    }

    fn replay_levels(&mut self, model: &Model) {
        for (lisn, level) in self.levels.clone() {
            self.set_level(lisn, level, model);
        }
    }
}

impl Board for Arc<Model> {
    fn machine(&self) -> Machine {
        self.machine
    }
    fn connect(&self, server: u32) -> Step<Arc<dyn Cpu>> {
        let model = self.clone();
        Ok(Arc::new(ModelCpu { model, server }))
    }
    fn trigger(&self, lisn: u32) -> Step {
        self.step(|s, model| {
            if s.exploitation {
                s.xive.trigger(lisn, &|gpa, v| model.write(gpa, v));
            } else {
                s.xics.trigger(lisn);
            }
        });
        Ok(())
    }
    fn set_level(&self, lisn: u32, level: bool) -> Step {
        self.step(|s, model| s.set_level(lisn, level, model));
        Ok(())
    }
    fn add_irqfd(&self, _lisn: u32, _event: &EventFd) -> Step {
        Err(Gone("the model has no irqfds".into()))
    }
    fn remove_irqfd(&self, _lisn: u32) -> Step {
        Ok(())
    }
    fn claim(&self, numbers: Numbers) -> Step<u32> {
        let state = &mut *self.lock();
        let (first, count, lsi) = match numbers {
            Numbers::Fixed(n, lsi) => (n, 1, lsi),
            Numbers::Msis(count, range) => {
                let free =
                    |first: &u32| (*first..first + count).all(|n| !state.claimed.contains_key(&n));
                let mut firsts = range.step_by(count as usize);
                let first = firsts.find(free).ok_or(Gone("no numbers left".into()))?;
                state.msis.extend(first..first + count);
                (first, count, false)
            }
        };
        for n in first..first + count {
            state.claimed.insert(n, lsi);
            state.xive.claim(n, lsi);
            state.xics.claim(n, lsi);
        }
        Ok(first)
    }
    fn machine_reset(&self) -> Step {
        self.step(|s, model| {
            for n in std::mem::take(&mut s.msis) {
                s.claimed.remove(&n);
            }
            s.xive = xive::Xive::new(&model.machine);
            s.xics = xics::Xics::new(&model.machine);
            for (n, lsi) in s.claimed.clone() {
                s.xive.claim(n, lsi);
                s.xics.claim(n, lsi);
            }
            s.exploitation = !model.machine.ic_mode.has_xics();
            s.replay_levels(model);
        });
        Ok(())
    }
    fn ram_read(&self, gpa: u64) -> u32 {
        self.ram.word(gpa).map_or(0, |w| w.load(Ordering::Relaxed))
    }
    fn ram_write(&self, gpa: u64, value: u32) {
        self.write(gpa, value);
    }
    fn ram_fill(&self, gpa: u64, len: u64, value: u32) {
        (gpa..gpa + len)
            .step_by(4)
            .for_each(|at| self.ram_write(at, value));
    }
    fn ram_is_filled(&self, gpa: u64, len: u64, value: u32) -> bool {
        (gpa..gpa + len)
            .step_by(4)
            .all(|at| self.ram_read(at) == value)
    }
    fn daemons(&self) -> Vec<u32> {
        Vec::new()
    }
    fn ask(&self) -> Step {
        Ok(())
    }
}

struct ModelCpu {
    model: Arc<Model>,
    server: u32,
}

impl Cpu for ModelCpu {
    fn hcall(&self, op: u64, args: &mut [u64; 9]) -> Step<i64> {
        Ok(self.model.step(|s, model| {
            let write = |gpa, v| model.write(gpa, v);
            let answer = if s.exploitation {
                s.xive.hcall(op, args, &write)
            } else {
                s.xics.hcall(self.server, op, args)
            };
            answer.unwrap_or(ret::H_FUNCTION)
        }))
    }
    fn rtas(&self, call: RtasCall, args: &[u32], _nret: u32) -> Step<Vec<u32>> {
        Ok(self.model.step(|s, _| s.xics.rtas(call, args)))
    }
    fn cas(&self, ov5: &[u8]) -> Step<CasAnswer> {
        let byte = ov5.get(23).copied().unwrap_or(0);
        self.model.step(|s, model| {
            let old = std::mem::replace(&mut s.exploitation, byte == 0x40);
            if old != s.exploitation {
                s.replay_levels(model);
            }
            s.xive.chosen = s.exploitation;
        });
        let fdt = if byte == 0x40 {
            "ibm,power-ivpe"
        } else {
            "IBM,ppc-xicp"
        };
        Ok(CasAnswer {
            ret: ret::H_SUCCESS,
            byte_23: byte.into(),
            fdt: fdt.into(),
        })
    }
    fn esb_load(&self, offset: u64) -> Step<u64> {
        Ok(self
            .model
            .step(|s, m| s.xive.esb_load(offset, &|gpa, v| m.write(gpa, v))))
    }
    fn esb_store(&self, offset: u64, _value: u64) -> Step {
        self.model.step(|s, m| {
            s.xive
                .trigger((offset >> 17) as u32, &|gpa, v| m.write(gpa, v))
        });
        Ok(())
    }
    fn tima_load(&self, offset: u64, _size: u8) -> Step<u64> {
        debug_assert_eq!(offset, 0x2_0810);
        Ok(self.model.step(|s, _| s.xive.acknowledge(self.server)))
    }
    fn tima_store(&self, offset: u64, _size: u8, value: u64) -> Step {
        debug_assert_eq!(offset, 0x2_0011);
        self.model
            .step(|s, _| s.xive.set_cppr(self.server, value as u8));
        Ok(())
    }
    fn pending(&self) -> bool {
        self.model.lock().line(self.server)
    }
}
