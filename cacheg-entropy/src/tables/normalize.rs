//! Weights to frequencies, in integers: part of the format.

/// Frequencies of a table sum to this.
pub(crate) const TOTAL: u64 = 1 << 16;

/// Makes frequencies that sum to 65,536 and are at least 1 from weights, of which there are 2 to 256.
///
/// With `W` the sum of the weights (if it is 0, all weights count as 1), `z` the number of zero weights and
/// `T = 65,536 − z`:
/// 1. `f = 1` where the weight is 0, else `max(1, ⌊(weight·T + ⌊W/2⌋) / W⌋)`.
/// 2. Let `m` be the largest `f`; entries with `2·f > m` are eligible. In ascending order, round after round,
///    each eligible entry gains (or loses) 1 until the sum is 65,536.
///
/// Weights that sum to `T` come back unchanged, so that finished frequencies are weights too. The largest
/// frequency is at most 65,535, as every other is at least 1. Step 2 cannot push an entry below 1: it takes
/// away at most `n` in all, and `e` eligible entries mean `m > 131,000 / (n + e)`.
pub(crate) fn normalize(weights: &[u64]) -> Vec<u16> {
    let sum: u64 = weights.iter().sum();
    // Products must stay within 64 bits; weights in files are 16 bits wide and never get here.
    if sum >= 1 << 47 {
        let shift = u64::BITS - sum.leading_zeros() - 47;
        return normalize(&weights.iter().map(|w| (w >> shift).max((*w).min(1))).collect::<Vec<_>>());
    }
    if sum == 0 {
        return normalize(&vec![1; weights.len()]);
    }
    let rest = TOTAL - weights.iter().filter(|w| **w == 0).count() as u64;
    let mut freqs: Vec<u64> =
        weights.iter().map(|w| if *w == 0 { 1 } else { ((w * rest + sum / 2) / sum).max(1) }).collect();
    let largest = freqs.iter().copied().max().unwrap_or(1);
    let total: u64 = freqs.iter().sum();
    let (mut missing, up) = (total.abs_diff(TOTAL), total < TOTAL);
    if missing > 0 {
        let eligible: Vec<usize> = (0..freqs.len()).filter(|i| 2 * freqs[*i] > largest).collect();
        for i in eligible.iter().cycle() {
            if missing == 0 {
                break;
            }
            freqs[*i] = if up { freqs[*i] + 1 } else { freqs[*i] - 1 };
            missing -= 1;
        }
    }
    freqs.into_iter().map(|f| f as u16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(weights: &[u64]) -> Vec<u16> {
        let freqs = normalize(weights);
        assert_eq!(freqs.iter().map(|f| u64::from(*f)).sum::<u64>(), TOTAL, "{weights:?}");
        assert!(freqs.iter().all(|f| *f >= 1));
        freqs
    }

    #[test]
    fn sums_and_floors_hold() {
        for n in 2..=256 {
            check(&vec![0; n]);
            check(&vec![1; n]);
            check(&vec![u64::from(u32::MAX); n]);
            let mut one = vec![0; n];
            one[n / 2] = 1 << 62;
            check(&one);
            // Every entry rounds up, many are lifted to 1.
            for huge in [1_000, 65_535, 100_000, 1 << 30] {
                let mut mixed = vec![1; n];
                mixed[0] = huge;
                check(&mixed);
                mixed[n - 1] = huge;
                check(&mixed);
            }
            check(&(0..n as u64).map(|i| i * i * i % 97).collect::<Vec<_>>());
        }
    }

    #[test]
    fn finished_frequencies_are_weights() {
        for n in [2, 3, 17, 32, 200, 256] {
            let freqs = check(&(0..n as u64).map(|i| (i * 7919) % 1009).collect::<Vec<_>>());
            let again: Vec<u64> = freqs.iter().map(|f| u64::from(*f)).collect();
            assert_eq!(normalize(&again), freqs);
            // Entries of 1 may be left out.
            let trimmed: Vec<u64> = again.iter().map(|f| if *f == 1 { 0 } else { *f }).collect();
            assert_eq!(normalize(&trimmed), freqs);
        }
    }
}
