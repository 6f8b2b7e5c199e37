//! How sure a mean over contexts is: by drawing contexts with replacement.

/// Resamples that are drawn.
const RESAMPLES: usize = 1_000;

/// Mean, and the interval that holds it in 90 % of resamples of the contexts; the same resamples for any values.
pub(crate) fn bootstrap(values: &[f64]) -> (f64, [f64; 2]) {
    let len = values.len().max(1) as f64;
    let means = resamples(values.len()).map(|picks| picks.iter().map(|at| values[*at]).sum::<f64>() / len);
    let interval = interval(means.collect());
    (values.iter().sum::<f64>() / len, interval.unwrap_or([f64::NAN; 2]))
}

/// Indices of what is drawn out of `len` things, so many in each resample; the same every time.
pub(crate) fn resamples(len: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut state = 0x5eed_u64;
    (0..RESAMPLES).map(move |_| (0..len).map(|_| (random(&mut state) % len as u64) as usize).collect())
}

/// What holds the middle 90 % of these.
pub(crate) fn interval(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_by(f64::total_cmp);
    let outside = values.len() / 20;
    values.get(outside).copied().zip(values.iter().nth_back(outside).copied()).map(|(low, high)| [low, high])
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
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
    fn intervals_are_the_same_every_time_and_hold_the_mean() {
        let values = [1.0, 2.0, 3.0, 4.0, 10.0];
        let (mean, [low, high]) = bootstrap(&values);
        assert_eq!(bootstrap(&values), (mean, [low, high]));
        assert_eq!(mean, 4.0);
        // The standard deviation of a mean of five is 1.41: 1.645 of it to either side, skewed to the right.
        assert!(low > 1.5 && low < 2.5 && high > 5.5 && high < 7.5, "{low} {high}");
        assert_eq!(bootstrap(&[7.0]), (7.0, [7.0, 7.0]));
        assert_eq!(bootstrap(&[2.0; 8]), (2.0, [2.0, 2.0]));
        assert_eq!(interval(vec![]), None);
        assert_eq!(interval((0..100).map(f64::from).collect()), Some([5.0, 94.0]));
    }
}
