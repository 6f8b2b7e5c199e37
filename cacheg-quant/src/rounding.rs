//! Rounding and extremes in forms that compilers turn into SIMD on every target.

use cacheg_core::{Error, Result};

/// 1.5 · 2²³: a sum with it has no fraction bits, so the addition itself rounds, ties to even.
const MAGIC: f32 = 12_582_912.0;

/// `y` rounded to nearest, ties to even, for |y| ≤ 2²². Baseline x86-64 has no rounding instruction, hence
/// not `f32::round_ties_even`, which is a function call there.
#[inline(always)]
pub(crate) fn round_even(y: f32) -> i32 {
    (y + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

/// Largest magnitude; 0 for none.
///
/// # Errors
/// If a value is not finite.
#[inline(always)]
pub(crate) fn absmax<'v>(values: impl Iterator<Item = &'v f32>) -> Result<f32> {
    // Magnitudes of floats order like their bits; unlike floats, integers may be reduced in any order.
    let magnitude = |v: &f32| (v.to_bits() & 0x7fff_ffff).cast_signed();
    let max = f32::from_bits(values.map(magnitude).fold(0, i32::max).cast_unsigned());
    if max.is_finite() { Ok(max) } else { Err(not_finite()) }
}

/// An integer that orders like the float of these bits, −0 below +0; its own inverse.
#[inline(always)]
fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// Smallest and largest of some values.
///
/// # Errors
/// If there are none, or one is not finite.
#[inline(always)]
pub(crate) fn extremes<'v>(values: impl Iterator<Item = &'v f32> + Clone) -> Result<(f32, f32)> {
    let key = |v: &f32| ordered(v.to_bits().cast_signed());
    // Two passes: each is a plain reduction.
    let low = values.clone().map(key).fold(i32::MAX, i32::min);
    let high = values.map(key).fold(i32::MIN, i32::max);
    ends(low, high)
}

/// Smallest and largest values of up to `N` columns, gathered row by row.
#[derive(Debug)]
pub(crate) struct Extremes<const N: usize> {
    low: [i32; N],
    high: [i32; N],
}

impl<const N: usize> Extremes<N> {
    /// Of no rows.
    pub(crate) const EMPTY: Self = Self { low: [i32::MAX; N], high: [i32::MIN; N] };

    /// Takes one more row.
    #[inline(always)]
    pub(crate) fn add<'v>(&mut self, row: impl Iterator<Item = &'v f32>) {
        for ((low, high), v) in self.low.iter_mut().zip(&mut self.high).zip(row) {
            let key = ordered(v.to_bits().cast_signed());
            *low = key.min(*low);
            *high = key.max(*high);
        }
    }

    /// Smallest and largest value of each column.
    ///
    /// # Errors
    /// Each fails if there are none, or one is not finite.
    pub(crate) fn columns(&self) -> impl Iterator<Item = Result<(f32, f32)>> {
        self.low.iter().zip(&self.high).map(|(low, high)| ends(*low, *high))
    }
}

#[inline(always)]
fn ends(low: i32, high: i32) -> Result<(f32, f32)> {
    let value = |key| f32::from_bits(ordered(key).cast_unsigned());
    let (low, high) = (value(low), value(high));
    if low.is_finite() && high.is_finite() { Ok((low, high)) } else { Err(not_finite()) }
}

/// The error for values that no lossy stage can take.
#[cold]
pub(crate) fn not_finite() -> Error {
    Error::data("a value is not finite (NaN, infinite, or a transform overflowed)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_ties_to_even() {
        for (y, q) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (0.499_999_97, 0), (-0.0, 0)] {
            assert_eq!(round_even(y), q, "{y}");
        }
        for i in -4000..4000 {
            let y = i as f32 * 0.126_3;
            assert_eq!(round_even(y) as f32, y.round_ties_even(), "{y}");
        }
        assert_eq!(round_even(4_194_304.0), 4_194_304);
        assert_eq!(round_even(-4_194_303.5), -4_194_304);
    }

    #[test]
    fn largest_and_smallest() {
        let values = [0.5, -3.0, -0.0, 2.0, 1e-40];
        assert_eq!(absmax(values.iter()).unwrap(), 3.0);
        assert_eq!(absmax([].iter()).unwrap(), 0.0);
        assert_eq!(extremes(values.iter()).unwrap(), (-3.0, 2.0));
        assert_eq!(extremes([1e-40, 1e30].iter()).unwrap(), (1e-40, 1e30));
        assert!(extremes([].iter()).is_err());
        let mut columns = Extremes::<4>::EMPTY;
        columns.add([1.0, -1.0, f32::NAN].iter());
        columns.add([3.0, -2.0, 0.0].iter());
        let ends: Vec<_> = columns.columns().map(Result::ok).collect();
        assert_eq!(ends, [Some((1.0, 3.0)), Some((-2.0, -1.0)), None, None]);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(absmax([1.0, bad].iter()).is_err());
            assert!(extremes([1.0, bad].iter()).is_err(), "{bad}");
        }
    }
}
