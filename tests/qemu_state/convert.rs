//! Migration streams of QEMU from and to our state.

use std::fs::File;
use std::path::Path;

use papr_intc::convert::Notes;
use papr_intc::convert::qemu::stream::Stream;
use papr_intc::convert::qemu::{self, Options};
use papr_intc_protocol::state::State;

/// The state in a stream; nothing of it was changed.
pub fn from_qemu(stream: &Path) -> State {
    let mut notes = Notes::default();
    let stream = Stream::read(&mut File::open(stream).unwrap()).unwrap();
    let state = qemu::read(&stream, &Options::default(), &mut notes).unwrap();
    assert_eq!(notes, Notes::default());
    state
}

/// Puts a state into the stream of its guest; the result is another file.
pub fn to_qemu(state: &State, into: &Path, out: &Path) {
    let mut notes = Notes::default();
    let mut original = File::open(into).unwrap();
    let mut stream = Stream::read(&mut original).unwrap();
    qemu::write(state, &mut stream, &Options::default(), &mut notes).unwrap();
    assert_eq!(notes, Notes::default());
    let mut out = File::create(out).unwrap();
    stream.write(&mut original, &mut out).unwrap();
}
