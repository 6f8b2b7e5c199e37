//! From native order to rows of what symbols stand for, and back.
//!
//! In native order a vector holds symbols of one column: its table is looked up by one permutation, before the rows
//! are put together. A row at a time would have another table for every lane.

pub(super) mod avx512;

use std::ops::Range;

use cacheg_core::{ElementSpan, ElementTable, ElementWindow, SymbolBounds};

use super::lanes::Lanes;
use super::native::Step;
use super::stream::LANES;

/// The portable kernel: some steps.
pub(super) fn scatter(
    steps: Range<usize>,
    native: &[Step],
    lanes: Lanes,
    tables: &[ElementTable],
    escape: Option<u8>,
    window: &mut ElementWindow<'_>,
) -> usize {
    let mut escaped = 0;
    for step in steps {
        for lane in 0..lanes.active(step) {
            let begin = window.begin + (lanes.row(lane) + step) * window.stride;
            let row = window.bytes[begin..][..2 * tables.len()].as_chunks_mut::<2>().0;
            let symbols = native[step..].iter().step_by(lanes.stride()).map(|symbols| symbols[lane]);
            for ((element, table), symbol) in row.iter_mut().zip(tables).zip(symbols) {
                *element = table.0[usize::from(symbol) % 32].to_le_bytes();
                escaped += usize::from(Some(symbol) == escape);
            }
        }
    }
    escaped
}

/// The portable kernel of the other direction: some steps.
pub(super) fn gather(
    steps: Range<usize>,
    span: &ElementSpan<'_>,
    lanes: Lanes,
    bounds: &[SymbolBounds],
    escape: u8,
    native: &mut [Step],
    escaped: &mut dyn FnMut(usize, usize),
) {
    for step in steps {
        for lane in 0..lanes.active(step) {
            let row = lanes.row(lane) + step;
            let begin = span.begin + row * span.stride;
            let elements = span.bytes[begin..][..2 * bounds.len()].as_chunks::<2>().0;
            for (col, (element, bounds)) in elements.iter().zip(bounds).enumerate() {
                let symbol = bounds.symbol(u16::from_le_bytes(*element), escape);
                native[col * lanes.stride() + step][LANES - 1 - lane] = symbol;
                if symbol == escape {
                    escaped(row, col);
                }
            }
        }
    }
}
