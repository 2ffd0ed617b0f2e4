//! Whole machines made in code, to the model and back: files, sections, values that do not belong there.

use std::io::Cursor;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::words::eas;
use papr_intc_protocol::layout::{Compat, IcMode};
use papr_intc_protocol::state::model::*;
use proptest::prelude::*;

use super::controllers::{MSI_BASE, Xive};
use super::sections::*;
use super::stream::tests::{file, section};
use super::stream::{Section, Subsection};
use super::*;
use crate::convert::random::{self, Rng, VSMT};

const OPTIONS: Options = Options {
    servers: None,
    vsmt: Some(VSMT),
    byte_order: None,
};

/// A machine after reset, with the controllers, vCPUs and claims of a state.
fn machine_of(state: &State) -> Controllers {
    let machine = &state.head.machine;
    let kind = |lisn| state.kind(lisn);
    let ics_entry = |irq| IcsEntry {
        server: 0,
        priority: 0xff,
        saved: 0xff,
        status: 0,
        flags: match kind(irq) {
            None => 0,
            Some(Kind::Lsi) => 1,
            Some(_) => 2,
        },
    };
    let xics = machine.ic_mode.has_xics();
    let xive = machine.ic_mode.has_xive();
    let icp = IcpEntry {
        xirr: 0,
        pending_priority: 0xff,
        mfrr: 0xff,
    };
    let ring = |server| Ring {
        server,
        bytes: Ring::RESET,
    };
    let valid = |lisn| kind(lisn).map_or(0, |_| eas::VALID | eas::MASKED);
    let tables = XiveTables {
        eas: (0..machine.sources).map(valid).collect(),
        ends: vec![end::RESET; machine.servers as usize * 8],
    };
    let servers = state.head.servers.iter();
    let msis = state.claims.iter().filter(|run| run.kind == Kind::Msi);
    let mut irq_map = IrqMap::EMPTY;
    for run in msis.clone() {
        (run.first..run.first + run.count).for_each(|lisn| irq_map.set(lisn - MSI_BASE, true));
    }
    Controllers {
        ics: xics.then(|| {
            (machine.xics_base..machine.sources)
                .map(ics_entry)
                .collect()
        }),
        icps: servers
            .clone()
            .filter(|_| xics)
            .map(|s| (s / VSMT, icp))
            .collect(),
        xive: xive.then(|| Xive {
            status: vec![1; machine.sources as usize],
            tables,
            order: ByteOrder::Little,
        }),
        // Plugged from the last to the first.
        tctxs: (0..)
            .zip(
                servers
                    .rev()
                    .filter(|_| xive)
                    .map(|s| ring::write(&ring(*s))),
            )
            .collect(),
        ov5: Ov5::EMPTY,
        irq_map,
        msi_blocks: msis.map(|run| (run.first, run.count)).collect(),
    }
}

/// A migration file of that machine.
fn file_of(controllers: &Controllers) -> Vec<u8> {
    let mut all: Vec<Section> = vec![section("timer", 0, &[7; 24])];
    if let Some(ics) = &controllers.ics {
        all.push(section("ics", 0, &ics_payload(ics)));
    }
    if let Some(xive) = &controllers.xive {
        all.push(section(
            "xive-source",
            0,
            &xive_source_payload(&xive.status),
        ));
        all.push(section(
            "spapr-xive",
            0,
            &xive.tables.to_payload(xive.order),
        ));
    }
    for (instance, icp) in &controllers.icps {
        all.push(section("icp/server", *instance, &icp.to_payload()));
    }
    for (instance, regs) in &controllers.tctxs {
        all.push(section("xive-tctx", *instance, regs));
    }
    let mut phb = vec![0; 24];
    phb.extend((controllers.msi_blocks.len() as u32).to_be_bytes());
    for (first, count) in &controllers.msi_blocks {
        phb.extend([0, *first, *count].into_iter().flat_map(u32::to_be_bytes));
    }
    all.push(section("spapr_pci", 0, &phb));
    let mut spapr = section("spapr", 0, &[0; 16]);
    let part = |name: &str, payload| Subsection {
        name: name.to_owned(),
        version: 1,
        payload,
    };
    // Radix was negotiated: it stays whatever becomes of XIVE.
    let mut ov5 = controllers.ov5.clone();
    ov5.set_byte(24, 0x40);
    spapr
        .subsections
        .push(part("spapr_option_vector_ov5_cas", ov5.to_payload()));
    if !controllers.irq_map.is_empty() {
        spapr
            .subsections
            .push(part("spapr_irq_map", controllers.irq_map.to_payload()));
    }
    all.push(spapr);
    file(b"RAM", &all)
}

