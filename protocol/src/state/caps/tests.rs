//! The rule of capabilities, on this build's table and on invented ones with holes.

use super::*;
use crate::layout::Compat;

/// Three levels of an invented history. "b" back-ported the third capability without the second: a hole.
const HISTORY: &[Capability] = &[
    Capability {
        name: "first",
        levels: &[
            ("a", Knows::Carried),
            ("b", Knows::Carried),
            ("c", Knows::Carried),
        ],
    },
    Capability {
        name: "second",
        levels: &[
            ("a", Knows::Frozen(0)),
            ("b", Knows::Frozen(0)),
            ("c", Knows::Carried),
        ],
    },
    Capability {
        name: "third",
        levels: &[
            ("a", Knows::Frozen(2)),
            ("b", Knows::Carried),
            ("c", Knows::Carried),
        ],
    },
];

/// A build as it was when "a" was the newest: it has one row, and knows one level.
const OLD: &[Capability] = &[Capability {
    name: "first",
    levels: &[("a", Knows::Carried)],
}];

fn moved(
    from: &[Capability],
    level: &str,
    own: &[u32],
    to: &[Capability],
    here: &[u32],
) -> Result<(), Mismatch> {
    let carried = Table(from).carry(level, own)?;
    let there = Table(to).read(level, &carried)?;
    Table(to).check(&there, here)
}

#[test]
fn what_an_older_source_does_not_know_is_its_levels_frozen_default_and_not_the_readers() {
    // The failure of xics.md §7.3: an old machine with one of two controllers, whose stream has no
    // capability for either. Taken for today's default (both), it would be refused by its twin.
    for here in [[1, 0, 2], [1, 1, 2], [1, 0, 9]] {
        assert_eq!(moved(OLD, "a", &[1], HISTORY, &here), Ok(()), "{here:?}");
    }
    // Frozen at 2, it needs 2.
    assert_eq!(
        moved(OLD, "a", &[1], HISTORY, &[1, 0, 1]),
        Err(Mismatch::Higher {
            name: "third".into(),
            there: 2,
            here: 1
        })
    );
}

#[test]
fn a_hole_in_what_a_level_carries_is_no_shift_of_the_values_after_it() {
    let carried = Table(HISTORY).carry("b", &[1, 0, 7]).unwrap();
    assert_eq!(carried, [("first".to_owned(), 1), ("third".to_owned(), 7)]);
    assert_eq!(Table(HISTORY).read("b", &carried), Ok(vec![1, 0, 7]));
    // In any order of the stream.
    let mut turned = carried.clone();
    turned.reverse();
    assert_eq!(Table(HISTORY).read("b", &turned), Ok(vec![1, 0, 7]));
}

#[test]
fn above_is_refused_with_name_and_both_values_equal_and_below_are_taken() {
    for level in ["a", "b", "c"] {
        for (there, here) in [(0, 0), (0, 1), (1, 1), (1, 0), (3, 2)] {
            let expected = if there > here {
                Err(Mismatch::Higher {
                    name: "first".into(),
                    there,
                    here,
                })
            } else {
                Ok(())
            };
            // Every other capability as the level has it frozen.
            let moved = moved(HISTORY, level, &[there, 0, 2], HISTORY, &[here, 0, 2]);
            assert_eq!(moved, expected, "{level} {there} {here}");
        }
    }
    let text = Mismatch::Higher {
        name: "first".into(),
        there: 3,
        here: 2,
    }
    .to_string();
    assert!(
        text.contains("first") && text.contains('3') && text.contains('2'),
        "{text}"
    );
}

#[test]
fn a_new_build_writes_for_an_old_level_or_names_what_would_be_lost() {
    // The way back: to a build that knows "a" alone.
    assert_eq!(moved(HISTORY, "a", &[1, 0, 2], OLD, &[1]), Ok(()));
    for (own, name, value, frozen) in [
        ([1, 1, 2], "second", 1, 0),
        ([1, 0, 3], "third", 3, 2),
        ([1, 0, 0], "third", 0, 2),
    ] {
        let (name, level) = (name.to_owned(), "a".to_owned());
        let expected = Mismatch::Unsayable {
            name,
            value,
            level,
            frozen,
        };
        assert_eq!(moved(HISTORY, "a", &own, OLD, &[1]), Err(expected));
    }
}

#[test]
fn unknown_names_and_levels_and_a_stream_that_does_not_fit_its_level_are_refused_by_name() {
    let read = |level, carried: &[(&str, u32)]| {
        let carried: Vec<Carried> = carried.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        Table(HISTORY).read(level, &carried).unwrap_err()
    };
    let name = |n: &str| n.to_owned();
    assert_eq!(
        read("a", &[("first", 1), ("nested", 4)]),
        Mismatch::UnknownCapability {
            name: name("nested"),
            there: 4
        }
    );
    assert_eq!(
        read("z", &[("first", 1)]),
        Mismatch::UnknownLevel(name("z"))
    );
    assert_eq!(
        read("b", &[("first", 1)]),
        Mismatch::Missing {
            name: name("third"),
            level: name("b")
        }
    );
    assert_eq!(
        read("a", &[("first", 1), ("second", 0)]),
        Mismatch::NotCarried {
            name: name("second"),
            there: 0,
            level: name("a")
        }
    );
    // Old build, newer level.
    let carried = Table(HISTORY).carry("c", &[1, 1, 1]).unwrap();
    assert!(Table(OLD).read("c", &carried).is_err());
}

