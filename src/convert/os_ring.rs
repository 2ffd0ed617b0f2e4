//! What of an OS ring follows from the rest: hardware, and so KVM, keeps only IPB and CPPR.

use papr_intc_protocol::layout::words::tima;
use papr_intc_protocol::state::model::Ring;

/// Priority of the most favoured pending event, ff if there is none: PIPR.
pub fn pipr(bytes: u64) -> u8 {
    match tima::ipb(bytes) {
        0 => 0xff,
        ipb => ipb.leading_zeros() as u8,
    }
}

/// The ring that hardware makes of IPB and CPPR. LSMFB, ACK# and INC never change after a reset.
pub fn computed(bytes: u64) -> u64 {
    let (cppr, ipb, pipr) = (tima::cppr(bytes), tima::ipb(bytes), pipr(bytes));
    let line = if pipr < cppr { tima::NSR_EO } else { 0 };
    let kept = u64::from(cppr) << tima::CPPR_SHIFT | u64::from(ipb) << tima::IPB_SHIFT;
    line | kept | Ring::RESET & !0xff | u64::from(pipr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_ipb_and_cppr() {
        for (bytes, is) in [
            (0x0000_0000_ff00_0000, Ring::RESET),
            (0x0007_0200_ff00_0000, 0x8007_02ff_ff00_0006),
            // Not more favoured than CPPR: the line is down.
            (0x8006_02ff_ff00_0006, 0x0006_02ff_ff00_0006),
            (0x00ff_8100_0000_0005, 0x80ff_81ff_ff00_0000),
        ] {
            assert_eq!(computed(bytes), is, "{bytes:#018x}");
        }
    }
}
