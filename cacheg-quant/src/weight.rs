//! What tokens weigh when transforms are fitted: those that get finer steps need more bits.

use cacheg_core::{GRADE_OF_ONE, TileCx};

/// A token's squares weigh `2^(grade / 2)`: the bits that it needs grow with its grade, but the tokens that are left with a
/// say must be enough to fit anything.
const EXPONENT: f32 = 2.0;

/// What the values of a token of one head are multiplied by.
pub(crate) fn of_head(tile: &TileCx<'_>, row: usize, head: usize) -> f32 {
    let heads = tile.grades.len() / tile.rows.max(1);
    let grade = tile.grades.get(row * heads + head.min(heads.saturating_sub(1)));
    grade.map_or(1.0, |grade| ((f32::from(*grade) - f32::from(GRADE_OF_ONE)) / 2.0 / EXPONENT).exp2())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    #[test]
    fn weights_follow_grades() {
        let planes = planes(1, 2, 4);
        let tile = TileCx::new(&planes[0], 0, 2, 0);
        assert_eq!((of_head(&tile, 1, 1), of_row(&tile, 1)), (1.0, 1.0));
        let tile = tile.with_grades(&[10, 14, 10, 6]);
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(of_head(&tile, 0, 0), 1.0);
        close(of_head(&tile, 0, 1), 2.0);
        close(of_head(&tile, 1, 1), 0.5);
        close(of_row(&tile, 0), 2.5f32.sqrt());
    }
}
