//! What tokens weigh when transforms are fitted: those that get finer steps need more bits.

use cacheg_core::TileCx;

/// What a row's values of a head are multiplied by; squares then weigh `2^(grade / EXPONENT)`.
const EXPONENT: f32 = 2.0;

/// Of a token of one head.
pub(crate) fn of_head(tile: &TileCx<'_>, row: usize, head: usize) -> f32 {
    let heads = tile.grades.len() / tile.rows.max(1);
    let grade = tile.grades.get(row * heads + head.min(heads.saturating_sub(1)));
    grade.map_or(1.0, |grade| ((f32::from(*grade) - 10.0) / 2.0 / EXPONENT).exp2())
}

/// Of a token of all heads: the root of the mean of the squares.
pub(crate) fn of_row(tile: &TileCx<'_>, row: usize) -> f32 {
    let heads = tile.grades.len() / tile.rows.max(1);
    if heads == 0 {
        return 1.0;
    }
    let square: f32 = (0..heads).map(|head| of_head(tile, row, head).powi(2)).sum();
    (square / heads as f32).sqrt()
}
