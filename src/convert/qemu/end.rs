//! Words of an END (xive.md §3.1), as hcalls of a pseries guest can make them.
//!
//! Not looked at: ESe in word 1, and all of an END that is not valid; no hcall shows or uses them.

use papr_intc_protocol::state::model::End;

use super::vcpus::NVT_BASE;
use crate::convert::{ConvertError, refused};

const VALID: u32 = 0x8000_0000;
const ENQUEUE: u32 = 0x4000_0000;
const ALWAYS_NOTIFY: u32 = 0x2000_0000;
const SIZE: u32 = 0x000f_0000;
const SIZE_SHIFT: u32 = 16;
const SMALLEST: u8 = 12;
const ESN_SHIFT: u32 = 30;
const GENERATION: u32 = 0x0040_0000;
const INDEX: u32 = 0x003f_ffff;
const ADDRESS_HIGH: u32 = 0x0fff_ffff;
const PRIORITY_SHIFT: u32 = 16;

/// An END that is not configured: ESn and ESe are off.
pub const RESET: [u32; 8] = [0, 0x5000_0000, 0, 0, 0, 0, 0, 0];

/// From the words of the END at `index`; `None` if it is not valid.
///
/// # Errors
/// Words that no hcall makes: another target than its place in the table, escalation, backlog.
pub fn read(index: u32, words: &[u32; 8]) -> Result<Option<End>, ConvertError> {
    let [w0, w1, w2, w3, ..] = *words;
    if w0 & VALID == 0 {
        return Ok(None);
    }
    let known = VALID | ENQUEUE | ALWAYS_NOTIFY | SIZE;
    let target = target(index);
    let wrong = [
        (0, w0, w0 & !known == 0 && w0 & ENQUEUE != 0),
        (2, w2, w2 & !ADDRESS_HIGH == 0),
        (4, words[4], words[4] == 0),
        (5, words[5], words[5] == 0),
        (6, words[6], words[6] == target[0]),
        (7, words[7], words[7] == target[1]),
    ];
    if let Some((n, word, _)) = wrong.iter().find(|(.., fine)| !fine) {
        let what = format!("word {n} is {word:#010x}, which no guest can have made");
        return Err(refused(format!("END {index:#x}"), what));
    }
    Ok(Some(End {
        end: index,
        address: u64::from(w2) << 32 | u64::from(w3),
        size: SMALLEST + (w0 >> SIZE_SHIFT & 0xf) as u8,
        always_notify: w0 & ALWAYS_NOTIFY != 0,
        generation: w1 & GENERATION != 0,
        index: w1 & INDEX,
        esn: (w1 >> ESN_SHIFT) as u8,
    }))
}

/// The words of a configured END. Its size is one of a [valid](papr_intc_protocol::state::State::validate) state.
pub fn write(end: &End) -> [u32; 8] {
    let notify = if end.always_notify { ALWAYS_NOTIFY } else { 0 };
    let size = u32::from(end.size.saturating_sub(SMALLEST)) << SIZE_SHIFT;
    let generation = if end.generation { GENERATION } else { 0 };
    let [w6, w7] = target(end.end);
    [
        VALID | ENQUEUE | notify | size,
        u32::from(end.esn) << ESN_SHIFT | generation | end.index & INDEX,
        (end.address >> 32) as u32,
        end.address as u32,
        0,
        0,
        w6,
        w7,
    ]
}

/// Words 6 and 7: the vCPU and priority that the index says.
fn target(index: u32) -> [u32; 2] {
    [NVT_BASE + (index >> 3), (index & 7) << PRIORITY_SHIFT]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Server 1, priority 6, a queue of 64 KiB above 4 GiB, in its second lap.
    const WORDS: [u32; 8] = [
        0xe004_0000,
        0x0000_0123,
        0x0000_0001,
        0x0005_0000,
        0,
        0,
        0x0000_0401,
        0x0006_0000,
    ];

    fn queue() -> End {
        End {
            end: 14,
            address: 0x1_0005_0000,
            size: 16,
            always_notify: true,
            generation: false,
            index: 0x123,
            esn: 0,
        }
    }

    #[test]
    fn words_and_queues() {
        assert_eq!(read(14, &WORDS).unwrap(), Some(queue()));
        assert_eq!(write(&queue()), WORDS);
        let other = End {
            generation: true,
            always_notify: false,
            esn: 2,
            size: 24,
            address: 0x0fff_ffff_ff00_0000,
            ..queue()
        };
        assert_eq!(read(14, &write(&other)).unwrap(), Some(other));
        assert_eq!(read(14, &RESET).unwrap(), None);
    }

    #[test]
    fn what_no_hcall_makes_is_refused_with_its_word() {
        for (n, word) in [
            (0, 0xa004_0000), // nothing is queued
            (0, 0xf004_0000), // backlog
            (2, 0x1000_0001),
            (4, 1),
            (5, 1),
            (6, 0x0000_0402),
            (7, 0x0005_0000),
        ] {
            let mut words = WORDS;
            words[n] = word;
            let error = read(14, &words).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("END 0xe: word {n} is {word:#010x}")),
                "{error}"
            );
        }
    }
}
