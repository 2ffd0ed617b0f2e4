//! Interrupt-controller state of others, from and to the neutral model (`papr_intc_protocol::state`).
//!
//! * [`command`]: `papr-intc state`; [`mod@file`]: formats of files; [`show`], [`json`]: a state for people and programs.
//! * [`qemu`]: a QEMU 7.2 migration stream, whole.
//! * [`kvm`]: device attributes of KVM, as a JSON document.
//! * [`inputs`]: what only we carry, settled before a state goes elsewhere; [`os_ring`]: what KVM computes.
//!
//! What another's format cannot say is settled in the way that loses no interrupt, and told in a [`Note`]; where
//! nothing of the kind exists, the conversion is refused with item and value. What comes in is outside
//! input: it is checked against xics.md §8.7's list, and by [`State::validate`].
//!
//! [`State::validate`]: papr_intc_protocol::state::State

pub mod command;
pub mod file;
pub mod inputs;
pub mod json;
pub mod kvm;
pub mod os_ring;
pub mod qemu;
#[cfg(test)]
mod random;
pub mod show;

use papr_intc_protocol::state::StreamError;
use papr_intc_protocol::state::validate::Invalid;

/// What a conversion changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Of which item.
    pub item: String,
    /// What was done.
    pub what: String,
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.item, self.what)
    }
}

/// Notes under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes(pub Vec<Note>);

impl Notes {
    /// One more.
    pub fn add(&mut self, item: impl Into<String>, what: impl Into<String>) {
        self.0.push(Note {
            item: item.into(),
            what: what.into(),
        });
    }
}

/// Why a state is not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A stream of ours that is refused.
    #[error(transparent)]
    State(#[from] StreamError),
    /// A migration file that cannot be taken apart.
    #[error(transparent)]
    Stream(#[from] qemu::stream::StreamError),
    /// A section that does not have its layout.
    #[error(transparent)]
    Section(#[from] qemu::sections::SectionError),
    /// Values that make no sense together.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// An item that cannot be converted.
    #[error("{item}: {what}")]
    Refused {
        /// Which item.
        item: String,
        /// Why, with the value.
        what: String,
    },
}

/// A refusal of one item.
pub(crate) fn refused(item: impl Into<String>, what: impl Into<String>) -> ConvertError {
    ConvertError::Refused {
        item: item.into(),
        what: what.into(),
    }
}
