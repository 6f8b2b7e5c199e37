//! Which tokens get finer steps: by what later tokens will probably attend to.
//!
//! Errors in a token's key and value do damage in proportion to the square of the attention that it gets, most of which
//! goes to few tokens: at a given damage the fewest bits are needed if the square of each token's step is one over that
//! (reverse water-filling, Cover and Thomas 2006, section 10.3.3).

use std::f64::consts::LN_2;

use cacheg_core::{
    BindCx, BoundTransform, Error, GRADE_OF_ONE, GRADES, GradeCx, Grader, Importance as Attention, Kind,
    Plane, Result, Statistics, TileCx, Transform,
};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::codebook::Codebook;
use crate::numeric;
use crate::unrope::Unrope;

/// The grade of tokens that get the step of their head; each above is √2 finer.
pub(super) const MIDDLE: i32 = GRADE_OF_ONE as i32;

/// How a token's importance is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    /// Not at all: all tokens are alike.
    #[default]
    None,
    /// Guessed from its key and value, by a regression from the statistics that a profile is made with.
    Key,
    /// By the attention that it got while the context was read, which must come with the KV cache.
    Attention,
}

impl Importance {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Added to importances before logarithms are taken, as statistics do (`FORMAT.md`, 8.4).
const EPSILON: f64 = 1e-12;

/// Features of the regression before the key's channels.
const FEATURES: usize = 4;

/// How much of the diagonal the regression adds to it.
const RIDGE: f64 = 1e-3;

/// Grades tokens, and codes the grades.
pub(super) struct Grading {
    rule: Rule,
    codebook: Codebook,
}

enum Rule {
    /// Grades are linear in the features.
    Key {
        unrope: Box<dyn BoundTransform>,
        /// By layer, then head.
        weights: Vec<Vec<Vec<f64>>>,
    },
    Attention {
        power: f64,
    },
}

impl std::fmt::Debug for Grading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grading").finish_non_exhaustive()
    }
}

/// The keys of each layer: heads and channels of a head.
fn layers(planes: &[Plane]) -> Result<Vec<(usize, usize)>> {
    let layers = planes.iter().map(|plane| plane.layer as usize + 1).max().unwrap_or(0);
    let of = |layer: usize| {
        let own = |kind| planes.iter().find(|plane| plane.layer as usize == layer && plane.kind == kind);
        own(Kind::Key).filter(|_| own(Kind::Value).is_some()).ok_or_else(|| {
            Error::setting("`importance=key` needs keys and values, which a layer of this model lacks")
        })
    };
    (0..layers)
        .map(|layer| of(layer).map(|key| (key.shape.heads as usize, key.shape.head_dim as usize)))
        .collect()
}

/// How many weights the regressions of a model have.
pub(super) fn weights_len(planes: &[Plane]) -> Result<usize> {
    Ok(layers(planes)?.iter().map(|(heads, dim)| heads * (FEATURES + dim)).sum())
}

/// The weights of grades by layer and head: of `p · log₂ m`, `m` the token's importance, less the logarithm of the mean of
/// `m^p`, on the features of the statistics; plus [`MIDDLE`].
pub(super) fn regress(planes: &[Plane], statistics: &Statistics, power: f64) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for (layer, (heads, dim)) in layers(planes)?.into_iter().enumerate() {
        for head in 0..heads {
            let sums = statistics.importance(layer, head);
            let sums = sums.filter(|sums| sums.features == FEATURES + dim && sums.xx[0] > 0.0);
            let sums =
                sums.ok_or_else(|| Error::profile("the statistics know nothing of tokens' importance"))?;
            let n = sums.features;
            let xx = Array2::from_shape_fn((n, n), |(i, j)| sums.xx[i * n + j]);
            let mut ridge = xx.clone();
            // A diagonal of 0 would leave a singular matrix.
            let least = RIDGE * xx.diag().iter().copied().fold(0.0, f64::max) * 1e-6;
            ridge.diag_mut().iter_mut().skip(1).for_each(|x| *x += (RIDGE * *x).max(least));
            let xy = Array2::from_shape_fn((n, 1), |(i, _)| sums.xy[i]);
            let beta = numeric::solve(&ridge, &xy)
                .map(|beta| beta.column(0).to_vec())
                .ok_or_else(|| Error::data("statistics whose regression of importance is singular"))?;
            let tokens = sums.xx[0];
            let mean: f64 = beta.iter().zip(sums.xx).map(|(b, x)| b * x).sum::<f64>() / tokens;
            let square: f64 =
                (0..n).map(|i| (0..n).map(|j| beta[i] * beta[j] * xx[(i, j)]).sum::<f64>()).sum::<f64>()
                    / tokens;
            // The logarithm of the mean of e^(p·y) for normal y.
            let normal = power * mean + power * power * (square - mean * mean).max(0.0) / 2.0;
            let mut weights: Vec<f32> = beta.iter().map(|b| (power * b / LN_2) as f32).collect();
            weights[0] = (f64::from(MIDDLE) + (power * beta[0] - normal) / LN_2) as f32;
            all.extend(weights);
        }
    }
    Ok(all)
}

