//! Rates by the number of bits: which level of a ladder, and how far its steps are moved, so that a KV cache takes as many
//! bits as are wanted.
//!
//! Levels with grades can be moved to any rate between and beyond them ([`Encoder::shifted`]): grades are rounded from real numbers, so
//! that a shift moves some tokens by half an octave and leaves others.

use std::collections::BTreeMap;

use cacheg_core::{Encoder, Error, KvView, Result};

use crate::flow;

/// Rates are met within this share.
pub const TOLERANCE: f64 = 0.05;

/// Rates this near are not improved.
const NEAR: f64 = 0.01;

/// Half-octaves that grades can be moved without most of them being at an end.
const MOST: f64 = 4.0;

/// Attempts between two shifts.
const ATTEMPTS: usize = 10;

/// What meets a rate.
#[derive(Debug)]
pub struct Found {
    /// Index of the level.
    pub level: usize,
    /// The level, its steps moved.
    pub encoder: Encoder,
    /// Half-octaves that they were moved by.
    pub shift: f64,
    /// What the KV cache takes with it.
    pub bits_per_value: f64,
}

/// Finds what encodes a KV cache with `wanted` bits per value, all bytes of the container counted, within [`TOLERANCE`].
///
/// `levels` are those that can be used, of a ladder from fine to coarse, with their indices. Encodes some ten times.
///
/// # Errors
/// If no level is near enough and none can be moved so far; what encoding reports.
pub fn of_bits(
    kv: &KvView<'_>,
    levels: &[(usize, Encoder)],
    chunk_tokens: usize,
    wanted: f64,
) -> Result<Found> {
    if !(wanted.is_finite() && wanted > 0.0) {
        return Err(Error::setting("bits per value are a positive number"));
    }
    let values = (kv.geometry().values_per_token() * kv.tokens() as u64) as f64;
    if values == 0.0 {
        return Err(Error::data("no tokens, and no rate"));
    }
    let bits = |encoder: &Encoder| -> Result<f64> {
        let mut nowhere = std::io::sink();
        let bytes = flow::encode(kv, &BTreeMap::new(), encoder, chunk_tokens, &mut nowhere, &|_| ())?;
        Ok(bytes as f64 * 8.0 / values)
    };
    let off = |bits: f64| (bits / wanted).ln().abs();
    let mut best: Option<Found> = None;
    for (level, encoder) in levels {
        let bits_per_value = bits(encoder)?;
        let nearer = best.as_ref().is_none_or(|best| off(bits_per_value) < off(best.bits_per_value));
        if nearer {
            best = Some(Found { level: *level, encoder: encoder.clone(), shift: 0.0, bits_per_value });
        } else if bits_per_value < wanted {
            // Coarser ones are further away.
            break;
        }
    }
    let mut best = best.ok_or_else(|| Error::setting("no level to choose from"))?;
    let level = best.encoder.clone();
    // What is known on either side; bits grow with the shift.
    let (mut low, mut high) = if best.bits_per_value < wanted { (0.0, MOST) } else { (-MOST, 0.0) };
    for _ in 0..ATTEMPTS {
        if off(best.bits_per_value) <= NEAR {
            break;
        }
        let shift = f64::midpoint(low, high);
        let Some(encoder) = level.shifted(shift) else { break };
        let bits_per_value = bits(&encoder)?;
        if bits_per_value < wanted {
            low = shift;
        } else {
            high = shift;
        }
        if off(bits_per_value) < off(best.bits_per_value) {
            best = Found { level: best.level, encoder, shift, bits_per_value };
        }
    }
    if (best.bits_per_value / wanted - 1.0).abs() <= TOLERANCE {
        return Ok(best);
    }
    let what = match level.shifted(0.0) {
        Some(_) => "as near as its steps can be moved",
        None => "the nearest level, whose steps cannot be moved: presets whose levels say `importance` can",
    };
    Err(Error::setting(format!(
        "{wanted} bits per value are not to be had; level {} takes {:.3}, {what}",
        best.level, best.bits_per_value
    )))
}
