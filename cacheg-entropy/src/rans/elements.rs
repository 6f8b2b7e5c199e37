//! From native order to rows of what symbols stand for.
//!
//! In native order a vector holds symbols of one column: its table is looked up by one permutation, before the rows
//! are put together. A row at a time would have another table for every lane.

use std::ops::Range;

use cacheg_core::{ElementTable, ElementWindow};

use super::lanes::Lanes;
use super::native::Step;

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
