//! The last sample holds: `last`.

use serde::Deserialize;

use super::PRIOR;
use crate::control::errors::ErrorTracker;
use crate::control::estimator::{Estimator, Forecast, Sample};
use crate::control::registry::{Plugin, settings};

pub(super) const PLUGIN: Plugin<dyn Estimator> = Plugin {
    name: "last",
    origin: "cacheg-net",
    summary: "the last sample holds",
    usage: "last",
    build: |config| {
        let Settings {} = settings(config)?;
        Ok(Box::new(Last { rate: None, errors: ErrorTracker::new(PRIOR.0, PRIOR.1) }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {}

#[derive(Debug)]
struct Last {
    rate: Option<f64>,
    errors: ErrorTracker,
}

impl Estimator for Last {
    fn observe(&mut self, sample: Sample) {
        if let Some(expected) = self.rate {
            self.errors.observe(expected, sample.rate());
        }
        self.rate = Some(sample.rate());
    }

    fn forecast(&self) -> Option<Forecast> {
        Some(Forecast { rate: self.rate?, errors: self.errors.errors() })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::estimators::testing::forecasts;

    #[test]
    fn it_is_the_last() {
        assert_eq!(forecasts("last", &[10, 30, 20]), [10.0, 30.0, 20.0]);
    }
}
