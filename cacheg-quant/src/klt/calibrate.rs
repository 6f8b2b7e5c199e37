//! Gathers covariances and makes matrices of them.

use cacheg_core::{
    Accumulator, BindCx, Calibrator, Error, PartCx, Plane, Result, ResultExt, Seen, Source, StageData, TileCx,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};

use super::{Metric, TENSOR, matrix};
use crate::carried;
use crate::rounding::not_finite;
use crate::rows::check;

/// What is added of the identity to a sensitivity whose mean diagonal is 1: directions that seem to cost nothing do cost
/// something.
const SHRINK: f64 = 0.3;

#[derive(Debug)]
pub(super) struct KltCalibrator {
    source: Source,
    /// By plane and head what errors cost; `None` if all alike. Empty without the statistics that it takes.
    metrics: Option<Vec<Vec<Array2<f64>>>>,
}

impl KltCalibrator {
    pub(super) fn new(metric: Metric, cx: &BindCx<'_>) -> Self {
        let metrics = (metric == Metric::Sensitivity).then(|| {
            let of = |plane: &Plane| {
                let dim = plane.shape.head_dim as usize;
                let all = cx.statistics.map(|statistics| statistics.sensitivity(plane)).unwrap_or_default();
                let head = |numbers: &[f64]| Array2::from_shape_fn((dim, dim), |(i, j)| numbers[i * dim + j]);
                all.chunks_exact((dim * dim).max(1)).map(head).collect()
            };
            cx.planes.iter().map(of).collect()
        });
        Self { source: cx.source, metrics }
    }
}

impl Calibrator for KltCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let dim = plane.shape.head_dim as usize;
        let heads = (0..plane.shape.heads as usize).map(|_| Moments::new(dim)).collect();
        let metrics =
            self.metrics.as_ref().map(|metrics| metrics.get(plane.index).cloned().unwrap_or_default());
        Box::new(Sums { rows: 0, heads, metrics, source: self.source, name: plane.name() })
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        carried::join(TENSOR, &planes)
    }
}

/// First and second moments of a head.
#[derive(Debug)]
struct Moments {
    sum: Array1<f64>,
    product: Array2<f64>,
}

impl Moments {
    fn new(dim: usize) -> Self {
        Self { sum: Array1::zeros(dim), product: Array2::zeros((dim, dim)) }
    }

    fn observe(&mut self, x: ArrayView2<'_, f32>) {
        let x = x.mapv(f64::from);
        self.sum += &x.sum_axis(ndarray::Axis(0));
        self.product += &x.t().dot(&x);
    }

    fn covariance(&self, rows: f64) -> Array2<f64> {
        let mean = &self.sum / rows;
        let column: ArrayView2<'_, f64> = mean.view().insert_axis(ndarray::Axis(1));
        &self.product / rows - column.dot(&column.t())
    }
}

/// One plane's.
#[derive(Debug)]
struct Sums {
    rows: u64,
    heads: Vec<Moments>,
    metrics: Option<Vec<Array2<f64>>>,
    source: Source,
    name: String,
}

impl Accumulator for Sums {
    fn observe(&mut self, tile: &TileCx<'_>, _: &PartCx, seen: Seen<'_>) -> Result<()> {
        let Seen::Values(x) = seen else {
            return Err(Error::data("covariances are taken from values, not from symbols"));
        };
        check(x.dim(), tile.rows, tile.plane.channels())?;
        for (number, head) in self.heads.iter_mut().enumerate() {
            let dim = head.sum.len();
            head.observe(x.slice(s![.., number * dim..(number + 1) * dim]));
        }
        self.rows += tile.rows as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        // An empty chunk needs no matrices; an empty profile would be a mistake.
        if self.rows == 0 && self.source == Source::Profile {
            return Err(Error::data("no tokens to take covariances of"));
        }
        let mut bits = Vec::new();
        for (number, head) in self.heads.iter().enumerate() {
            let covariance = head.covariance(self.rows.max(1) as f64);
            if covariance.iter().any(|x| !x.is_finite()) {
                return Err(not_finite());
            }
            let metric = match &self.metrics {
                None => None,
                Some(metrics) => Some(metrics.get(number).ok_or_else(needs_statistics)?),
            };
            let synthesis = synthesis(&covariance, metric).at(|| format!("{}, head {number}", self.name))?;
            bits.extend(synthesis.iter().map(|x| carried::bf16(*x)));
        }
        let mut data = StageData::new();
        data.put_u16(TENSOR, &[bits.len()], &bits);
        Ok(data)
    }
}

fn needs_statistics() -> Error {
    Error::profile("`metric=sensitivity` needs a profile that is made with statistics (`--statistics`)")
}

/// The rows that coefficients are coefficients of.
fn synthesis(covariance: &Array2<f64>, metric: Option<&Array2<f64>>) -> Result<Array2<f64>> {
    let Some(metric) = metric else { return Ok(signed(matrix::eigen(covariance).1.reversed_axes())) };
    let n = metric.nrows();
    let mean = metric.diag().mean().unwrap_or(0.0);
    if !mean.is_finite() || mean < 0.0 || metric.iter().any(|x| !x.is_finite()) {
        return Err(Error::data("statistics whose sensitivities are not numbers, or negative"));
    }
    // Of what costs nothing all directions are alike.
    let normal = if mean > 0.0 { metric / mean } else { Array2::eye(n) };
    let (values, vectors) = matrix::eigen(&((normal + SHRINK * Array2::<f64>::eye(n)) / (1.0 + SHRINK)));
    if values.iter().any(|value| *value <= 0.0) {
        return Err(Error::data("statistics whose sensitivity is not positive definite"));
    }
    let power = |of: fn(f64) -> f64| {
        let scaled = &vectors * &values.mapv(of).view().insert_axis(ndarray::Axis(0));
        scaled.dot(&vectors.t())
    };
    let root = power(f64::sqrt);
    let (_, basis) = matrix::eigen(&root.dot(covariance).dot(&root));
    Ok(signed(basis.reversed_axes()).dot(&power(|value| 1.0 / value.sqrt())))
}

/// Every row with its largest number positive: eigenvectors have no sign of their own, and profiles should not have any
/// machine's.
fn signed(mut rows: Array2<f64>) -> Array2<f64> {
    let negative = |row: ArrayView1<'_, f64>| {
        row.iter().fold(0.0f64, |most, x| if x.abs() > most.abs() { *x } else { most }) < 0.0
    };
    for mut row in rows.outer_iter_mut() {
        if negative(row.view()) {
            row.mapv_inplace(|x| -x);
        }
    }
    rows
}
