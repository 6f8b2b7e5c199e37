//! Equal steps with escapes: our reading of the arithmetic of the CacheGen paper.

use cacheg_core::{Alphabet, EscapeReader, EscapeWriter, Result};
use multiversion::multiversion;

use crate::escaping::{self, symbol_of};
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
        Ok(Self { step: escaping::step(exact, f32::MIN_POSITIVE, reach)?, reach })
    }

    pub(super) fn alphabet(&self) -> Alphabet {
        escaping::alphabet(self.reach)
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
        escaping::escaped(value, self.step)
    }

    pub(super) fn quantize(
        &self,
        cols: usize,
        x: &impl Values,
        symbols: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
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
        escaping::push(cols, x, symbols, self.reach, |_, _| self.step, escapes)
    }

    pub(super) fn dequantize(
        &self,
        cols: usize,
        symbols: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: &mut impl ValuesMut,
    ) -> Result<()> {
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
        escaping::fill(cols, symbols, self.reach, |_, _| self.step, escapes, out)
    }
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
