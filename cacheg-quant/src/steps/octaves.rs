//! Sizes in whole quarter-octaves, and all arithmetic of steps and classes with them.

use cacheg_core::{CLASS_OF_ONE, CLASSES, Result};

use super::grading::MIDDLE;
use crate::escaping;

/// 2^⅛, 2^⅜, 2^⅝ and 2^⅞: where one quarter-octave becomes the next.
const THRESHOLDS: [f64; 4] =
    [1.090_507_732_665_257_7, 1.296_839_554_651_009_6, 1.542_210_825_407_940_7, 1.834_008_086_409_342_4];

/// 1 and the quarter-octaves above it, of 8 significant bits.
const MANTISSA: [f64; 4] = [1.0, 1.1875, 1.414_062_5, 1.679_687_5];

/// Stored sizes are this more than they are.
const OFFSET: i32 = 128;

/// Smallest step: a 256th of it is still a normal number.
const LEAST: f32 = f32::from_bits((127 - 118) << 23);

/// The quarter-octaves nearest to a size, by comparisons alone: no two machines disagree. What is no normal positive
/// number is −4,096, infinity 4,096.
pub(super) fn quarter_octaves(x: f64) -> i32 {
    if x.is_nan() || x < f64::MIN_POSITIVE {
        return -4_096;
    }
    if x.is_infinite() {
        return 4_096;
    }
    let bits = x.to_bits();
    // The sign bit is clear.
    let exponent = (bits >> 52) as i32 - 1_023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1_023 << 52);
    let above = THRESHOLDS.iter().filter(|threshold| **threshold <= mantissa).count();
    4 * exponent + above as i32
}

/// Quarter-octaves as a tensor holds them; sizes beyond its range become its ends.
pub(super) fn stored(quarters: i32) -> u8 {
    (quarters.clamp(-OFFSET, OFFSET - 1) + OFFSET) as u8
}

/// What a tensor's number means.
pub(super) fn meant(stored: u8) -> i32 {
    i32::from(stored) - OFFSET
}

/// How units become steps and classes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    factor: f64,
    /// The factor's quarter-octaves.
    offset: i32,
    reach: u8,
}

impl Steps {
    /// `factor` is positive, `reach` is 1 to 127.
    pub(super) fn new(factor: f64, reach: u8) -> Self {
        Self { factor, offset: quarter_octaves(factor), reach }
    }

    pub(super) fn reach(self) -> u8 {
        self.reach
    }

    /// The step of a unit in quarter-octaves, −128 to 127. It has 8 significant bits.
    ///
    /// # Errors
    /// If a value within reach would not be finite.
    pub(super) fn step(self, unit: i32) -> Result<f32> {
        let power = f64::from_bits(((1_023 + i64::from(unit.div_euclid(4))).cast_unsigned()) << 52);
        let exact = MANTISSA[unit.rem_euclid(4) as usize] * power * self.factor;
        escaping::step(exact, LEAST, self.reach)
    }

    /// The unit of tokens of a grade.
    pub(super) fn graded(unit: i32, grade: usize) -> i32 {
        unit + 2 * (MIDDLE - grade as i32)
    }

    /// The class of a column: its deviation in steps.
    pub(super) fn class(self, scale: i32, unit: i32) -> u8 {
        let class = scale - unit - self.offset + i32::from(CLASS_OF_ONE);
        class.clamp(0, CLASSES as i32 - 1) as u8
    }
}
