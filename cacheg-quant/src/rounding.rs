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
pub(crate) fn absmax(values: &[f32]) -> Result<f32> {
    // Magnitudes of floats order like their bits; unlike floats, integers may be reduced in any order.
    let magnitude = |v: &f32| (v.to_bits() & 0x7fff_ffff).cast_signed();
    let max = f32::from_bits(values.iter().map(magnitude).fold(0, i32::max).cast_unsigned());
    if max.is_finite() { Ok(max) } else { Err(not_finite()) }
}

/// An integer that orders like the float, −0 below +0; its own inverse.
#[inline(always)]
pub(crate) fn ordered(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// The smallest and the largest of some values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    low: i32,
    high: i32,
}

impl Range {
    /// Of no values.
    pub(crate) const EMPTY: Self = Self { low: i32::MAX, high: i32::MIN };

    /// Of these values.
    pub(crate) fn of(values: &[f32]) -> Self {
        values.iter().fold(Self::EMPTY, |range, v| range.with(*v))
    }

    /// Of one more value.
    #[inline(always)]
    pub(crate) fn with(self, value: f32) -> Self {
        let key = ordered(value.to_bits().cast_signed());
        Self { low: self.low.min(key), high: self.high.max(key) }
    }

    /// Smallest and largest value.
    ///
    /// # Errors
    /// If there are none, or one is not finite.
    pub(crate) fn ends(self) -> Result<(f32, f32)> {
        let value = |key| f32::from_bits(ordered(key).cast_unsigned());
        let (low, high) = (value(self.low), value(self.high));
        if low.is_finite() && high.is_finite() { Ok((low, high)) } else { Err(not_finite()) }
    }
}

/// The error for values that no lossy stage can take.
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
    fn extremes() {
        let values = [0.5, -3.0, -0.0, 2.0, 1e-40];
        assert_eq!(absmax(&values).unwrap(), 3.0);
        assert_eq!(absmax(&[]).unwrap(), 0.0);
        assert_eq!(Range::of(&values).ends().unwrap(), (-3.0, 2.0));
        assert_eq!(Range::of(&[1e-40, 1e30]).ends().unwrap(), (1e-40, 1e30));
        assert!(Range::EMPTY.ends().is_err());
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(absmax(&[1.0, bad]).is_err());
            assert!(Range::of(&[1.0, bad]).ends().is_err(), "{bad}");
        }
    }
}
