//! Equal steps with escapes: our reading of the arithmetic of the CacheGen paper.

use cacheg_core::{Alphabet, Error, EscapeReader, EscapeWriter, Result};
use multiversion::multiversion;

use crate::carried;
use crate::rounding::{not_finite, round_even};
use crate::rows::{Values, ValuesMut};

/// One part's step.
#[derive(Debug)]
pub(super) struct Step {
    step: f32,
    reach: u8,
}

impl Step {
    /// `sigma` is finite and not negative, `factor` and `level` are positive, `reach` is 1 to 127.
    ///
    /// # Errors
    /// If a value within reach would not be finite.
    pub(super) fn new(sigma: f32, factor: f64, level: f64, reach: u8) -> Result<Self> {
        let exact = if sigma == 0.0 { 1.0 } else { f64::from(sigma) * factor * level };
        let step = carried::widen(carried::bf16(exact)).max(f32::MIN_POSITIVE);
        if !(f32::from(reach) * step).is_finite() {
            return Err(Error::setting(format!("a step of {exact:e} is too large; lower `step` or `level`")));
        }
        Ok(Self { step, reach })
    }

    pub(super) fn alphabet(&self) -> Alphabet {
        Alphabet { size: u16::from(self.escape()) + 1, escape: true }
    }

    /// For WGSL.
    pub(super) fn words(&self) -> [u32; 4] {
        [0, u32::from(self.reach), self.step.to_bits(), 0]
    }

    /// The value of an escape.
    ///
    /// # Errors
    /// If it is infinite.
    pub(super) fn escaped(&self, value: i32) -> Result<f32> {
        let value = value as f32 * self.step;
        if value.is_finite() { Ok(value) } else { Err(Error::corrupt("an escaped value that is too large")) }
    }

    fn escape(&self) -> u8 {
        2 * self.reach + 1
    }

    pub(super) fn quantize(
        &self,
        cols: usize,
        x: &impl Values,
        symbols: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        let escape = self.escape();
        if let Some(x) = x.flat() {
            if !quantize(x, self.step, self.reach, symbols) {
                return Ok(());
            }
        } else {
            for (row, symbols) in symbols.chunks_exact_mut(cols).enumerate() {
                for (symbol, x) in symbols.iter_mut().zip(x.values(row, 0..cols)) {
                    *symbol = symbol_of(*x, self.step, self.reach);
                }
            }
        }
        for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
            if symbols.contains(&escape) {
                for (col, (symbol, x)) in symbols.iter().zip(x.values(row, 0..cols)).enumerate() {
                    if *symbol == escape {
                        escapes.push(row * cols + col, self.far(*x)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// `q` of a value that has no symbol.
    fn far(&self, x: f32) -> Result<i32> {
        let y = (x / self.step).round_ties_even();
        if !x.is_finite() {
            return Err(not_finite());
        }
        // −2³¹ and all floats below 2³¹ are integers that fit.
        if !(-2_147_483_648.0..2_147_483_648.0).contains(&y) || !(y * self.step).is_finite() {
            return Err(Error::data(format!(
                "{x:e} is too large for a step of {:e}; is the profile another model's?",
                self.step
            )));
        }
        Ok(y as i32)
    }

    pub(super) fn dequantize(
        &self,
        cols: usize,
        symbols: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let escape = self.escape();
        if let Some(out) = out.flat_mut() {
            if !dequantize(symbols, self.step, self.reach, out) {
                return escapes.finish();
            }
        } else {
            for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
                for (out, symbol) in out.values_mut(row, 0..cols).zip(symbols) {
                    *out = value_of(*symbol, self.step, self.reach);
                }
            }
        }
        for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
            if symbols.contains(&escape) {
                for (col, (out, symbol)) in out.values_mut(row, 0..cols).zip(symbols).enumerate() {
                    if *symbol == escape {
                        *out = self.escaped(escapes.next(row * cols + col)?)?;
                    }
                }
            }
        }
        escapes.finish()
    }
}

/// The symbol of a value.
#[inline(always)]
fn symbol_of(x: f32, step: f32, reach: u8) -> u8 {
    // Far beyond any reach, but where `round_even` works; NaN fails both comparisons and becomes an integer that is
    // far outside, too.
    let y = x / step;
    let y = if y > 1e6 { 1e6 } else { y };
    let y = if y < -1e6 { -1e6 } else { y };
    let shifted = round_even(y).wrapping_add(i32::from(reach)).cast_unsigned();
    shifted.min(2 * u32::from(reach) + 1) as u8
}

/// The value of a symbol that is no escape.
#[inline(always)]
fn value_of(symbol: u8, step: f32, reach: u8) -> f32 {
    (i32::from(symbol) - i32::from(reach)) as f32 * step
}

/// The symbols of values; whether any is an escape.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn quantize(x: &[f32], step: f32, reach: u8, symbols: &mut [u8]) -> bool {
    let mut top = 0;
    for (symbol, x) in symbols.iter_mut().zip(x) {
        *symbol = symbol_of(*x, step, reach);
        top = top.max(*symbol);
    }
    top > 2 * reach
}

/// The values of symbols; whether any is an escape.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn dequantize(symbols: &[u8], step: f32, reach: u8, out: &mut [f32]) -> bool {
    let mut top = 0;
    for (out, symbol) in out.iter_mut().zip(symbols) {
        *out = value_of(*symbol, step, reach);
        top = top.max(*symbol);
    }
    top > 2 * reach
}
