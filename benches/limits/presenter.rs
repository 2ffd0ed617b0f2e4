//! What a vCPU does at its presenter, beside the same number of swaps. Each operation is measured on many
//! vCPUs one after the other, so that it finds something to do every time.

use papr_intc_frontend::protocol::layout::Page;
use papr_intc_frontend::protocol::papr::codes::opcode;

use crate::case::Case;
use crate::cycle::{ACKNOWLEDGE, CPPR, accept_and_end};
use crate::rig::{PRIORITY, Rig, swap};

const SET_PENDING: u64 = 0x2_0812;
const MFRR: u64 = 4;

/// On a machine with XIVE.
pub fn xive(rig: &Rig) -> Vec<Case<'_>> {
    let servers = rig.machine.servers;
    let limit = move || (0..servers).for_each(|s| _ = swap(rig.word(Page::Tima(s)), 1));
    let open = move || {
        for vcpu in &rig.vcpus {
            _ = vcpu.tima_store(CPPR, 1, 0xff);
        }
    };
    let acknowledge = move || {
        for vcpu in &rig.vcpus {
            _ = vcpu.tima_load(ACKNOWLEDGE, 2);
        }
    };
    let pending = move || {
        for vcpu in &rig.vcpus {
            _ = vcpu.tima_store(SET_PENDING, 1, PRIORITY.into());
        }
    };
    vec![
        Case::new("XIVE: acknowledge", 2.0, servers, acknowledge, limit).after(move || {
            open();
            pending();
        }),
        Case::new("XIVE: CPPR store", 2.0, servers, open, limit).after(move || {
            pending();
            acknowledge();
        }),
    ]
}

/// On a machine with XICS.
pub fn xics(rig: &Rig) -> Vec<Case<'_>> {
    let servers = rig.machine.servers;
    let swaps = move |count: u32| {
        (0..servers).for_each(|s| {
            let icp = rig.word(Page::Icp(s));
            (0..count).for_each(|_| _ = swap(icp, 1));
        });
    };
    // Of vCPU 0, to all of them.
    let ipi = move |mfrr: u64| {
        for server in 0..u64::from(servers) {
            let mut args = [server, mfrr, 0, 0, 0, 0, 0, 0, 0];
            _ = rig.vcpus[0].hcall(opcode::H_IPI, &mut args);
        }
    };
    let end = move || rig.vcpus.iter().for_each(accept_and_end);
    vec![
        Case::new(
            "XICS: H_IPI",
            2.0,
            servers,
            move || ipi(MFRR),
            move || swaps(1),
        )
        .after(move || {
            ipi(0xff);
            end();
        }),
        Case::new("XICS: H_XIRR + H_EOI", 2.0, servers, end, move || swaps(2)).after(move || {
            ipi(MFRR);
            ipi(0xff);
        }),
    ]
}
