//! An exponentially weighted mean: `ewma(half-life=0.2)`, seconds.
//!
//! As in hls.js and dash.js: the weight of what was carried halves every half-life of link time, however samples are
//! cut; the weight of the first samples is corrected for.

use cacheg_core::{Error, Result};
use serde::Deserialize;

use super::PRIOR;
use crate::control::errors::ErrorTracker;
use crate::control::estimator::{Estimator, Forecast, Sample};
use crate::control::registry::{Plugin, settings};

pub(super) const PLUGIN: Plugin<dyn Estimator> = Plugin {
    name: "ewma",
    origin: "cacheg-net",
    summary: "an exponentially weighted mean over time; half-life in seconds",
    usage: "ewma(half-life=0.2)",
    build: |config| Ok(Box::new(Ewma::new(settings(config)?)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    #[serde(rename = "half-life")]
    half_life: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { half_life: 0.2 }
    }
}

#[derive(Debug)]
struct Ewma {
    half_life: f64,
    sum: f64,
    weight: f64,
    errors: ErrorTracker,
}

impl Ewma {
    fn new(settings: Settings) -> Result<Self> {
        let half_life = settings.half_life;
        if !(half_life.is_finite() && half_life > 0.0) {
            return Err(Error::setting(format!("half-life={half_life}, not a time in seconds")));
        }
        Ok(Self { half_life, sum: 0.0, weight: 0.0, errors: ErrorTracker::new(PRIOR.0, PRIOR.1) })
    }

    fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

impl Estimator for Ewma {
    fn observe(&mut self, sample: Sample) {
        if let Some(expected) = self.mean() {
            self.errors.observe(expected, sample.rate());
        }
        let keep = (-sample.seconds() / self.half_life).exp2();
        self.sum = keep * self.sum + (1.0 - keep) * sample.rate();
        self.weight = keep * self.weight + (1.0 - keep);
    }

    fn forecast(&self) -> Option<Forecast> {
        Some(Forecast { rate: self.mean()?, errors: self.errors.errors() })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::estimators::testing::{close, forecasts};

    #[test]
    fn weight_halves_every_half_life() {
        // Samples are a second long: weights 1/2 and 1/4 of 3/4.
        let got = forecasts("ewma(half-life=1)", &[10, 40]);
        assert!(close(&got, &[10.0, (0.25 * 10.0 + 0.5 * 40.0) / 0.75]), "{got:?}");
        assert!(crate::control::estimators().build("ewma(half-life=0)").is_err());
    }
}
