//! Round trips, sizes and refusals of message bodies.

use proptest::prelude::*;

use super::guest::{Hcall, Rtas};
use super::handshake::{Hello, HelloReply, SetMachine};
use super::source::{IrqfdItem, SetIrqfds};
use super::*;

#[test]
fn codes_are_unique_and_rise() {
    let codes: Vec<u32> = REQUESTS.iter().chain(RESERVED).map(|(c, _)| *c).collect();
    let mut sorted = codes.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), codes.len());
    assert!(codes.iter().all(|c| *c >= PAPR_CODES));
}

#[test]
fn fixed_bodies_keep_their_sizes() {
    assert_eq!(
        RequestHead {
            seq: 1,
            flags: 0,
            zero: 0
        }
        .to_bytes()
        .len(),
        16
    );
    assert_eq!(
        ReplyHead {
            seq: 1,
            status: 0,
            zero: 0
        }
        .to_bytes()
        .len(),
        16
    );
    let hcall = Hcall {
        server: 0,
        zero: 0,
        opcode: 0,
        args: [0; 9],
        time_base: 0,
    };
    assert_eq!(hcall.to_bytes().len(), 96);
    let rtas = Rtas {
        server: 0,
        call: 1,
        nargs: 0,
        nret: 0,
        args: [0; 16],
    };
    assert_eq!(rtas.to_bytes().len(), 80);
    assert_eq!(SetMachine { words: [0; 6] }.to_bytes().len(), 48);
}

#[test]
fn a_list_that_promises_more_than_it_holds_is_short() {
    let mut body = Vec::new();
    u32::MAX.put(&mut body);
    0u32.put(&mut body);
    assert_eq!(SetIrqfds::from_bytes(&body), Err(Malformed::Short));
}

#[test]
fn an_error_text_is_cut_at_a_character() {
    let text = "ü".repeat(MAX_TEXT);
    let body = error_body(7, 22, &text);
    let (head, rest) = split_reply(&body).unwrap();
    assert_eq!((head.seq, head.status), (7, -22));
    assert!(rest.len() <= MAX_TEXT && std::str::from_utf8(rest).is_ok());
}

#[test]
fn a_request_head_with_reserved_bits_is_refused() {
    for (seq, flags, zero) in [(0, 0, 0), (1, 2, 0), (1, 0, 1)] {
        let body = RequestHead { seq, flags, zero }.to_bytes();
        assert_eq!(split_request(&body), Err(Malformed::Reserved));
    }
}

proptest! {
    #[test]
    fn hello_survives(p in any::<[u16; 5]>(), features: u32, generation: u64, name in "\\PC{0,40}") {
        let hello = Hello {
            protocol_min: p[0], protocol_max: p[1], layout_min: p[2], layout_max: p[3],
            plane_abi: p[4], zero: 0, features, generation, name: Text(name),
        };
        prop_assert_eq!(Hello::from_bytes(&hello.to_bytes()), Ok(hello));
    }

    #[test]
    fn irqfds_survive(items in prop::collection::vec(any::<[u32; 3]>(), 0..50)) {
        let items = items.iter()
            .map(|i| IrqfdItem { lisn: i[0], kind: i[1], input: i[2], zero: 0 })
            .collect();
        let set = SetIrqfds { items };
        prop_assert_eq!(SetIrqfds::from_bytes(&set.to_bytes()), Ok(set));
    }

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = split_request(&body);
        let _ = Hello::from_bytes(&body);
        let _ = HelloReply::from_bytes(&body);
        let _ = SetIrqfds::from_bytes(&body);
        let _ = Rtas::from_bytes(&body);
    }
}
