//! The dynamic programme: what the chunks that remain to be fetched cost, by the time left.
//!
//! `cost[i][g]` is the least expected cost of fetching chunks `i..` in order when the link is free and `g` grid steps
//! are left before the deadline:
//!
//! ```text
//! cost[i][t] = min over levels of  distortion + E over errors of  cost[i+1][t − bytes / (rate · error)]
//! cost[n][t] = 0        a chunk that arrives too late to be decoded with all after it: the price of a miss
//! ```
//!
//! So later choices react to what has happened: the expectation is inside the minimum. Exact means: the expectation is
//! over seven points of the error distribution (Gauss-Hermite, exact for polynomials of degree 13 in the logarithm);
//! errors of different transfers are independent; time is on a grid of at most 1/256 of the time left, linear between
//! grid points; decoders work in order, at the cost of each chunk's most expensive level.

use std::time::Duration;

use crate::control::state::View;

/// Nodes and weights of Gauss-Hermite quadrature for a normal distribution (Abramowitz and Stegun, table 25.10).
const NODES: [(f64, f64); 7] = [
    (-3.750_439_717_725_742, 0.000_548_268_855_972_217_8),
    (-2.366_759_410_734_541, 0.030_757_123_967_586_497),
    (-1.154_405_394_739_968, 0.240_123_178_605_012_7),
    (0.0, 0.457_142_857_142_857_14),
    (1.154_405_394_739_968, 0.240_123_178_605_012_7),
    (2.366_759_410_734_541, 0.030_757_123_967_586_497),
    (3.750_439_717_725_742, 0.000_548_268_855_972_217_8),
];

/// Grid points by the number of chunks: cells are bounded, so that planning takes no longer for long contexts.
const CELLS: usize = 1 << 13;

/// What the link is taken to do: a rate and the deviation of its logarithm, both rounded a little, so that a table
/// lives until something changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Link {
    /// Bytes per second.
    pub(super) rate: f64,
    pub(super) sigma: f64,
}

impl Link {
    /// Rates are rounded down to steps of 2 %, deviations to 0.02.
    pub(super) fn new(rate: f64, sigma: f64) -> Self {
        let rate = rate.clamp(1e-3, 1e18);
        Self { rate: ((rate.ln() * 50.0).floor() / 50.0).exp(), sigma: (sigma * 50.0).round() / 50.0 }
    }

    /// (seconds per byte, probability) of the nodes.
    fn paces(self) -> [(f64, f64); 7] {
        NODES.map(|(node, weight)| ((-node * self.sigma).exp() / self.rate, weight))
    }

    /// Probability that so many bytes take at most so many seconds.
    pub(super) fn probability(self, bytes: f64, seconds: f64) -> f64 {
        if seconds <= 0.0 {
            return 0.0;
        }
        let needed = (bytes / seconds / self.rate).max(1e-300).ln();
        if self.sigma <= 0.0 { f64::from(needed <= 0.0) } else { 1.0 - normal(needed / self.sigma) }
    }
}

