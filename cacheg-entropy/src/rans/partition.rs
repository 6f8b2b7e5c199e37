//! How a large alphabet is cut into buckets: only the encoder's choice, tables say which.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::tables::MAX_BUCKETS;

/// Merging goes on below the maximum where it costs less than this, bits per symbol.
const FREE: f64 = 1.0 / 65_536.0;

/// Costs are compared as integers of this part of a bit.
const COST_UNIT: f64 = 1024.0;

/// Cuts an alphabet of 33 to 256 symbols with these counts into 2 to 32 aligned buckets and returns log2 of
/// their widths. Begins with single symbols and merges the siblings whose merger costs least, again and again.
pub(crate) fn partition(counts: &[u64]) -> Vec<u8> {
    let n = counts.len();
    let mut sums = vec![vec![0u64; n.next_power_of_two()]];
    sums[0][..n].copy_from_slice(counts);
    while let Some(below) = sums.last().filter(|level| level.len() > 1) {
        let level = below.as_chunks::<2>().0.iter().map(|[a, b]| a.saturating_add(*b)).collect();
        sums.push(level);
    }
    let mut whole: Vec<Vec<bool>> = sums.iter().map(|level| vec![false; level.len()]).collect();
    whole[0].fill(true);
    let total = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count)) as f64;
    // Mergers that are possible now, the cheapest on top: (cost, level of the siblings, index of the parent).
    // One stays possible until it is done, as siblings merge with each other alone.
    let candidate = |level: usize, parent: usize| {
        let cost = cost(sums[level][2 * parent], sums[level][2 * parent + 1]);
        Reverse(((cost * COST_UNIT) as u64, level, parent))
    };
    let mut candidates: BinaryHeap<_> = (0..sums[0].len() / 2).map(|parent| candidate(0, parent)).collect();
    let free = (total * FREE * COST_UNIT) as u64;
    let mut left = n;
    while let Some(Reverse((cost, level, parent))) = candidates.pop() {
        // The right sibling may lie beyond the alphabet: then the number of buckets stays.
        let merged = usize::from((2 * parent + 1) << level < n);
        if left - merged < 2 || (left <= MAX_BUCKETS && cost > free) {
            break;
        }
        left -= merged;
        (whole[level][2 * parent], whole[level][2 * parent + 1]) = (false, false);
        whole[level + 1][parent] = true;
        if whole[level + 1].get(parent ^ 1) == Some(&true) {
            candidates.push(candidate(level + 1, parent / 2));
        }
    }
    let mut bits = Vec::new();
    let mut base = 0;
    while base < n {
        let level = (0..whole.len()).find(|level| whole[*level][base >> level]).unwrap_or(0);
        bits.push(level as u8);
        base += 1 << level;
    }
    bits
}

/// Bits lost when two siblings with these counts are told apart by a raw bit.
fn cost(a: u64, b: u64) -> f64 {
    let (a, b) = (a as f64, b as f64);
    let part = |x: f64| if x > 0.0 { x * ((a + b) / x).log2() } else { 0.0 };
    (a + b - part(a) - part(b)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_aligned_and_cover_the_alphabet() {
        for n in 33..=256usize {
            let flat = vec![7; n];
            let peak: Vec<u64> =
                (0..n as u64).map(|i| 1 << (40 - i.abs_diff(n as u64 / 2).min(40))).collect();
            let last: Vec<u64> = (0..n).map(|i| u64::from(i + 1 == n)).collect();
            for counts in [flat, peak, last, vec![0; n]] {
                let bits = partition(&counts);
                assert!((2..=MAX_BUCKETS).contains(&bits.len()), "{n}: {bits:?}");
                let mut base = 0;
                for k in &bits {
                    assert!(base < n && base % (1 << k) == 0, "{n}: {bits:?}");
                    base += 1 << k;
                }
                assert!((n..=n.next_power_of_two()).contains(&base));
            }
        }
    }
}
