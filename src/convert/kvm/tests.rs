//! States to attributes and back: what KVM can hold comes back as it was, what it cannot is told.

use papr_intc_protocol::layout::words::tima;
use papr_intc_protocol::layout::{Compat, IcMode, Machine};
use papr_intc_protocol::state::model::*;
use proptest::prelude::*;

use super::attributes::{IcpState, XiveConfig};
use super::*;
use crate::convert::random::{self, Rng};

/// Through the JSON and back.
fn there_and_back(state: &State) -> Result<(State, Vec<String>), ConvertError> {
    let mut notes = Notes::default();
    let text = document::write(state, &mut notes)?.to_string();
    let notes = notes.0.iter().map(ToString::to_string).collect();
    Ok((document::read(text.as_bytes())?, notes))
}

/// The nearest state that KVM has queues for.
fn with_kvm_queues(mut state: State) -> State {
    let servers = state.head.servers.clone();
    let usable = |end: u32| end & 7 < 7 && servers.contains(&(end >> 3));
    state.xive.ends.retain(|e| usable(e.end));
    for end in &mut state.xive.ends {
        (end.size, end.always_notify, end.esn) = (16, true, 0);
        end.address &= !0xffff;
        end.index &= 0x3fff;
    }
    for source in &mut state.xive.sources {
        if !usable(source.end) {
            (source.end, source.masked) = (servers[0] << 3, true);
        }
    }
    let claims = state.claims.clone();
    let claimed = |lisn| kind_in(&claims, lisn).is_some();
    let sources = &mut state.xive.sources;
    sources.retain(|s| claimed(s.lisn) && *s != XiveSource::reset(s.lisn, true));
    state
}

fn on(active: Mode) -> State {
    let machine = Machine::pseries(IcMode::Dual, Compat::Qemu72, 2);
    let head = Head {
        active,
        cas_xive: active == Mode::Xive,
        servers: vec![0, 1],
        ..Head::new("a test", machine)
    };
    let mut state = State::reset(head);
    let run = |first, count, kind| Claims { first, count, kind };
    state.claims.push(run(0x1000, 2, Kind::Edge));
    state.claims.push(run(0x1200, 2, Kind::Lsi));
    state.claims.push(run(0x1300, 3, Kind::Msi));
    state.head.fixed = fixed(&state.claims);
    state
}

fn source(irq: u32, priority: u8, saved: u8) -> XicsSource {
    XicsSource {
        priority,
        saved,
        ..XicsSource::reset(irq)
    }
}

fn icp(cppr: u8, xisr: u32, pending_priority: u8, mfrr: u8) -> Icp {
    Icp {
        server: 0,
        cppr,
        xisr,
        pending_priority,
        mfrr,
    }
}

fn high(lisn: u32) -> Input {
    Input {
        lisn,
        level_vmm: true,
        ..Input::default()
    }
}

fn xics_of(state: &State) -> (attributes::Xics, Vec<String>) {
    let mut notes = Notes::default();
    match export(state, &mut notes).unwrap() {
        Attributes::Xics(xics) => (xics, notes.0.iter().map(ToString::to_string).collect()),
        Attributes::Xive(_) => panic!("XICS is active"),
    }
}

const LEVEL: u64 = 1 << 40;
const MASKED: u64 = 1 << 41;
const PENDING: u64 = 1 << 42;
const P: u64 = 1 << 43;
const Q: u64 = 1 << 44;

