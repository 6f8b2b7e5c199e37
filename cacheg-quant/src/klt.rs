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
//! One part, or as many as the stage before. Heads of up to 1,024 channels. Data, of each plane's heads: tensor `synthesis`,
//! u8 (signed), a matrix of `head_dim × head_dim` integers `N`, row after row, those of the largest variance first; `shift`, u8
//! (signed), of each row; `grid`, u8 (signed), of each head. Coefficients `y` give `x = y·S` with
//! `S[k] = N[k]·2^-shift[k]`; the encoder takes `y = x·S⁻¹`, with the inverse of these very numbers, so that rounding them to 8
//! bits costs nothing but a hair of decorrelation. `mean` belongs in front. A chunk that carries its matrices pays
//! `head_dim + 1` bytes per channel; this stage is made for profiles.
//!
//! **Exactness**: bit-exact everywhere, as the inverse is taken in integers: `Y[k] = round(y[k]·2^(grid − shift[k]))`, at most
//! ± 2³⁰, `X = Σ Y[k]·N[k]` modulo 2³², `x = X·2^-grid`. Calibration puts `grid` so that rounding `y` is 1/4,096 of the largest
//! standard deviation at most. What is predicted from the outcome can so be predicted alike everywhere. An encoder refuses what
//! is too far outside of what calibration has seen (some thousand times as large) to be an integer here.
//!
//! ```
//! let stages = cacheg_core::spec::parse("klt(metric=sensitivity)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::klt::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["metric"], "sensitivity");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod calibrate;

use std::sync::{Arc, OnceLock};

use cacheg_core::{
    BindCx, BoundTransform, Build, Calibrator, Error, Kernel, Plane, Plugin, Result, ResultExt, Rows, Stage,
    TileCx, Transform, config, settings,
};
use multiversion::multiversion;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::integer::{Columns, IntMatrix, MOST, SHIFTS, from_grid, multiply_rows, power, value};
use crate::rows::check;
use crate::{carried, numeric};

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "klt",
    version: 1,
    origin: "cacheg-quant",
    summary: "decorrelates the channels of every head; best with a profile",
    usage: "klt(metric=identity)",
    build: Build::Transform(build),
};

/// The widest heads.
const MAX_DIM: usize = 1024;

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
        check_dims(cx.planes)?;
        let channels = cx.planes.iter().map(Plane::channels).sum();
        let heads = cx.planes.iter().map(|plane| plane.shape.heads as usize).sum();
        let numbers = cx.planes.iter().map(|plane| plane.channels() * plane.shape.head_dim as usize).sum();
        let data = cx.require_data()?;
        let synthesis = carried::signed(data, "synthesis", numbers, i8::MAX, cx.source)?;
        let shifts = carried::signed(data, "shift", channels, SHIFTS, cx.source)?;
        let grids = carried::signed(data, "grid", heads, SHIFTS, cx.source)?;
        let (mut synthesis, mut shifts, mut grids) = (&synthesis[..], &shifts[..], grids.into_iter());
        let mut planes = Vec::new();
        for plane in cx.planes {
            let dim = plane.shape.head_dim as usize;
            let mut heads = Vec::new();
            for grid in grids.by_ref().take(plane.shape.heads as usize) {
                let (own, others) = synthesis.split_at(dim * dim);
                let (shift, later) = shifts.split_at(dim);
                (synthesis, shifts) = (others, later);
                heads.push(Head::new(dim, own, shift, grid));
            }
            planes.push(heads);
        }
        Ok(Box::new(Bound { heads: planes }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        Some(Box::new(calibrate::KltCalibrator::new(self.0.metric, cx)))
    }
}

/// Refuses models whose matrices would be huge.
fn check_dims(planes: &[Plane]) -> Result<()> {
    match planes.iter().find(|plane| plane.shape.head_dim as usize > MAX_DIM) {
        None => Ok(()),
        Some(plane) => Err(Error::limit(format!(
            "`{}` has heads of {} channels; `klt` takes up to {MAX_DIM}",
            plane.name(),
            plane.shape.head_dim
        ))),
    }
}

/// A head's matrices.
#[derive(Debug)]
struct Head {
    dim: usize,
    /// The rows of the integers.
    numbers: Vec<i8>,
    shifts: Vec<i8>,
    grid: i8,
    matrix: IntMatrix,
    /// What coefficients are multiplied by to be integers.
    scales: Vec<f32>,
    /// The inverse, which only encoders need; `None` if it has none.
    analysis: OnceLock<Option<Array2<f32>>>,
}

