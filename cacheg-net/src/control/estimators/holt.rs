//! Level and trend: `holt(alpha=0.6;beta=0.2)`.
//!
//! Holt's double exponential smoothing (1957) of the logarithm of the rate, which keeps forecasts positive; it expects
//! the trend to go on for one sample.

use cacheg_core::{Error, Result};
use serde::Deserialize;

use super::PRIOR;
use crate::control::errors::ErrorTracker;
use crate::control::estimator::{Estimator, Forecast, Sample};
use crate::control::registry::{Plugin, settings};

pub(super) const PLUGIN: Plugin<dyn Estimator> = Plugin {
    name: "holt",
    origin: "cacheg-net",
    summary: "Holt's smoothing of the logarithm: level and trend",
    usage: "holt(alpha=0.6;beta=0.2)",
    build: |config| Ok(Box::new(Holt::new(settings(config)?)?)),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    alpha: f64,
    beta: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { alpha: 0.6, beta: 0.2 }
    }
}

#[derive(Debug)]
struct Holt {
    settings: Settings,
    /// Level and trend of the logarithm.
    state: Option<(f64, f64)>,
    errors: ErrorTracker,
}

impl Holt {
    fn new(settings: Settings) -> Result<Self> {
        let Settings { alpha, beta } = settings;
        if !(alpha > 0.0 && alpha <= 1.0 && (0.0..=1.0).contains(&beta)) {
            return Err(Error::setting(format!("alpha={alpha} and beta={beta} are not between 0 and 1")));
        }
        Ok(Self { settings, state: None, errors: ErrorTracker::new(PRIOR.0, PRIOR.1) })
    }
}

impl Estimator for Holt {
    fn observe(&mut self, sample: Sample) {
        let value = sample.rate().ln();
        let Settings { alpha, beta } = self.settings;
        self.state = Some(match self.state {
            None => (value, 0.0),
            Some((level, trend)) => {
                self.errors.observe((level + trend).exp(), sample.rate());
                let next = alpha * value + (1.0 - alpha) * (level + trend);
                (next, beta * (next - level) + (1.0 - beta) * trend)
            }
        });
    }

    fn forecast(&self) -> Option<Forecast> {
        let (level, trend) = self.state?;
        Some(Forecast { rate: (level + trend).exp(), errors: self.errors.errors() })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::estimators::testing::{close, forecasts};

    #[test]
    fn a_trend_goes_on() {
        let got = forecasts("holt(alpha=1;beta=1)", &[10, 20, 40]);
        assert!(close(&got, &[10.0, 40.0, 80.0]), "{got:?}");
        assert!(crate::control::estimators().build("holt(alpha=2)").is_err());
    }
}
