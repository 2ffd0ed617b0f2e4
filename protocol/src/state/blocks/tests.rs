//! What is asked of a block at once is what is asked of its sources one by one.

use super::super::random::{self, Rng};
use super::*;

#[test]
fn bits_spans_and_bytes_say_the_same() {
    let mut rng = Rng::new(1);
    for word in [0, 1, u64::MAX, 1 << 63, u64::MAX >> 1]
        .into_iter()
        .chain((0..1000).map(|_| rng.word() & rng.word()))
    {
        assert_eq!(gathered(&spread(word, 1)), word);
        let each: Vec<u32> = (0..64).filter(|i| word >> i & 1 == 1).collect();
        assert_eq!(bits(word).collect::<Vec<_>>(), each);
        assert_eq!(spans(word).flatten().collect::<Vec<_>>(), each);
        assert_eq!(spans(word).fold(0, |all, span| all | mask(span)), word);
    }
}

/// One after the other, as [`Checker::listed`] does for a block that does not fit.
fn one_by_one<B: Block>(checker: &Checker<'_>, held: &Held<B>) -> bool {
    held.entries()
        .all(|(entry, kind)| B::check(checker, &entry, kind).is_ok())
}

/// Entries as random as their fields allow; about one of eight blocks is right.
fn agree<B: Block>(seed: u64, entry: impl Fn(&mut Rng, u32) -> B::Entry) -> bool {
    let mut rng = Rng::new(seed);
    let machine = random::machine(&mut rng);
    let state = random::state(&mut rng, machine, 50);
    let checker = Checker::new(&state.head, &state.claims).unwrap();
    let w = rng.below(machine.sources.div_ceil(u64::BITS));
    let mut held = Held::<B>::new();
    held.become_empty(w, Bitmaps(&state.claims).at(w), 0);
    for bit in 0..u64::BITS.min(machine.sources - held.first()) {
        if rng.one_in(20) {
            let number = held.first() + bit;
            held.block.set(bit as usize, &entry(&mut rng, number));
            held.listed |= 1 << bit;
        }
    }
    let right = one_by_one(&checker, &held);
    assert_eq!(checker.listed(&held).is_ok(), right, "seed {seed}");
    right
}

#[test]
fn a_block_fits_exactly_if_each_of_its_sources_does() {
    let mut right = 0;
    for seed in 0..20_000 {
        right += u32::from(agree::<XiveBlock>(seed, |rng, lisn| XiveSource {
            lisn,
            pq: rng.below(4) as u8,
            masked: rng.one_in(2),
            end: rng.below(14),
            eisn: if rng.one_in(9) { 1 << 31 } else { rng.below(2) },
        }));
        right += u32::from(agree::<XicsBlock>(seed, |rng, irq| XicsSource {
            irq,
            server: rng.below(2) as u16 * rng.below(3) as u16,
            priority: if rng.one_in(2) { 0xff } else { 5 },
            saved: if rng.one_in(3) { 0xff } else { 5 },
            sent: rng.one_in(5),
            rejected: rng.one_in(5),
            masked_pending: rng.one_in(5),
        }));
    }
    assert!((4_000..36_000).contains(&right), "{right} of 40,000");
}
