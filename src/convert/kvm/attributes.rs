//! Values of KVM's interrupt controllers, bit by bit (xics.md §8.4, xive.md §8.2); nothing is judged here.

use std::collections::BTreeMap;

/// What KVM's device for the active controller holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// KVM_DEV_TYPE_XICS.
    Xics(Xics),
    /// KVM_DEV_TYPE_XIVE.
    Xive(Xive),
}

/// The in-kernel XICS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xics {
    /// KVM_REG_PPC_ICP_STATE by server number.
    pub icps: BTreeMap<u32, u64>,
    /// KVM_DEV_XICS_GRP_SOURCES by number.
    pub sources: BTreeMap<u32, u64>,
}

/// The in-kernel XIVE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xive {
    /// Sources by LISN.
    pub sources: BTreeMap<u32, XiveSourceAttributes>,
    /// KVM_DEV_XIVE_GRP_EQ_CONFIG by attribute, which names server and priority ([`eq_attribute`]).
    pub queues: BTreeMap<u64, EqConfig>,
    /// KVM_REG_PPC_VP_STATE by server number, as its 16 bytes are in memory.
    pub vps: BTreeMap<u32, [u8; 16]>,
}

/// A source of the in-kernel XIVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XiveSourceAttributes {
    /// KVM_DEV_XIVE_GRP_SOURCE: [`xive_source`].
    pub source: u64,
    /// KVM_DEV_XIVE_GRP_SOURCE_CONFIG: [`XiveConfig`].
    pub config: u64,
    /// What a load at offset 0x800 of the ESB management page gives: P is 2, Q is 1.
    pub pq: u8,
}

/// `struct kvm_ppc_xive_eq`, without its padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EqConfig {
    /// 1: notify always.
    pub flags: u32,
    /// Log2 of the bytes; 0: no queue.
    pub qshift: u32,
    /// Guest physical address.
    pub qaddr: u64,
    /// Generation bit of the next entry.
    pub qtoggle: u32,
    /// Next slot, in entries.
    pub qindex: u32,
}

/// Bits of KVM_DEV_XICS_GRP_SOURCES beside server (31:0) and priority (39:32).
pub mod xics_source {
    /// Shift of the priority that counts while the source is not masked.
    pub const PRIORITY_SHIFT: u32 = 32;
    /// An LSI.
    pub const LEVEL_SENSITIVE: u64 = 1 << 40;
    /// Off.
    pub const MASKED: u64 = 1 << 41;
    /// To be delivered.
    pub const PENDING: u64 = 1 << 42;
    /// P.
    pub const PRESENTED: u64 = 1 << 43;
    /// Q.
    pub const QUEUED: u64 = 1 << 44;
    /// Every bit that is defined.
    pub const ALL: u64 = (1 << 45) - 1;
}

/// Bits of KVM_DEV_XIVE_GRP_SOURCE.
pub mod xive_source {
    /// An LSI.
    pub const LEVEL_SENSITIVE: u64 = 1;
    /// Its line is high.
    pub const ASSERTED: u64 = 2;
    /// Every bit that is defined.
    pub const ALL: u64 = 3;
}

/// KVM_REG_PPC_ICP_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcpState {
    /// Current processor priority.
    pub cppr: u8,
    /// What is presented, 24 bits.
    pub xisr: u32,
    /// Request of an IPI.
    pub mfrr: u8,
    /// Priority of what is presented.
    pub pending_priority: u8,
}

impl IcpState {
    /// From the register; `None` if an unused bit is set.
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits & 0xffff == 0).then_some(Self {
            cppr: (bits >> 56) as u8,
            xisr: (bits >> 32) as u32 & 0xff_ffff,
            mfrr: (bits >> 24) as u8,
            pending_priority: (bits >> 16) as u8,
        })
    }

    /// The register.
    pub fn to_bits(self) -> u64 {
        u64::from(self.cppr) << 56
            | u64::from(self.xisr & 0xff_ffff) << 32
            | u64::from(self.mfrr) << 24
            | u64::from(self.pending_priority) << 16
    }

    /// The kernel takes it.
    pub fn is_accepted(&self) -> bool {
        let (pp, mfrr) = (self.pending_priority, self.mfrr);
        match self.xisr {
            0 => pp == 0xff,
            2 => pp == mfrr && pp < self.cppr,
            _ => pp < mfrr && pp < self.cppr,
        }
    }
}

/// KVM_DEV_XIVE_GRP_SOURCE_CONFIG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XiveConfig {
    /// END index: eight times the server plus the priority.
    pub end: u32,
    /// Off.
    pub masked: bool,
    /// Event data, 31 bits.
    pub eisn: u32,
}

impl XiveConfig {
    /// From the attribute.
    pub fn from_bits(bits: u64) -> Self {
        Self {
            end: bits as u32,
            masked: bits >> 32 & 1 == 1,
            eisn: (bits >> 33) as u32,
        }
    }

    /// The attribute.
    pub fn to_bits(self) -> u64 {
        u64::from(self.end) | u64::from(self.masked) << 32 | u64::from(self.eisn) << 33
    }
}

/// The attribute of KVM_DEV_XIVE_GRP_EQ_CONFIG: priority in bits 2:0, server in 31:3. It is the END index.
pub fn eq_attribute(end: u32) -> u64 {
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_an_icp() {
        let icp = IcpState {
            cppr: 0xff,
            xisr: 0x1300,
            mfrr: 0xfe,
            pending_priority: 5,
        };
        assert_eq!(icp.to_bits(), 0xff00_1300_fe05_0000);
        assert_eq!(IcpState::from_bits(icp.to_bits()), Some(icp));
        assert_eq!(IcpState::from_bits(1), None);
    }

    #[test]
    fn icps_that_the_kernel_takes() {
        for (cppr, xisr, mfrr, pp, accepted) in [
            (0xff, 0, 0xff, 0xff, true),
            (0xff, 0, 0xff, 5, false),
            (0xff, 2, 4, 4, true),
            (0xff, 2, 6, 4, false),
            (4, 2, 4, 4, false),
            (0xff, 0x1300, 0xff, 5, true),
            (0xff, 0x1300, 5, 5, false),
            (5, 0x1300, 0xff, 5, false),
        ] {
            let icp = IcpState {
                cppr,
                xisr,
                mfrr,
                pending_priority: pp,
            };
            assert_eq!(icp.is_accepted(), accepted, "{icp:?}");
        }
    }

    #[test]
    fn bits_of_a_xive_configuration() {
        let config = XiveConfig {
            end: 0x20 << 3 | 6,
            masked: true,
            eisn: 0x7fff_0001,
        };
        assert_eq!(config.to_bits(), 0xfffe_0003_0000_0106);
        assert_eq!(XiveConfig::from_bits(config.to_bits()), config);
    }
}
