//! QEMU 7.2 pseries: its migration file, and the sections that belong to the interrupt controllers.
//!
//! * [`stream`]: the file, cut into devices by its [`description`].
//! * [`sections`]: the payloads, field by field; [`controllers`]: all of one file, found by name.
//! * [`vcpus`], [`end`], [`ring`]: the numbers and words that need interpretation.
//! * [`import`], [`export`]: from and to the model.

pub mod controllers;
pub mod description;
pub mod end;
pub mod export;
pub mod import;
pub mod ring;
pub mod sections;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod vcpus;

use papr_intc_protocol::state::State;

use self::controllers::Controllers;
use self::sections::ByteOrder;
use self::stream::Stream;
use super::{ConvertError, Notes, refused};

/// What a state from QEMU says of its origin.
pub const PRODUCER: &str = concat!("papr-intc ", env!("CARGO_PKG_VERSION"), ", from QEMU");
/// Byte 23 of option vector 5: XIVE exploitation mode.
const OV5_XIVE: u8 = 0x40;

/// What a stream does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Server numbers of the machine; a stream with XIVE says it.
    pub servers: Option<u32>,
    /// Server numbers from one vCPU index to the next; a stream with XIVE says what comes of it.
    pub vsmt: Option<u32>,
    /// Byte order of the XIVE tables; guessed if not given.
    pub byte_order: Option<ByteOrder>,
}

/// The state in a stream.
pub fn read(stream: &Stream, options: &Options, notes: &mut Notes) -> Result<State, ConvertError> {
    import::import(&controllers(stream, options)?, options, notes)
}

/// Puts a state into a stream of the same machine. With a byte order in the options, the tables are written in it,
/// else as the stream has them.
pub fn write(
    state: &State,
    stream: &mut Stream,
    options: &Options,
    notes: &mut Notes,
) -> Result<(), ConvertError> {
    let found = Options {
        byte_order: None,
        ..*options
    };
    let into = controllers(stream, &found)?;
    let mut out = export::export(state, &into, options, notes)?;
    if let Some((xive, order)) = out.xive.as_mut().zip(options.byte_order) {
        xive.order = order;
    }
    out.write(stream)
}

fn controllers(stream: &Stream, options: &Options) -> Result<Controllers, ConvertError> {
    if !stream.machine().starts_with("pseries") {
        let what = format!("{:?} is no pseries", stream.machine());
        return Err(refused("machine", what));
    }
    Controllers::read(stream, options.byte_order)
}
