//! The messages of `state.proto`, as prost writes and reads them. [`super`] has what goes into them.
//!
//! Derived here rather than generated: no build script, and `stream`'s tests read every message by the
//! schema itself.

use prost::bytes::Bytes;

/// A column of packed fixed32, which on the wire is its values' little-endian bytes: they are moved as such.
pub(in crate::state) type Words32 = Bytes;

/// Section "head".
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct HeadMessage {
    #[prost(uint32, tag = "1")]
    pub format: u32,
    #[prost(string, tag = "2")]
    pub producer: String,
    #[prost(string, tag = "3")]
    pub compat: String,
    #[prost(message, repeated, tag = "4")]
    pub capabilities: Vec<CapabilityMessage>,
    #[prost(message, optional, tag = "5")]
    pub machine: Option<MachineMessage>,
    #[prost(uint32, tag = "6")]
    pub active: u32,
    #[prost(bool, tag = "7")]
    pub cas_xive: bool,
    #[prost(uint32, tag = "8")]
    pub ov5_byte_23: u32,
    #[prost(uint32, repeated, tag = "9")]
    pub server_runs: Vec<u32>,
    #[prost(message, optional, tag = "10")]
    pub fixed: Option<ClaimsMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct CapabilityMessage {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub value: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::state) struct MachineMessage {
    #[prost(uint32, tag = "1")]
    pub sources: u32,
    #[prost(uint32, tag = "2")]
    pub xics_base: u32,
    #[prost(uint32, tag = "3")]
    pub servers: u32,
    #[prost(uint32, tag = "4")]
    pub phandle: u32,
    #[prost(fixed64, tag = "5")]
    pub esb_base: u64,
    #[prost(fixed64, tag = "6")]
    pub end_base: u64,
    #[prost(fixed64, tag = "7")]
    pub tima_base: u64,
    #[prost(uint32, tag = "8")]
    pub hv_prio: u32,
}

/// Section "end".
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::state) struct EndMessage {
    #[prost(uint32, tag = "1")]
    pub sections: u32,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct ClaimsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub kinds: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct InputsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(bytes = "vec", tag = "2")]
    pub flags: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct XicsSourcesMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(bytes = "bytes", tag = "2")]
    pub server: Words32,
    #[prost(bytes = "bytes", tag = "3")]
    pub priority: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub saved: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    pub status: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct IcpsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(bytes = "vec", tag = "2")]
    pub cppr: Vec<u8>,
    #[prost(uint32, repeated, tag = "3")]
    pub xisr: Vec<u32>,
    #[prost(bytes = "vec", tag = "4")]
    pub pending_priority: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub mfrr: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct XiveSourcesMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(bytes = "bytes", tag = "2")]
    pub flags: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub end: Words32,
    #[prost(bytes = "bytes", tag = "4")]
    pub eisn: Words32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct EndsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(fixed64, repeated, tag = "2")]
    pub address: Vec<u64>,
    #[prost(bytes = "vec", tag = "3")]
    pub size: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub flags: Vec<u8>,
    #[prost(uint32, repeated, tag = "5")]
    pub index: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::state) struct RingsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
    #[prost(fixed64, repeated, tag = "2")]
    pub ring: Vec<u64>,
}