#[test]
fn xics_sources_bit_by_bit() {
    let rejected = XicsSource {
        rejected: true,
        ..source(0x1300, 5, 5)
    };
    let masked_pending = XicsSource {
        masked_pending: true,
        ..source(0x1300, 0xff, 5)
    };
    let sent = XicsSource {
        sent: true,
        ..source(0x1200, 6, 6)
    };
    // Source, its level, and what KVM is given.
    for (source, level, bits) in [
        (source(0x1300, 5, 5), false, 5 << 32),
        (source(0x1300, 0xff, 5), false, MASKED | 5 << 32),
        (rejected, false, PENDING | P | 5 << 32),
        (masked_pending, false, MASKED | PENDING | P | 5 << 32),
        (
            XicsSource {
                server: 1,
                ..source(0x1301, 7, 7)
            },
            false,
            1 | 7 << 32,
        ),
        (source(0x1200, 6, 6), false, LEVEL | 6 << 32),
        (source(0x1200, 6, 6), true, LEVEL | PENDING | P | 6 << 32),
        (
            source(0x1200, 0xff, 6),
            true,
            LEVEL | MASKED | PENDING | P | 6 << 32,
        ),
        (sent, true, LEVEL | PENDING | P | 6 << 32),
    ] {
        let mut state = on(Mode::Xics);
        state.xics.sources.push(source);
        state.inputs.extend(level.then(|| high(source.irq)));
        let (xics, notes) = xics_of(&state);
        assert_eq!(xics.sources[&source.irq], bits, "{source:?}");
        assert_eq!(xics.sources[&0x1001], MASKED | 0xff << 32);
        assert_eq!(notes, [""; 0]);
        // SENT is told again by what is presented.
        state.xics.sources[0].sent = false;
        assert_eq!(there_and_back(&state).unwrap().0, state);
    }
}

#[test]
fn what_kvm_has_queued_is_still_to_come() {
    for (bits, rejected, masked_pending) in [
        (5 << 32 | P, false, false),
        (5 << 32 | P | Q, true, false),
        (5 << 32 | PENDING, true, false),
        (5 << 32 | MASKED | P | Q, false, true),
        (5 << 32 | MASKED | PENDING, false, true),
        // Masked by its priority alone.
        (0xff << 32 | PENDING, false, true),
    ] {
        let (mut xics, _) = xics_of(&on(Mode::Xics));
        xics.sources.insert(0x1300, bits);
        let state = import(&Attributes::Xics(xics), on(Mode::Xics)).unwrap();
        let source = state.xics.sources.last().unwrap();
        assert_eq!(
            (source.rejected, source.masked_pending),
            (rejected, masked_pending),
            "{bits:#x}"
        );
    }
}

#[test]
fn presenters_that_kvm_does_not_take_are_normalised() {
    // S15, raised MFRR (to ff, and to something that still counts); S18, a tie; S29, after a bad EOI.
    for (from, to, rejected) in [
        (icp(0xff, 2, 4, 0xff), icp(0xff, 0, 0xff, 0xff), false),
        (icp(0xff, 2, 4, 6), icp(0xff, 2, 6, 6), false),
        (icp(0xff, 0x1300, 5, 5), icp(0xff, 2, 5, 5), true),
        (icp(5, 0x1300, 5, 0xff), icp(5, 0, 0xff, 0xff), true),
        (icp(4, 2, 4, 4), icp(4, 0, 0xff, 4), false),
        (
            icp(0xff, 0x1300, 5, 0xff),
            icp(0xff, 0x1300, 5, 0xff),
            false,
        ),
    ] {
        let mut state = on(Mode::Xics);
        state.xics.icps.push(from);
        state.xics.sources.push(source(0x1300, 5, 5));
        let (back, notes) = there_and_back(&state).unwrap();
        assert_eq!(back.xics.icps, [to]);
        assert_eq!(back.xics.sources[0].rejected, rejected, "{from:?}");
        assert_eq!(notes.len(), usize::from(from != to), "{notes:?}");
        assert_eq!(there_and_back(&back).unwrap(), (back, vec![]));
    }
}

#[test]
fn an_lsi_that_is_put_back_needs_its_level() {
    let mut state = on(Mode::Xics);
    state.xics.icps.push(icp(5, 0x1200, 5, 0xff));
    state.xics.sources.push(XicsSource {
        sent: true,
        ..source(0x1200, 5, 5)
    });
    let (_, notes) = xics_of(&state);
    assert!(notes[1].contains("dropped"), "{notes:?}");
    state.inputs.push(high(0x1200));
    let (xics, notes) = xics_of(&state);
    assert_eq!(xics.sources[&0x1200] & (PENDING | P), PENDING | P);
    assert_eq!(notes.len(), 1);
}

