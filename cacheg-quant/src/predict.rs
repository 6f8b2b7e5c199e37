//! `predict(layers=1;v-from-k=true)`: a token's keys and values from those of the layers before.
//!
//! Layers of a transformer read one residual stream, each adding little to it: what a token has cached in one layer says much
//! about what it will have in the next. A plane is predicted linearly, from the planes of the `layers` layers before it and,
//! values, from the keys of their own layer (`v-from-k`), of the same token. What is left of it is what the stages behind code.
//! The planes that are predicted from are those that the decoder has (a closed loop, as in video coding and in CacheGen's
//! anchors): errors do not add up. Keys are alike across layers before RoPE: put `unrope` and `mean` in front.
//!
//! Calibration fits the predictors by ridge regression on reconstructed planes; `cacheg profile` goes through the contexts
//! several times, each time with what the codec of the time before makes of them. A predictor is worth most near the step at
//! which it was fitted: `fit` names one of several in a profile, and the first pipeline with the name makes it.
//!
//! One part. Data, for planes that are predicted, one after the other: tensor `weights`, u8 (signed), a matrix `N` of integers, a row
//! for each channel of the references, a column for each channel of the plane; `reference`, u8 (signed), of each row; `shift`, u8
//! (signed), of each column; `grid`, u8 (signed), one for each plane. A profile needs `references · channels` bytes for a plane, a
//! decoder as many multiply-adds per token.
//!
//! **Exactness**: bit-exact everywhere, by integers. With the references' values `v`: `R[r] = round(v[r]·2^reference[r])`, at most
//! ± 32,767; `P[c] = Σ R[r]·N[r][c]` modulo 2³²; the prediction is `Q[c]·2^-grid`, `Q[c]` being `P[c]` divided by
//! `2^(shift[c] − grid)`, rounded. With the part's values `y`, `E[c] = round(y[c]·2^grid)`, the outcome is
//! `(E[c] + Q[c])·2^-grid`. So all devices have the same references, however many layers there are.
//!
//! ```
//! let stages = cacheg_core::spec::parse("predict(layers=2)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::predict::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["v-from-k"], true);
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod calibrate;
mod kernel;

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Calibrator, Error, Kernel, Kind, Plane, Plugin, Result, Stage, TileCx,
    Transform, config, settings,
};
use multiversion::multiversion;
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::carried;
use crate::integer::{Columns, IntMatrix, MOST, SHIFTS, grid_of, multiply_rows, power, value};
use crate::rows::check;
use crate::settings::refuse;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "predict",
    version: 1,
    origin: "cacheg-quant",
    summary: "predicts keys and values from those of the layers before, as the decoder has them; needs a profile",
    usage: "predict(layers=1;v-from-k=true;fit=0)",
    build: Build::Transform(build),
};

/// What references are clamped to, as integers.
const MOST_REFERENCE: i32 = i16::MAX as i32;

/// Settings of `predict`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// How many layers before a plane's own it is predicted from, 1 to 7.
    pub layers: u8,
    /// Whether values are predicted from the keys of their own layer, too.
    pub v_from_k: bool,
    /// Which of the predictors that a profile has of this kind; means nothing else.
    pub fit: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self { layers: 1, v_from_k: true, fit: 0 }
    }
}

impl Settings {
    /// The planes that each plane is predicted from, by index.
    fn references(&self, planes: &[Plane]) -> Vec<Vec<usize>> {
        let of = |plane: &Plane| {
            let wanted = planes.iter().filter(|other| {
                let back = plane.layer.saturating_sub(other.layer);
                let own = self.v_from_k && plane.kind == Kind::Value && other.kind == Kind::Key;
                other.layer <= plane.layer && (1..=u32::from(self.layers)).contains(&back)
                    || other.layer == plane.layer && own
            });
            wanted.map(|other| other.index).filter(|other| *other < plane.index).collect()
        };
        planes.iter().map(of).collect()
    }
}

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    if !(1..=7).contains(&settings.layers) {
        return Err(refuse(PLUGIN.name, "layers", "must be 1 to 7"));
    }
    Ok(Arc::new(Predict(settings)))
}

#[derive(Debug)]
struct Predict(Settings);

impl Stage for Predict {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Transform for Predict {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        let references = self.0.references(cx.planes);
        let widths = |others: &[usize]| others.iter().map(|other| cx.planes[*other].channels()).collect();
        let widths: Vec<Vec<usize>> = references.iter().map(|others| widths(others)).collect();
        let predicted = || cx.planes.iter().zip(&widths).filter(|(_, widths)| !widths.is_empty());
        let rows = |widths: &[usize]| widths.iter().sum::<usize>();
        let numbers = predicted().map(|(plane, widths)| rows(widths) * plane.channels()).sum();
        let data = cx.require_data()?;
        let weights = carried::signed(data, "weights", numbers, i8::MAX, cx.source)?;
        let scales = predicted().map(|(_, widths)| rows(widths)).sum();
        let scales = carried::signed(data, "reference", scales, SHIFTS, cx.source)?;
        let columns = predicted().map(|(plane, _)| plane.channels()).sum();
        let shifts = carried::signed(data, "shift", columns, SHIFTS, cx.source)?;
        let grids = carried::signed(data, "grid", predicted().count(), SHIFTS, cx.source)?;
        let (mut weights, mut scales, mut shifts) = (&weights[..], &scales[..], &shifts[..]);
        let mut grids = grids.into_iter();
        let mut predictors = Vec::new();
        for (plane, widths) in cx.planes.iter().zip(&widths) {
            let (rows, cols) = (rows(widths), plane.channels());
            let grid = if rows == 0 { None } else { grids.next() };
            predictors.push(if let Some(grid) = grid {
                let (own, others) = weights.split_at(rows * cols);
                let (scale, later) = scales.split_at(rows);
                let (shift, last) = shifts.split_at(cols);
                (weights, scales, shifts) = (others, later, last);
                let down = shift.iter().map(|shift| i32::from(*shift) - i32::from(grid));
                Some(Predictor {
                    matrix: IntMatrix::new(rows, cols, own),
                    scales: scale.iter().map(|exponent| power(i32::from(*exponent))).collect(),
                    widths: widths.clone(),
                    down: down.map(Down::new).collect::<Option<_>>().ok_or_else(|| {
                        carried::fault(cx.source, "`shift` and `grid` are too far apart".into())
                    })?,
                    grid: i32::from(grid),
                })
            } else {
                None
            });
        }
        Ok(Box::new(Bound { predictors, references }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        Some(Box::new(calibrate::PredictCalibrator::new(self.0.references(cx.planes), cx.planes, cx.source)))
    }
}

/// Divides by a power of two, rounding to the nearest, halves up; or multiplies by one.
#[derive(Debug, Clone, Copy)]
struct Down {
    up: u8,
    half: i32,
    down: u8,
}

impl Down {
    /// Between 16 bits up and 30 down.
    fn new(bits: i32) -> Option<Self> {
        match bits {
            -16..=0 => Some(Self { up: -bits as u8, half: 0, down: 0 }),
            1..=30 => Some(Self { up: 0, half: 1 << (bits - 1), down: bits as u8 }),
            _ => None,
        }
    }

