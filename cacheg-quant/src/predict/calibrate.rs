//! Fits predictors to planes and what a decoder has of others.

use cacheg_core::{Accumulator, Calibrator, Error, PartCx, Plane, Result, Seen, Source, StageData, TileCx};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::integer::{SHIFTS, to_bytes};
use crate::rows::check;
use crate::{carried, numeric};

/// What is added to the diagonal of the references' moments, as a share of its mean: directions in which they hardly vary
/// would get weights that fit nothing but noise. `RIDGE_PER_ROW` times the number of references over that of tokens comes to it:
/// few tokens are fitted by many weights, whatever they are.
const RIDGE: f64 = 1e-4;
const RIDGE_PER_ROW: f64 = 0.1;

/// Rows that are multiplied at a time.
const BATCH: usize = 512;

const TENSORS: [&str; 4] = ["weights", "reference", "shift", "grid"];

#[derive(Debug)]
pub(super) struct PredictCalibrator {
    references: Vec<Vec<usize>>,
    widths: Vec<usize>,
    source: Source,
}

impl PredictCalibrator {
    pub(super) fn new(references: Vec<Vec<usize>>, planes: &[Plane], source: Source) -> Self {
        let width = |others: &Vec<usize>| others.iter().map(|other| planes[*other].channels()).sum();
        Self { widths: references.iter().map(width).collect(), references, source }
    }
}

impl Calibrator for PredictCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let cols = plane.channels();
        // For chunks there will be no predictors, and no sums.
        let rows = match self.source {
            Source::Profile => self.widths.get(plane.index).copied().unwrap_or(0),
            Source::Chunk => 0,
        };
        Box::new(Sums {
            seen: 0,
            filled: 0,
            x: Array2::zeros((if rows == 0 { 0 } else { BATCH }, cols)),
            references: Array2::zeros((if rows == 0 { 0 } else { BATCH }, rows)),
            square: Array1::zeros(cols),
            moments: Array2::zeros((rows, rows)),
            cross: Array2::zeros((rows, cols)),
        })
    }

    fn references(&self, plane: &Plane) -> Vec<usize> {
        self.references.get(plane.index).cloned().unwrap_or_default()
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        match self.source {
            Source::Profile => carried::join_bytes(&TENSORS, &planes),
            // It would be larger than what it saves, and fit nothing but the chunk.
            Source::Chunk => Err(Error::profile("`predict` needs a profile (`cacheg profile`)")),
        }
    }
}

/// One plane's.
#[derive(Debug)]
struct Sums {
    seen: u64,
    /// Rows that wait to be multiplied.
    filled: usize,
    x: Array2<f32>,
    references: Array2<f32>,
    /// Σ x².
    square: Array1<f64>,
    /// Σ y yᵀ, `y` being the references.
    moments: Array2<f64>,
    /// Σ y xᵀ.
    cross: Array2<f64>,
}

impl Sums {
    fn flush(&mut self) {
        let (x, y) = (self.x.slice(s![..self.filled, ..]), self.references.slice(s![..self.filled, ..]));
        // Half of the work of f64, and precise enough for a batch.
        self.moments.zip_mut_with(&y.t().dot(&y), |sum, more| *sum += f64::from(*more));
        self.cross.zip_mut_with(&y.t().dot(&x), |sum, more| *sum += f64::from(*more));
        self.square += &x.mapv(|x| f64::from(x).powi(2)).sum_axis(Axis(0));
        self.seen += self.filled as u64;
        self.filled = 0;
    }

    /// What each column is predicted by, in real numbers; and the root mean square of the references.
    fn weights(&self) -> Result<(Array2<f64>, Array1<f64>)> {
        let count = self.seen as f64;
        let size = self.moments.diag().mapv(|square| (square / count).sqrt());
        // Of references of one size each, so that a ridge means the same to all.
        let one = size.mapv(|size| if size > 0.0 { 1.0 / size } else { 0.0 });
        let [row, col] = [one.view().insert_axis(Axis(1)), one.view().insert_axis(Axis(0))];
        let mut moments = &self.moments / count * row * col;
        let ridge = RIDGE + RIDGE_PER_ROW * size.len() as f64 / count;
        moments.diag_mut().map_inplace(|x| *x += ridge);
        let cross = &self.cross / count * row;
        let weights = numeric::solve(&moments, &cross)
            .ok_or_else(|| Error::data("the references' moments have no inverse"))?;
        Ok((weights * row, size))
    }

