//! Inputs that only we carry, settled: QEMU and KVM know one level for each LSI, and no latch.

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::{Input, Kind, XicsSource};

use super::{ConvertError, Notes, refused};

/// The state as it is once what waits outside has come in: inputs are levels of the VMM's devices, nothing else.
///
/// # Errors
/// A latched event that has to be written to a queue in guest memory.
pub fn settle(state: &State, notes: &mut Notes) -> Result<State, ConvertError> {
    let mut settled = state.clone();
    settled.inputs.clear();
    for input in &state.inputs {
        let item = || format!("input {:#x}", input.lisn);
        let level = input.level_irqfd || input.level_vmm;
        let lsi = state.kind(input.lisn) == Some(Kind::Lsi);
        // Of an LSI a rise is latched; one that has fallen since is nothing.
        if input.latched && (!lsi || level) {
            match (state.head.active, lsi) {
                (Mode::Xics, false) => trigger_xics(&mut settled, input.lisn),
                // XICS looks at levels after a load.
                (Mode::Xics, true) => {}
                (Mode::Xive, false) => event_xive(&mut settled, input.lisn, [2, 1, 3, 3])?,
                (Mode::Xive, true) => event_xive(&mut settled, input.lisn, [2, 1, 2, 3])?,
            }
            notes.add(item(), "what came while quiesced has taken effect");
        }
        if input.resample_due {
            notes.add(item(), "resamplefds that are due are not carried");
        }
        if input.level_irqfd && !input.level_vmm {
            notes.add(item(), "the level of an irqfd is now the VMM's");
        }
        if level {
            settled.inputs.push(Input {
                lisn: input.lisn,
                level_vmm: true,
                ..Input::default()
            });
        }
    }
    Ok(settled)
}

/// An MSI trigger that finds nobody to take it: the resend after the load presents it.
fn trigger_xics(state: &mut State, irq: u32) {
    let sources = &mut state.xics.sources;
    let at = match sources.binary_search_by_key(&irq, |s| s.irq) {
        Ok(at) => at,
        Err(at) => {
            sources.insert(at, XicsSource::reset(irq));
            at
        }
    };
    match sources[at].priority {
        0xff => sources[at].masked_pending = true,
        _ => sources[at].rejected = true,
    }
}

/// A trigger of the ESB, or the rise of a level: what becomes of each PQ. Out of 00 an event is forwarded, which must
/// be one that the router drops.
fn event_xive(state: &mut State, lisn: u32, after: [u8; 4]) -> Result<(), ConvertError> {
    let sources = &mut state.xive.sources;
    // As after reset it is off: nothing happens.
    let Ok(at) = sources.binary_search_by_key(&lisn, |s| s.lisn) else {
        return Ok(());
    };
    let source = &mut sources[at];
    let ends = &state.xive.ends;
    let routed = ends.binary_search_by_key(&source.end, |e| e.end).is_ok();
    if source.pq == 0 && !source.masked && routed {
        let what = format!(
            "an event that came while quiesced belongs into the queue of END {:#x}: resume first",
            source.end
        );
        return Err(refused(format!("input {lisn:#x}"), what));
    }
    source.pq = after[usize::from(source.pq & 3)];
    Ok(())
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::{Compat, IcMode, Machine};
    use papr_intc_protocol::state::model::{Claims, End, Head, XiveSource};

    use super::*;

    const MSI: u32 = 0x1300;
    const LSI: u32 = 0x1200;

    fn machine(active: Mode, input: Input) -> State {
        let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 1);
        let head = Head {
            active,
            servers: vec![0],
            ..Head::new("a test", machine)
        };
        let mut state = State::reset(head);
        for (first, kind) in [(LSI, Kind::Lsi), (MSI, Kind::Msi)] {
            let count = 1;
            state.claims.push(Claims { first, count, kind });
        }
        state.inputs.push(input);
        state
    }

    fn latched(lisn: u32) -> Input {
        Input {
            lisn,
            latched: true,
            ..Input::default()
        }
    }

    fn settled(state: &State) -> (State, usize) {
        let mut notes = Notes::default();
        let settled = settle(state, &mut notes).unwrap();
        (settled, notes.0.len())
    }

    #[test]
    fn levels_become_the_vmms() {
        for (level_vmm, level_irqfd, resample_due, levels, notes) in [
            (true, false, false, 1, 0),
            (true, true, false, 1, 0),
            (false, true, false, 1, 1),
            (false, false, true, 0, 1),
            (false, true, true, 1, 2),
        ] {
            let input = Input {
                lisn: LSI,
                level_vmm,
                level_irqfd,
                latched: false,
                resample_due,
            };
            let (state, said) = settled(&machine(Mode::Xics, input));
            assert_eq!((state.inputs.len(), said), (levels, notes), "{input:?}");
            assert!(state.inputs.iter().all(|i| i.level_vmm && !i.level_irqfd));
        }
    }

    #[test]
    fn a_latched_msi_waits_in_its_xics_source() {
        let mut state = machine(Mode::Xics, latched(MSI));
        let (masked, notes) = settled(&state);
        assert!(masked.xics.sources[0].masked_pending && notes == 1);
        let (priority, saved) = (5, 5);
        state.xics.sources.push(XicsSource {
            priority,
            saved,
            ..XicsSource::reset(MSI)
        });
        let (open, _) = settled(&state);
        assert!(open.xics.sources[0].rejected && !open.xics.sources[0].masked_pending);
    }

    /// A machine in XIVE with a source of this PQ, routed to a queue.
    fn routed(input: Input, pq: u8, masked: bool) -> State {
        let mut state = machine(Mode::Xive, input);
        state.xive.sources.push(XiveSource {
            lisn: input.lisn,
            pq,
            masked,
            end: 6,
            eisn: 1,
        });
        state.xive.ends.push(End {
            end: 6,
            address: 0,
            size: 16,
            always_notify: true,
            generation: true,
            index: 0,
            esn: 0,
        });
        state
    }

    #[test]
    fn a_latched_event_of_xive_moves_pq_as_it_would_have() {
        let rise = Input {
            level_vmm: true,
            ..latched(LSI)
        };
        for (input, pq, masked, after) in [
            (latched(MSI), 0, true, Some(2)),
            (latched(MSI), 0, false, None),
            (latched(MSI), 1, false, Some(1)),
            (latched(MSI), 2, false, Some(3)),
            (latched(MSI), 3, false, Some(3)),
            (rise, 0, true, Some(2)),
            (rise, 0, false, None),
            (rise, 1, false, Some(1)),
            (rise, 2, false, Some(2)),
            (rise, 3, false, Some(3)),
            // It has fallen since.
            (latched(LSI), 0, false, Some(0)),
        ] {
            let state = routed(input, pq, masked);
            let moved = settle(&state, &mut Notes::default()).ok();
            let moved = moved.map(|s| s.xive.sources[0].pq);
            assert_eq!(moved, after, "{input:?} {pq} {masked}");
        }
        // As after reset the source is off.
        let off = machine(Mode::Xive, latched(MSI));
        assert_eq!(settled(&off).0.xive, off.xive);
    }
}