/// The normal distribution function (Abramowitz and Stegun 26.2.17, error below 1e-7).
fn normal(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let poly = t
        * (0.319_381_530
            + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let tail = (-x * x / 2.0).exp() * 0.398_942_280_401_432_7 * poly;
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// The table, kept from decision to decision.
#[derive(Debug, Default)]
pub(super) struct Table {
    link: Option<Link>,
    lambda: f64,
    /// Chunks in order of fetching.
    chunks: Vec<usize>,
    /// Rows that are skipped: chunks that were fetched since the table was made.
    first: usize,
    /// Seconds between grid points.
    step: f64,
    points: usize,
    /// (cost, probability that the smallest levels make it), one row of `points` per chunk, and a last one.
    rows: Vec<(f64, f64)>,
    /// Seconds that decoding chunks `i..` takes.
    decode: Vec<f64>,
    /// Cost of chunks `i..` once the deadline is missed.
    missed: Vec<f64>,
}

impl Table {
    /// Makes the table for these chunks, unless what is there will do.
    pub(super) fn prepare(&mut self, view: &View<'_>, link: Link, chunks: &[usize], lambda: f64) {
        let left = view.left().as_secs_f64();
        let end = self.step * (self.points.saturating_sub(1)) as f64;
        let fresh = self.link == Some(link) && self.lambda == lambda && left <= end && end <= 2.0 * left;
        if fresh && self.chunks.ends_with(chunks) {
            self.first = self.chunks.len() - chunks.len();
            return;
        }
        (self.link, self.lambda, self.first) = (Some(link), lambda, 0);
        self.chunks.clear();
        self.chunks.extend_from_slice(chunks);
        let rows = chunks.len() + 1;
        self.points = (CELLS / rows).clamp(65, 257);
        self.step = (left / (self.points - 1) as f64).max(1e-9);
        self.fill(view, link);
    }

    fn fill(&mut self, view: &View<'_>, link: Link) {
        let (rows, points) = (self.chunks.len() + 1, self.points);
        self.rows.clear();
        self.rows.resize(rows * points, (0.0, 1.0));
        self.decode.clear();
        self.decode.resize(rows, 0.0);
        self.missed.clear();
        self.missed.resize(rows, self.lambda * view.job.miss());
        for row in (0..rows - 1).rev() {
            let chunk = &view.job.chunks()[self.chunks[row]];
            let bases = || chunk.levels.iter().map(|level| &level.segments[0]);
            let slowest = bases().map(|base| base.decode).max().unwrap_or_default().as_secs_f64();
            self.decode[row] = self.decode[row + 1] + slowest;
            self.missed[row] = self.missed[row + 1] + bases().map(|base| base.distortion).fold(0.0, f64::max);
        }
        let paces = link.paces();
        for row in (0..rows - 1).rev() {
            let index = self.chunks[row];
            let (state, levels) = (&view.chunks[index], &view.job.chunks()[index].levels);
            let (before, after) = self.rows.split_at_mut((row + 1) * points);
            let (out, next) = (&mut before[row * points..], &after[..points]);
            out.fill((f64::INFINITY, 0.0));
            let reserve = self.decode[row];
            let missed = self.missed[row + 1];
            for (number, level) in levels.iter().enumerate() {
                if state.next_segment(number) != Some(0) {
                    continue;
                }
                let base = &level.segments[0];
                let shifts = paces.map(|(pace, weight)| (base.bytes as f64 * pace / self.step, weight));
                for (point, out) in out.iter_mut().enumerate() {
                    let mut sum = (base.distortion, 0.0);
                    for (shift, weight) in shifts {
                        let at = point as f64 - shift;
                        let (cost, meets) =
                            if at * self.step < reserve { (missed, 0.0) } else { interpolate(next, at) };
                        sum = (sum.0 + weight * cost, sum.1 + weight * meets);
                    }
                    *out = (out.0.min(sum.0), out.1.max(sum.1));
                }
            }
        }
    }

    /// Cost of the chunks when so many bytes come before them, the last of which are of a chunk that takes `decode`;
    /// and the probability that the smallest levels make it.
    pub(super) fn cost(&self, bytes: f64, decode: Duration, view: &View<'_>) -> (f64, f64) {
        let Some(link) = self.link else { return (0.0, 1.0) };
        let left = view.left().as_secs_f64();
        let reserve = self.decode[self.first] + decode.as_secs_f64();
        // What waits for the decoder already delays all that follows.
        let queue = view.decoder_free.saturating_sub(view.now).as_secs_f64();
        let missed = (self.missed[self.first], 0.0);
        if left < queue + reserve {
            return missed;
        }
        let row = &self.rows[self.first * self.points..][..self.points];
        link.paces().iter().fold((0.0, 0.0), |sum, (pace, weight)| {
            let after = left - bytes * pace;
            let (cost, meets) = if after < reserve { missed } else { interpolate(row, after / self.step) };
            (sum.0 + weight * cost, sum.1 + weight * meets)
        })
    }
}

/// The row at a point that is not negative.
fn interpolate(row: &[(f64, f64)], at: f64) -> (f64, f64) {
    let low = (at as usize).min(row.len() - 1);
    let high = (low + 1).min(row.len() - 1);
    let part = (at - low as f64).min(1.0);
    let mix = |a: f64, b: f64| a + (b - a) * part;
    (mix(row[low].0, row[high].0), mix(row[low].1, row[high].1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::ChunkState;
    use crate::control::{Chunk, Job, Level};

    fn view<'a>(job: &'a Job, chunks: &'a [ChunkState], now: Duration) -> View<'a> {
        View {
            job,
            now,
            chunks,
            transfers: &[],
            connections: 1,
            forecast: None,
            last_rate: None,
            decoder_free: now,
            processor_free: now,
            oracle: None,
        }
    }

    /// The same recursion without a grid.
    fn brute(job: &Job, link: Link, lambda: f64, chunk: usize, left: f64) -> (f64, f64) {
        let Some(levels) = job.chunks().get(chunk).map(|chunk| &chunk.levels) else { return (0.0, 1.0) };
        let rest = &job.chunks()[chunk..];
        let reserve: f64 = rest.iter().map(|chunk| chunk.levels[0].decode().as_secs_f64()).sum();
        let worst = |chunk: &Chunk| chunk.levels.iter().map(Level::distortion).fold(0.0, f64::max);
        let missed = lambda * job.miss() + rest[1..].iter().map(worst).sum::<f64>();
        levels.iter().fold((f64::INFINITY, 0.0_f64), |best, level| {
            let sum = link.paces().iter().fold((level.distortion(), 0.0), |sum, (pace, weight)| {
                let after = left - level.bytes() as f64 * pace;
                let (cost, meets) =
                    if after < reserve { (missed, 0.0) } else { brute(job, link, lambda, chunk + 1, after) };
                (sum.0 + weight * cost, sum.1 + weight * meets)
            });
            (best.0.min(sum.0), best.1.max(sum.1))
        })
    }

    #[test]
    fn it_is_the_recursion_up_to_a_grid_step_for_each_chunk() {
        let mut state = 3_u64;
        let mut random = move |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        for round in 0..120 {
            let n = 1 + round % 3;
            let decode = Duration::from_millis(random(30));
            let chunks: Vec<Chunk> = (0..n)
                .map(|_| {
                    let bytes = 100 + random(400);
                    let level = |divisor| Level::new(bytes / divisor, divisor as f64 * 0.3, decode);
                    Chunk { levels: vec![level(1), level(2), level(3)], text: None }
                })
                .collect();
            let slo = Duration::from_millis(300 + random(1_200));
            let job = Job::new(chunks, slo).unwrap();
            let states: Vec<ChunkState> = job.chunks().iter().map(ChunkState::new).collect();
            let link = Link::new(1_000.0, [0.0, 0.1, 0.3, 0.8][random(4) as usize]);
            let lambda = random(5) as f64;
            let mut table = Table::default();
            let order: Vec<usize> = (0..n).collect();
            table.prepare(&view(&job, &states, Duration::ZERO), link, &order, lambda);
            for part in [1.0, 0.83, 0.6] {
                let now = slo.mul_f64(1.0 - part);
                let left = (slo - now).as_secs_f64();
                let got = table.cost(0.0, Duration::ZERO, &view(&job, &states, now));
                let far = (n + 1) as f64 * table.step;
                let (sooner, later) =
                    (brute(&job, link, lambda, 0, left - far), brute(&job, link, lambda, 0, left + far));
                // More time never costs more, so that the truth for a little less and a little more time are bounds.
                assert!(
                    got.0 <= sooner.0 + 1e-9 && got.0 >= later.0 - 1e-9,
                    "{round}: {got:?} {sooner:?} {later:?}"
                );
                assert!(
                    got.1 >= sooner.1 - 1e-9 && got.1 <= later.1 + 1e-9,
                    "{round}: {got:?} {sooner:?} {later:?}"
                );
            }
        }
    }

    #[test]
    fn probabilities_are_those_of_a_log_normal() {
        let link = Link { rate: 100.0, sigma: 0.5 };
        assert!((link.probability(100.0, 1.0) - 0.5).abs() < 1e-6);
        // One deviation slower than expected is still in time: Φ(1).
        assert!((link.probability(100.0, 0.5_f64.exp()) - 0.841_344_7).abs() < 1e-6);
        assert_eq!(link.probability(1.0, 0.0), 0.0);
        assert_eq!(Link { rate: 100.0, sigma: 0.0 }.probability(100.0, 1.0), 1.0);
        let sum: f64 = NODES.iter().map(|node| node.1).sum();
        let variance: f64 = NODES.iter().map(|node| node.1 * node.0 * node.0).sum();
        assert!((sum - 1.0).abs() < 1e-9 && (variance - 1.0).abs() < 1e-9);
    }
}
