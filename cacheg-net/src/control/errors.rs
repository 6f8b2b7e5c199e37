//! How far an estimator is off: a running log-normal with a prior.

/// Ratios beyond e^±`FAR` say no more than that one.
const FAR: f64 = 3.0;

/// The distribution of (rate that came) ÷ (rate that was expected): log-normal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// Mean of the logarithm of the ratio.
    pub mean: f64,
    /// Its standard deviation; 0 is certainty.
    pub sigma: f64,
}

/// Learns [`Errors`] from pairs of expected and actual rates.
#[derive(Debug, Clone, Copy)]
pub struct ErrorTracker {
    weight: f64,
    sum: f64,
    squares: f64,
}

impl ErrorTracker {
    /// A prior: mean 0, this deviation, as sure as after `weight` samples.
    pub fn new(sigma: f64, weight: f64) -> Self {
        Self { weight, sum: 0.0, squares: sigma * sigma * weight }
    }

    /// One more pair.
    pub fn observe(&mut self, expected: f64, actual: f64) {
        let error = (actual / expected).ln();
        let error = if error.is_nan() { 0.0 } else { error.clamp(-FAR, FAR) };
        self.weight += 1.0;
        self.sum += error;
        self.squares += error * error;
    }

    /// What it has learnt.
    pub fn errors(&self) -> Errors {
        let mean = self.sum / self.weight;
        Errors { mean, sigma: (self.squares / self.weight - mean * mean).max(0.0).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_from_the_prior_to_what_was_seen() {
        let mut tracker = ErrorTracker::new(0.3, 4.0);
        assert_eq!(tracker.errors(), Errors { mean: 0.0, sigma: 0.3 });
        // Four halvings of what was expected count as much as the prior.
        (0..4).for_each(|_| tracker.observe(2.0, 1.0));
        let half = -std::f64::consts::LN_2;
        let errors = tracker.errors();
        assert!((errors.mean - half / 2.0).abs() < 1e-12);
        let variance = (0.09 + half * half) / 2.0 - half * half / 4.0;
        assert!((errors.sigma - variance.sqrt()).abs() < 1e-12);
        for actual in [0.0, f64::INFINITY, f64::NAN] {
            tracker.observe(1.0, actual);
        }
        assert!(tracker.errors().sigma.is_finite() && tracker.errors().mean.is_finite());
    }
}
