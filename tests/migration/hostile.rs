//! Heads and streams whose author wishes us ill: one short line says no, and the daemon serves on.

use papr_intc_frontend::protocol::layout::IcMode;
use papr_intc_frontend::protocol::papr::codes::{RtasCall, opcode};

use crate::bench::{Bench, How};
use crate::guest::*;

/// A stream of one section "head" with these fields of its message: numbers and bytes.
fn head(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut payload = vec![1 << 3, 1]; // the format
    for (number, bytes) in fields {
        payload.push(number << 3 | 2);
        let mut length = bytes.len();
        while length > 0x7f {
            payload.push(length as u8 | 0x80);
            length >>= 7;
        }
        payload.push(length as u8);
        payload.extend_from_slice(bytes);
    }
    let mut section = [0; 24];
    section[..4].copy_from_slice(b"head");
    section[16] = 1;
    section[20..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut section = section.to_vec();
    section.extend_from_slice(&payload);
    let crc = crc32fast::hash(&section);
    [b"PAPRSTAT".as_slice(), &section, &crc.to_le_bytes()].concat()
}

/// Field 4 of a head: a capability of this name.
fn capability(name: &[u8]) -> Vec<u8> {
    let length = name.len();
    [
        &[
            0x0a,
            length as u8 | 0x80,
            (length >> 7) as u8 | 0x80,
            (length >> 14) as u8,
        ],
        name,
    ]
    .concat()
}

#[test]
fn names_of_any_length_are_refused_in_one_short_line() {
    let there = Bench::start(&How::mapped(IcMode::Dual));
    there.intc.quiesce(LONG).unwrap();
    let pid = there.intc.daemon_pid();
    // As long as a message can carry it.
    let long = [b'x'; 65_478];
    for bad in [
        head(&[(3, &long)]),
        head(&[(3, b"papr-1"), (4, &capability(&long[..65_300]))]),
        head(&[(3, b"a\nb\x1b[2J")]),
        head(&[(3, b"papr-1"), (4, &capability(b"a\nb"))]),
    ] {
        let (_, text) = refused(there.intc.state_check(&bad));
        assert!(text.len() < 300, "{} bytes", text.len());
        assert!(!text.contains(char::is_control), "{text:?}");
        let (_, said) = refused(there.intc.state_load(&bad));
        assert_eq!(said, text);
    }
    assert_eq!(there.intc.daemon_pid(), pid, "the daemon was replaced");
}

/// Every value of this state is random, and no guest has ever been in it: queues outside of RAM, what is presented to
/// vCPUs that refuse it, levels and latches everywhere. A guest on it may fare ill; the daemon may not.
#[test]
fn a_daemon_survives_a_guest_in_a_state_of_random_values() {
    let path = "protocol/vectors/state/1-busy.state";
    let state = std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    for how in [How::mapped(IcMode::Dual), How::remote(IcMode::Dual)] {
        let there = Bench::start_with(&how, |options| {
            options.machine.sources = 0x1100;
            options.machine.servers = 4;
            options.machine.store_eoi = true;
        });
        let _more = [2, 3].map(|server| there.intc.connect_vcpu(server).unwrap());
        let pid = there.intc.daemon_pid();
        there.intc.quiesce(LONG).unwrap();
        there.intc.state_load(&state).unwrap();
        there.intc.resume(None).unwrap();
        for round in 0..2 {
            for lisn in 0..0x1100u32 {
                // What comes of it is the guest's business, errors too.
                let _ = there.intc.source(lisn).map(|source| source.trigger());
                let _ = there.vcpus[0].rtas(RtasCall::SetXive, &[lisn, lisn % 4, 5], 1);
                there.hcall(0, opcode::H_EOI, &[5 << 24 | u64::from(lisn)]);
                esb(&there, lisn, [0, 0x800, 0xc00, 0xd00][lisn as usize % 4]);
            }
            for server in [0, 1] {
                set_cppr(&there, server, 0xff);
                acknowledge(&there, server);
                there.hcall(server, opcode::H_CPPR, &[0xff]);
                there.hcall(server, opcode::H_XIRR, &[]);
            }
            // To the other controller, then back to reset.
            match round {
                0 => drop(there.vcpus[0].cas(&[0u8; 26]).unwrap()),
                _ => there.intc.machine_reset(true).unwrap(),
            }
        }
        assert_eq!(there.intc.daemon_pid(), pid);
    }
}
