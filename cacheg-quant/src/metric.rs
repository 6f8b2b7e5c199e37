//! What errors of a head cost, as a matrix: `eᵀ·M·e`.

use cacheg_core::{Error, Result};
use ndarray::{Array2, Axis};

use crate::numeric;

/// What is added of the identity to a sensitivity whose mean diagonal is 1: directions that seem to cost nothing do cost
/// something.
const SHRINK: f64 = 0.3;

/// The root of a metric, which is symmetric, and its inverse.
pub(crate) struct Roots {
    pub(crate) root: Array2<f64>,
    pub(crate) inverse: Array2<f64>,
}

impl Roots {
    /// Of `(M + 0.3·I) / 1.3`, `M` being a head's sensitivity divided by its mean diagonal.
    ///
    /// # Errors
    /// If the sensitivity is not positive semi-definite.
    pub(crate) fn new(sensitivity: &Array2<f64>) -> Result<Self> {
        let n = sensitivity.nrows();
        let mean = sensitivity.diag().mean().unwrap_or(0.0);
        if !mean.is_finite() || mean < 0.0 || sensitivity.iter().any(|x| !x.is_finite()) {
            return Err(Error::data("statistics whose sensitivities are not numbers, or negative"));
        }
        // Of what costs nothing all directions are alike.
        let normal = if mean > 0.0 { sensitivity / mean } else { Array2::eye(n) };
        let (values, vectors) = numeric::eigen(&((normal + SHRINK * Array2::<f64>::eye(n)) / (1.0 + SHRINK)));
        if values.iter().any(|value| *value <= 0.0) {
            return Err(Error::data("statistics whose sensitivity is not positive definite"));
        }
        let power = |of: fn(f64) -> f64| {
            let scaled = &vectors * &values.mapv(of).view().insert_axis(Axis(0));
            scaled.dot(&vectors.t())
        };
        Ok(Self { root: power(f64::sqrt), inverse: power(|value| 1.0 / value.sqrt()) })
    }
}
