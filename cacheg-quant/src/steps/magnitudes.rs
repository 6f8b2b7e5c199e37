//! Histograms of magnitudes, of a size that does not depend on how many there are: eight bins for each octave, which is
//! fine enough for any step that is chosen later.

/// Bins of an octave, as a power of two: top bits of the mantissa.
const FINE: u32 = 3;

/// Magnitudes below 2^−32 are in the first bin, those above 2^32 in the last.
const BINS: usize = 64 << FINE;

/// The bin number of 2^−32 if bins were counted from the smallest number.
const FIRST: u32 = (127 - 32) << FINE;

/// Histograms of some columns.
#[derive(Debug, Clone)]
pub(super) struct Magnitudes(Vec<u32>);

impl Magnitudes {
    pub(super) fn new(cols: usize) -> Self {
        Self(vec![0; cols * BINS])
    }

    /// Counts a row's columns from `first`.
    pub(super) fn add<'v>(&mut self, first: usize, row: impl Iterator<Item = &'v f32>) {
        for (bins, x) in self.0.chunks_exact_mut(BINS).skip(first).zip(row) {
            let bin = (x.abs().to_bits() >> (23 - FINE)).saturating_sub(FIRST) as usize;
            let count = &mut bins[bin.min(BINS - 1)];
            *count = count.saturating_add(1);
        }
    }

    /// The histogram of a column.
    pub(super) fn column(&self, col: usize) -> &[u32] {
        &self.0[col * BINS..(col + 1) * BINS]
    }

    /// No counts yet, to add columns to.
    pub(super) fn nothing() -> Vec<u32> {
        vec![0; BINS]
    }
}

/// From which magnitude to which a bin goes.
pub(super) fn range(bin: usize) -> (f64, f64) {
    let edge = |bin: usize| f64::from(f32::from_bits((FIRST + bin as u32) << (23 - FINE)));
    (edge(bin), edge(bin + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_what_their_ranges_say() {
        let values = [1.0, -1.0, 0.37, 1.99, 1e-9, 3e9, 2f32.powi(-32)];
        for x in values {
            let mut magnitudes = Magnitudes::new(1);
            magnitudes.add(0, [x].iter());
            let bin = magnitudes.column(0).iter().position(|count| *count == 1).unwrap();
            let (low, high) = range(bin);
            let size = f64::from(x.abs());
            assert!(low <= size && size < high && high <= 1.126 * low, "{x}: {low} {high}");
        }
        let mut magnitudes = Magnitudes::new(3);
        magnitudes.add(0, [0.0, f32::INFINITY, 1e-40].iter());
        assert_eq!(magnitudes.column(0)[0] + magnitudes.column(2)[0], 2);
        assert_eq!(magnitudes.column(1)[BINS - 1], 1);
    }
}
