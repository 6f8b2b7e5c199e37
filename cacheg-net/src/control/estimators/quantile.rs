//! A low quantile of the last samples: `quantile(n=10;q=0.4)`.

use cacheg_core::Error;
use serde::Deserialize;

use super::PRIOR;
use super::recent::Recent;
use crate::control::errors::ErrorTracker;
use crate::control::estimator::{Estimator, Forecast, Sample};
use crate::control::registry::{Plugin, settings};

pub(super) const PLUGIN: Plugin<dyn Estimator> = Plugin {
    name: "quantile",
    origin: "cacheg-net",
    summary: "the q-quantile of the last n samples",
    usage: "quantile(n=10;q=0.4)",
    build: |config| {
        let Settings { n, q } = settings(config)?;
        if !(0.0..=1.0).contains(&q) {
            return Err(Error::setting(format!("q={q} is not between 0 and 1")));
        }
        Ok(Box::new(Quantile {
            q,
            recent: Recent::new(n)?,
            value: None,
            errors: ErrorTracker::new(PRIOR.0, PRIOR.1),
        }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    n: usize,
    q: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { n: 10, q: 0.4 }
    }
}

#[derive(Debug)]
struct Quantile {
    q: f64,
    recent: Recent,
    value: Option<f64>,
    errors: ErrorTracker,
}

impl Estimator for Quantile {
    fn observe(&mut self, sample: Sample) {
        if let Some(expected) = self.value {
            self.errors.observe(expected, sample.rate());
        }
        self.recent.push(sample.rate());
        let mut rates: Vec<f64> = self.recent.rates().collect();
        rates.sort_by(f64::total_cmp);
        // Linear between order statistics.
        let at = self.q * (rates.len() - 1) as f64;
        let (low, high) = (rates[at.floor() as usize], rates[at.ceil() as usize]);
        self.value = Some(low + (high - low) * at.fract());
    }

    fn forecast(&self) -> Option<Forecast> {
        Some(Forecast { rate: self.value?, errors: self.errors.errors() })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::estimators::testing::{close, forecasts};

    #[test]
    fn it_is_linear_between_samples() {
        let got = forecasts("quantile(n=3;q=0.25)", &[40, 10, 20, 30]);
        assert!(close(&got, &[40.0, 17.5, 15.0, 15.0]), "{got:?}");
        assert!(crate::control::estimators().build("quantile(q=2)").is_err());
        assert!(crate::control::estimators().build("quantile(n=0)").is_err());
    }
}
