//! The numbers that a daemon announces and checks; those of this build, or of a build yet to come.
//!
//! They are a value, not constants, so that a second real binary (`examples/next_daemon`) can be
//! the daemon of a later release in the tests of upgrade and roll-back. Rules (SPEC.md §1.2, §2.2): the
//! highest common protocol is chosen; an unknown compat flag is ignored, an unknown incompat flag refused;
//! a daemon sets an incompat flag only when the thing is used; a layout is never changed in place.

use papr_intc_protocol::{LAYOUT_VERSION, PLANE_ABI, PROTOCOL_VERSION};

/// What a daemon speaks and knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Oldest protocol that it speaks.
    pub protocol_min: u16,
    /// Newest.
    pub protocol_max: u16,
    /// Layout of the shared memory.
    pub layout: u16,
    /// Plane ABI that it trusts a front-end with: one with another number is asked to leave the data plane
    /// to the daemon.
    pub plane: u16,
    /// Compat flags that it sets in a memory that it takes or makes.
    pub compat_flags: u64,
    /// Incompat flags that it knows, and sets.
    pub incompat_flags: u64,
    /// Name and version, for people.
    pub text: &'static str,
}

impl Versions {
    /// Of this build.
    pub const OWN: Self = Self {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        layout: LAYOUT_VERSION,
        plane: PLANE_ABI,
        compat_flags: 0,
        incompat_flags: 0,
        text: concat!("papr-intc ", env!("CARGO_PKG_VERSION")),
    };

    /// The protocol to speak with a front-end that speaks `min` to `max`.
    pub fn protocol(&self, min: u16, max: u16) -> Option<u16> {
        let newest = self.protocol_max.min(max);
        (newest >= self.protocol_min.max(min)).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_protocol_is_spoken() {
        let two = Versions {
            protocol_min: 3,
            protocol_max: 4,
            ..Versions::OWN
        };
        let cases = [
            ((1, 2), None),
            ((1, 3), Some(3)),
            ((3, 9), Some(4)),
            ((4, 4), Some(4)),
            ((5, 9), None),
            ((9, 3), None),
        ];
        for ((min, max), chosen) in cases {
            assert_eq!(two.protocol(min, max), chosen, "{min} to {max}");
        }
    }
}
