//! Tables of the quantizer's classes, for contexts that calibration never saw: counts of each class drawn towards what its
//! symbols are if values are Laplacian.

use cacheg_core::{CLASS_OF_ONE, CLASSES};

use super::calibrate::drawn as drawn_towards;

/// How many symbols what is expected counts as.
const SYMBOLS: f64 = 8.0;

/// Expected frequencies are in units of this.
const UNITS: f64 = 4_294_967_296.0;

/// The counts of each class, drawn towards what is expected: a Laplacian of the class if symbols are symmetric around a
/// middle with an escape behind them, else what the nearest class has that was seen.
pub(super) fn drawn(counts: &[Vec<u64>], symmetric: bool) -> Vec<Vec<u64>> {
    let seen: Vec<usize> = (0..counts.len()).filter(|class| counts[*class].iter().any(|n| *n > 0)).collect();
    let each = counts.iter().enumerate().map(|(class, own)| {
        let expected = if symmetric {
            laplacian(class, own.len())
        } else {
            let others = seen.iter().filter(|other| **other != class);
            let nearest = others.min_by_key(|other| other.abs_diff(class));
            nearest.map_or_else(|| vec![1; own.len()], |nearest| counts[*nearest].clone())
        };
        drawn_towards(own, &expected, SYMBOLS)
    });
    each.collect()
}

/// How often each of `alphabet` symbols, the last an escape, occurs among values of a class, in 2^-32.
fn laplacian(class: usize, alphabet: usize) -> Vec<u64> {
    debug_assert!(class < CLASSES && alphabet.is_multiple_of(2));
    let quarters = class as f64 - f64::from(CLASS_OF_ONE);
    let decay = (quarters / 4.0).exp2() / std::f64::consts::SQRT_2;
    // Share of values beyond so many steps on both sides.
    let beyond = |steps: f64| (-steps / decay).exp();
    let reach = alphabet / 2 - 1;
    let share = |symbol: usize| match symbol.abs_diff(reach) {
        _ if symbol == alphabet - 1 => beyond(reach as f64 + 0.5),
        0 => 1.0 - beyond(0.5),
        size => (beyond(size as f64 - 0.5) - beyond(size as f64 + 0.5)) / 2.0,
    };
    (0..alphabet).map(|symbol| (share(symbol) * UNITS) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laplacians_are_symmetric_and_as_wide_as_their_class() {
        for class in 0..CLASSES {
            for alphabet in [4, 32, 256] {
                let shares = laplacian(class, alphabet);
                let total: u64 = shares.iter().sum();
                assert!((total as f64 / UNITS - 1.0).abs() < 1e-6, "{class} {alphabet}: {total}");
                let middle = alphabet / 2 - 1;
                assert!((0..middle).all(|q| shares[middle - q] == shares[middle + q]));
            }
        }
        // Variance in squared steps, of which rounding adds a twelfth.
        let shares = laplacian(48, 256);
        let squares = shares.iter().enumerate().map(|(s, share)| (s as f64 - 127.0).powi(2) * *share as f64);
        let variance = squares.sum::<f64>() / UNITS;
        assert!((variance - 16.0 - 1.0 / 12.0).abs() < 0.1, "{variance}");
    }

    #[test]
    fn what_was_seen_decides() {
        let mut counts = vec![vec![0; 4]; CLASSES];
        counts[40] = vec![0, 1_000_000, 0, 0];
        counts[50] = vec![0, 0, 1_000_000, 0];
        let share = |counts: &[u64], symbol: usize| counts[symbol] as f64 / counts.iter().sum::<u64>() as f64;
        let by_law = drawn(&counts, true);
        assert!(share(&by_law[40], 1) > 0.999_99 && share(&by_law[50], 2) > 0.999_99);
        // Not seen: the Laplacian alone, tiny and huge.
        assert!(share(&by_law[0], 1) > 0.999_99 && share(&by_law[95], 3) > 0.999);
        let nearest = drawn(&counts, false);
        assert!([&nearest[44], &nearest[0]].iter().all(|counts| share(counts, 1) > 0.99));
        assert!([&nearest[46], &nearest[95]].iter().all(|counts| share(counts, 2) > 0.99));
        assert!(drawn(&[vec![0; 3], vec![0; 3]], false).iter().all(|counts| counts[0] == counts[2]));
    }
}
