//! The reference: what SIMD and GPU twins must equal bit by bit.

use std::hint::select_unpredictable;

use cacheg_core::Result;

use super::lanes::Lanes;
use super::stream::{LANES, WordWriter, Words, refill, refilled};
use super::table::{DecodeTable, EncodeTable};
use super::{Columns, Mode};

/// Decodes a segment into row-major `symbols`.
///
/// # Errors
/// If there are too few words.
pub(super) fn decode(
    columns: Columns<'_>,
    tables: &[DecodeTable],
    words: &mut Words<'_>,
    states: &mut [u32; LANES],
    symbols: &mut [u8],
) -> Result<()> {
    let lanes = Lanes::new(columns);
    if columns.mode == Mode::Contexts {
        return decode_contexts(columns, lanes, tables, words, states, symbols);
    }
    for (col, table) in columns.index.iter().enumerate() {
        let (table, mut at) = (&tables[*table as usize], lanes.starts(col));
        for step in 0..lanes.steps() {
            let active = lanes.active(step);
            let mut coded = [0u8; LANES];
            if let (Some(window), LANES) = (words.first_chunk::<LANES>(), active) {
                // The usual step in one pass: lanes refill in their order here too.
                let mut used = 0;
                for (x, coded) in states.iter_mut().zip(&mut coded) {
                    let (symbol, next) = table.step(*x);
                    *coded = symbol as u8;
                    (*x, used) = refilled(next, window, used);
                }
                *words = &words[used..];
            } else {
                for (x, coded) in states[..active].iter_mut().zip(&mut coded) {
                    let (symbol, next) = table.step(*x);
                    (*coded, *x) = (symbol as u8, next);
                }
                refill(&mut states[..active], words)?;
            }
            if columns.mode == Mode::Split {
                for ((x, coded), at) in states[..active].iter_mut().zip(&coded).zip(&at) {
                    let coded = usize::from(*coded) % LANES;
                    let keep = 16 - u32::from(table.bits[coded]);
                    symbols[*at] = (u32::from(table.base[coded]) + ((*x & 0xffff) >> keep)) as u8;
                    *x = ((*x >> 16) << keep) | (*x & ((1 << keep) - 1));
                }
                refill(&mut states[..active], words)?;
            } else {
                for (coded, at) in coded[..active].iter().zip(&at) {
                    symbols[*at] = *coded;
                }
            }
            for at in &mut at {
                *at += lanes.cols;
            }
        }
    }
    Ok(())
}

/// The same where each lane's table depends on its symbol before.
fn decode_contexts(
    columns: Columns<'_>,
    lanes: Lanes,
    tables: &[DecodeTable],
    words: &mut Words<'_>,
    states: &mut [u32; LANES],
    symbols: &mut [u8],
) -> Result<()> {
    for (col, first) in columns.index.iter().enumerate() {
        let (tables, mut at) = (&tables[*first as usize..], lanes.starts(col));
        let mut contexts = [0; LANES];
        for step in 0..lanes.steps() {
            let active = lanes.active(step);
            for (lane, x) in states[..active].iter_mut().enumerate() {
                let (symbol, next) = tables[contexts[lane]].step(*x);
                *x = next;
                symbols[at[lane]] = symbol as u8;
                contexts[lane] = columns.context(col, Some(symbol as u8));
            }
            refill(&mut states[..active], words)?;
            for at in &mut at {
                *at += lanes.cols;
            }
        }
    }
    Ok(())
}

/// Encodes a segment of row-major `symbols`, which are inside their alphabet, last row first.
///
/// # Errors
/// If the buffer is full.
pub(super) fn encode(
    columns: Columns<'_>,
    tables: &[EncodeTable],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut WordWriter<'_>,
) -> Result<()> {
    match columns.mode {
        Mode::Contexts => encode_columns::<true>(columns, tables, symbols, states, words),
        _ => encode_columns::<false>(columns, tables, symbols, states, words),
    }
}

fn encode_columns<const CONTEXTS: bool>(
    columns: Columns<'_>,
    tables: &[EncodeTable],
    symbols: &[u8],
    states: &mut [u32; LANES],
    words: &mut WordWriter<'_>,
) -> Result<()> {
    let lanes = Lanes::new(columns);
    for (col, first) in columns.index.iter().enumerate().rev() {
        let first = *first as usize;
        let (table, starts) = (&tables[first], lanes.starts(col));
        for step in (0..lanes.steps()).rev() {
            let active = lanes.active(step);
            let symbol = |lane: usize| symbols[starts[lane] + step * lanes.cols];
            if columns.mode == Mode::Split {
                for lane in (0..active).rev() {
                    let (symbol, x) = (symbol(lane), &mut states[lane]);
                    let keep = 16 - table.coded(symbol).1;
                    // Buckets are aligned: the low bits of the symbol are its place in the bucket.
                    let low = u32::from(symbol) << keep & 0xffff;
                    spill(x, 1 << keep, words)?;
                    *x = (*x >> keep) << 16 | low | (*x & ((1 << keep) - 1));
                }
            }
            for lane in (0..active).rev() {
                let table = if CONTEXTS {
                    let before = (step > 0).then(|| symbols[starts[lane] + (step - 1) * lanes.cols]);
                    &tables[first + columns.context(col, before)]
                } else {
                    table
                };
                let (coded, x) = (table.coded(symbol(lane)).0, &mut states[lane]);
                spill(x, table.freq(coded), words)?;
                let (high, offset) = table.divide(*x, coded);
                *x = high << 16 | u32::from(table.slot(coded, offset));
            }
        }
    }
    Ok(())
}

/// Moves a word out of a state that would overflow.
#[inline(always)]
fn spill(x: &mut u32, freq: u32, words: &mut WordWriter<'_>) -> Result<()> {
    let full = *x >> 16 >= freq;
    // Written in any case: a branch would often be mispredicted.
    words.put_if(full, *x)?;
    *x = select_unpredictable(full, *x >> 16, *x);
    Ok(())
}