    #[inline(always)]
    fn of(self, x: i32) -> i32 {
        (x << self.up).wrapping_add(self.half) >> self.down
    }
}

/// What one plane is predicted by.
#[derive(Debug)]
struct Predictor {
    matrix: IntMatrix,
    /// What references are multiplied by to be integers.
    scales: Vec<f32>,
    /// Channels of each reference.
    widths: Vec<usize>,
    down: Vec<Down>,
    grid: i32,
}

impl Predictor {
    /// Gives each row's number, and its prediction on the grid in the form of sums to be shifted.
    fn predict(
        &self,
        rows: usize,
        references: &[ArrayView2<'_, f32>],
        give: impl FnMut(usize, &[i32]),
    ) -> Result<()> {
        if references.len() != self.widths.len() {
            return Err(Error::data(format!(
                "{} references where {} are expected",
                references.len(),
                self.widths.len()
            )));
        }
        for (reference, width) in references.iter().zip(&self.widths) {
            check(reference.dim(), rows, *width)?;
        }
        let mut first = 0;
        let columns = references.iter().zip(&self.widths).map(move |(from, width)| {
            first += width;
            Columns { from: from.view(), scales: &self.scales[first - width..first] }
        });
        multiply_rows(&self.matrix, rows, columns, MOST_REFERENCE, give);
        Ok(())
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane; `None` if there is nothing to predict it from.
    predictors: Vec<Option<Predictor>>,
    references: Vec<Vec<usize>>,
}

impl Bound {
    fn predictor(&self, tile: &TileCx<'_>) -> Result<Option<&Predictor>> {
        self.predictors.get(tile.plane.index).map(Option::as_ref).ok_or_else(crate::unknown_plane)
    }
}

impl BoundTransform for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn references(&self, plane: &Plane) -> &[usize] {
        self.references.get(plane.index).map_or(&[], Vec::as_slice)
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        Some(kernel::kernel(self))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        done: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        check(x.dim(), tile.rows, tile.plane.channels())?;
        check(out.dim(), tile.rows, tile.plane.channels())?;
        let Some(predictor) = self.predictor(tile)? else {
            out.assign(&x);
            return Ok(());
        };
        let (unit, most) = (power(-predictor.grid), MOST as f32 * power(-predictor.grid));
        if let Some((place, _)) = x.indexed_iter().find(|(_, x)| x.is_nan() || x.abs() >= most) {
            let why = "a value thousands of times as large as those that the profile was calibrated on";
            return Err(Error::data(format!("token {}, channel {}: {why}", tile.first + place.0, place.1)));
        }
        predictor.predict(tile.rows, done, |row, sums| {
            let sums = sums.iter().zip(&predictor.down);
            for ((out, x), (sum, down)) in out.row_mut(row).iter_mut().zip(x.row(row)).zip(sums) {
                *out = x - value(down.of(*sum), unit);
            }
        })
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let [y, references @ ..] = parts else { return Err(Error::data("no part")) };
        check(y.dim(), tile.rows, tile.plane.channels())?;
        check(out.dim(), tile.rows, tile.plane.channels())?;
        let Some(predictor) = self.predictor(tile)? else {
            out.assign(y);
            return Ok(());
        };
        let (scale, unit) = (power(predictor.grid), power(-predictor.grid));
        predictor.predict(tile.rows, references, |row, sums| {
            let (y, mut out) = (y.row(row), out.row_mut(row));
            match (y.to_slice(), out.as_slice_mut()) {
                (Some(y), Some(out)) => add(y, sums, &predictor.down, scale, unit, out),
                _ => {
                    let sums = sums.iter().zip(&predictor.down);
                    for ((out, y), (sum, down)) in out.iter_mut().zip(y).zip(sums) {
                        *out = value(grid_of(*y, scale, MOST as f32).wrapping_add(down.of(*sum)), unit);
                    }
                }
            }
        })
    }
}

/// What is left of a row, and its prediction, together.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn add(y: &[f32], sums: &[i32], down: &[Down], scale: f32, unit: f32, out: &mut [f32]) {
    for ((out, y), (sum, down)) in out.iter_mut().zip(y).zip(sums.iter().zip(down)) {
        *out = value(grid_of(*y, scale, MOST as f32).wrapping_add(down.of(*sum)), unit);
    }
}

#[cfg(test)]
mod tests;
