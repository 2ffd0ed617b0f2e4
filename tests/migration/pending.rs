//! Each class of what can be pending, alone, at the moment of the move: delivered once, over there.

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bench::{Bench, FIRST, How};
use crate::guest::*;

const MSI: u32 = FIRST + 0x300;
const LSI: u32 = FIRST + 0x200;

fn with_line(bench: &Bench, server: u32) -> bool {
    bench.vcpus[server as usize].pending()
}

/// Takes what is expected on vCPU 0, ends it, and finds nothing more.
fn take_one(bench: &Bench, xisr: u32) {
    bench.wait_for_line(0, true);
    assert_eq!(bench.accept(0), xisr);
    bench.eoi(0, xisr);
    assert!(!with_line(bench, 0), "delivered twice");
    assert_eq!(bench.accept(0), 0, "delivered twice");
    bench.open(0);
}

/// A machine of the bench with an MSI and an LSI routed to vCPU 0, XICS.
fn xics(how: &How) -> Bench {
    let bench = Bench::start(how);
    bench.xics_source(MSI, false, 0);
    bench.xics_source(LSI, true, 0);
    bench
}

/// For every way of both sides: `before` makes it pending, `after` sees it delivered.
fn each_way(ic_mode: IcMode, before: impl Fn(&Bench), after: impl Fn(&Bench)) {
    for (here, there) in ways(ic_mode) {
        let source = xics(&here);
        before(&source);
        let there = moved(&source, &there);
        source.intc.shutdown();
        after(&there);
    }
}

#[test]
fn a_presented_interrupt() {
    let before = |b: &Bench| {
        b.open(0);
        b.trigger(MSI);
        b.wait_for_line(0, true);
    };
    each_way(IcMode::Xics, before, |b| take_one(b, MSI));
}

#[test]
fn an_accepted_interrupt_that_the_guest_ends_over_there() {
    let before = |b: &Bench| {
        b.open(0);
        b.trigger(MSI);
        b.wait_for_line(0, true);
        assert_eq!(b.accept(0), MSI);
        b.trigger(MSI);
    };
    each_way(IcMode::Xics, before, |b| {
        assert!(!with_line(b, 0), "the CPPR of the handler has moved too");
        b.eoi(0, MSI);
        take_one(b, MSI);
    });
}

#[test]
fn an_interrupt_that_its_vcpu_refused() {
    each_way(
        IcMode::Dual,
        |b| b.trigger(MSI),
        |b| {
            assert!(!with_line(b, 0));
            b.open(0);
            take_one(b, MSI);
        },
    );
}

#[test]
fn an_interrupt_that_came_while_its_source_was_masked() {
    let before = |b: &Bench| {
        b.open(0);
        b.vcpus[0].rtas(RtasCall::IntOff, &[MSI], 1).unwrap();
        b.trigger(MSI);
    };
    each_way(IcMode::Dual, before, |b| {
        assert!(!with_line(b, 0));
        b.vcpus[0].rtas(RtasCall::IntOn, &[MSI], 1).unwrap();
        take_one(b, MSI);
        let routed = b.vcpus[0].rtas(RtasCall::GetXive, &[MSI], 3).unwrap();
        assert_eq!(routed, [0, 0, 5], "the saved priority has moved too");
    });
}

#[test]
fn an_inter_processor_interrupt() {
    let before = |b: &Bench| {
        b.open(0);
        b.hcall(1, opcode::H_IPI, &[0, 4]);
    };
    each_way(IcMode::Xics, before, |b| {
        b.wait_for_line(0, true);
        assert_eq!(b.accept(0), 2);
        b.hcall(0, opcode::H_IPI, &[0, 0xff]);
        b.eoi(0, 2);
        assert!(!with_line(b, 0));
    });
}