impl Head {
    fn new(dim: usize, numbers: &[i8], shifts: &[i8], grid: i8) -> Self {
        let scales = shifts.iter().map(|shift| power(i32::from(grid) - i32::from(*shift)));
        Self {
            dim,
            numbers: numbers.to_vec(),
            shifts: shifts.to_vec(),
            grid,
            matrix: IntMatrix::new(dim, dim, numbers),
            scales: scales.collect(),
            analysis: OnceLock::new(),
        }
    }

    fn analysis(&self) -> Result<&Array2<f32>> {
        let inverse = || {
            let synthesis = Array2::from_shape_fn((self.dim, self.dim), |(row, col)| {
                f64::from(self.numbers[row * self.dim + col]) * f64::from(power(-i32::from(self.shifts[row])))
            });
            let exact = numeric::inverse(&synthesis)?;
            Some(exact.mapv(|x| x as f32)).filter(|inverse| inverse.iter().all(|x| x.is_finite()))
        };
        let found = self.analysis.get_or_init(inverse).as_ref();
        found.ok_or_else(|| Error::profile("a matrix of `klt` that has no inverse"))
    }

    /// Whether integers can stand for a row of values and its coefficients.
    fn holds(&self, x: impl Iterator<Item = f32>, y: impl Iterator<Item = f32>) -> bool {
        let most = MOST as f32;
        let unit = power(i32::from(self.grid));
        x.fold(true, |all, x| all & ((x * unit).abs() <= most))
            && y.zip(&self.scales).fold(true, |all, (y, scale)| all & ((y * scale).abs() < most))
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane, then head.
    heads: Vec<Vec<Head>>,
}

impl Bound {
    fn heads(&self, tile: &TileCx<'_>, x: (usize, usize), out: (usize, usize)) -> Result<&[Head]> {
        check(x, tile.rows, tile.plane.channels())?;
        check(out, tile.rows, tile.plane.channels())?;
        self.heads.get(tile.plane.index).map(Vec::as_slice).ok_or_else(crate::unknown_plane)
    }
}

/// Channels whose sums are kept in registers.
const STRIP: usize = 32;

/// `out = x · matrix`. Sums begin with the first coefficient and are not contracted, so that all encoders get the same.
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
        // Where each plane's heads begin. Of a head: its grid, the shift of each row, and the numbers, four to a word.
        let mut data = vec![0; self.heads.len()];
        for (plane, heads) in self.heads.iter().enumerate() {
            data[plane] = data.len() as u32;
            for head in heads {
                data.push(i32::from(head.grid).cast_unsigned());
                data.extend(head.shifts.iter().map(|shift| i32::from(*shift).cast_unsigned()));
                let byte = |bytes: &[i8], i: usize| u32::from(bytes.get(i).map_or(0, |x| x.cast_unsigned()));
                data.extend(
                    head.numbers
                        .chunks(4)
                        .map(|four| (0..4).fold(0, |word, i| word | byte(four, i) << (8 * i))),
                );
            }
        }
        Some(Kernel::new(include_str!("klt.wgsl"), data).with_rows(Rows::Matrix))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        for (number, head) in self.heads(tile, x.dim(), out.dim())?.iter().enumerate() {
            let place = || format!("{}, head {number}", tile.plane.name());
            let matrix = head.analysis().at(place)?;
            let channels = number * head.dim..(number + 1) * head.dim;
            let from = x.slice(s![.., channels.clone()]);
            let mut to = out.slice_mut(s![.., channels]);
            for (row, (from, mut to)) in from.outer_iter().zip(to.outer_iter_mut()).enumerate() {
                match (from.as_slice(), matrix.as_slice(), to.as_slice_mut()) {
                    (Some(from), Some(matrix), Some(to)) => multiply(from, matrix, to),
                    _ => multiply_strided(from, matrix, to.view_mut()),
                }
                if !head.holds(from.iter().copied(), to.iter().copied()) {
                    let why =
                        "values thousands of times as large as those that the profile was calibrated on";
                    return Err(Error::data(format!("token {}: {why}", tile.first + row)).at(place()));
                }
            }
        }
        Ok(())
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let y = crate::only(parts)?;
        for (number, head) in self.heads(tile, y.dim(), out.dim())?.iter().enumerate() {
            let channels = number * head.dim..(number + 1) * head.dim;
            let from = y.slice(s![.., channels.clone()]);
            let mut to = out.slice_mut(s![.., channels]);
            let unit = power(-i32::from(head.grid));
            let columns = std::iter::once(Columns { from, scales: &head.scales });
            multiply_rows(&head.matrix, tile.rows, columns, MOST, |row, sums| {
                let mut to = to.row_mut(row);
                match to.as_slice_mut() {
                    Some(to) => from_grid(sums, unit, to),
                    None => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = value(*sum, unit)),
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
