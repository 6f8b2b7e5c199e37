//! 16-bit formats of scales that travel as side information.
//!
//! Scales are rounded *outwards*, so that a grid built from them covers every value it was made for and no
//! quantizer has to clip. At most 11 significant bits make `symbol × scale` exact in `f32`.

use cacheg_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Format of a scale; two bytes, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleFormat {
    /// IEEE 754 binary16: 11 significant bits, up to 65,504.
    F16,
    /// bfloat16: 8 significant bits, the range of `f32`.
    Bf16,
}

/// Bits of +∞, which is one above the largest finite magnitude.
const F16_INF: u32 = 0x7c00;
const BF16_INF: u32 = 0x7f80;
/// Smallest normal f16, as f32 bits.
const F16_NORMAL: u32 = 113 << 23;

impl ScaleFormat {
    /// The smallest scale that is at least `v`, which is finite and not negative.
    ///
    /// # Errors
    /// If it is beyond the format's range.
    #[inline]
    pub(crate) fn up(self, v: f32) -> Result<u16> {
        let bits = v.to_bits();
        let code = match self {
            Self::Bf16 => (bits + 0xffff) >> 16,
            Self::F16 if bits >= F16_NORMAL => ((bits + 0x1fff) >> 13) - (112 << 10),
            Self::F16 => {
                // Subnormals are multiples of 2⁻²⁴.
                let units = v * 16_777_216.0;
                let whole = units as u32;
                whole + u32::from((whole as f32) < units)
            }
        };
        let infinity = match self {
            Self::F16 => F16_INF,
            Self::Bf16 => BF16_INF,
        };
        if code < infinity { Ok(code as u16) } else { Err(self.out_of_range(v)) }
    }

    /// The largest number that is at most `v`, which is finite.
    ///
    /// # Errors
    /// If it is beyond the format's range.
    #[inline]
    pub(crate) fn down(self, v: f32) -> Result<u16> {
        if v < 0.0 {
            return Ok(0x8000 | self.up(-v).map_err(|_| self.out_of_range(v))?);
        }
        let bits = v.to_bits() & 0x7fff_ffff;
        let code = match self {
            Self::Bf16 => bits >> 16,
            Self::F16 if bits >= F16_NORMAL => ((bits >> 13) - (112 << 10)).min(F16_INF - 1),
            Self::F16 => (v * 16_777_216.0) as u32,
        };
        Ok(code as u16)
    }

    /// The number that `code` stands for.
    #[inline]
    pub(crate) fn value(self, code: u16) -> f32 {
        let code = u32::from(code);
        match self {
            Self::Bf16 => f32::from_bits(code << 16),
            Self::F16 => {
                let (sign, magnitude) = ((code & 0x8000) << 16, code & 0x7fff);
                if magnitude >= F16_INF {
                    return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
                }
                // The factor 2¹¹² moves the exponent's bias and normalises subnormals, exactly.
                let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
                f32::from_bits(sign | scaled.to_bits())
            }
        }
    }

    /// A scale from side information.
    ///
    /// # Errors
    /// If it is negative or not finite.
    #[inline]
    pub(crate) fn read_scale(self, code: u16) -> Result<f32> {
        let v = self.value(code);
        if code < 0x8000 && v.is_finite() { Ok(v) } else { Err(impossible()) }
    }

    #[cold]
    fn out_of_range(self, v: f32) -> Error {
        match self {
            Self::F16 => Error::data(format!("scale {v:e} is beyond f16; use `scale=bf16`")),
            Self::Bf16 => Error::data(format!("scale {v:e} is beyond bf16")),
        }
    }
}

/// The error for side information that no encoder writes.
#[cold]
pub(crate) fn impossible() -> Error {
    Error::corrupt("an impossible scale")
}

/// The two bytes of one number in side information; `at` counts numbers.
#[inline]
pub(crate) fn get(side: &[[u8; 2]], at: usize) -> Result<u16> {
    side.get(at).map(|b| u16::from_le_bytes(*b)).ok_or_else(|| Error::corrupt("side information is cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cacheg_core::Dtype;

    fn both() -> [(ScaleFormat, Dtype); 2] {
        [(ScaleFormat::F16, Dtype::F16), (ScaleFormat::Bf16, Dtype::Bf16)]
    }

    #[test]
    fn values_are_those_of_core() {
        for (format, dtype) in both() {
            for code in 0..=u16::MAX {
                let mut wide = [0.0];
                dtype.widen(&code.to_le_bytes(), &mut wide);
                assert_eq!(format.value(code).to_bits(), wide[0].to_bits(), "{dtype} {code:#x}");
            }
        }
    }

    #[test]
    fn rounding_is_outward_and_tight() {
        for (format, dtype) in both() {
            let finite = (0..0x7fffu16).filter(|code| format.value(*code).is_finite());
            for code in finite {
                let v = format.value(code);
                assert_eq!(format.up(v).unwrap(), code, "{dtype} {v:e}");
                assert_eq!(format.down(v).unwrap(), code, "{dtype} {v:e}");
                if code > 0 {
                    assert_eq!(format.down(-v).unwrap(), code | 0x8000, "{dtype} -{v:e}");
                    let below = v.next_down();
                    assert_eq!(format.up(below).unwrap(), code, "{dtype} below {v:e}");
                    // Between a number and zero there may be no other f32, in bf16's subnormals.
                    assert_eq!(format.down(below).unwrap(), code - 1, "{dtype} below {v:e}");
                    assert_eq!(format.down(-below).unwrap(), code | 0x8000, "{dtype} above -{v:e}");
                }
            }
        }
    }

    #[test]
    fn range_errors_name_the_remedy() {
        assert!(ScaleFormat::F16.up(65504.5).unwrap_err().to_string().contains("scale=bf16"));
        assert!(ScaleFormat::F16.down(-65504.5).is_err());
        assert_eq!(ScaleFormat::F16.down(1e9).unwrap(), 0x7bff);
        assert!(ScaleFormat::Bf16.up(f32::MAX).is_err());
        assert!(ScaleFormat::Bf16.down(-f32::MAX).is_err());
        for code in [0x7c00, 0x7e00, 0x8001, 0xfc00] {
            assert!(ScaleFormat::F16.read_scale(code).is_err(), "{code:#x}");
        }
        assert!(
            ScaleFormat::Bf16.read_scale(0x7f80).is_err() && ScaleFormat::Bf16.read_scale(0x8000).is_err()
        );
    }
}