fn open(bytes: &[u8]) -> Stream {
    Stream::read(&mut Cursor::new(bytes)).unwrap()
}

fn import(controllers: &Controllers) -> Result<State, String> {
    let mut notes = Notes::default();
    let state = import::import(controllers, &OPTIONS, &mut notes);
    assert_eq!(notes, Notes::default());
    state.map_err(|e| e.to_string())
}

fn dual() -> State {
    let mut rng = Rng::new(0);
    loop {
        let state = random::state(&mut rng, PRODUCER);
        let active = (state.head.machine.ic_mode, state.head.active);
        let msis = state.claims.iter().any(|run| run.kind == Kind::Msi);
        if active == (IcMode::Dual, Mode::Xics) && msis {
            return state;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_we_put_into_a_stream_we_read_from_it(seed in any::<u64>(), big in any::<bool>()) {
        let state = random::state(&mut Rng::new(seed), PRODUCER);
        state.validate().unwrap();
        let original = file_of(&machine_of(&state));
        let mut stream = open(&original);
        let mut notes = Notes::default();
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let options = Options { byte_order: big.then_some(order), ..OPTIONS };
        write(&state, &mut stream, &options, &mut notes).unwrap();
        let mut bytes = Vec::new();
        stream.write(&mut Cursor::new(&original), &mut bytes).unwrap();

        let again = open(&bytes);
        prop_assert_eq!(read(&again, &OPTIONS, &mut notes).unwrap(), state);
        prop_assert_eq!(notes, Notes::default());
        let controllers = Controllers::read(&again, None).unwrap();
        prop_assert!(controllers.xive.is_none_or(|x| x.order == order));
        prop_assert_eq!(controllers.ov5.byte(24), 0x40);
    }

    #[test]
    fn damaged_sections_never_panic(seed in any::<u64>(), damage in prop::collection::vec(
        (0usize..6, any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let state = random::state(&mut Rng::new(seed), PRODUCER);
        let mut stream = open(&file_of(&machine_of(&state)));
        for (which, at, to) in damage {
            let name = ["ics", "xive-source", "spapr-xive", "icp/server", "xive-tctx", "spapr_pci"][which];
            let found = stream.instances(name).next();
            let Some((instance, mut payload)) = found.map(|s| (s.instance, s.payload.clone())) else {
                continue;
            };
            let at = at.index(payload.len());
            payload[at] = to;
            stream.replace(name, instance, payload).unwrap();
        }
        let mut notes = Notes::default();
        if let Ok(read) = read(&stream, &OPTIONS, &mut notes) {
            prop_assert_eq!(read.validate(), Ok(()));
            let _ = write(&read, &mut stream, &OPTIONS, &mut notes);
        }
    }
}

#[test]
fn a_machine_after_reset_has_nothing_to_say() {
    let mut state = dual();
    (state.inputs, state.xics, state.xive) = Default::default();
    assert_eq!(import(&machine_of(&state)), Ok(state));
}

/// A change to a dual machine.
type Change = fn(&mut Controllers);

fn ics(c: &mut Controllers, irq: u32) -> &mut IcsEntry {
    &mut c.ics.as_mut().unwrap()[irq as usize - 0x1000]
}

fn xive(c: &mut Controllers) -> &mut Xive {
    c.xive.as_mut().unwrap()
}

#[test]
fn what_an_importer_must_refuse_is_refused_by_name_and_value() {
    let cases: &[(&str, Change)] = &[
        ("section ics: nr_irqs is 0x400,", |c| {
            c.ics.as_mut().unwrap().truncate(0x400)
        }),
        ("section xive-source: nr_irqs is 0x1000,", |c| {
            xive(c).status.truncate(0x1000)
        }),
        ("ics 0x1100: flags 0x3", |c| ics(c, 0x1100).flags = 3),
        ("ics 0x1100: status 0x40", |c| ics(c, 0x1100).status = 0x40),
        ("ics 0x1200: status 0x4 on an LSI", |c| {
            ics(c, 0x1200).status = 4
        }),
        ("ics 0x1200: status 0x8 on an LSI", |c| {
            ics(c, 0x1200).status = 8
        }),
        ("ics 0x1100: status 0x1 on no LSI", |c| {
            ics(c, 0x1100).status = 1
        }),
        ("ics 0x1002: status 0x2 on no LSI", |c| {
            ics(c, 0x1002).status = 2
        }),
        ("ics 0x1100: goes to server 1,", |c| {
            (
                ics(c, 0x1100).server,
                ics(c, 0x1100).priority,
                ics(c, 0x1100).saved,
            ) = (1, 5, 5);
        }),
        ("xics source 0x1100: priority 0x5 is neither", |c| {
            (ics(c, 0x1100).priority, ics(c, 0x1100).saved) = (5, 6);
        }),
        ("icp of server 0: XISR 0xfff is no source", |c| {
            c.icps.insert(
                0,
                IcpEntry {
                    xirr: 0xfff,
                    pending_priority: 5,
                    mfrr: 0xff,
                },
            );
        }),
        ("icp of server 0: pending priority 0x5 with XISR 0x0", |c| {
            c.icps.insert(
                0,
                IcpEntry {
                    xirr: 0,
                    pending_priority: 5,
                    mfrr: 0xff,
                },
            );
        }),
        (
            "icp of server 0: pending priority 0xff with XISR 0x2",
            |c| {
                c.icps.insert(
                    0,
                    IcpEntry {
                        xirr: 2,
                        pending_priority: 0xff,
                        mfrr: 0xff,
                    },
                );
            },
        ),
        ("claim 0x1002: XICS has flags 0, XIVE valid true", |c| {
            xive(c).tables.eas[0x1002] = eas::VALID;
        }),
        ("claim 0x1100: XICS has flags 2, XIVE valid false", |c| {
            xive(c).tables.eas[0x1100] = 0;
        }),
        ("claim 0x0+0x1: is not the", |c| xive(c).tables.eas[1] = 0),
        (
            "MSI 0x1fff: allocated in the irq map: true, used by a host bridge: false",
            |c| {
                c.irq_map.set(0xcff, true);
            },
        ),
        (
            "MSI 0x1ffe: allocated in the irq map: false, used by a host bridge: true",
            |c| {
                c.msi_blocks.push((0x1ffe, 2));
            },
        ),
        ("spapr_pci 0x1fff: an MSI block of 2", |c| {
            c.msi_blocks.push((0x1fff, 2))
        }),
        ("spapr_pci 0x1200: an MSI block", |c| {
            c.msi_blocks.push((0x1200, 1))
        }),
        (
            "MSI 0x1fff: allocated in the irq map: false, used by a host bridge: false, claimed: true",
            |c| {
                ics(c, 0x1fff).flags = 2;
                xive(c).tables.eas[0x1fff] = eas::VALID;
            },
        ),
        ("xive source 0x1100: status 0x8", |c| {
            xive(c).status[0x1100] = 8
        }),
        ("xive source 0x1100: status 0x4 on no LSI", |c| {
            xive(c).status[0x1100] = 4
        }),
        ("xive source 0x0: EAS 0x8100000080000000", |c| {
            xive(c).tables.eas[0] |= 1 << 56
        }),
        ("xive source 0x0: END 0xffffff", |c| {
            xive(c).tables.eas[0] |= 0xff_ffff << 32
        }),
        ("END 0x0: word 6 is 0x00000000", |c| {
            xive(c).tables.ends[0][0] = 0xe004_0000
        }),
        ("end 0x0: a queue of 2^27 bytes", |c| {
            xive(c).tables.ends[0] = [0xe00f_0000, 0, 0, 0, 0, 0, 0x400, 0];
        }),
        ("end 0x0: queue at 0x1000, not aligned", |c| {
            xive(c).tables.ends[0] = [0xe004_0000, 0, 0, 0x1000, 0, 0, 0x400, 0];
        }),
        ("ring of server", |c| c.tctxs.get_mut(&0).unwrap()[0x10] = 1),
    ];
    let mut state = dual();
    state.head.servers = vec![0];
    for (error, change) in cases {
        let mut controllers = machine_of(&state);
        import(&controllers).unwrap();
        change(&mut controllers);
        let said = import(&controllers).unwrap_err();
        assert!(said.starts_with(error), "{error:?}: {said}");
    }
}

#[test]
fn kvm_sources_keep_what_was_queued() {
    let state = dual();
    let mut controllers = machine_of(&state);
    ics(&mut controllers, 0x1000).status = ics_status::PRESENTED | ics_status::QUEUED;
    *ics(&mut controllers, 0x1100) = IcsEntry {
        priority: 5,
        saved: 5,
        server: state.head.servers[0],
        ..*ics(&mut controllers, 0x1000)
    };
    let sources = import(&controllers).unwrap().xics.sources;
    let queued: Vec<_> = sources
        .iter()
        .map(|s| (s.irq, s.rejected, s.masked_pending))
        .collect();
    assert_eq!(queued, [(0x1000, false, true), (0x1100, true, false)]);
}

#[test]
fn the_inactive_controllers_level_is_not_the_machines() {
    let state = dual();
    let mut controllers = machine_of(&state);
    xive(&mut controllers).status[0x1200] |= xive_status::ASSERTED;
    ics(&mut controllers, 0x1201).status = ics_status::ASSERTED;
    let levels = |c: &Controllers| {
        import(c)
            .unwrap()
            .inputs
            .iter()
            .map(|i| i.lisn)
            .collect::<Vec<_>>()
    };
    assert_eq!(levels(&controllers), [0x1201]);
    controllers.ov5.set_byte(23, 0x40);
    assert_eq!(levels(&controllers), [0x1200]);
}

#[test]
fn a_state_goes_only_into_a_stream_of_its_machine() {
    let state = dual();
    let into = machine_of(&state);
    let refusal = |change: &dyn Fn(&mut State)| {
        let mut state = state.clone();
        change(&mut state);
        state.head.fixed = fixed(&state.claims);
        let done = export::export(&state, &into, &OPTIONS, &mut Notes::default());
        done.unwrap_err().to_string()
    };
    let last = *state.head.servers.last().unwrap();
    type Change<'a> = &'a dyn Fn(&mut State);
    let cases: &[(&str, Change)] = &[
        ("machine: hv_prio is 6 here and 7 there", &|s| {
            s.head.machine.hv_prio = 6
        }),
        ("vCPUs: the state has servers", &|s| {
            s.head.servers.pop();
            s.xics.icps.retain(|i| i.server != last);
            s.xive.rings.retain(|r| r.server != last);
        }),
        (
            "claim 0x1fff: Edge in the state, free in the QEMU stream",
            &|s| {
                s.xics.sources.retain(|x| x.irq != 0x1fff);
                s.xive.sources.retain(|x| x.lisn != 0x1fff);
                s.claims.push(Claims {
                    first: 0x1fff,
                    count: 1,
                    kind: Kind::Edge,
                });
            },
        ),
        ("servers: ", &|s| {
            s.head.machine.servers += VSMT;
            s.claims[0].count += VSMT;
        }),
    ];
    for (error, change) in cases {
        let said = refusal(change);
        assert!(said.starts_with(error), "{error:?}: {said}");
    }
    let mut xics = machine_of(&state);
    (xics.xive, xics.tctxs) = Default::default();
    let error = export::export(&state, &xics, &OPTIONS, &mut Notes::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "machine: ic_mode is Dual here and Xics there, in the QEMU stream"
    );
}

#[test]
fn our_own_level_is_told() {
    let mut state = dual();
    state.head.machine.compat = Compat::Papr1;
    let mut notes = Notes::default();
    export::export(&state, &machine_of(&state), &OPTIONS, &mut notes).unwrap();
    assert_eq!(
        notes.0[0].to_string(),
        "compat level: papr-1 becomes what QEMU does"
    );
}
