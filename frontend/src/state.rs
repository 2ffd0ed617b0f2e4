//! Moving a guest: its interrupt controllers' state goes out of one daemon and into another (SPEC.md
//! chapter 6).
//!
//! | | source | destination |
//! |---|---|---|
//! | 1 | [`Intc::state_header`], at any time | [`Intc::state_check`]: accept, or refuse with the reason |
//! | while it runs | RAM is sent: [`Intc::start_dirty_log`], [`Intc::take_dirty`] | |
//! | 2 | vCPUs and devices stopped, [`Intc::quiesce`], the last [`Intc::take_dirty`] | |
//! | 3 | [`Intc::state_save`] | started, vCPUs connected, quiesced; [`Intc::state_load`] |
//! | 4 | shut down | [`Intc::resume`] |
//! | if it fails | [`Intc::state_abort`], [`Intc::resume`] | [`Intc::state_abort`], or shut down |
//!
//! A daemon that dies in the middle costs a repetition: the state goes in pieces, and the next daemon says
//! that it has none of those of before.

use nix::errno::Errno;
use papr_intc_protocol::state::stream::MAX_STREAM;
use papr_intc_protocol::wire::Rest;
use papr_intc_protocol::wire::machine::{
    MAX_STATE_BYTES, StateAbort, StateBytes, StateCheck, StateHeader, StateLoad, StateRead,
    StateWrite,
};

use crate::error::Error;
use crate::intc::Intc;

/// So often a transfer may be cut, each time by a daemon that dies.
const MOST_CUTS: u32 = 100;

/// The daemon has none of the pieces of before: its predecessor had them.
fn is_cut<T>(done: &Result<T, Error>) -> bool {
    matches!(done, Err(Error::Refused { errno, .. }) if *errno == Errno::ENODATA as i32)
}

/// Does it again with the next daemon; not for ever, for the state may be what kills them.
fn repeated<T>(mut go: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..MOST_CUTS {
        let done = go();
        if !is_cut(&done) {
            return done;
        }
    }
    go()
}

/// What `read` gives at each offset, joined. A daemon that never comes to an end costs no more than a stream.
fn pieces(mut read: impl FnMut(u64) -> Result<StateBytes, Error>) -> Result<Vec<u8>, Error> {
    let mut state = Vec::new();
    loop {
        let StateBytes { total, bytes } = read(state.len() as u64)?;
        if state.is_empty() {
            state.reserve_exact(total.min(MAX_STREAM as u64) as usize);
        }
        state.extend_from_slice(&bytes.0);
        if state.len() as u64 == total {
            return Ok(state);
        }
        let more = state.len() as u64 > total;
        if more || bytes.0.is_empty() || total > MAX_STREAM as u64 {
            return Err(Error::Malformed {
                request: "STATE_READ",
                what: format!("{} bytes at {} of {total}", bytes.0.len(), state.len()),
            });
        }
    }
}

impl Intc {
    /// The head of the state, to be shown to the destination while the guest still runs.
    ///
    /// # Errors
    /// ENOTSUP: the machine has what its compat level cannot carry.
    pub fn state_header(&self) -> Result<Vec<u8>, Error> {
        let request = StateHeader { compat: 0, zero: 0 };
        self.ask(&request).map(|reply| reply.bytes.0)
    }

    /// May this machine take the state with that head? Asked of the destination before the source stops.
    ///
    /// # Errors
    /// [`Error::Refused`] with the errno that a load would give; the text names the item and both values.
    pub fn state_check(&self, head: &[u8]) -> Result<(), Error> {
        let head = Rest(head.to_vec());
        let verdict = self.ask(&StateCheck { head })?;
        if verdict.errno == 0 {
            return Ok(());
        }
        Err(Error::Refused {
            request: "STATE_CHECK",
            errno: verdict.errno.cast_signed(),
            text: verdict.text.0,
        })
    }

    /// The whole state. The machine is quiesced, and stays so; what devices trigger from now on is not in it.
    ///
    /// # Errors
    /// EBUSY: not quiesced. EUCLEAN: the pages hold what no guest can have caused.
    pub fn state_save(&self) -> Result<Vec<u8>, Error> {
        repeated(|| self.read_all())
    }

    fn read_all(&self) -> Result<Vec<u8>, Error> {
        pieces(|offset| {
            self.ask(&StateRead {
                offset,
                length: MAX_STATE_BYTES,
                zero: 0,
            })
        })
    }

    /// All of `state` takes effect on this machine, or nothing: which is quiesced, has its vCPUs, has claimed
    /// the numbers of its fixed devices, and has not run a guest.
    ///
    /// # Errors
    /// EBUSY: not quiesced. ENOTSUP: not for this machine, see [`state_check`](Self::state_check). EUCLEAN:
    /// damaged.
    pub fn state_load(&self, state: &[u8]) -> Result<(), Error> {
        repeated(|| self.write_all(state))
    }

    fn write_all(&self, state: &[u8]) -> Result<(), Error> {
        let mut offset = 0;
        // An empty one too has a first piece.
        for piece in state
            .chunks(MAX_STATE_BYTES as usize)
            .chain(state.is_empty().then_some(state))
        {
            let bytes = Rest(piece.to_vec());
            self.ask(&StateWrite { offset, bytes })?;
            offset += piece.len() as u64;
        }
        let total = state.len() as u64;
        self.ask(&StateLoad { total }).map(|_| ())
    }

    /// Gives a move up. A source forgets what it handed out; a destination that has loaded is back to reset.
    /// Either stays quiesced.
    pub fn state_abort(&self) -> Result<(), Error> {
        self.ask(&StateAbort {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_that_is_cut_is_repeated_and_not_for_ever() {
        let cut = || Error::Refused {
            request: "STATE_LOAD",
            errno: Errno::ENODATA as i32,
            text: String::new(),
        };
        let mut left = 20;
        let done = repeated(|| {
            left -= 1;
            if left > 0 { Err(cut()) } else { Ok(7) }
        });
        assert_eq!(done.unwrap(), 7);
        let mut asked = 0;
        let never: Result<(), Error> = repeated(|| {
            asked += 1;
            assert!(asked < 1000, "for ever");
            Err(cut())
        });
        assert!(is_cut(&never));
    }

    #[test]
    fn pieces_join_and_a_daemon_that_sends_more_than_it_said_is_refused() {
        let all: Vec<u8> = (0..100).collect();
        let honest = pieces(|offset| {
            let rest = &all[offset as usize..];
            let bytes = Rest(rest[..rest.len().min(33)].to_vec());
            Ok(StateBytes { total: 100, bytes })
        });
        assert_eq!(honest.unwrap(), all);
        for (total, sent) in [(1, 2), (50, 33), (100, 0), (u64::MAX, 1)] {
            let mut asked = 0;
            let refused = pieces(|_| {
                asked += 1;
                assert!(asked < 10, "asked again and again");
                let bytes = Rest(vec![0; sent]);
                Ok(StateBytes { total, bytes })
            });
            assert!(refused.is_err(), "{total} {sent}");
        }
    }
}