fn head(ic_mode: IcMode) -> Head {
    Head::new("test", Machine::pseries(ic_mode, Compat::Papr1, 4))
}

#[test]
fn the_nine_combinations_of_controllers_are_decided_by_the_head() {
    use IcMode::{Dual, Xics, Xive};
    let here = |ic_mode| head(ic_mode).machine;
    for (from, to, refused) in [
        (Xics, Xics, None),
        (Xics, Xive, Some("xics")),
        (Xics, Dual, None),
        (Xive, Xics, Some("xive")),
        (Xive, Xive, None),
        (Xive, Dual, None),
        (Dual, Xics, Some("xive")),
        (Dual, Xive, Some("xics")),
        (Dual, Dual, None),
    ] {
        let expected = refused.map_or(Ok(()), |name| {
            Err(Mismatch::Higher {
                name: name.into(),
                there: 1,
                here: 0,
            })
        });
        assert_eq!(
            accept(&head(from), &here(to), &[]),
            expected,
            "{from:?} to {to:?}"
        );
    }
}

#[test]
fn every_number_of_the_machine_is_compared_and_named_with_both_values() {
    let here = head(IcMode::Dual).machine;
    for (item, there) in [
        (
            "sources",
            Machine {
                sources: 0x3000,
                ..here
            },
        ),
        (
            "xics_base",
            Machine {
                xics_base: 0x800,
                ..here
            },
        ),
        ("servers", Machine { servers: 5, ..here }),
        ("phandle", Machine { phandle: 7, ..here }),
        (
            "esb_base",
            Machine {
                esb_base: 0,
                ..here
            },
        ),
        (
            "end_base",
            Machine {
                end_base: 0,
                ..here
            },
        ),
        (
            "tima_base",
            Machine {
                tima_base: 0,
                ..here
            },
        ),
        ("hv_prio", Machine { hv_prio: 6, ..here }),
        (
            "compat level",
            Machine {
                compat: Compat::Qemu72,
                ..here
            },
        ),
    ] {
        let refused = accept(&Head::new("test", there), &here, &[]).unwrap_err();
        let Mismatch::Differs {
            item: named,
            there,
            here,
        } = &refused
        else {
            panic!("{refused}")
        };
        assert_eq!(named, item);
        let text = refused.to_string();
        assert!(text.contains(there) && text.contains(here), "{text}");
    }
    let private = Machine {
        ram_shared: false,
        ..here
    };
    assert_eq!(accept(&Head::new("test", private), &here, &[]), Ok(()));
}

#[test]
fn vcpus_of_the_source_must_exist_and_more_may() {
    let mut head = head(IcMode::Dual);
    head.servers = vec![0, 2];
    let here = head.machine;
    assert_eq!(accept(&head, &here, &[0, 2]), Ok(()));
    assert_eq!(accept(&head, &here, &[0, 1, 2]), Ok(()));
    assert_eq!(accept(&head, &here, &[0, 1]), Err(Mismatch::NoServer(2)));
}

#[test]
fn store_eoi_moves_up_and_not_down_and_qemus_level_cannot_say_it() {
    let machine = |compat, store_eoi| Machine {
        store_eoi,
        ..Machine::pseries(IcMode::Dual, compat, 4)
    };
    let (on, off) = (machine(Compat::Papr1, true), machine(Compat::Papr1, false));
    assert_eq!(accept(&Head::new("test", off), &on, &[]), Ok(()));
    assert_eq!(
        accept(&Head::new("test", on), &off, &[]),
        Err(Mismatch::Higher {
            name: "store-eoi".into(),
            there: 1,
            here: 0
        })
    );
    let old = machine(Compat::Qemu72, true);
    assert_eq!(
        Table::BUILD.carry("qemu-7.2", &of(&old)),
        Err(Mismatch::Unsayable {
            name: "store-eoi".into(),
            value: 1,
            level: "qemu-7.2".into(),
            frozen: 0
        })
    );
    let carried = Table::BUILD
        .carry("qemu-7.2", &of(&machine(Compat::Qemu72, false)))
        .unwrap();
    assert_eq!(carried, [("xics".to_owned(), 1), ("xive".to_owned(), 1)]);
    for level in [Compat::Papr1, Compat::Qemu72] {
        let all = CAPABILITIES
            .iter()
            .all(|c| c.at(level_name(level)).is_some());
        assert!(all, "{level:?} is missing in a row");
    }
}