#[test]
fn sources_of_vcpus_that_are_gone() {
    let mut state = on(Mode::Xics);
    state.head.servers = vec![1];
    state.xics.sources.push(source(0x1300, 5, 5));
    let (xics, notes) = xics_of(&state);
    assert_eq!(xics.sources[&0x1300] as u32, 1);
    assert_eq!(
        notes,
        ["xics source 0x1300: there is no vCPU 0: it goes to vCPU 1"]
    );
}

#[test]
fn xive_bit_by_bit() {
    let mut state = on(Mode::Xive);
    let routed = |lisn, pq, masked, end| XiveSource {
        lisn,
        pq,
        masked,
        end,
        eisn: 0x100 + lisn,
    };
    state.xive.sources = vec![
        routed(0, 2, false, 14),
        routed(0x1200, 2, false, 14),
        routed(0x1300, 3, true, 6),
    ];
    state.inputs.push(high(0x1200));
    state.xive.ends.push(End {
        end: 14,
        address: 0x5_0000,
        size: 16,
        always_notify: true,
        generation: true,
        index: 5,
        esn: 0,
    });
    state.xive.rings.push(Ring {
        server: 1,
        bytes: 0x80ff_02ff_ff00_0006,
    });
    let mut notes = Notes::default();
    let Attributes::Xive(xive) = export(&state, &mut notes).unwrap() else {
        panic!("XIVE is active");
    };
    let of = |lisn: u32| {
        (
            xive.sources[&lisn].source,
            xive.sources[&lisn].config,
            xive.sources[&lisn].pq,
        )
    };
    assert_eq!(of(0), (0, 14 | 0x100 << 33, 2));
    assert_eq!(of(1), (0, 1 << 32, 1));
    assert_eq!(of(0x1200), (3, 14 | 0x1300 << 33, 2));
    assert_eq!(of(0x1300), (0, 6 | 1 << 32 | 0x1400 << 33, 3));
    let queue = xive.queues[&14];
    assert_eq!((queue.flags, queue.qshift, queue.qaddr), (1, 16, 0x5_0000));
    assert_eq!((queue.qtoggle, queue.qindex), (1, 5));
    assert_eq!(xive.vps[&1][..8], [0x80, 0xff, 2, 0xff, 0xff, 0, 0, 6]);
    assert_eq!((notes, xive.vps.len()), (Notes::default(), 2));
    assert_eq!(there_and_back(&state).unwrap(), (state, vec![]));
}

