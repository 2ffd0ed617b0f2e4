//! The guest's accesses to the ESB page of a source that change PQ and forward nothing, beside one
//! compare-and-swap.

use papr_intc_frontend::protocol::layout::Page;

use crate::case::Case;
use crate::rig::{Rig, management, swap, trigger_page};

const BATCH: u32 = 64;

pub fn cases(rig: &Rig) -> Vec<Case<'_>> {
    let lisn = rig.first();
    let vcpu = &rig.vcpus[0];
    let word = rig.word(Page::Source(lisn));
    // 01 and 00 in turns.
    let set = move |i: u32| management(lisn) + if i & 1 == 0 { 0xd00 } else { 0xc00 };
    let limit = move || (0..BATCH).for_each(|_| _ = swap(word, 1));
    let load = move || (0..BATCH).for_each(|i| _ = vcpu.esb_load(set(i), 8));
    let store = move || (0..BATCH).for_each(|i| _ = vcpu.esb_store(set(i), 8, 0));
    let again = move || (0..BATCH).for_each(|_| _ = vcpu.esb_store(trigger_page(lisn), 8, 0));
    vec![
        Case::new("ESB load: set PQ", 2.0, BATCH, load, limit),
        Case::new("ESB store: set PQ", 2.0, BATCH, store, limit),
        Case::new(
            "ESB store: trigger, pending already",
            2.0,
            BATCH,
            again,
            limit,
        )
        .after(move || _ = vcpu.esb_load(management(lisn) + 0xe00, 8)),
    ]
}
