//! What one build speaks and understands: the numbers that two processes of different builds compare
//! (SPEC.md §1.10).
//!
//! A value, not constants: a daemon gets it from its `main`, so that a binary with other numbers can be
//! made of the same code (`examples/next_daemon`).

use crate::layout::header::{HeaderError, incompat};
use crate::layout::membarrier;
use crate::wire::handshake::feature;
use crate::{LAYOUT_MIN, LAYOUT_VERSION, PLANE_ABI, PROTOCOL_VERSION};

/// The versions of one build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Lowest protocol version spoken.
    pub protocol_min: u16,
    /// Highest.
    pub protocol_max: u16,
    /// Lowest layout whose memory this build goes on with. Memory is never changed from one layout to another.
    pub layout_min: u16,
    /// Highest, which new memory has if the other side understands it.
    pub layout: u16,
    /// Lowest plane ABI whose memory this build goes on with. New memory is made for this one, so that
    /// a build of before can take it back.
    pub plane_min: u16,
    /// The plane ABI that this build runs, and the highest whose memory it goes on with.
    pub plane: u16,
    /// Compat flags that a daemon of this build sets when it starts.
    pub compat_flags: u64,
    /// Incompat flags that this build understands.
    pub incompat_known: u64,
    /// Those of them whose thing it uses: set when it starts.
    pub incompat_used: u64,
    /// Feature bits of HELLO that this build has, where the machine has them too.
    pub features: u32,
    /// Name and version, for people.
    pub build: &'static str,
}

impl Versions {
    /// This build's; `build` is its name.
    pub const fn current(build: &'static str) -> Self {
        Self {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            layout_min: LAYOUT_MIN,
            layout: LAYOUT_VERSION,
            plane_min: PLANE_ABI,
            plane: PLANE_ABI,
            compat_flags: 0,
            incompat_known: incompat::LOADING,
            incompat_used: 0,
            features: feature::MEMBARRIER,
            build,
        }
    }

    /// The highest protocol version that both sides speak; `min` and `max` are the other's.
    pub fn common_protocol(&self, min: u16, max: u16) -> Option<u16> {
        highest_common((self.protocol_min, self.protocol_max), (min, max))
    }

    /// The feature bits of HELLO that this process can offer here.
    pub fn features_here(&self) -> u32 {
        match membarrier::is_available() {
            true => self.features,
            false => self.features & !feature::MEMBARRIER,
        }
    }

    /// The layouts whose memory this build goes on with: lowest and highest.
    pub fn layouts(&self) -> (u16, u16) {
        (self.layout_min, self.layout)
    }

    /// This build goes on with memory of this layout.
    pub fn knows_layout(&self, layout: u32) -> bool {
        (u32::from(self.layout_min)..=u32::from(self.layout)).contains(&layout)
    }

    /// Header word [`VERSIONS`](crate::layout::header::word::VERSIONS) of new memory.
    pub fn header_word(&self, layout: u16) -> u64 {
        u64::from(layout) | u64::from(self.plane_min) << 16
    }

    /// May this build go on with memory whose header has these words? Looks at the layout, the plane
    /// ABI, the incompat flags, in this order.
    pub fn check_memory(&self, versions: u64, incompat: u64) -> Result<(), HeaderError> {
        let (layout, plane) = (versions as u16, (versions >> 16) as u16);
        if !self.knows_layout(layout.into()) {
            return Err(HeaderError::Layout {
                found: layout,
                lowest: self.layout_min,
                highest: self.layout,
            });
        }
        if !(self.plane_min..=self.plane).contains(&plane) {
            return Err(HeaderError::PlaneAbi {
                found: plane,
                lowest: self.plane_min,
                highest: self.plane,
            });
        }
        match incompat & !self.incompat_known {
            0 => Ok(()),
            unknown => Err(HeaderError::Incompat {
                unknown,
                known: self.incompat_known,
            }),
        }
    }
}

/// The highest version in both ranges, of lowest and highest each.
pub fn highest_common(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let (lowest, highest) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (lowest <= highest).then_some(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: Versions = Versions {
        protocol_max: PROTOCOL_VERSION + 1,
        plane: PLANE_ABI + 1,
        incompat_known: incompat::LOADING | 2,
        ..Versions::current("next")
    };

    #[test]
    fn the_highest_common_protocol_is_chosen_or_none() {
        let v = Versions {
            protocol_min: 3,
            protocol_max: 5,
            ..NEXT
        };
        for (min, max, common) in [
            (1, 9, Some(5)),
            (4, 4, Some(4)),
            (1, 3, Some(3)),
            (5, 9, Some(5)),
            (1, 2, None),
            (6, 9, None),
            (5, 3, None),
        ] {
            assert_eq!(v.common_protocol(min, max), common, "{min} to {max}");
        }
    }

    #[test]
    fn memory_of_a_layout_of_before_is_taken_and_that_of_a_later_one_is_not() {
        let this = Versions::current("this");
        let before = Versions {
            layout: LAYOUT_MIN,
            ..this
        };
        assert_eq!(this.check_memory(this.header_word(LAYOUT_MIN), 0), Ok(()));
        let refused = before.check_memory(this.header_word(LAYOUT_VERSION), 0);
        assert!(matches!(refused, Err(HeaderError::Layout { .. })));
    }

    #[test]
    fn memory_of_a_later_plane_or_with_an_unknown_flag_is_refused_and_that_of_before_is_not() {
        let this = Versions::current("this");
        assert_eq!(
            NEXT.check_memory(this.header_word(LAYOUT_VERSION), 0),
            Ok(())
        );
        assert_eq!(
            this.check_memory(NEXT.header_word(LAYOUT_VERSION), 0),
            Ok(())
        );
        assert_eq!(
            NEXT.check_memory(NEXT.header_word(LAYOUT_VERSION), 2),
            Ok(())
        );
        let unknown = this.check_memory(NEXT.header_word(LAYOUT_VERSION), 2);
        assert_eq!(
            unknown,
            Err(HeaderError::Incompat {
                unknown: 2,
                known: incompat::LOADING
            })
        );
        let later = u64::from(this.layout) | u64::from(NEXT.plane) << 16;
        assert!(matches!(
            this.check_memory(later, 0),
            Err(HeaderError::PlaneAbi { .. })
        ));
        assert!(matches!(
            this.check_memory(later + 1, 0),
            Err(HeaderError::Layout { .. })
        ));
    }
}
