//! Codebooks of the standard normal distribution, where no entry can be moved for less mean squared error.
//!
//! Each entry is the mean of all that is nearest to it (Lloyd 1982, "Least squares quantization in PCM"; Max 1960,
//! "Quantizing for minimum distortion"). Found with Newton's method on that condition, rounded to 13 significant bits:
//! so many, since the product with a scale of 11 then is exact in `f32`.

/// Positive entries, ascending, in units of 2⁻¹¹; the negative ones are the same.
const HALVES: [&[u16]; 8] = [
    &[1634],
    &[927, 3093],
    &[502, 1548, 2752, 4407],
    &[263, 795, 1345, 1930, 2573, 3314, 4237, 5596],
    &[135, 406, 679, 956, 1239, 1530, 1832, 2148, 2482, 2839, 3228, 3660, 4155, 4747, 5511, 6678],
    &[
        68, 205, 343, 480, 619, 758, 899, 1041, 1185, 1330, 1478, 1629, 1783, 1940, 2101, 2266, 2437, 2613,
        2796, 2987, 3186, 3397, 3620, 3858, 4116, 4397, 4708, 5061, 5473, 5975, 6636, 7668,
    ],
    &[
        34, 103, 172, 241, 311, 380, 449, 519, 589, 659, 729, 799, 870, 941, 1013, 1085, 1158, 1230, 1304,
        1378, 1453, 1528, 1604, 1681, 1758, 1836, 1916, 1996, 2077, 2160, 2243, 2328, 2414, 2502, 2591, 2682,
        2775, 2869, 2966, 3065, 3166, 3270, 3377, 3487, 3601, 3718, 3840, 3966, 4097, 4235, 4379, 4530, 4691,
        4861, 5044, 5241, 5456, 5692, 5958, 6261, 6619, 7060, 7649, 8580,
    ],
    &[
        17, 52, 86, 121, 156, 190, 225, 260, 294, 329, 364, 399, 434, 468, 503, 538, 573, 608, 644, 679, 714,
        749, 785, 820, 856, 891, 927, 963, 999, 1035, 1071, 1107, 1144, 1180, 1217, 1254, 1291, 1328, 1365,
        1402, 1440, 1477, 1515, 1553, 1591, 1630, 1668, 1707, 1746, 1785, 1824, 1864, 1904, 1944, 1984, 2025,
        2066, 2107, 2148, 2190, 2232, 2274, 2317, 2360, 2403, 2447, 2491, 2536, 2580, 2626, 2671, 2718, 2764,
        2811, 2859, 2907, 2956, 3005, 3055, 3105, 3156, 3208, 3260, 3314, 3367, 3422, 3478, 3534, 3591, 3650,
        3709, 3769, 3831, 3893, 3957, 4022, 4089, 4156, 4226, 4297, 4370, 4445, 4522, 4601, 4682, 4766, 4853,
        4943, 5036, 5133, 5233, 5338, 5448, 5563, 5685, 5814, 5950, 6097, 6254, 6425, 6612, 6820, 7053, 7323,
        7642, 8040, 8574, 9428,
    ],
];

/// Most entries of one sign.
const MOST: usize = 128;

/// The codebook of a number of bits.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Codebook {
    bits: u8,
    /// By symbol, all `2^bits` of them; the others are 0.
    entries: [f32; 2 * MOST],
    /// Between neighbouring entries above 0, ascending, all `2^(bits−1) − 1` of them.
    thresholds: [f32; MOST - 1],
}

impl Codebook {
    /// Of 1 to 8 bits.
    pub(super) fn new(bits: u8) -> Self {
        let half = HALVES[usize::from(bits.clamp(1, 8)) - 1];
        let unit = |n: u16| f32::from(n) / 2048.0;
        let mut book = Self { bits, entries: [0.0; 2 * MOST], thresholds: [0.0; MOST - 1] };
        for (at, n) in half.iter().enumerate() {
            book.entries[half.len() + at] = unit(*n);
            book.entries[half.len() - 1 - at] = -unit(*n);
        }
        for (threshold, pair) in book.thresholds.iter_mut().zip(half.windows(2)) {
            // Exact: at most 15 significant bits.
            *threshold = (unit(pair[0]) + unit(pair[1])) / 2.0;
        }
        book
    }

