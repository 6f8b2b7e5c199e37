//! Random numbers that are the same everywhere, and seeds for tuning and for reporting that never meet.

/// Which runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// To choose settings of policies by
    Tune,
    /// To report
    Report,
}

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream of its own for each purpose, kind of link, and run. The purpose is the top bit of what the seed is
    /// hashed from, so that no seed and run of one purpose is one of the other.
    pub(crate) fn new(purpose: Purpose, seed: u32, kind: u32, run: u32) -> Self {
        let purpose = u64::from(purpose == Purpose::Report) << 63;
        let seed = purpose
            | (u64::from(seed) & 0x7fff_ffff) << 32
            | u64::from(kind) << 24
            | u64::from(run) & 0xff_ffff;
        // A bijection: different seeds stay different.
        let mut hashed = Self(seed);
        Self(hashed.bits())
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in the logarithm.
    pub(crate) fn log_uniform(&mut self, low: f64, high: f64) -> f64 {
        self.uniform(low.ln(), high.ln()).exp()
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// Roughly normal, mean 0, variance 1: a sum of twelve uniforms.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    /// With this mean.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn purposes_seeds_kinds_and_runs_have_streams_of_their_own() {
        let mut seen = HashSet::new();
        for purpose in [Purpose::Tune, Purpose::Report] {
            for (seed, kind, run) in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (u32::MAX, 255, 0xff_ffff)]
            {
                assert!(seen.insert(Random::new(purpose, seed, kind, run).0));
            }
        }
        let mut random = Random::new(Purpose::Tune, 0, 0, 0);
        assert!((0..1000).all(|_| (2..5).contains(&(2 + random.below(3)))));
    }
}
