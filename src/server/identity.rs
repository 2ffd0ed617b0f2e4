//! The 64-byte configuration block of GET_CONFIG, and what `--print-capabilities` prints: which
//! daemon this is, before a single PAPR message (SPEC.md §1.1).

use papr_intc_protocol::Versions;
use papr_intc_protocol::layout::geometry::{MAX_SERVERS, MAX_SOURCES};
use papr_intc_protocol::wire::{MAX_BODY, MAX_FDS};

use super::standard::IDENTITY_LEN;

/// The block: magic, protocol min and max, layout min and max, plane ABI (u16 each), zero (u16),
/// limits (body, fds, sources, servers: u32 each), generation (u64), state (u32), zeros.
pub fn block(versions: &Versions, generation: u64, state: u32) -> [u8; IDENTITY_LEN] {
    let mut out = Vec::with_capacity(IDENTITY_LEN);
    out.extend_from_slice(b"PAPRINTC");
    for version in [
        versions.protocol_min,
        versions.protocol_max,
        versions.layout_min,
        versions.layout,
        versions.plane,
        0,
    ] {
        out.extend_from_slice(&version.to_ne_bytes());
    }
    for limit in [MAX_BODY as u32, MAX_FDS as u32, MAX_SOURCES, MAX_SERVERS] {
        out.extend_from_slice(&limit.to_ne_bytes());
    }
    out.extend_from_slice(&generation.to_ne_bytes());
    out.extend_from_slice(&state.to_ne_bytes());
    let mut block = [0; IDENTITY_LEN];
    block[..out.len()].copy_from_slice(&out);
    block
}

/// `--print-capabilities`: one JSON object, as the back-end conventions ask.
pub fn capabilities(versions: &Versions) -> serde_json::Value {
    serde_json::json!({
        "type": "interrupt-controller",
        "features": ["papr-messages", "xics", "xive", "dual", "mapped", "remote", "log-all"],
        "protocol": { "min": versions.protocol_min, "max": versions.protocol_max },
        "layout": { "min": versions.layout_min, "max": versions.layout },
        "plane": versions.plane,
        "memory": {
            "plane": { "min": versions.plane_min, "max": versions.plane },
            "compat_flags": versions.compat_flags,
            "incompat_flags": versions.incompat_known,
        },
        "build": versions.build,
        "limits": {
            "body": MAX_BODY, "fds": MAX_FDS, "sources": MAX_SOURCES, "servers": MAX_SERVERS,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_keeps_its_offsets() {
        let versions = Versions {
            protocol_max: 7,
            ..Versions::current("test")
        };
        let block = block(&versions, 0x1122, 2);
        assert_eq!(&block[..8], b"PAPRINTC");
        assert_eq!(block[8..10], versions.protocol_min.to_ne_bytes());
        assert_eq!(block[10..12], 7u16.to_ne_bytes());
        assert_eq!(block[16..18], versions.plane.to_ne_bytes());
        assert_eq!(block[20..24], (MAX_BODY as u32).to_ne_bytes());
        assert_eq!(block[36..44], 0x1122u64.to_ne_bytes());
        assert_eq!(block[44..48], 2u32.to_ne_bytes());
        assert!(block[48..].iter().all(|b| *b == 0));
    }
}