    /// Mean square of what is left, over the columns.
    fn left(&self, weights: &Array2<f64>) -> f64 {
        let both = (weights * &self.cross).sum_axis(Axis(0));
        let predicted = (weights * &self.moments.dot(weights)).sum_axis(Axis(0));
        let left = (&self.square - &both * 2.0 + predicted) / self.seen as f64;
        left.mean().unwrap_or(0.0).max(0.0)
    }
}

impl Accumulator for Sums {
    fn observe(&mut self, tile: &TileCx<'_>, _: &PartCx, seen: Seen<'_>) -> Result<()> {
        if self.moments.is_empty() {
            return Ok(());
        }
        let Seen::Predicted(x, references) = seen else {
            return Err(Error::data("predictors are fitted to values and references"));
        };
        check(x.dim(), tile.rows, self.x.ncols())?;
        for row in 0..tile.rows {
            let put = |from: ArrayView2<'_, f32>, to: &mut Array2<f32>, first: usize, filled: usize| {
                to.slice_mut(s![filled, first..first + from.ncols()]).assign(&from.row(row));
            };
            let weight = crate::weight::of_row(tile, row);
            put(x, &mut self.x, 0, self.filled);
            let mut first = 0;
            for reference in references {
                put(*reference, &mut self.references, first, self.filled);
                first += reference.ncols();
            }
            if weight != 1.0 {
                self.x.row_mut(self.filled).mapv_inplace(|x| x * weight);
                self.references.row_mut(self.filled).mapv_inplace(|x| x * weight);
            }
            self.filled += 1;
            if self.filled == BATCH {
                self.flush();
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<StageData> {
        let (mut numbers, mut rows, mut shifts, mut grids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        if !self.moments.is_empty() {
            self.flush();
            if self.seen == 0 {
                return Err(Error::data("no tokens to fit predictors to"));
            }
            let (mut weights, size) = self.weights()?;
            let left = self.left(&weights);
            if !left.is_finite() || weights.iter().any(|x| !x.is_finite()) {
                return Err(crate::rounding::not_finite());
            }
            // References of a size between 128 and 256: 7 bits before they are clamped.
            rows = size.iter().map(|size| exponent(256.0, *size)).collect();
            for (mut row, exponent) in weights.outer_iter_mut().zip(&rows) {
                row.mapv_inplace(|x| x * f64::from(-*exponent).exp2());
            }
            grids = vec![exponent(4_096.0, left.sqrt())];
            let mut columns = Vec::new();
            for column in weights.columns() {
                let begin = columns.len();
                let shift = to_bytes(column.iter().copied(), &mut columns);
                let possible = shift.clamp(grids[0].saturating_sub(16), grids[0].saturating_add(30));
                if possible != shift {
                    // A column that is next to nothing beside the others.
                    columns.truncate(begin);
                    columns.resize(begin + rows.len(), 0);
                }
                shifts.push(possible.clamp(-SHIFTS, SHIFTS));
            }
            let count = shifts.len();
            numbers = (0..columns.len()).map(|i| columns[i % count * rows.len() + i / count]).collect();
        }
        let mut data = StageData::new();
        for (name, numbers) in TENSORS.iter().zip([&numbers, &rows, &shifts, &grids]) {
            carried::put_signed(&mut data, name, numbers);
        }
        Ok(data)
    }
}

/// The power of two that brings a size to between half of `most` and `most`.
fn exponent(most: f64, size: f64) -> i8 {
    let size = if size > 0.0 { size } else { 1.0 };
    (most / size).log2().floor().clamp(-f64::from(SHIFTS), f64::from(SHIFTS)) as i8
}
