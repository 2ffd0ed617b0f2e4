//! The state that moves: STATE_HEADER to STATE_LOAD (SPEC.md chapter 6). What it holds, how it is written and
//! who may take it is `papr_intc_protocol::state`'s business; here it meets the machine.
//!
//! A state is taken from, and takes effect on, a quiesced machine: no transition is under way, and the first
//! one after it begins when RESUME opens the gate. A load stores every word. A daemon that dies meanwhile
//! leaves the flag LOADING and an open journal, and its successor puts the machine back to reset.

use std::sync::Arc;

use papr_intc_protocol::layout::Compat;
use papr_intc_protocol::layout::header::{Mode, State as Word, incompat, word};
use papr_intc_protocol::layout::mapped::OwnedStorage;
use papr_intc_protocol::plane::Host;
use papr_intc_protocol::state::model::{Claims as Run, Head, Kind, State, level_name};
use papr_intc_protocol::state::stream::{MAX_STREAM, StreamError};
use papr_intc_protocol::state::words::Words as StateWords;
use papr_intc_protocol::state::{Incoming, Mismatch, caps};
use papr_intc_protocol::wire::machine::*;
use papr_intc_protocol::wire::{Rest, Text, Wire};

use super::journal::{Operation, Ticket};
use super::{Control, Core, Refused};
use crate::memory::QueueMemory;

