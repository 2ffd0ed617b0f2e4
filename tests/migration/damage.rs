//! Streams that are cut or damaged are refused by the daemon, and the destination is as it was. (Every cut and
//! every flip of a bit is tried beside the code: `protocol/src/state/stream/tests.rs`.)

use nix::errno::Errno;
use papr_intc_frontend::protocol::layout::IcMode;

use crate::bench::{Bench, FIRST, How};
use crate::guest::*;

#[test]
fn the_destination_is_as_it_was_and_takes_the_good_stream_afterwards() {
    for how in [How::mapped(IcMode::Dual), How::remote(IcMode::Dual)] {
        let source = Bench::start(&how);
        for i in 0..40 {
            source.xics_source(FIRST + 0x300 + i, i % 3 == 0, i % 2);
            if i % 3 != 0 {
                source.trigger(FIRST + 0x300 + i);
            }
        }
        source.intc.quiesce(LONG).unwrap();
        let state = source.intc.state_save().unwrap();
        let there = destination(&source, &how);
        let before = there.intc.state_save().unwrap();
        let mut refusals = 0;
        let mut refuse = |bytes: &[u8]| {
            let (errno, text) = refused(there.intc.state_load(bytes));
            let possible = [Errno::EUCLEAN, Errno::EPROTONOSUPPORT, Errno::ENOTSUP];
            assert!(
                possible.iter().any(|e| *e as i32 == errno),
                "{errno}: {text}"
            );
            refusals += 1;
        };
        for length in (0..state.len()).step_by(7) {
            refuse(&state[..length]);
        }
        for bit in (0..state.len() * 8).step_by(29) {
            let mut damaged = state.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            refuse(&damaged);
        }
        assert!(refusals > 100);
        assert_eq!(there.intc.state_save().unwrap(), before);
        there.intc.state_load(&state).unwrap();
        assert_eq!(there.intc.state_save().unwrap(), state);
    }
}
