//! Whether statistics are any: finite, symmetric, positive semi-definite, with each other.

use super::layout::{FEATURES, Rule};
use super::{Statistics, Sums, Tensor, centred};
use crate::{Error, Plane, Result, ResultExt};

/// How far, relative to the diagonal, matrices may be from what they must be.
const TOLERANCE: f64 = 1e-6;

impl Statistics {
    /// Checks what `FORMAT.md`, section 8.5, says; done on reading. Not for statistics of nothing.
    ///
    /// # Errors
    /// What is wrong, with the tensor's name.
    pub fn validate(&self) -> Result<()> {
        let counts = self.counts;
        for (what, count) in [
            ("contexts", counts.contexts),
            ("tokens", counts.tokens),
            ("continuation_tokens", counts.continuation_tokens),
            ("pairs", counts.pairs),
        ] {
            if count == 0 {
                return Err(Error::data(format!("statistics of no {what}")));
            }
        }
        for (index, sums) in self.layers.iter().enumerate() {
            if !(sums.residual.is_finite() && sums.residual > 0.0) {
                return Err(
                    Error::data(format!("{} in layer {index} is not positive", sums.residual)).at("residual")
                );
            }
            for (name, tensor) in &sums.tensors {
                tensor.check().at(|| format!("layers.{index}.{name}"))?;
            }
            sums.check_importance(counts.tokens as f64).at(|| format!("layers.{index}.importance"))?;
        }
        self.planes.iter().try_for_each(|plane| self.check_covariance(plane))?;
        (0..self.layers.len()).try_for_each(|layer| self.check_cross(layer))
    }

    fn check_covariance(&self, plane: &Plane) -> Result<()> {
        let Some(sums) = self.layers.get(plane.layer as usize) else { return Ok(()) };
        let [sum, moment] = ["sum", "moment"].map(|what| sums.get(&Sums::named(plane, what)));
        let tokens = self.counts.tokens as f64;
        let scaled: Vec<f64> = sum.iter().map(|x| x / tokens).collect();
        let largest = diagonal(moment, sum.len()).fold(0.0, f64::max);
        definite(centred(moment.to_vec(), &scaled, sum), sum.len(), largest)
            .at(|| format!("covariance of `{}`", plane.name()))
    }

    /// Cauchy-Schwarz.
    fn check_cross(&self, layer: usize) -> Result<()> {
        // Diagonals of the planes' moments, side by side.
        let squares = |layer: usize, kind: Option<&str>| -> Vec<f64> {
            let planes = self.planes.iter().filter(|plane| plane.layer as usize == layer);
            let some = planes.filter(|plane| kind.is_none_or(|kind| kind == plane.kind.name()));
            let moment = |p: &Plane| {
                diagonal(self.layers[layer].get(&Sums::named(p, "moment")), p.channels()).collect()
            };
            some.flat_map(|plane| -> Vec<f64> { moment(plane) }).collect()
        };
        let bounded = |name: &str, rows: &[f64], cols: &[f64]| {
            let values = self.layers[layer].get(name).chunks_exact(cols.len().max(1));
            for (row, values) in rows.iter().zip(values) {
                for (col, x) in cols.iter().zip(values) {
                    if x * x > row * col * (1.0 + TOLERANCE) {
                        return Err(Error::data(format!(
                            "a cross moment of {x:e} where the squares sum to {row:e} and {col:e}"
                        ))
                        .at(format!("layers.{layer}.{name}")));
                    }
                }
            }
            Ok(())
        };
        bounded("value_key", &squares(layer, Some("value")), &squares(layer, Some("key")))?;
        (1..=layer.min(self.window as usize)).try_for_each(|back| {
            bounded(&format!("back.{back}"), &squares(layer, None), &squares(layer - back, None))
        })
    }
}

impl Sums {
    /// The features with the target as one more of them.
    fn check_importance(&self, tokens: f64) -> Result<()> {
        let [xx, xy, yy] = ["xx", "xy", "yy"].map(|what| self.get(&format!("importance.{what}")));
        let features = xy.len() / yy.len().max(1);
        debug_assert!(yy.is_empty() || features > FEATURES, "a key has channels");
        for (head, yy) in yy.iter().enumerate() {
            let xx = &xx[head * features * features..][..features * features];
            let xy = &xy[head * features..][..features];
            if (xx[0] - tokens).abs() > TOLERANCE * tokens {
                return Err(Error::data(format!("head {head} is of {} tokens, not {tokens}", xx[0])).at("xx"));
            }
            let mut joint = Vec::with_capacity((features + 1) * (features + 1));
            for (row, xy) in xx.chunks_exact(features).zip(xy) {
                joint.extend_from_slice(row);
                joint.push(*xy);
            }
            joint.extend_from_slice(xy);
            joint.push(*yy);
            let largest = diagonal(&joint, features + 1).fold(0.0, f64::max);
            definite(joint, features + 1, largest).at(|| format!("`xx`, `xy` and `yy` of head {head}"))?;
        }
        Ok(())
    }
}

impl Tensor {
    fn check(&self) -> Result<()> {
        if let Some(at) = self.values.iter().position(|x| !x.is_finite()) {
            return Err(Error::data(format!("{} at index {at}", self.values[at])));
        }
        let (Rule::Gram, Some(dim)) = (self.rule, self.shape.last()) else { return Ok(()) };
        for (index, matrix) in self.values.chunks_exact(dim * dim).enumerate() {
            let place = || if self.shape.len() > 2 { format!("head {index}") } else { "matrix".to_owned() };
            symmetric(matrix, *dim).at(place)?;
            let largest = diagonal(matrix, *dim).fold(0.0, f64::max);
            definite(matrix.to_vec(), *dim, largest).at(place)?;
        }
        Ok(())
    }
}

fn diagonal(matrix: &[f64], dim: usize) -> impl Iterator<Item = f64> {
    matrix.iter().step_by(dim + 1).copied()
}

fn symmetric(matrix: &[f64], dim: usize) -> Result<()> {
    for row in 0..dim {
        for col in 0..row {
            let (a, b) = (matrix[row * dim + col], matrix[col * dim + row]);
            let scale = (matrix[row * (dim + 1)] * matrix[col * (dim + 1)]).abs().sqrt();
            if (a - b).abs() > TOLERANCE * scale {
                return Err(Error::data(format!(
                    "not symmetric: {a:e} at [{row}, {col}], {b:e} at [{col}, {row}]"
                )));
            }
        }
    }
    Ok(())
}

/// Cholesky decomposition, in place, of the matrix with a little of `largest` on its diagonal.
fn definite(mut matrix: Vec<f64>, dim: usize, largest: f64) -> Result<()> {
    if matrix.iter().all(|x| *x == 0.0) {
        return Ok(());
    }
    for row in 0..dim {
        let (done, rest) = matrix.split_at_mut(row * dim);
        let current = &mut rest[..dim];
        for col in 0..row {
            let earlier = &done[col * dim..][..dim];
            let known: f64 = current[..col].iter().zip(earlier).map(|(a, b)| a * b).sum();
            current[col] = (current[col] - known) / earlier[col];
        }
        let known: f64 = current[..row].iter().map(|a| a * a).sum();
        let pivot = current[row] + TOLERANCE * largest - known;
        if pivot.is_nan() || pivot <= 0.0 {
            return Err(Error::data(format!("not positive definite, in row {row}")));
        }
        current[row] = pivot.sqrt();
    }
    Ok(())
}
