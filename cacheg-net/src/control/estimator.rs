//! What the link will carry, and how sure that is: a plug-in.

use std::fmt;
use std::time::Duration;

use super::errors::Errors;

/// What arrived while the link was busy from `start` to `end`, on all connections together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Bytes.
    pub bytes: u64,
    /// From here, since the request's start,
    pub start: Duration,
    /// to here, which is later.
    pub end: Duration,
}

impl Sample {
    /// Bytes per second; at least a byte in the whole time, so that a stalled link has a logarithm.
    pub fn rate(&self) -> f64 {
        self.bytes.max(1) as f64 / self.seconds()
    }

    /// Its length in seconds.
    pub fn seconds(&self) -> f64 {
        self.end.saturating_sub(self.start).as_secs_f64().max(1e-9)
    }
}

/// What an estimator expects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Forecast {
    /// Bytes per second.
    pub rate: f64,
    /// How the rate that comes relates to it.
    pub errors: Errors,
}

/// Expects future throughput from samples of the past.
pub trait Estimator: fmt::Debug + Send {
    /// The next sample, in order of time.
    fn observe(&mut self, sample: Sample);

    /// What it expects now; `None` before the first sample.
    fn forecast(&self) -> Option<Forecast>;
}
