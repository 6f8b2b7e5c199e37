//! One group's grid: from its range to 16-bit side information, from there to symbols and values.

use cacheg_core::{Error, Result};

use crate::ScaleFormat;
use crate::rounding::{absmax, extremes, round_even};
use crate::scale::{get, impossible};

/// How grids are made: levels, centre, format.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    /// Steps from zero (or the minimum) to the largest value: `C`, or `L`.
    steps: f32,
    /// The symbol of zero, `C`; 0 with a zero point.
    centre: i32,
    zero: bool,
    format: ScaleFormat,
}

impl Rule {
    /// Of 1 to 8 bits; at least 2 if symmetric.
    pub(super) fn new(bits: u8, zero: bool, format: ScaleFormat) -> Self {
        let steps: u16 = if zero { (1 << bits) - 1 } else { (1 << (bits - 1)) - 1 };
        Self { steps: f32::from(steps), centre: if zero { 0 } else { i32::from(steps) }, zero, format }
    }

    /// How many different symbols there are.
    pub(super) fn alphabet(&self) -> u16 {
        (self.steps as i32 + self.centre + 1) as u16
    }

    /// For WGSL: zero points, steps, centre, format.
    pub(super) fn words(&self) -> [u32; 4] {
        let bf16 = self.format == ScaleFormat::Bf16;
        [u32::from(self.zero), self.steps as u32, self.centre.cast_unsigned(), u32::from(bf16)]
    }

    /// The symbol of `q = 0`.
    #[inline(always)]
    pub(super) fn centre(&self) -> i32 {
        self.centre
    }

    /// Bytes of side information of one group.
    pub(super) fn side_len(&self) -> usize {
        if self.zero { 4 } else { 2 }
    }

    /// Makes the grid that covers some values, and its side information.
    #[inline(always)]
    pub(super) fn encode<'v>(
        &self,
        x: impl Iterator<Item = &'v f32> + Clone,
        side: &mut [u8],
    ) -> Result<Grid> {
        if self.zero {
            let (low, high) = extremes(x)?;
            self.encode_ends(low, high, side)
        } else {
            let high = absmax(x)?;
            self.encode_ends(-high, high, side)
        }
    }

    /// Makes the grid that covers all from `low` to `high`, and its side information.
    #[inline]
    pub(super) fn encode_ends(&self, low: f32, high: f32, side: &mut [u8]) -> Result<Grid> {
        let numbers = side.as_chunks_mut::<2>().0;
        let (offset, extent) = if self.zero {
            // Adding zero turns −0 into +0, so that equal groups have equal bytes.
            let code = self.format.down(low + 0.0)?;
            numbers[0] = code.to_le_bytes();
            let offset = self.format.value(code);
            (offset, high - offset)
        } else {
            (0.0, high.max(-low))
        };
        // Not negative, but of zeros it may be −0, which `up` does not take.
        let extent = extent.abs();
        if !extent.is_finite() {
            return Err(too_large(low, high));
        }
        let code = self.format.up(extent / self.steps)?;
        numbers[usize::from(self.zero)] = code.to_le_bytes();
        self.check(offset, self.format.value(code)).ok_or_else(|| too_large(low, high))
    }

    /// Reads the grid from side information.
    #[inline]
    pub(super) fn decode(&self, side: &[u8]) -> Result<Grid> {
        let numbers = side.as_chunks::<2>().0;
        let offset = if self.zero { self.format.value(get(numbers, 0)?) } else { 0.0 };
        let scale = self.format.read_scale(get(numbers, usize::from(self.zero))?)?;
        self.check(offset, scale).ok_or_else(impossible)
    }

    /// A grid, if its ends are finite; all between them then is, too.
    #[inline(always)]
    fn check(&self, offset: f32, scale: f32) -> Option<Grid> {
        let end = offset + self.steps * scale;
        (offset.is_finite() && end.is_finite()).then_some(Grid { offset, scale })
    }
}

#[cold]
fn too_large(low: f32, high: f32) -> Error {
    Error::data(format!("values from {low:e} to {high:e} are too large to be quantised"))
}

/// The values `offset + q · scale`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// The value of `q = 0`.
    pub(super) offset: f32,
    /// The distance of neighbours.
    pub(super) scale: f32,
}

impl Grid {
    /// The symbol of a value in the range that the grid was made for.
    ///
    /// No clamp: the quotient of the range's end exceeds `steps` by less than half, since `scale` was rounded
    /// up from it and subtraction and division are monotonic. A scale of 0 means that the extent is below
    /// 2⁻¹⁴¹, which becomes 0.
    #[inline(always)]
    pub(super) fn symbol(self, x: f32, centre: i32) -> u8 {
        let divisor = if self.scale > 0.0 { self.scale } else { 1.0 };
        (round_even((x - self.offset) / divisor) + centre) as u8
    }

    /// The value of a symbol.
    #[inline(always)]
    pub(super) fn value(self, symbol: u8, centre: i32) -> f32 {
        self.offset + (i32::from(symbol) - centre) as f32 * self.scale
    }
}
