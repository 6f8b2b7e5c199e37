//! Equal steps of which only few have symbols; others escape. What `bins` and `steps` share.
//!
//! With `reach` the largest `|q|` that has a symbol of its own, `q = round(x / step)` is symbol `q + reach`, and
//! `2·reach + 1` is the escape.

use cacheg_core::{Alphabet, Error, EscapeReader, EscapeWriter, Result};

use crate::carried;
use crate::rounding::{not_finite, round_even};
use crate::rows::{Values, ValuesMut};

/// The step nearest to `exact` that has 8 significant bits, at least `least`.
///
/// # Errors
/// If a value within reach would not be finite.
pub(crate) fn step(exact: f64, least: f32, reach: u8) -> Result<f32> {
    let step = carried::widen(carried::bf16(exact)).max(least);
    if !(f32::from(reach) * step).is_finite() {
        return Err(Error::setting(format!("a step of {exact:e} is too large; lower `step` or `level`")));
    }
    Ok(step)
}

/// Symbols of `reach`, 1 to 127.
pub(crate) fn alphabet(reach: u8) -> Alphabet {
    Alphabet { size: u16::from(escape(reach)) + 1, escape: true }
}

/// The escape's symbol.
pub(crate) fn escape(reach: u8) -> u8 {
    2 * reach + 1
}

/// The symbol of a value.
#[inline(always)]
pub(crate) fn symbol_of(x: f32, step: f32, reach: u8) -> u8 {
    // Far beyond any reach, but where `round_even` works; NaN fails both comparisons and becomes an integer that is
    // far outside, too.
    let y = x / step;
    let y = if y > 1e6 { 1e6 } else { y };
    let y = if y < -1e6 { -1e6 } else { y };
    let shifted = round_even(y).wrapping_add(i32::from(reach)).cast_unsigned();
    shifted.min(2 * u32::from(reach) + 1) as u8
}

/// `q` of a value that has no symbol.
fn far(x: f32, step: f32) -> Result<i32> {
    let y = (x / step).round_ties_even();
    if !x.is_finite() {
        return Err(not_finite());
    }
    // −2³¹ and all floats below 2³¹ are integers that fit.
    if !(-2_147_483_648.0..2_147_483_648.0).contains(&y) || !(y * step).is_finite() {
        return Err(Error::data(format!(
            "{x:e} is too large for a step of {step:e}; is the profile another model's?"
        )));
    }
    Ok(y as i32)
}

/// The value of an escape.
///
/// # Errors
/// If it is infinite.
pub(crate) fn escaped(value: i32, step: f32) -> Result<f32> {
    let value = value as f32 * step;
    if value.is_finite() { Ok(value) } else { Err(Error::corrupt("an escaped value that is too large")) }
}

/// Lists the values of symbols that are escapes; `step` is that of a row and column.
///
/// # Errors
/// If one is too large, or not finite.
pub(crate) fn push(
    cols: usize,
    x: &impl Values,
    symbols: &[u8],
    reach: u8,
    step: impl Fn(usize, usize) -> f32,
    escapes: &mut EscapeWriter<'_>,
) -> Result<()> {
    let escape = escape(reach);
    for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
        if symbols.contains(&escape) {
            for (col, (symbol, x)) in symbols.iter().zip(x.values(row, 0..cols)).enumerate() {
                if *symbol == escape {
                    escapes.push(row * cols + col, far(*x, step(row, col))?);
                }
            }
        }
    }
    Ok(())
}

/// Puts the values of symbols that are escapes in their places, and checks that there are no others.
///
/// # Errors
/// If there are, or one is infinite.
pub(crate) fn fill(
    cols: usize,
    symbols: &[u8],
    reach: u8,
    step: impl Fn(usize, usize) -> f32,
    escapes: &mut EscapeReader<'_>,
    out: &mut impl ValuesMut,
) -> Result<()> {
    let escape = escape(reach);
    for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
        if symbols.contains(&escape) {
            for (col, (out, symbol)) in out.values_mut(row, 0..cols).zip(symbols).enumerate() {
                if *symbol == escape {
                    *out = escaped(escapes.next(row * cols + col)?, step(row, col))?;
                }
            }
        }
    }
    escapes.finish()
}
