//! The rows of `docs/fidelity.md` that a replay can meet: differences from QEMU 7.2 that are meant.
//!
//! A row either says exactly what is expected instead of the recorded result, and that is compared; or it
//! belongs to a result the recording itself marks as not worth imitating (`odd:REASON`).

/// One kind of expected difference.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Short name, also in the document.
    pub id: &'static str,
    /// The mark that excuses a difference; without one the row's own expectation is compared.
    pub odd: Option<&'static str>,
}

/// H_INT_ESB's loaded value: QEMU swaps its bytes on a little-endian host; ours is the number itself.
pub const ESB_SWAP: Row = Row {
    id: "F-ESB-SWAP",
    odd: None,
};

/// Points in which no level follows QEMU and that change what later operations see. What is expected
/// instead comes from the model ([`super::explain`]).
pub const WITH_STATE: [Row; 4] = [
    Row {
        id: "F-MMIO-XICS",
        odd: None,
    },
    Row {
        id: "F-QUEUE-RAM",
        odd: None,
    },
    Row {
        id: "F-ESB-BOUND",
        odd: None,
    },
    Row {
        id: "F-CAS-LEVELS",
        odd: None,
    },
];

/// Marked results that differ. The marks are the recorder's.
pub const ODD: [Row; 5] = [
    Row {
        id: "F-ODD-SIZE",
        odd: Some("size"),
    },
    Row {
        id: "F-ODD-TIMA",
        odd: Some("tima"),
    },
    Row {
        id: "F-ODD-UNCLAIMED",
        odd: Some("unclaimed"),
    },
    Row {
        id: "F-ODD-NO-END",
        odd: Some("no-end"),
    },
    Row {
        id: "F-ODD-PAGE",
        odd: Some("page"),
    },
];

/// A mark that has no row; not accepted under `--strict`.
pub const ODD_OTHER: Row = Row {
    id: "F-ODD-OTHER",
    odd: None,
};

/// The row that excuses a difference in a result marked `odd:mark`.
pub fn odd(mark: &str) -> Option<&'static Row> {
    ODD.iter().find(|r| r.odd == Some(mark))
}

/// What H_INT_ESB's r4 must be, given the recorded call: a successful load's value, bytes swapped back.
/// The second value says whether the row made a difference.
pub fn h_int_esb(opcode: u64, flags: u64, ret: i64, recorded: u64) -> (u64, Option<&'static Row>) {
    if opcode != super::H_INT_ESB || ret != 0 || flags & 1 != 0 || recorded == recorded.swap_bytes()
    {
        return (recorded, None);
    }
    (recorded.swap_bytes(), Some(&ESB_SWAP))
}