#[test]
fn a_level_that_a_device_holds() {
    let before = |b: &Bench| b.intc.source(LSI).unwrap().set_level(true).unwrap();
    each_way(IcMode::Dual, before, |b| {
        b.open(0);
        b.wait_for_line(0, true);
        assert_eq!(b.accept(0), LSI);
        b.eoi(0, LSI);
        b.wait_for_line(0, true);
        b.intc.source(LSI).unwrap().set_level(false).unwrap();
        assert_eq!(b.accept(0), LSI);
        b.eoi(0, LSI);
        assert!(!with_line(b, 0), "the level is down");
    });
}

#[test]
fn a_level_interrupt_in_its_handler_does_not_come_again_before_its_end() {
    let before = |b: &Bench| {
        b.open(0);
        b.intc.source(LSI).unwrap().set_level(true).unwrap();
        b.wait_for_line(0, true);
        assert_eq!(b.accept(0), LSI);
        b.open(0);
    };
    each_way(IcMode::Xics, before, |b| {
        assert!(!with_line(b, 0), "sent already");
        b.eoi(0, LSI);
        b.wait_for_line(0, true);
    });
}

#[test]
fn what_a_device_triggered_when_the_source_was_quiesced_already() {
    for (here, there) in ways(IcMode::Dual) {
        let source = xics(&here);
        source.open(0);
        let there = destination(&source, &there);
        source.intc.quiesce(LONG).unwrap();
        source.trigger(MSI);
        source.trigger(MSI);
        there
            .intc
            .state_load(&source.intc.state_save().unwrap())
            .unwrap();
        assert!(!with_line(&there, 0), "quiesced");
        there.intc.resume(None).unwrap();
        take_one(&there, MSI);
    }
}

#[test]
fn a_level_irqfd_and_the_resample_that_its_device_waits_for() {
    for (here, there) in ways(IcMode::Xics) {
        let source = xics(&here);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (trigger, resample) = (event(), event());
        source.open(0);
        source
            .intc
            .add_level_irqfd(LSI, 0, &trigger, &resample)
            .unwrap();
        trigger.write(1).unwrap();
        source.wait_for_line(0, true);
        let there = destination(&source, &there);
        source.intc.quiesce(LONG).unwrap();
        source.intc.remove_level_irqfd(LSI, 0).unwrap();
        there
            .intc
            .state_load(&source.intc.state_save().unwrap())
            .unwrap();
        let (trigger, resample) = (event(), event());
        there
            .intc
            .add_level_irqfd(LSI, 0, &trigger, &resample)
            .unwrap();
        there.intc.resume(None).unwrap();
        there.wait_for_line(0, true);
        assert_eq!(there.accept(0), LSI);
        there.eoi(0, LSI);
        while resample.read().is_err() {
            std::thread::yield_now();
        }
        assert!(!with_line(&there, 0), "the end has lowered the level");
    }
}

#[test]
fn xive_events_in_their_queue_at_their_source_and_behind_a_closed_vcpu() {
    for (here, there) in ways(IcMode::Dual) {
        let source = Bench::start(&here);
        for lisn in [MSI, MSI + 1, MSI + 2] {
            source.claim(lisn, false);
        }
        choose_xive(&source);
        route(&source, MSI, 0, 0x11);
        route(&source, MSI + 1, 1, 0x22);
        // Queued and presented; queued behind a closed vCPU; and a second one that waits at its source.
        source.trigger(MSI);
        source.trigger(MSI);
        source.wait_for_line(0, true);
        set_cppr(&source, 1, 0);
        source.trigger(MSI + 1);
        assert!(!with_line(&source, 1));
        let there = moved(&source, &there);
        source.intc.shutdown();
        assert_eq!(entries(&there, 0), [0x11]);
        there.wait_for_line(0, true);
        assert_eq!(acknowledge(&there, 0), Some(5));
        // The end of the first lets the second go: PQ was 11.
        esb(&there, MSI, 0);
        assert_eq!(
            entries(&there, 0),
            [0x11, 0x11],
            "behind the first, where the queue had got to"
        );
        set_cppr(&there, 0, 0xff);
        assert_eq!(acknowledge(&there, 0), Some(5));
        set_cppr(&there, 1, 0xff);
        there.wait_for_line(1, true);
        assert_eq!(acknowledge(&there, 1), Some(5));
        assert_eq!(acknowledge(&there, 1), None, "delivered twice");
        assert_eq!(entries(&there, 1), [0x22]);
        assert_eq!(esb(&there, MSI + 2, 0x800), 1, "off, as it was");
    }
}

