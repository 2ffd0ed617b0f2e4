//! Opcodes and return codes (xive.md §5, xics.md §3; LoPAR chapters on hcalls and RTAS).

/// hcall opcodes.
pub mod opcode {
    /// End of interrupt: r4 = XIRR.
    pub const H_EOI: u64 = 0x64;
    /// Set the caller's CPPR: r4.
    pub const H_CPPR: u64 = 0x68;
    /// Set a server's MFRR: r4 = server, r5 = MFRR.
    pub const H_IPI: u64 = 0x6c;
    /// Look at a server's XIRR and MFRR: r4 = server.
    pub const H_IPOLL: u64 = 0x70;
    /// Accept: XIRR in r4.
    pub const H_XIRR: u64 = 0x74;
    /// Accept with time stamp in r5.
    pub const H_XIRR_X: u64 = 0x2fc;
    /// r4 = flags, r5 = LISN.
    pub const H_INT_GET_SOURCE_INFO: u64 = 0x3a8;
    /// r4 = flags, r5 = LISN, r6 = target, r7 = priority, r8 = EISN.
    pub const H_INT_SET_SOURCE_CONFIG: u64 = 0x3ac;
    /// r4 = flags, r5 = LISN.
    pub const H_INT_GET_SOURCE_CONFIG: u64 = 0x3b0;
    /// r4 = flags, r5 = target, r6 = priority.
    pub const H_INT_GET_QUEUE_INFO: u64 = 0x3b4;
    /// r4 = flags, r5 = target, r6 = priority, r7 = address, r8 = log2 size.
    pub const H_INT_SET_QUEUE_CONFIG: u64 = 0x3b8;
    /// r4 = flags, r5 = target, r6 = priority.
    pub const H_INT_GET_QUEUE_CONFIG: u64 = 0x3bc;
    /// Not supported.
    pub const H_INT_SET_OS_REPORTING_LINE: u64 = 0x3c0;
    /// Not supported.
    pub const H_INT_GET_OS_REPORTING_LINE: u64 = 0x3c4;
    /// r4 = flags, r5 = LISN, r6 = offset, r7 = data.
    pub const H_INT_ESB: u64 = 0x3c8;
    /// r4 = flags, r5 = LISN.
    pub const H_INT_SYNC: u64 = 0x3cc;
    /// r4 = flags.
    pub const H_INT_RESET: u64 = 0x3d0;
}

/// hcall return codes, in r3.
pub mod ret {
    /// Done.
    pub const H_SUCCESS: i64 = 0;
    /// Try again.
    pub const H_BUSY: i64 = 1;
    /// The machine failed, or the other controller is active.
    pub const H_HARDWARE: i64 = -1;
    /// No such function.
    pub const H_FUNCTION: i64 = -2;
    /// Not from problem state.
    pub const H_PRIVILEGE: i64 = -3;
    /// The flags, or a parameter without a code of its own.
    pub const H_PARAMETER: i64 = -4;
    /// The second parameter.
    pub const H_P2: i64 = -55;
    /// The third.
    pub const H_P3: i64 = -56;
    /// The fourth.
    pub const H_P4: i64 = -57;
    /// The fifth.
    pub const H_P5: i64 = -58;
}

/// RTAS status, in rets\[0\].
pub mod rtas {
    /// Done.
    pub const SUCCESS: i32 = 0;
    /// Hardware error, or XICS is not active.
    pub const HARDWARE: i32 = -1;
    /// Busy, try again.
    pub const BUSY: i32 = -2;
    /// Wrong counts or arguments.
    pub const PARAMETER: i32 = -3;
}

/// The four RTAS calls of XICS. The message carries this id, never the guest's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RtasCall {
    /// ibm,set-xive: irq, server, priority.
    SetXive = 1,
    /// ibm,get-xive: irq; server and priority out.
    GetXive = 2,
    /// ibm,int-on: irq.
    IntOn = 3,
    /// ibm,int-off: irq.
    IntOff = 4,
}

impl RtasCall {
    /// From the id in a message.
    pub fn from_id(id: u32) -> Option<Self> {
        [Self::SetXive, Self::GetXive, Self::IntOn, Self::IntOff]
            .into_iter()
            .find(|c| *c as u32 == id)
    }
}
