//! Option vector 5 of ibm,client-architecture-support, byte 23 (xics.md §6.2, §6.3).

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::machine::IcMode;

/// Byte 23, bits 0-1 (from the most significant): which controllers.
const BYTE_23: usize = 23;
/// "Either": what a platform may offer and a guest may not ask.
const EITHER: u8 = 0x80;
/// XIVE exploitation mode.
const XIVE: u8 = 0x40;

/// Why a guest's choice cannot be granted; the guest gets H_PARAMETER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CasError {
    /// The vector is missing or shorter than it says.
    #[error("the guest gave no option vector 5")]
    Missing,
    /// Byte 23 asks for both or for something undefined.
    #[error("option vector 5 byte 23 is {0:#04x}: not a choice")]
    NotAChoice(u8),
    /// The machine has no such controller.
    #[error("the guest asked for {asked:?}, which ic-mode {ic_mode:?} does not have")]
    Absent {
        /// What it asked for.
        asked: Mode,
        /// What there is.
        ic_mode: IcMode,
    },
}

/// The guest's choice. `vector` is option vector 5 as in the guest's table: a length byte L, then
/// L + 1 bytes, of which the first is byte 1. A vector that ends before byte 23 asks for XICS.
pub fn choose(vector: &[u8], ic_mode: IcMode) -> Result<Mode, CasError> {
    let (length, _) = vector.split_first().ok_or(CasError::Missing)?;
    let bytes = vector
        .get(..usize::from(*length) + 2)
        .ok_or(CasError::Missing)?;
    let byte = bytes.get(BYTE_23).copied().unwrap_or(0);
    let asked = match byte & (EITHER | XIVE) {
        0 => Mode::Xics,
        XIVE => Mode::Xive,
        _ => return Err(CasError::NotAChoice(byte)),
    };
    let present = match asked {
        Mode::Xics => ic_mode.has_xics(),
        Mode::Xive => ic_mode.has_xive(),
    };
    if present {
        Ok(asked)
    } else {
        Err(CasError::Absent { asked, ic_mode })
    }
}

/// Byte 23 of the negotiated vector.
pub fn byte_23(mode: Mode) -> u8 {
    match mode {
        Mode::Xics => 0,
        Mode::Xive => XIVE,
    }
}

/// Byte 23 of what the platform offers (`ibm,arch-vec-5-platform-support`).
pub fn platform_byte_23(ic_mode: IcMode) -> u8 {
    match ic_mode {
        IcMode::Xics => 0,
        IcMode::Xive => XIVE,
        IcMode::Dual => EITHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(len: u8, byte_23: u8) -> Vec<u8> {
        let mut v = vec![0; usize::from(len) + 2];
        v[0] = len;
        if let Some(b) = v.get_mut(BYTE_23) {
            *b = byte_23;
        }
        v
    }

    #[test]
    fn a_guest_gets_what_it_asks_for_where_the_machine_has_it() {
        use IcMode::*;
        for (ic_mode, byte, mode) in [
            (Dual, 0x00, Mode::Xics),
            (Dual, 0x40, Mode::Xive),
            (Xics, 0x00, Mode::Xics),
            (Xive, 0x40, Mode::Xive),
        ] {
            assert_eq!(choose(&vector(25, byte), ic_mode), Ok(mode));
        }
    }

    #[test]
    fn an_impossible_choice_is_an_error() {
        assert_eq!(
            choose(&vector(25, 0x80), IcMode::Dual),
            Err(CasError::NotAChoice(0x80))
        );
        assert_eq!(
            choose(&vector(25, 0xc0), IcMode::Dual),
            Err(CasError::NotAChoice(0xc0))
        );
        let absent = |asked, ic_mode| Err(CasError::Absent { asked, ic_mode });
        assert_eq!(
            choose(&vector(25, 0x40), IcMode::Xics),
            absent(Mode::Xive, IcMode::Xics)
        );
        assert_eq!(
            choose(&vector(25, 0), IcMode::Xive),
            absent(Mode::Xics, IcMode::Xive)
        );
    }

    #[test]
    fn a_short_vector_asks_for_xics_and_a_truncated_one_for_nothing() {
        assert_eq!(choose(&vector(4, 0), IcMode::Dual), Ok(Mode::Xics));
        assert_eq!(choose(&[], IcMode::Dual), Err(CasError::Missing));
        assert_eq!(choose(&[30, 0, 0], IcMode::Dual), Err(CasError::Missing));
        assert_eq!(
            choose(&[21; 23], IcMode::Dual),
            Ok(Mode::Xics),
            "byte 22 is the last"
        );
    }
}