impl Grading {
    /// By the importances' regression.
    pub(super) fn by_key(cx: &BindCx<'_>, weights: &[f32], codebook: Codebook) -> Result<Self> {
        let mut rest = weights;
        let mut by_layer = Vec::new();
        for (heads, dim) in layers(cx.planes)? {
            let mut by_head = Vec::with_capacity(heads);
            for _ in 0..heads {
                let (own, others) = rest
                    .split_at_checked(FEATURES + dim)
                    .ok_or_else(|| Error::profile("weights of another model"))?;
                by_head.push(own.iter().map(|weight| f64::from(*weight)).collect());
                rest = others;
            }
            by_layer.push(by_head);
        }
        let unrope = Unrope.bind(cx)?;
        Ok(Self { rule: Rule::Key { unrope, weights: by_layer }, codebook })
    }

    pub(super) fn by_attention(power: f64, codebook: Codebook) -> Self {
        Self { rule: Rule::Attention { power }, codebook }
    }
}

/// The nearest grade.
fn grade(x: f64) -> u8 {
    // NaN, of tokens that are going to be refused, becomes 0.
    x.round().clamp(0.0, GRADES as f64 - 1.0) as u8
}

fn by_key(
    cx: &GradeCx<'_>,
    unrope: &dyn BoundTransform,
    weights: &[Vec<f64>],
    grades: &mut [u8],
) -> Result<()> {
    let find = |kind| cx.planes.iter().find(|(plane, _)| plane.kind == kind).ok_or_else(crate::unknown_plane);
    let ((plane, k), (_, v)) = (find(Kind::Key)?, find(Kind::Value)?);
    let rows = k.nrows();
    let mut keys = Array2::zeros(k.dim());
    unrope.forward(&TileCx::new(plane, 0, rows, cx.position), 0, *k, &[], keys.view_mut())?;
    let heads = weights.len();
    let (dim, value_dim) = (k.ncols() / heads.max(1), v.ncols() / heads.max(1));
    let energy = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() + EPSILON).ln();
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for (row, (k, v)) in keys.outer_iter().zip(v.outer_iter()).enumerate() {
        let distance = (cx.context.saturating_sub(cx.first + row).max(1) as f64).ln();
        for (head, weights) in weights.iter().enumerate() {
            key.clear();
            key.extend(k.iter().skip(head * dim).take(dim).map(|x| f64::from(*x)));
            value.clear();
            value.extend(v.iter().skip(head * value_dim).take(value_dim).map(|x| f64::from(*x)));
            let [one, of_key, of_value, of_distance, channels @ ..] = weights.as_slice() else { continue };
            let known = one + of_key * energy(&key) + of_value * energy(&value) + of_distance * distance;
            let guessed: f64 = channels.iter().zip(&key).map(|(weight, x)| weight * x).sum();
            grades[row * heads + head] = grade(known + guessed + cx.shift);
        }
    }
    Ok(())
}

/// Mean attention of the queries that saw each of some tokens: of all, and of the recent ones, in equal parts.
fn attention(known: &Attention, layer: usize, head: usize, cx: &GradeCx<'_>, rows: usize) -> Vec<f64> {
    let recent = known.recent_queries().unwrap_or(1).max(1);
    let (all, late) = (known.accumulated(layer, head), known.recent(layer, head));
    let of = |token: usize| {
        let seen = cx.context.saturating_sub(token).max(1);
        let late = f64::from(late[token]) / (recent as f64).min(seen as f64);
        f64::midpoint(f64::from(all[token]) / seen as f64, late)
    };
    (cx.first..cx.first + rows).map(of).collect()
}

fn by_attention(cx: &GradeCx<'_>, power: f64, heads: usize, grades: &mut [u8]) -> Result<()> {
    let known = cx.importance.ok_or_else(|| {
        Error::data(
            "`importance=attention` needs how much attention tokens got (`layers.{i}.attention`), which the KV cache lacks; \
             use `importance=key`",
        )
    })?;
    let rows = grades.len() / heads.max(1);
    for head in 0..heads {
        let of = attention(known, cx.layer, head, cx, rows);
        // Errors cost in proportion to the square.
        let mut powers: Vec<f64> = of.iter().map(|m| (m * m + EPSILON).powf(power)).collect();
        let mean = powers.iter().sum::<f64>() / rows.max(1) as f64;
        powers.iter_mut().for_each(|m| *m = f64::from(MIDDLE) + (*m / mean).log2());
        for (grades, power) in grades.chunks_exact_mut(heads).zip(powers) {
            grades[head] = grade(power + cx.shift);
        }
    }
    Ok(())
}

impl Grader for Grading {
    fn grade(&self, cx: &GradeCx<'_>, grades: &mut [u8]) -> Result<()> {
        match &self.rule {
            Rule::Key { unrope, weights } => {
                let weights = weights.get(cx.layer).ok_or_else(crate::unknown_plane)?;
                by_key(cx, &**unrope, weights, grades)
            }
            Rule::Attention { power } => {
                let heads = cx.planes.first().map_or(0, |(plane, _)| plane.shape.heads as usize);
                by_attention(cx, *power, heads, grades)
            }
        }
    }

    fn pack(&self, heads: usize, grades: &[u8]) -> Vec<u8> {
        self.codebook.pack(heads, grades)
    }

    fn unpack(&self, heads: usize, bytes: &[u8], grades: &mut [u8]) -> Result<()> {
        self.codebook.unpack(heads, bytes, grades)
    }
}