    /// How many symbols there are.
    pub(super) fn alphabet(&self) -> u16 {
        1 << self.bits
    }

    /// Symbols below 0, which is also the symbol of 0.
    pub(super) fn half(&self) -> usize {
        1 << (self.bits - 1)
    }

    /// Positive entries, ascending, in units of 2⁻¹¹; all else follows from them.
    pub(super) fn halves(&self) -> &'static [u16] {
        HALVES[usize::from(self.bits.clamp(1, 8)) - 1]
    }

    /// What symbols stand for, to be multiplied by the scale.
    pub(super) fn entries(&self) -> &[f32; 2 * MOST] {
        &self.entries
    }

    /// The largest entry.
    pub(super) fn largest(&self) -> f32 {
        self.entries[usize::from(self.alphabet()) - 1]
    }

    /// Between neighbouring entries above 0, ascending.
    pub(super) fn thresholds(&self) -> &[f32] {
        &self.thresholds[..self.half() - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn density(x: f64) -> f64 {
        (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    /// Simpson's rule; the normal distribution ends at 12 here.
    fn integral(from: f64, to: f64, f: impl Fn(f64) -> f64) -> f64 {
        let (steps, width) = (2_000, (to.min(12.0) - from) / 2_000.0);
        let weight = |i: usize| if i == 0 || i == steps { 1.0 } else { [2.0, 4.0][i % 2] };
        (0..=steps).map(|i| weight(i) * f(from + i as f64 * width)).sum::<f64>() * width / 3.0
    }

    /// Every entry is the mean of what is nearest to it, up to the rounding of the entry and of its neighbours, and
    /// the error is what Max's table and TurboQuant's (1, 2, 3, 4 bits) say it is.
    #[test]
    fn entries_are_centroids() {
        // Max 1960, table I, to its five digits; beyond 5 bits from Panter and Dite's limit, π√3/2 · 4^−bits.
        let known = [0.3634, 0.1175, 0.03454, 0.009497, 0.002499];
        for bits in 1..=8u8 {
            let book = Codebook::new(bits);
            let entries = &book.entries()[book.half()..usize::from(book.alphabet())];
            assert!(entries.is_sorted() && entries[0] > 0.0);
            let mut error = 0.0;
            for (at, entry) in entries.iter().map(|entry| f64::from(*entry)).enumerate() {
                let ends = |at: usize| book.thresholds().get(at).map_or(12.0, |t| f64::from(*t));
                let (low, high) = (if at == 0 { 0.0 } else { ends(at - 1) }, ends(at));
                let mass = integral(low, high, density);
                let mean = integral(low, high, |x| x * density(x)) / mass;
                assert!((mean - entry).abs() < 1.1 / 2048.0, "{bits} bits, {at}: {entry}, mean {mean}");
                error += 2.0 * integral(low, high, |x| (x - entry).powi(2) * density(x));
            }
            let limit = std::f64::consts::PI * 3f64.sqrt() / 2.0 / 4f64.powi(i32::from(bits));
            let expected = known.get(usize::from(bits) - 1).copied().unwrap_or(limit);
            let slack = if bits <= 5 { 0.003 } else { 0.06 };
            assert!((error / expected - 1.0).abs() < slack, "{bits} bits: {error}, expected {expected}");
        }
    }

    /// Products with an f16 scale (11 significant bits) are exact if entries have 13.
    #[test]
    fn entries_have_13_significant_bits() {
        for bits in 1..=8 {
            let book = Codebook::new(bits);
            for entry in book.entries() {
                assert_eq!(entry.to_bits() & ((1 << 11) - 1), 0, "{entry}");
            }
            let entries = &book.entries()[..usize::from(book.alphabet())];
            assert!(entries.iter().zip(entries.iter().rev()).all(|(low, high)| *low == -*high));
        }
    }
}