#[test]
fn a_guest_that_has_chosen_its_controller_goes_on_with_it_and_may_choose_again() {
    let source = xics(&How::mapped(IcMode::Dual));
    choose_xive(&source);
    let there = moved(&source, &How::mapped(IcMode::Dual));
    assert_eq!(there.hcall(0, opcode::H_XIRR, &[]).0, -1, "XIVE is active");
    let none = [0u8; 26];
    there.vcpus[0].cas(&none).unwrap();
    there.open(0);
    there.trigger(MSI);
    take_one(&there, MSI);
}

#[test]
fn a_machine_with_more_controllers_takes_the_state_of_one_with_fewer() {
    let source = xics(&How::mapped(IcMode::Xics));
    source.open(0);
    source.trigger(MSI);
    let there = {
        let dual = How::mapped(IcMode::Dual);
        let there = destination(&source, &dual);
        source.intc.quiesce(LONG).unwrap();
        there
            .intc
            .state_load(&source.intc.state_save().unwrap())
            .unwrap();
        there.intc.resume(None).unwrap();
        there
    };
    take_one(&there, MSI);
    choose_xive(&there);
    route(&there, MSI, 0, 0x33);
    there.trigger(MSI);
    there.wait_for_line(0, true);
    assert_eq!(entries(&there, 0), [0x33]);
}

#[test]
fn a_xive_guest_goes_on_where_there_are_both_controllers() {
    let source = Bench::start(&How::mapped(IcMode::Xive));
    source.claim(MSI, false);
    source.claim(LSI, true);
    choose_xive(&source);
    route(&source, MSI, 0, 0x11);
    source.trigger(MSI);
    source.wait_for_line(0, true);
    let there = destination(&source, &How::mapped(IcMode::Dual));
    let head = source.intc.state_header().unwrap();
    there.intc.state_check(&head).unwrap();
    source.intc.quiesce(LONG).unwrap();
    there
        .intc
        .state_load(&source.intc.state_save().unwrap())
        .unwrap();
    there.intc.resume(None).unwrap();
    there.wait_for_line(0, true);
    assert_eq!(acknowledge(&there, 0), Some(5));
    assert_eq!(entries(&there, 0), [0x11]);
    // Its other controller has the same sources, for the next CAS.
    there.vcpus[0].cas(&[0u8; 26]).unwrap();
    for lisn in [MSI, LSI] {
        let set = [lisn, 0, 5];
        assert_eq!(
            there.vcpus[0].rtas(RtasCall::SetXive, &set, 1).unwrap(),
            [0]
        );
    }
    there.open(0);
    there.intc.source(LSI).unwrap().set_level(true).unwrap();
    there.wait_for_line(0, true);
    assert_eq!(there.accept(0), LSI);
}

#[test]
fn back_and_forth_between_mapped_and_remote_machines() {
    let mut here = xics(&How::mapped(IcMode::Xics));
    here.open(0);
    for round in 0..6 {
        here.trigger(MSI);
        let how = if round % 2 == 0 {
            How::remote(IcMode::Xics)
        } else {
            How::mapped(IcMode::Xics)
        };
        let there = moved(&here, &how);
        assert_eq!(there.intc.executor() == Executor::Daemon, round % 2 == 0);
        here = there;
        take_one(&here, MSI);
    }
}
