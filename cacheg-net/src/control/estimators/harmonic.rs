//! The harmonic mean of the last samples: `harmonic(n=5)`.
//!
//! What FESTIVE (CoNEXT'12) and MPC (SIGCOMM'15) take for video: one fast sample among slow ones moves it little.

use serde::Deserialize;

use super::PRIOR;
use super::recent::Recent;
use crate::control::errors::ErrorTracker;
use crate::control::estimator::{Estimator, Forecast, Sample};
use crate::control::registry::{Plugin, settings};

pub(super) const PLUGIN: Plugin<dyn Estimator> = Plugin {
    name: "harmonic",
    origin: "cacheg-net",
    summary: "the harmonic mean of the last n samples",
    usage: "harmonic(n=5)",
    build: |config| {
        let Settings { n } = settings(config)?;
        Ok(Box::new(Harmonic { recent: Recent::new(n)?, errors: ErrorTracker::new(PRIOR.0, PRIOR.1) }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    n: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { n: 5 }
    }
}

#[derive(Debug)]
struct Harmonic {
    recent: Recent,
    errors: ErrorTracker,
}

impl Harmonic {
    fn mean(&self) -> Option<f64> {
        let rates = self.recent.rates();
        let count = rates.len() as f64;
        (count > 0.0).then(|| count / rates.map(f64::recip).sum::<f64>())
    }
}

impl Estimator for Harmonic {
    fn observe(&mut self, sample: Sample) {
        if let Some(expected) = self.mean() {
            self.errors.observe(expected, sample.rate());
        }
        self.recent.push(sample.rate());
    }

    fn forecast(&self) -> Option<Forecast> {
        Some(Forecast { rate: self.mean()?, errors: self.errors.errors() })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::estimators::testing::{close, forecasts};

    #[test]
    fn slow_samples_count_most() {
        let got = forecasts("harmonic(n=2)", &[10, 40, 40]);
        assert!(close(&got, &[10.0, 16.0, 40.0]), "{got:?}");
    }
}
