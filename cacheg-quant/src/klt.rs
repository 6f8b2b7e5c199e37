//! `klt(metric=identity)`: a Karhunen–Loève transform of every head.
//!
//! Rotates a head's channels so that they are uncorrelated over the tokens of the calibration contexts: the best
//! transform for coding with one step (Goyal 2001, "Theoretical foundations of transform coding", section on the
//! KLT). KVTC (arXiv 2511.01815) codes KV caches so, over several layers at a time; a transform of each head is cheaper,
//! and lets every head have steps of its own.
//!
//! With `metric=sensitivity` channels are scaled first so that errors of all of them cost the same: with `M` the head's
//! [sensitivity](cacheg_core::Statistics::sensitivity), normalised to a mean diagonal of 1 and shrunk to
//! `(M + 0.3·I) / 1.3`, the head `x` becomes `Uᵀ·M^½·x`, where `U` are the eigenvectors of `M^½·cov·M^½`. Calibration
//! then needs statistics, which are of keys before RoPE: put `unrope` in front.
//!
//! One part, or as many as the stage before. Data: tensor `synthesis`, u16, bfloat16 bits: for each plane and head a
//! matrix `S` of `head_dim × head_dim`, row after row, those of the largest variance first. A row of coefficients `y` gives
//! `x = y·S`; the encoder takes `y = x·S⁻¹`, with the inverse of the rounded matrix. `mean` belongs in front. A chunk that carries its matrices
//! pays 2·head_dim bytes per channel; this stage is made for profiles.
//!
//! **Exactness**: a matrix stage. CPUs sum up the `n = head_dim` products in their order, without contraction, and all get the same;
//! others may sum in any order, contracted or not. An output is within `n·2⁻²⁴·Σ|y·S|` of the exact one.
//!
//! ```
//! let stages = cacheg_core::spec::parse("klt(metric=sensitivity)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::klt::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["metric"], "sensitivity");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod calibrate;
mod matrix;

use std::sync::{Arc, OnceLock};

use cacheg_core::{
    BindCx, BoundTransform, Build, Calibrator, Error, Kernel, Plane, Plugin, Result, ResultExt, Rows, Stage,
    TileCx, Transform, config, settings,
};
use multiversion::multiversion;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::carried;
use crate::rows::check;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "klt",
    version: 1,
    origin: "cacheg-quant",
    summary: "decorrelates the channels of every head; best with a profile",
    usage: "klt(metric=identity)",
    build: Build::Transform(build),
};

const TENSOR: &str = "synthesis";

/// Settings of `klt`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What errors are measured by.
    pub metric: Metric,
}

/// What errors are measured by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// All channels alike.
    #[default]
    Identity,
    /// What they cost, from the statistics that a profile is calibrated with.
    Sensitivity,
}

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    Ok(Arc::new(Klt(settings(PLUGIN.name, value)?)))
}

#[derive(Debug)]
struct Klt(Settings);

impl Stage for Klt {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Transform for Klt {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        let numbers = |plane: &Plane| plane.channels() * plane.shape.head_dim as usize;
        let total = cx.planes.iter().map(numbers).sum();
        let all = carried::get(cx.require_data()?, TENSOR, total, cx.source)?;
        let mut rest = all.as_slice();
        let mut heads = Vec::new();
        for plane in cx.planes {
            let dim = plane.shape.head_dim as usize;
            let (own, others) = rest.split_at(numbers(plane));
            rest = others;
            let matrices = own.chunks_exact((dim * dim).max(1));
            heads.push(matrices.map(|numbers| Head::new(dim, numbers)).collect());
        }
        Ok(Box::new(Bound { heads }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        Some(Box::new(calibrate::KltCalibrator::new(self.0.metric, cx)))
    }
}

/// A head's matrices.
#[derive(Debug)]
struct Head {
    synthesis: Array2<f32>,
    /// Its inverse, which only encoders need; `None` if it has none.
    analysis: OnceLock<Option<Array2<f32>>>,
}

impl Head {
    fn new(dim: usize, numbers: &[f32]) -> Self {
        let synthesis = Array2::from_shape_fn((dim, dim), |(row, col)| numbers[row * dim + col]);
        Self { synthesis, analysis: OnceLock::new() }
    }

