//! Units from what errors cost.

use cacheg_core::{BindCx, Statistics};

use super::octaves::quarter_octaves;
use super::{Shape, shapes};

/// A head's sensitivity counts as at least this share of the largest: a step 1,000 times the finest is coarse enough.
const LEAST: f64 = 1e-6;

/// Quarter-octaves of `1 / √s` by plane, part and head, `s` being what an error of one channel of the head costs: before
/// they are scaled to the values' size.
///
/// `None` if no error costs anything.
pub(super) fn of_costs(cx: &BindCx<'_>, statistics: &Statistics) -> Option<Vec<i32>> {
    let mut costs = Vec::new();
    for (plane, shapes) in cx.planes.iter().zip(shapes(cx)) {
        let dim = plane.shape.head_dim as usize;
        let all = statistics.sensitivity(plane);
        let mean = |matrix: &[f64]| matrix.iter().step_by(dim + 1).sum::<f64>() / dim.max(1) as f64;
        let by_head: Vec<f64> = all.chunks_exact((dim * dim).max(1)).map(mean).collect();
        for Shape { heads, .. } in shapes {
            if heads == by_head.len() {
                costs.extend_from_slice(&by_head);
            } else {
                let mean = by_head.iter().sum::<f64>() / by_head.len().max(1) as f64;
                costs.extend(std::iter::repeat_n(mean, heads));
            }
        }
    }
    let most = costs.iter().copied().fold(0.0, f64::max);
    let unit = |cost: f64| quarter_octaves(1.0 / cost.max(LEAST * most).sqrt());
    (most > 0.0).then(|| costs.into_iter().map(unit).collect())
}

/// The mean of some differences, rounded to the nearest whole number, halves up; 0 of none.
pub(super) fn mean(differences: impl Iterator<Item = i32>) -> i32 {
    let (mut sum, mut count) = (0i64, 0i64);
    for difference in differences {
        sum += i64::from(difference);
        count += 1;
    }
    // Between the smallest and the largest of them.
    if count == 0 { 0 } else { (2 * sum + count).div_euclid(2 * count) as i32 }
}
