//! The last few samples.

use std::collections::VecDeque;

use cacheg_core::{Error, Result};

/// Rates of the last `n` samples.
#[derive(Debug)]
pub(super) struct Recent {
    n: usize,
    rates: VecDeque<f64>,
}

impl Recent {
    /// At most 1,000 are remembered.
    pub(super) fn new(n: usize) -> Result<Self> {
        if !(1..=1_000).contains(&n) {
            return Err(Error::setting(format!("n={n}, not 1 to 1000 samples")));
        }
        Ok(Self { n, rates: VecDeque::with_capacity(n) })
    }

    pub(super) fn push(&mut self, rate: f64) {
        if self.rates.len() == self.n {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    pub(super) fn rates(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.rates.iter().copied()
    }
}