    fn analysis(&self) -> Result<&Array2<f32>> {
        let inverse = || {
            let exact = matrix::inverse(&self.synthesis.mapv(f64::from))?;
            Some(exact.mapv(|x| x as f32)).filter(|inverse| inverse.iter().all(|x| x.is_finite()))
        };
        let found = self.analysis.get_or_init(inverse).as_ref();
        found.ok_or_else(|| Error::profile("a matrix of `klt` that has no inverse"))
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane, then head.
    heads: Vec<Vec<Head>>,
}

impl Bound {
    fn apply<'a>(
        &'a self,
        tile: &TileCx<'_>,
        x: &ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        matrix: impl Fn(&'a Head) -> Result<&'a Array2<f32>>,
    ) -> Result<()> {
        let heads = self.heads.get(tile.plane.index).ok_or_else(crate::unknown_plane)?;
        check(x.dim(), tile.rows, tile.plane.channels())?;
        check(out.dim(), tile.rows, tile.plane.channels())?;
        for (number, head) in heads.iter().enumerate() {
            let matrix = matrix(head).at(|| format!("{}, head {number}", tile.plane.name()))?;
            let channels = number * matrix.nrows()..(number + 1) * matrix.nrows();
            let from = x.slice(s![.., channels.clone()]);
            let mut to = out.slice_mut(s![.., channels]);
            for (from, mut to) in from.outer_iter().zip(to.outer_iter_mut()) {
                match (from.as_slice(), matrix.as_slice(), to.as_slice_mut()) {
                    (Some(from), Some(matrix), Some(to)) => multiply(from, matrix, to),
                    _ => multiply_strided(from, matrix, to),
                }
            }
        }
        Ok(())
    }
}

/// Channels whose sums are kept in registers.
const STRIP: usize = 32;

/// `out = x · matrix`. Sums begin with the first coefficient and are not contracted, so that all CPUs get the same.
/// (Libraries for products of matrices allocate at each call, or need not give the same everywhere.)
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn multiply(x: &[f32], matrix: &[f32], out: &mut [f32]) {
    let n = out.len();
    let (strips, rest) = out.as_chunks_mut::<STRIP>();
    for (number, strip) in strips.iter_mut().enumerate() {
        let mut sums = [0.0; STRIP];
        for (x, row) in x.iter().zip(matrix.chunks_exact(n)) {
            let own = &row[number * STRIP..(number + 1) * STRIP];
            sums.iter_mut().zip(own).for_each(|(sum, m)| *sum += x * m);
        }
        *strip = sums;
    }
    let first = n - rest.len();
    rest.fill(0.0);
    for (x, row) in x.iter().zip(matrix.chunks_exact(n)) {
        rest.iter_mut().zip(&row[first..]).for_each(|(sum, m)| *sum += x * m);
    }
}

/// The same of views that are no slices.
fn multiply_strided(x: ArrayView1<'_, f32>, matrix: &Array2<f32>, mut out: ArrayViewMut1<'_, f32>) {
    for (out, column) in out.iter_mut().zip(matrix.columns()) {
        *out = x.iter().zip(column).fold(0.0, |sum, (x, m)| sum + x * m);
    }
}

impl BoundTransform for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        // Where each plane's matrices begin, in numbers; then the numbers, two to a word.
        let mut data = vec![0; self.heads.len()];
        let mut bits = Vec::new();
        for (at, heads) in data.iter_mut().zip(&self.heads) {
            *at = bits.len() as u32;
            for head in heads {
                bits.extend(head.synthesis.iter().map(|x| x.to_bits() >> 16));
            }
        }
        data.insert(0, 1 + data.len() as u32);
        data.extend(bits.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 16));
        Some(Kernel::new(include_str!("klt.wgsl"), data).with_rows(Rows::Matrix))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, &x, out, Head::analysis)
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, crate::only(parts)?, out, |head| Ok(&head.synthesis))
    }
}

#[cfg(test)]
mod tests;