impl<M: QueueMemory> Core<M> {
    /// The words themselves: nothing is staged while a state moves.
    fn words(&self) -> StateWords<'_, Arc<OwnedStorage>> {
        StateWords::new(
            self.plane.storage().shared(),
            self.plane.machine(),
            self.plane.geometry(),
        )
    }

    /// Every word is about to be stored anew, or has been.
    pub(super) fn loading(&self, yes: bool) {
        let flags = self.memory.header(word::INCOMPAT_FLAGS);
        let new = if yes {
            flags | incompat::LOADING
        } else {
            flags & !incompat::LOADING
        };
        if new != flags {
            self.memory.set_header(word::INCOMPAT_FLAGS, new);
        }
    }

    /// A state has been loaded, and the machine has not run since.
    pub(super) fn is_loaded(&self) -> bool {
        self.memory.header(word::LOADED) != 0
    }

    /// What is to be done beside storing a state's words. The gate and the executor stay.
    fn stored(&self, head: &Head) {
        if self.machine().ic_mode.has_xics() {
            self.controller().xics.rebuild_index();
        }
        self.memory
            .set_header(word::OV5_BYTE_23, head.ov5_byte_23.into());
        self.set_state(Word {
            mode: head.active,
            cas_xive: head.cas_xive,
            ..self.state()
        });
    }

    /// What a load that was cut, or an abort, leaves: the machine as after power-on, with its vCPUs, and the claims that a
    /// reset keeps. Done again, it changes nothing.
    pub(super) fn back_to_reset(&self) {
        // First: the journal's operation is a complete load if this is set.
        self.memory.set_header(word::LOADED, 0);
        let words = self.words();
        let fixed = words
            .claims()
            .into_iter()
            .filter(|run| run.kind != Kind::Msi);
        let mut head = Head::new(crate::BUILD, *self.machine());
        head.servers = words.servers();
        let mut state = State::reset(head);
        state.claims = fixed.collect();
        words.apply(&state);
        self.stored(&state.head);
    }

    /// The machine has been loaded and runs for the first time: what waits at a source is presented if its vCPU
    /// is open. In a state that papr-intc saved nothing is left to do; other controllers may have saved theirs
    /// before they looked.
    pub(super) fn first_look(&self) {
        if !self.is_loaded() {
            return;
        }
        let c = self.controller();
        if c.state.mode == Mode::Xics {
            // All that waits has been indexed: who opens its vCPU later finds it.
            for lisn in self.sources_where(|_| false, |word| c.xics.is_due(word)) {
                self.run(|| c.xics.look_again(lisn));
            }
        }
        if self.is_alone() {
            let claims = self.claims();
            let due = claims.lsis().filter(|lisn| c.resample_due(*lisn));
            due.for_each(|lisn| self.plane.host().resample(lisn));
        }
        self.memory.set_header(word::LOADED, 0);
    }

    /// May this machine take a state with that head?
    fn accept(&self, head: &Head) -> Result<(), Mismatch> {
        let words = self.words();
        caps::accept(head, self.machine(), &words.servers())?;
        // MSIs of ours, if any, are compared when the state is here.
        let here: Vec<Run> = self
            .own_claims(&words)
            .filter(|run| run.kind != Kind::Msi)
            .collect();
        if head.fixed.is_empty() {
            return Ok(());
        }
        caps::accept_claims(&head.fixed, &here)
    }

    /// Our claims without the IPIs.
    fn own_claims(
        &self,
        words: &StateWords<'_, Arc<OwnedStorage>>,
    ) -> impl Iterator<Item = Run> + use<M> {
        caps::of_devices(self.machine(), words.claims())
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    /// What was taken or came is of no use any more.
    pub(super) fn forget_states(&mut self) {
        self.outgoing = None;
        self.incoming = Vec::new();
    }

    /// The state of the quiesced machine, encoded.
    pub fn save(&self) -> Result<Vec<u8>, Refused> {
        let core = self.core()?;
        if core.depth() == 0 {
            return Err(Refused::NotQuiesced);
        }
        Ok(core.words().save(crate::BUILD)?)
    }

    pub(super) fn state_header(&self, request: &StateHeader) -> Result<StateBytes, Refused> {
        let core = self.memory_core()?;
        let own = core.machine().compat;
        let wanted = match request.compat {
            level::OWN => own,
            level::PAPR_1 => Compat::Papr1,
            level::QEMU_7_2 => Compat::Qemu72,
            other => {
                return Err(Refused::Value(format!(
                    "compat level {other} is not defined"
                )));
            }
        };
        if wanted != own {
            return Err(Refused::Mismatch(Mismatch::Differs {
                item: "compat level".to_owned(),
                there: level_name(own).to_owned(),
                here: level_name(wanted).to_owned(),
            }));
        }
        let bytes = core.words().head(crate::BUILD).encode()?;
        Ok(StateBytes {
            total: bytes.len() as u64,
            bytes: Rest(bytes),
        })
    }

    pub(super) fn state_check(&self, check: &StateCheck) -> Result<StateVerdict, Refused> {
        let core = self.memory_core()?;
        let verdict = Head::decode(&check.head.0)
            .map_err(Refused::State)
            .and_then(|head| Ok(core.accept(&head)?));
        Ok(match verdict {
            Ok(()) => StateVerdict {
                errno: 0,
                text: Text::default(),
            },
            Err(e) => StateVerdict {
                errno: e.errno() as u32,
                text: Text(e.to_string()),
            },
        })
    }

    pub(super) fn state_read(&mut self, read: &StateRead) -> Result<StateBytes, Refused> {
        if read.length > MAX_STATE_BYTES {
            let what = format!("{} bytes at once, at most {MAX_STATE_BYTES}", read.length);
            return Err(Refused::Value(what));
        }
        if read.offset == 0 {
            self.outgoing = Some(self.save()?);
        }
        let piece = |bytes: &Vec<u8>| {
            let from = usize::try_from(read.offset).ok()?;
            let length = bytes.len().checked_sub(from)?.min(read.length as usize);
            Some(StateBytes {
                total: bytes.len() as u64,
                bytes: Rest(bytes[from..from + length].to_vec()),
            })
        };
        let have = self.outgoing.as_ref();
        have.and_then(piece).ok_or_else(|| Refused::Piece {
            asked: read.offset,
            have: have.map_or(0, Vec::len) as u64,
        })
    }

    pub(super) fn state_write(&mut self, write: &StateWrite) -> Result<StateWritten, Refused> {
        self.core()?;
        if write.offset == 0 {
            self.incoming.clear();
        }
        let (have, more) = (self.incoming.len(), &write.bytes.0);
        if write.offset != have as u64 {
            return Err(Refused::Piece {
                asked: write.offset,
                have: have as u64,
            });
        }
        if have + more.len() > MAX_STREAM {
            self.incoming = Vec::new();
            return Err(Refused::State(StreamError::TooLong(have + more.len())));
        }
        self.incoming.extend_from_slice(more);
        Ok(StateWritten {
            total: self.incoming.len() as u64,
        })
    }

    pub(super) fn state_load(
        &mut self,
        load: &StateLoad,
        ticket: Ticket,
    ) -> Result<StateWritten, Refused> {
        let have = self.incoming.len() as u64;
        if have != load.total {
            return Err(Refused::Piece {
                asked: load.total,
                have,
            });
        }
        let stream = std::mem::take(&mut self.incoming);
        self.load(stream, Some(ticket))?;
        Ok(StateWritten { total: have })
    }

    /// A state could be loaded now.
    pub fn may_load(&self) -> Result<(), Refused> {
        let core = self.core()?;
        if core.depth() == 0 {
            return Err(Refused::NotQuiesced);
        }
        if core.is_loaded() {
            return Err(Refused::Phase(
                "a state has been loaded already (STATE_ABORT)",
            ));
        }
        Ok(())
    }

    /// All of a state takes effect, or nothing. `ticket` is that of the request, if a PAPR one asked.
    pub fn load(&mut self, stream: Vec<u8>, ticket: Option<Ticket>) -> Result<(), Refused> {
        self.may_load()?;
        let core = self.core()?;
        let total = stream.len() as u64;
        let state = Incoming::read(stream)?;
        core.accept(&state.lists().head)?;
        let words = core.words();
        let here: Vec<Run> = core.own_claims(&words).collect();
        caps::accept_claims(&state.lists().claims, &here)?;
        let state = state.on(*core.machine());
        let head = &state.lists().head;
        core.anew(ticket, &StateWritten { total }.to_bytes(), || {
            words.load(&state);
            core.stored(head);
            core.memory.set_header(word::LOADED, 1);
        });
        log::info!("loaded a state of {total} bytes by {}", head.producer);
        Ok(())
    }

    /// A source forgets what was taken; a destination what came, and is back to reset.
    pub(super) fn abort_state(&mut self, ticket: Option<Ticket>) -> Result<(), Refused> {
        self.forget_states();
        let core = self.core()?;
        if core.is_loaded() && core.depth() > 0 {
            core.anew(ticket, &[], || core.back_to_reset());
        }
        Ok(())
    }
}

impl<M: QueueMemory> Core<M> {
    /// Stores every word by `store`. A successor that finds it cut puts the machine back to reset.
    fn anew(&self, ticket: Option<Ticket>, reply: &[u8], store: impl FnOnce()) {
        // A standard request has no number; channel 0 with none is nobody's.
        let ticket = ticket.unwrap_or(Ticket { channel: 0, seq: 0 });
        self.loading(true);
        self.journal().begin(ticket, Operation::Load, reply);
        store();
        self.journal().finish(ticket);
        self.loading(false);
    }
}
