//! From native order to rows of what symbols stand for.
//!
//! In native order a vector holds symbols of one column: its table is looked up by one permutation, before the rows
//! are put together. A row at a time would have another table for every lane.

use std::ops::Range;

use cacheg_core::{ElementRows, ElementTable};

use super::lanes::Lanes;
use super::native::{BLOCK, Give, Step};
use super::stream::LANES;

/// Rows of a step, as they are put together; a line of the cache each, or two.
#[repr(C, align(64))]
pub(super) struct Rows(pub(super) [[u16; BLOCK]; LANES]);

impl Rows {
    pub(super) const ZERO: Self = Self([[0; BLOCK]; LANES]);
}

/// The portable kernel: all steps.
pub(super) fn scatter(
    native: &[Step],
    lanes: Lanes,
    columns: Range<usize>,
    tables: &[ElementTable],
    escape: Option<u8>,
    give: &mut Give<'_>,
) -> usize {
    let mut rows = Rows::ZERO;
    (0..lanes.steps()).map(|step| one(step, native, lanes, columns.clone(), tables, escape, &mut rows, give)).sum()
}

/// One step.
#[expect(clippy::too_many_arguments, reason = "those of `scatter`, of which this is one step")]
pub(super) fn one(
    step: usize,
    native: &[Step],
    lanes: Lanes,
    columns: Range<usize>,
    tables: &[ElementTable],
    escape: Option<u8>,
    rows: &mut Rows,
    give: &mut Give<'_>,
) -> usize {
    let (active, mut escaped) = (lanes.active(step), 0);
    let vectors = native[step..].iter().step_by(lanes.stride());
    for ((col, table), symbols) in tables[columns.clone()].iter().enumerate().zip(vectors) {
        for (row, symbol) in rows.0.iter_mut().zip(&symbols[..active]) {
            row[col] = table.0[usize::from(*symbol) % 32];
            escaped += usize::from(Some(*symbol) == escape);
        }
    }
    hand_over(step, lanes, columns, rows, give);
    escaped
}

/// Gives the rows of a step away.
#[inline(always)]
pub(super) fn hand_over(step: usize, lanes: Lanes, columns: Range<usize>, rows: &Rows, give: &mut Give<'_>) {
    let active = lanes.active(step);
    let numbers: [usize; LANES] = std::array::from_fn(|lane| lanes.row(lane) + step);
    let elements = rows.0.as_flattened();
    give(&ElementRows::new(columns.start, columns.len(), &numbers[..active], elements, BLOCK));
}
