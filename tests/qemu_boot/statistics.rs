//! Medians, and what a ratio of paired measurements is worth: a bootstrap over the pairs, with a fixed seed, so
//! that the same measurements give the same interval.

/// Resamplings of the pairs.
const RESAMPLES: usize = 10_000;
/// What lies outside of the interval at either end.
const TAIL: f64 = 0.025;

/// A ratio, and the interval that it lies in with 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        _ => sorted[n / 2],
    }
}

/// The median of the pairs' ratios `second / first`. Each pair was measured one after the other, so that what
/// else the machine did met both.
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Ratio> {
    let ratios: Vec<f64> = pairs.iter().map(|(first, second)| second / first).collect();
    if ratios.is_empty() || ratios.iter().any(|r| !r.is_finite()) {
        return None;
    }
    let mut seed = 1;
    let mut resample = vec![0.0; ratios.len()];
    let mut medians = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for value in &mut resample {
            *value = ratios[(next(&mut seed) % ratios.len() as u64) as usize];
        }
        medians.push(median(&resample));
    }
    medians.sort_by(f64::total_cmp);
    let at = |part: f64| medians[((RESAMPLES - 1) as f64 * part).round() as usize];
    Some(Ratio {
        ratio: median(&ratios),
        low: at(TAIL),
        high: at(1.0 - TAIL),
    })
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn equal_pairs_have_a_ratio_without_doubt() {
        let expected = Ratio {
            ratio: 1.25,
            low: 1.25,
            high: 1.25,
        };
        assert_eq!(ratio(&[(4.0, 5.0); 10]), Some(expected));
        assert_eq!(ratio(&[]), None);
        assert_eq!(ratio(&[(0.0, 1.0)]), None);
    }

    #[test]
    fn the_interval_holds_the_true_ratio_about_as_often_as_it_says() {
        let mut seed = 7;
        let mut noise = || 1.0 + (next(&mut seed) % 1_000) as f64 / 5_000.0;
        let mut held = 0;
        for _ in 0..100 {
            let pairs: Vec<(f64, f64)> = (0..10).map(|_| (noise(), 1.1 * noise())).collect();
            let r = ratio(&pairs).unwrap();
            assert!(r.low <= r.ratio && r.ratio <= r.high);
            held += u32::from(r.low <= 1.1 && 1.1 <= r.high);
        }
        assert!((85..=100).contains(&held), "{held} of 100");
    }

    #[test]
    fn the_same_measurements_give_the_same_interval() {
        let pairs: Vec<(f64, f64)> = (1..12).map(|n| (f64::from(n), f64::from(n * n))).collect();
        assert_eq!(ratio(&pairs), ratio(&pairs));
    }
}
