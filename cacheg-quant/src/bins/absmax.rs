//! Bins by the largest magnitude of a token: the arithmetic of the public CacheGen code.

use cacheg_core::{Alphabet, Error, Result};

use crate::ScaleFormat;
use crate::rounding::{absmax, round_even};
use crate::rows::{Values, ValuesMut};
use crate::scale::{get, impossible};

/// One part's bins.
#[derive(Debug)]
pub(super) struct Absmax {
    bins: u16,
    format: ScaleFormat,
}

impl Absmax {
    /// Of 4 to 256 bins.
    pub(super) fn new(bins: u16, format: ScaleFormat) -> Self {
        Self { bins, format }
    }

    pub(super) fn alphabet(&self) -> Alphabet {
        Alphabet { size: self.bins, escape: false }
    }

    /// For WGSL.
    pub(super) fn words(&self) -> [u32; 4] {
        [1, u32::from(self.bins), u32::from(self.format == ScaleFormat::Bf16), 0]
    }

    /// `C`: the symbol of zero, and the largest `|q|` that is written.
    fn centre(&self) -> u16 {
        self.bins / 2 - 1
    }

    /// Whether `q · max` is finite for every symbol of the alphabet, also those that are never written.
    fn fits(&self, max: f32) -> bool {
        (f32::from(self.bins - 1 - self.centre()) * max).is_finite()
    }

    pub(super) fn quantize(
        &self,
        cols: usize,
        x: &impl Values,
        symbols: &mut [u8],
        side: &mut [u8],
    ) -> Result<()> {
        let centre = i32::from(self.centre());
        let c = centre as f32;
        let rows = symbols.chunks_exact_mut(cols).zip(side.as_chunks_mut::<2>().0);
        for (row, (symbols, side)) in rows.enumerate() {
            let x = x.values(row, 0..cols);
            let code = self.format.up(absmax(x.clone())?)?;
            *side = code.to_le_bytes();
            let max = self.format.value(code);
            if !self.fits(max) {
                return Err(Error::data(format!("{max:e} is too large to be quantised")));
            }
            let divisor = if max > 0.0 { max } else { 1.0 };
            for (symbol, x) in symbols.iter_mut().zip(x) {
                // |x| ≤ max and the operations are monotonic: the quotient rounds to at most C.
                *symbol = (round_even((x * c) / divisor) + centre) as u8;
            }
        }
        Ok(())
    }

    pub(super) fn dequantize(
        &self,
        cols: usize,
        symbols: &[u8],
        side: &[u8],
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let centre = i32::from(self.centre());
        let c = centre as f32;
        let scales = side.as_chunks::<2>().0;
        for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
            let max = self.format.read_scale(get(scales, row)?)?;
            if !self.fits(max) {
                return Err(impossible());
            }
            for (out, symbol) in out.values_mut(row, 0..cols).zip(symbols) {
                *out = (i32::from(*symbol) - centre) as f32 * max / c;
            }
        }
        Ok(())
    }
}
