//! The 64 bytes of a thread context: of its four rings only the OS ring is a pseries guest's.

use papr_intc_protocol::layout::words::tima;
use papr_intc_protocol::state::model::Ring;

use super::vcpus::{NVT_BASE, W2, W2_VALID};
use crate::convert::{Notes, os_ring};

/// NSR to PIPR of the OS ring.
const OS: std::ops::Range<usize> = 0x10..0x18;
/// AGE in it, which no guest can read; ff after reset.
const OS_AGE: usize = 0x16;
/// PIPR of the PHYS ring, ff after reset.
const PHYS_PIPR: usize = 0x37;

/// From the bytes; `None` if the ring is as after reset.
pub fn read(server: u32, regs: &[u8; 64], notes: &mut Notes) -> Option<Ring> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&regs[OS]);
    let mut ring = Ring {
        server,
        bytes: u64::from_be_bytes(bytes) & !tima::AGE,
    };
    let mut kept = write(&ring);
    kept[OS_AGE] = regs[OS_AGE];
    if kept != *regs {
        let what = "what is not of the OS ring, or only of the hypervisor's, is dropped";
        notes.add(format!("ring of server {server}"), what);
    }
    // In QEMU's own model PIPR follows from IPB always; KVM leaves there what it last saw.
    if tima::pipr(ring.bytes) != os_ring::pipr(ring.bytes) {
        ring.bytes = os_ring::computed(ring.bytes);
        let what = "PIPR does not follow from IPB, as KVM leaves it: computed anew";
        notes.add(format!("ring of server {server}"), what);
    }
    (ring.bytes != Ring::RESET).then_some(ring)
}

/// The bytes: everything but the OS ring as after reset.
pub fn write(ring: &Ring) -> [u8; 64] {
    let mut regs = [0; 64];
    regs[OS].copy_from_slice(&ring.bytes.to_be_bytes());
    regs[OS_AGE] = 0xff;
    // A server number is below 4096.
    let w2 = W2_VALID | NVT_BASE.wrapping_add(ring.server);
    regs[W2].copy_from_slice(&w2.to_be_bytes());
    regs[PHYS_PIPR] = 0xff;
    regs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured: server 24 after reset.
    fn reset() -> [u8; 64] {
        let mut regs = [0; 64];
        regs[0x10..0x1c].copy_from_slice(&[0, 0, 0, 0xff, 0xff, 0, 0xff, 0xff, 0x80, 0, 4, 0x18]);
        regs[0x37] = 0xff;
        regs
    }

    #[test]
    fn a_ring_after_reset_is_none_and_comes_back() {
        let mut notes = Notes::default();
        assert_eq!(read(24, &reset(), &mut notes), None);
        assert_eq!(notes, Notes::default());
        let ring = Ring {
            server: 24,
            bytes: Ring::RESET,
        };
        assert_eq!(write(&ring), reset());
    }

    #[test]
    fn a_used_ring() {
        let mut regs = reset();
        regs[0x10] = 0x80;
        regs[0x11] = 7;
        regs[0x12] = 2;
        regs[0x17] = 6;
        let mut notes = Notes::default();
        let ring = read(24, &regs, &mut notes).unwrap();
        assert_eq!(ring.bytes, 0x8007_02ff_ff00_0006);
        assert_eq!((write(&ring), notes.0.len()), (regs, 0));
    }

    #[test]
    fn a_ring_as_kvm_leaves_it_is_computed() {
        let mut regs = reset();
        regs[0x10..0x18].copy_from_slice(&[0, 7, 2, 0, 0xff, 0, 0, 0]);
        let mut notes = Notes::default();
        let ring = read(24, &regs, &mut notes).unwrap();
        assert_eq!((ring.bytes, notes.0.len()), (0x8007_02ff_ff00_0006, 1));
    }

    #[test]
    fn other_rings_are_dropped_with_a_note() {
        let mut regs = reset();
        regs[0x31] = 1;
        let mut notes = Notes::default();
        assert_eq!(read(24, &regs, &mut notes), None);
        assert_eq!(notes.0.len(), 1);
    }
}
