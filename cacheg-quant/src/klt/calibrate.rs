//! Gathers covariances and makes matrices of them.

use cacheg_core::{
    Accumulator, BindCx, Calibrator, Error, PartCx, Plane, Result, ResultExt, Seen, Source, StageData, TileCx,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};

use super::{Metric, check_dims};
use crate::integer::{SHIFTS, to_bytes};
use crate::metric::Roots;
use crate::rounding::not_finite;
use crate::rows::check;
use crate::{carried, numeric, weight};

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
        // Of heads that are too wide, which are refused when they are seen, no sums are kept.
        let heads =
            if check_dims(std::slice::from_ref(plane)).is_ok() { plane.shape.heads as usize } else { 0 };
        let heads = (0..heads).map(|_| Moments::new(dim)).collect();
        let metrics =
            self.metrics.as_ref().map(|metrics| metrics.get(plane.index).cloned().unwrap_or_default());
        Box::new(Sums { rows: 0, heads, metrics, source: self.source, plane: plane.clone() })
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        carried::join_bytes(&["synthesis", "shift", "grid"], &planes)
    }
}

/// First and second moments of a head.
#[derive(Debug)]
struct Moments {
    weight: f64,
    sum: Array1<f64>,
    product: Array2<f64>,
}

impl Moments {
    fn new(dim: usize) -> Self {
        Self { weight: 0.0, sum: Array1::zeros(dim), product: Array2::zeros((dim, dim)) }
    }

    fn observe(&mut self, x: ArrayView2<'_, f32>, weights: &Array1<f64>) {
        let mut x = x.mapv(f64::from);
        x *= &weights.view().insert_axis(ndarray::Axis(1));
        self.sum += &weights.dot(&x);
        self.product += &x.t().dot(&x);
    }

    fn covariance(&self) -> Array2<f64> {
        let rows = if self.weight > 0.0 { self.weight } else { 1.0 };
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
    plane: Plane,
}

impl Accumulator for Sums {
    fn observe(&mut self, tile: &TileCx<'_>, _: &PartCx, seen: Seen<'_>) -> Result<()> {
        let Seen::Values(x) = seen else {
            return Err(Error::data("covariances are taken from values, not from symbols"));
        };
        check_dims(std::slice::from_ref(&self.plane))?;
        check(x.dim(), tile.rows, tile.plane.channels())?;
        for (number, head) in self.heads.iter_mut().enumerate() {
            let dim = head.sum.len();
            let weights: Array1<f64> =
                (0..tile.rows).map(|row| f64::from(weight::of_head(tile, row, number))).collect();
            head.weight += weights.dot(&weights);
            head.observe(x.slice(s![.., number * dim..(number + 1) * dim]), &weights);
        }
        self.rows += tile.rows as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        // An empty chunk needs no matrices; an empty profile would be a mistake.
        if self.rows == 0 && self.source == Source::Profile {
            return Err(Error::data("no tokens to take covariances of"));
        }
        check_dims(std::slice::from_ref(&self.plane))?;
        let (mut numbers, mut shifts, mut grids) = (Vec::new(), Vec::new(), Vec::new());
        for (number, head) in self.heads.iter().enumerate() {
            let covariance = head.covariance();
            if covariance.iter().any(|x| !x.is_finite()) {
                return Err(not_finite());
            }
            let metric = match &self.metrics {
                None => None,
                Some(metrics) => Some(metrics.get(number).ok_or_else(needs_statistics)?),
            };
            let (synthesis, variance) =
                synthesis(&covariance, metric).at(|| format!("{}, head {number}", self.plane.name()))?;
            let first = shifts.len();
            shifts.extend(synthesis.outer_iter().map(|row| to_bytes(row.iter().copied(), &mut numbers)));
            grids.push(grid(&shifts[first..], variance));
        }
        let mut data = StageData::new();
        carried::put_signed(&mut data, "synthesis", &numbers);
        carried::put_signed(&mut data, "shift", &shifts);
        carried::put_signed(&mut data, "grid", &grids);
        Ok(data)
    }
}

/// The grid of a head: fine enough that every coefficient is rounded by 1/4,096 of the largest's standard deviation, at most.
fn grid(shifts: &[i8], variance: f64) -> i8 {
    let finest = f64::from(shifts.iter().copied().max().unwrap_or(0));
    let deviation = if variance > 0.0 { variance.sqrt() } else { 1.0 };
    (finest + 12.0 - deviation.log2().floor()).clamp(-f64::from(SHIFTS), f64::from(SHIFTS)) as i8
}

fn needs_statistics() -> Error {
    Error::profile("`metric=sensitivity` needs a profile that is made with statistics (`--statistics`)")
}

/// The rows that coefficients are coefficients of, and the largest variance of a coefficient.
fn synthesis(covariance: &Array2<f64>, metric: Option<&Array2<f64>>) -> Result<(Array2<f64>, f64)> {
    let largest = |values: &Array1<f64>| values.first().copied().unwrap_or(0.0);
    let Some(metric) = metric else {
        let (values, basis) = numeric::eigen(covariance);
        return Ok((signed(basis.reversed_axes()), largest(&values)));
    };
    let Roots { root, inverse } = Roots::new(metric)?;
    let (values, basis) = numeric::eigen(&root.dot(covariance).dot(&root));
    Ok((signed(basis.reversed_axes()).dot(&inverse), largest(&values)))
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
