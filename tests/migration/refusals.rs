//! What is refused: before the source stops if it can be known then, by name, with both values; and nothing
//! has changed on either side.

use nix::errno::Errno;
use papr_intc_frontend::protocol::layout::{Compat, IcMode, Machine};

use crate::bench::{Bench, FIRST, How, launcher};
use crate::guest::*;

#[test]
fn the_nine_combinations_of_controllers_are_decided_before_any_state_is_taken() {
    use IcMode::{Dual, Xics, Xive};
    let machines: Vec<(IcMode, Bench)> = [Xics, Xive, Dual]
        .map(|ic_mode| (ic_mode, Bench::start(&How::mapped(ic_mode))))
        .into();
    for (from, source) in &machines {
        let head = source.intc.state_header().unwrap();
        for (to, there) in &machines {
            let checked = there.intc.state_check(&head);
            let lacks = match (from, to) {
                (Dual | Xics, Xive) => "capability xics (",
                (Dual | Xive, Xics) => "capability xive ",
                _ => {
                    checked.unwrap();
                    continue;
                }
            };
            let (errno, text) = refused(checked);
            assert_eq!(errno, Errno::ENOTSUP as i32, "{from:?} to {to:?}");
            let name = lacks.trim_end_matches([' ', '(']);
            assert!(text.contains(name), "{from:?} to {to:?}: {text}");
            assert!(text.contains("is 1") && text.contains("has 0"), "{text}");
        }
    }
}

fn with_machine(change: impl Fn(&mut Machine)) -> Bench {
    Bench::start_with(&How::mapped(IcMode::Dual), |options| {
        change(&mut options.machine)
    })
}

#[test]
fn machines_that_differ_are_refused_with_the_item_and_both_values() {
    let source = with_machine(|_| ());
    let head = source.intc.state_header().unwrap();
    type Change = fn(&mut Machine);
    let changes: [(&str, &str, &str, Change); 5] = [
        ("sources", "0x2000", "0x3000", |m| m.sources = 0x3000),
        ("servers", "4", "8", |m| m.servers = 8),
        ("phandle", "0x1111", "0x2222", |m| m.phandle = 0x2222),
        ("hv_prio", "7", "6", |m| m.hv_prio = 6),
        ("compat level", "papr-1", "qemu-7.2", |m| {
            m.compat = Compat::Qemu72
        }),
    ];
    for (item, theirs, ours, change) in changes {
        let there = with_machine(change);
        let (errno, text) = refused(there.intc.state_check(&head));
        assert_eq!(errno, Errno::ENOTSUP as i32);
        for part in [item, theirs, ours] {
            assert!(text.contains(part), "{item}: {text}");
        }
        // The same verdict, should the VMM not have asked.
        source.intc.quiesce(LONG).unwrap();
        there.intc.quiesce(LONG).unwrap();
        let state = source.intc.state_save().unwrap();
        assert_eq!(refused(there.intc.state_load(&state)), (errno, text));
        source.intc.resume(None).unwrap();
    }
}

#[test]
fn store_eoi_is_refused_downwards_and_taken_upwards() {
    let (on, off) = (with_machine(|m| m.store_eoi = true), with_machine(|_| ()));
    on.intc
        .state_check(&off.intc.state_header().unwrap())
        .unwrap();
    let (_, text) = refused(off.intc.state_check(&on.intc.state_header().unwrap()));
    assert!(text.contains("store-eoi is 1"), "{text}");
    // A level that has no word for it.
    let qemu = with_machine(|m| (m.store_eoi, m.compat) = (true, Compat::Qemu72));
    let (errno, text) = refused(qemu.intc.state_header());
    assert_eq!(errno, Errno::ENOTSUP as i32);
    assert!(
        text.contains("store-eoi") && text.contains("qemu-7.2"),
        "{text}"
    );
}

#[test]
fn claims_of_the_destination_must_be_in_the_state_and_of_the_same_kind() {
    let source = with_machine(|_| ());
    source.claim(FIRST + 0x200, true);
    source.claim(FIRST + 0x300, false);
    let head = source.intc.state_header().unwrap();
    let there = with_machine(|_| ());
    there.claim(FIRST + 0x200, true);
    there.intc.state_check(&head).unwrap();
    there.claim(FIRST + 0x201, true);
    let (_, text) = refused(there.intc.state_check(&head));
    assert!(
        text.contains("0x1201 is free") && text.contains("level-sensitive here"),
        "{text}"
    );
    let there = with_machine(|_| ());
    there.claim(FIRST + 0x200, false);
    source.intc.quiesce(LONG).unwrap();
    there.intc.quiesce(LONG).unwrap();
    let state = source.intc.state_save().unwrap();
    let (_, text) = refused(there.intc.state_load(&state));
    assert!(
        text.contains("0x1200 is level-sensitive") && text.contains("an MSI here"),
        "{text}"
    );
}

#[test]
fn a_vcpu_that_the_destination_does_not_have_is_named() {
    let source = with_machine(|_| ());
    let _third = source.intc.connect_vcpu(3).unwrap();
    let head = source.intc.state_header().unwrap();
    let there = with_machine(|_| ());
    let (_, text) = refused(there.intc.state_check(&head));
    assert!(text.contains("server number 3"), "{text}");
    let _third = there.intc.connect_vcpu(3).unwrap();
    there.intc.state_check(&head).unwrap();
}

#[test]
fn a_running_machine_gives_no_state_and_takes_none() {
    let (source, there) = (with_machine(|_| ()), with_machine(|_| ()));
    assert_eq!(refused(source.intc.state_save()).0, Errno::EBUSY as i32);
    source.intc.quiesce(LONG).unwrap();
    let state = source.intc.state_save().unwrap();
    assert_eq!(
        refused(there.intc.state_load(&state)).0,
        Errno::EBUSY as i32
    );
    there.intc.quiesce(LONG).unwrap();
    there.intc.state_load(&state).unwrap();
    assert_eq!(
        refused(there.intc.state_load(&state)).0,
        Errno::EINVAL as i32,
        "loaded already"
    );
}

#[test]
fn a_destination_that_gives_up_is_back_to_reset_and_takes_the_next_state() {
    let source = Bench::start(&How::mapped(IcMode::Dual));
    source.xics_source(FIRST + 0x300, false, 1);
    source.trigger(FIRST + 0x300);
    choose_xive(&source);
    source.intc.quiesce(LONG).unwrap();
    let state = source.intc.state_save().unwrap();
    let there = Bench::start_on(
        &How::mapped(IcMode::Dual),
        launcher(),
        source.ram.clone(),
        |_| (),
    );
    there.intc.quiesce(LONG).unwrap();
    let fresh = there.intc.state_save().unwrap();
    for _ in 0..3 {
        there.intc.state_load(&state).unwrap();
        assert_eq!(there.intc.state_save().unwrap(), state);
        there.intc.state_abort().unwrap();
        assert_eq!(
            there.intc.state_save().unwrap(),
            fresh,
            "not as after power-on"
        );
    }
}
