//! Claims, irqfds, triggers and levels (SPEC.md §1.6).

use super::bytes::wire_structs;

/// CLAIM: any free number of the range.
pub const ANY: u32 = u32::MAX;
/// SYNC: every source.
pub const ALL: u32 = u32::MAX;

/// Flags of CLAIM.
pub mod claim_flag {
    /// Level-sensitive.
    pub const LSI: u32 = 1;
    /// Dynamic: a machine reset releases it.
    pub const MSI: u32 = 2;
}

/// Kinds of irqfd.
pub mod irqfd_kind {
    /// Every count of the eventfd is a trigger.
    pub const EDGE: u32 = 0;
    /// A count asserts the source; its EOI clears it and writes the resamplefd.
    pub const LEVEL: u32 = 1;
}

wire_structs! {
    /// 0x1020: claims numbers in both controllers, all or none.
    pub struct Claim {
        /// First number, or [`ANY`].
        pub first: u32,
        /// How many.
        pub count: u32,
        /// With ANY: the first is a multiple of this power of two. MSI blocks need their size.
        pub align: u32,
        /// [`claim_flag`].
        pub flags: u32,
        /// With ANY: lowest number allowed.
        pub low: u32,
        /// With ANY: first number not allowed.
        pub high: u32,
    }

    /// Claimed.
    pub struct ClaimReply {
        /// First number.
        pub first: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1021: releases numbers in both controllers. Nothing is released if one of them is free.
    pub struct Free {
        /// First number.
        pub first: u32,
        /// How many.
        pub count: u32,
    }

    /// 0x1022: eventfds that trigger sources. One descriptor per item; two (trigger, resample) per
    /// item if every item is LEVEL with resample. Replaces what an item's (lisn, input) had.
    pub struct SetIrqfds {
        /// One per descriptor or pair.
        pub items: Vec<IrqfdItem>,
    }

    /// One irqfd.
    #[derive(Copy)]
    pub struct IrqfdItem {
        /// LISN.
        pub lisn: u32,
        /// [`irqfd_kind`].
        pub kind: u32,
        /// Which input of a shared source, 0 for the only one.
        pub input: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1023: forgets irqfds.
    pub struct ClearIrqfds {
        /// `kind` is ignored.
        pub items: Vec<IrqfdItem>,
    }

    /// 0x1024: the level of an LSI's input that the VMM drives.
    pub struct SetLevel {
        /// LISN of a claimed LSI.
        pub lisn: u32,
        /// 0 or 1.
        pub level: u32,
    }

    /// 0x1025: one event of an MSI.
    pub struct Trigger {
        /// LISN of a claimed source.
        pub lisn: u32,
        /// Zero.
        pub zero: u32,
    }

    /// 0x1026: returns when every event of the source accepted before is in its queue.
    pub struct Sync {
        /// LISN, or [`ALL`].
        pub lisn: u32,
        /// Zero.
        pub zero: u32,
    }
}