#[test]
fn a_ring_as_the_kernel_resets_it_is_one_after_reset() {
    let state = on(Mode::Xive);
    let Attributes::Xive(mut xive) = export(&state, &mut Notes::default()).unwrap() else {
        panic!("XIVE is active");
    };
    xive.vps
        .insert(0, [0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        import(&Attributes::Xive(xive.clone()), state.clone()).unwrap(),
        state
    );
    // An event that the hardware has not shown yet.
    xive.vps
        .insert(0, [0, 7, 0x40, 0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let ring = import(&Attributes::Xive(xive), state).unwrap().xive.rings[0].bytes;
    assert_eq!((tima::pipr(ring), tima::nsr(ring)), (1, 0x80));
}

#[test]
fn what_kvm_has_no_place_for_is_refused_or_told() {
    let mut state = on(Mode::Xive);
    let queue = |end, size, always_notify| End {
        end,
        address: 0,
        size,
        always_notify,
        generation: false,
        index: 0,
        esn: 0,
    };
    for (end, error) in [
        (
            queue(6, 12, true),
            "end 0x6: KVM has no queue of 2^12 bytes for priority 6",
        ),
        (
            queue(7, 16, true),
            "end 0x7: KVM has no queue of 2^16 bytes for priority 7",
        ),
    ] {
        state.xive.ends = vec![end];
        assert_eq!(
            export(&state, &mut Notes::default())
                .unwrap_err()
                .to_string(),
            error
        );
    }
    state.xive.ends = vec![queue(6, 16, false)];
    state.xics.sources.push(source(0x1300, 5, 5));
    let (_, notes) = there_and_back(&state).unwrap();
    assert!(notes[0].starts_with("xics: the controller is not active"));
    assert_eq!(notes[1..], ["end 0x6: from now on every event notifies"]);
}

#[test]
fn attributes_that_make_no_sense_are_refused_by_name_and_value() {
    type Change = fn(&mut attributes::Xics);
    let cases: &[(&str, Change)] = &[
        ("ICP_STATE of server 0: 0xff00000200050000", |x| {
            let icp = IcpState {
                cppr: 0xff,
                xisr: 2,
                mfrr: 0,
                pending_priority: 5,
            };
            x.icps.insert(0, icp.to_bits());
        }),
        ("ICP_STATE of server 0: 0x0000000000000001", |x| {
            x.icps.insert(0, 1);
        }),
        ("icp of server 2: there is no such vCPU", |x| {
            x.icps.insert(2, 5 << 56 | 0xffff << 16);
        }),
        ("SOURCES 0x1300: 0x0000200000000000: a bit", |x| {
            x.sources.insert(0x1300, 1 << 45);
        }),
        ("SOURCES 0x1300: 0x000001ff00000000: level-sensitive", |x| {
            x.sources.insert(0x1300, LEVEL | 0xff << 32);
        }),
        ("SOURCES 0x1300: 0x0000000500000009: its server", |x| {
            x.sources.insert(0x1300, 9 | 5 << 32);
        }),
        ("xics source 0x1301: it is claimed, and has no", |x| {
            x.sources.remove(&0x1301);
        }),
        ("xics source 0x1305: it has attributes, and is not", |x| {
            x.sources.insert(0x1305, 0);
        }),
    ];
    for (error, change) in cases {
        let (mut xics, _) = xics_of(&on(Mode::Xics));
        change(&mut xics);
        let said = import(&Attributes::Xics(xics), on(Mode::Xics))
            .unwrap_err()
            .to_string();
        assert!(said.starts_with(error), "{error:?}: {said}");
    }
    let (xics, _) = xics_of(&on(Mode::Xics));
    assert!(import(&Attributes::Xics(xics), on(Mode::Xive)).is_err());
}

#[test]
fn xive_attributes_that_make_no_sense_are_refused() {
    type Change = fn(&mut attributes::Xive);
    let cases: &[(&str, Change)] = &[
        ("EQ_CONFIG 0x6: qshift 12", |x| {
            x.queues.get_mut(&6).unwrap().qshift = 12
        }),
        ("EQ_CONFIG 0x6: flags 0x0", |x| {
            x.queues.get_mut(&6).unwrap().flags = 0
        }),
        ("EQ_CONFIG 0x6: qtoggle 2", |x| {
            x.queues.get_mut(&6).unwrap().qtoggle = 2
        }),
        ("end 0x6: queue at 0x1000, not aligned", |x| {
            x.queues.get_mut(&6).unwrap().qaddr = 0x1000
        }),
        ("end 0x6: index 0x4000", |x| {
            x.queues.get_mut(&6).unwrap().qindex = 0x4000
        }),
        ("SOURCE 0x1300: 0x4: a bit", |x| {
            x.sources.get_mut(&0x1300).unwrap().source = 4
        }),
        ("SOURCE 0x1300: 0x2: asserted", |x| {
            x.sources.get_mut(&0x1300).unwrap().source = 2
        }),
        ("SOURCE 0x1200: 0x0: level-sensitive", |x| {
            x.sources.get_mut(&0x1200).unwrap().source = 0
        }),
        ("xive source 0x1300: PQ 0x4", |x| {
            x.sources.get_mut(&0x1300).unwrap().pq = 4
        }),
        ("xive source 0x1300: END 0x10", |x| {
            let config = XiveConfig {
                end: 16,
                masked: false,
                eisn: 0,
            };
            x.sources.get_mut(&0x1300).unwrap().config = config.to_bits();
        }),
    ];
    let mut state = on(Mode::Xive);
    state.xive.ends.push(End {
        end: 6,
        address: 0,
        size: 16,
        always_notify: true,
        generation: true,
        index: 0,
        esn: 0,
    });
    for (error, change) in cases {
        let Attributes::Xive(mut xive) = export(&state, &mut Notes::default()).unwrap() else {
            panic!("XIVE is active");
        };
        change(&mut xive);
        let said = import(&Attributes::Xive(xive), on(Mode::Xive))
            .unwrap_err()
            .to_string();
        assert!(said.starts_with(error), "{error:?}: {said}");
    }
}

#[test]
fn documents_that_are_none_are_refused_by_path() {
    let mut notes = Notes::default();
    let good = document::write(&on(Mode::Xics), &mut notes).unwrap();
    let refusal = |pointer: &str, to: serde_json::Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = to;
        document::read(bad.to_string().as_bytes())
            .unwrap_err()
            .to_string()
    };
    for (pointer, to, error) in [
        ("/version", 2.into(), "format: it is not"),
        (
            "/head/machine/ic_mode",
            "dial".into(),
            "head.machine.ic_mode: \"dial\" is not xics or xive or dual",
        ),
        (
            "/head/machine/hv_prio",
            256.into(),
            "head.machine.hv_prio: 256 is not a number in range",
        ),
        (
            "/head/machine/sources",
            0.into(),
            "machine: its numbers make no machine",
        ),
        ("/head/servers", 1.into(), "head.servers: 1 is not a list"),
        ("/claims/0/count", 0.into(), "claim 0x0+0x0: of no numbers"),
        (
            "/xics/icp_state/0x0",
            "0xg".into(),
            "xics.icp_state.0x0: \"0xg\" is not a number in range",
        ),
        (
            "/xics/sources",
            serde_json::json!({ "x": 0 }),
            "xics.sources.x: the key is no number",
        ),
        (
            "/xics",
            serde_json::Value::Null,
            "xics.icp_state: null is not there",
        ),
    ] {
        let said = refusal(pointer, to);
        assert!(said.starts_with(error), "{error:?}: {said}");
    }
    assert!(document::read(b"{").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_kvm_can_hold_comes_back(seed in any::<u64>()) {
        let state = with_kvm_queues(random::state(&mut Rng::new(seed), "a test"));
        prop_assert_eq!(state.validate(), Ok(()));
        // Once through KVM, it is as KVM can hold it.
        let (held, _) = there_and_back(&state).unwrap();
        let (again, notes) = there_and_back(&held).unwrap();
        prop_assert_eq!(&again, &held);
        prop_assert_eq!(notes, Vec::<String>::new());
        prop_assert_eq!(&held.claims, &state.claims);
        if state.head.active == Mode::Xive {
            prop_assert_eq!(&held.xive.sources, &state.xive.sources);
            prop_assert_eq!(&held.xive.ends, &state.xive.ends);
        }
        prop_assert_eq!(&held.inputs, &state.inputs);
    }

    #[test]
    fn no_msi_is_lost(seed in any::<u64>()) {
        let state = with_kvm_queues(random::state(&mut Rng::new(seed), "a test"));
        prop_assume!(state.head.active == Mode::Xics);
        let (held, _) = there_and_back(&state).unwrap();
        // Presented, or still to come, before and after.
        let due = |s: &State, irq: u32| {
            let source = s.xics.sources.iter().find(|x| x.irq == irq);
            let waits = source.is_some_and(|x| x.rejected || x.masked_pending);
            waits || s.xics.icps.iter().any(|i| i.xisr == irq)
        };
        for run in state.claims.iter().filter(|run| run.kind != Kind::Lsi && run.first >= 0x1000) {
            for irq in run.first..run.first + run.count {
                prop_assert_eq!(due(&state, irq), due(&held, irq), "{:#x}", irq);
            }
        }
    }

    #[test]
    fn any_state_is_carried_or_refused(seed in any::<u64>()) {
        let state = random::state(&mut Rng::new(seed), "a test");
        if let Ok((held, _)) = there_and_back(&state) {
            prop_assert_eq!(held.validate(), Ok(()));
        }
    }
}
