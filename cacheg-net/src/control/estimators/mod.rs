//! The built-in estimators: file = name.

mod ewma;
mod harmonic;
mod holt;
mod last;
mod quantile;
mod recent;

use super::estimator::Estimator;
use super::registry::{Plugin, Registry};

/// The built-in estimators.
///
/// ```
/// let estimators = cacheg_net::control::estimators();
/// assert!(estimators.build("harmonic(n=5)").is_ok());
/// ```
pub fn estimators() -> Registry<dyn Estimator> {
    const ALL: &[Plugin<dyn Estimator>] =
        &[ewma::PLUGIN, harmonic::PLUGIN, holt::PLUGIN, last::PLUGIN, quantile::PLUGIN];
    Registry::builtin("estimator", ALL)
}

/// The prior of all built-in estimators: the deviation of the logarithm, and how many samples it counts for.
const PRIOR: (f64, f64) = (0.3, 4.0);

#[cfg(test)]
mod testing {
    use std::time::Duration;

    use crate::control::{Estimator, Sample};

    /// The forecasts after each of these samples, a second long.
    pub(super) fn forecasts(spec: &str, bytes: &[u64]) -> Vec<f64> {
        let mut estimator: Box<dyn Estimator> = super::estimators().build(spec).unwrap();
        assert!(estimator.forecast().is_none());
        let mut rates = Vec::new();
        for (second, bytes) in bytes.iter().enumerate() {
            let start = Duration::from_secs(second as u64);
            estimator.observe(Sample { bytes: *bytes, start, end: start + Duration::from_secs(1) });
            rates.push(estimator.forecast().unwrap().rate);
        }
        rates
    }

    pub(super) fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9 * b.abs())
    }
}
