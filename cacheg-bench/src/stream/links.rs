//! Kinds of link. Rates are in Gbit/s, as in CacheGen's traces; a 7B model's chunk is 0.19 to 0.33 Gbit.

use std::time::Duration;

use cacheg::Result;
use cacheg_net::trace::Trace;

use super::random::Random;

/// What carries a request.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// A rate over time; the request starts at this time of it.
    Series(Trace, Duration),
    /// CacheGen's public code: each chunk has a rate (bytes per second), however long it takes.
    PerChunk(Vec<f64>),
}

impl Link {
    /// How long a transfer takes from `now`; `None` if it never ends.
    pub(crate) fn time_to_send(&self, now: Duration, chunk: usize, bytes: u64) -> Option<Duration> {
        match self {
            Self::Series(trace, start) => trace.time_to_send(*start + now, bytes),
            Self::PerChunk(rates) => {
                let seconds = bytes as f64 / rates.get(chunk)?;
                (seconds < 1e6).then(|| Duration::from_secs_f64(seconds))
            }
        }
    }

    /// Bytes of a chunk's transfer between two times.
    pub(crate) fn bytes_between(&self, from: Duration, to: Duration, chunk: usize) -> u64 {
        match self {
            Self::Series(trace, start) => trace.bytes_between(*start + from, *start + to) as u64,
            Self::PerChunk(rates) => {
                let seconds = to.saturating_sub(from).as_secs_f64();
                (rates.get(chunk).copied().unwrap_or(0.0) * seconds) as u64
            }
        }
    }
}

/// Kinds of link that runs are drawn from.
pub(crate) const KINDS: [Kind; 8] = [
    Kind { name: "artifact", about: "CacheGen's public traces, 100 ms a number, from anywhere in them" },
    Kind { name: "uniform", about: "every 50–200 ms another rate, uniform from 0.1 up to 4–10" },
    Kind { name: "markov", about: "0.5, 2, 5 or 10, a neighbour after 200 ms on average, scaled by 0.5–1" },
    Kind { name: "sinusoid", about: "mean 1–8, amplitude 50–95 %, period 0.3–2 s, 10 % noise" },
    Kind { name: "step-drop", about: "2–10 until 5–80 % of the time, then 10–60 % of it" },
    Kind { name: "outages", about: "2–10, nothing for 50–400 ms after 150–600 ms" },
    Kind {
        name: "lte-walk",
        about: "random walk of the logarithm, 20 ms steps of 0.15, reverting; mean 1–8",
    },
    Kind { name: "steady", about: "0.5–10, 5 % noise" },
];

/// A kind of link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
}

/// The bandwidths of CacheGen's public code: `trace_generator.py` draws them uniformly from 0.1 to 10.
const ARTIFACT: &str = include_str!("artifact.jsonl");
/// Links last longer than any request.
const SECONDS: f64 = 8.0;
const GBIT: f64 = 1e9 / 8.0;

/// The link of that kind that this randomness makes, for a request of that deadline.
pub(crate) fn draw(kind: usize, slo: Duration, random: &mut Random) -> Result<Link> {
    let mut pieces: Vec<(f64, f64)> = Vec::new();
    let mut time = 0.0;
    let mut push = |time: &mut f64, length: f64, rate: f64| {
        pieces.push((length, rate));
        *time += length;
    };
    match KINDS[kind].name {
        "artifact" => {
            let mut traces = Trace::parse(ARTIFACT, Trace::CACHEGEN_STEP)?;
            let trace = traces.swap_remove(random.below(traces.len()));
            let start = trace.period().mul_f64(random.unit());
            return Ok(Link::Series(trace, start));
        }
        "uniform" => {
            let (step, high) = (random.uniform(0.05, 0.2), random.uniform(4.0, 10.0));
            while time < SECONDS {
                push(&mut time, step, random.uniform(0.1, high));
            }
        }
        "markov" => {
            let scale = random.uniform(0.5, 1.0);
            let mut state = random.below(4);
            while time < SECONDS {
                let rate = [0.5, 2.0, 5.0, 10.0][state];
                push(&mut time, random.exponential(0.2) + 0.001, rate * scale);
                state = match state {
                    0 => 1,
                    3 => 2,
                    inner => inner + 1 - 2 * random.below(2),
                };
            }
        }
        "sinusoid" => {
            let (mean, amplitude) = (random.log_uniform(1.0, 8.0), random.uniform(0.5, 0.95));
            let (period, phase) = (random.log_uniform(0.3, 2.0), random.unit());
            while time < SECONDS {
                let wave = (std::f64::consts::TAU * (time / period + phase)).sin();
                let rate = mean * (1.0 + amplitude * wave) * (1.0 + 0.1 * random.normal());
                push(&mut time, 0.01, rate.max(0.01));
            }
        }
        "step-drop" => {
            let (high, drop) = (random.log_uniform(2.0, 10.0), random.uniform(0.1, 0.6));
            let when = slo.as_secs_f64() * random.uniform(0.05, 0.8);
            push(&mut time, when, high);
            push(&mut time, 100.0, high * drop);
        }
        "outages" => {
            let rate = random.log_uniform(2.0, 10.0);
            let mut first = random.uniform(0.0, 0.6);
            while time < SECONDS {
                push(&mut time, first.max(0.001), rate);
                push(&mut time, random.uniform(0.05, 0.4), 0.0);
                first = random.uniform(0.15, 0.6);
            }
        }
        "lte-walk" => {
            let mean = random.log_uniform(1.0, 8.0);
            let mut log = 0.6 * random.normal();
            while time < SECONDS {
                log = 0.985 * log + 0.15 * random.normal();
                push(&mut time, 0.02, mean * log.exp().clamp(0.03, 6.0));
            }
        }
        _ => {
            let rate = random.log_uniform(0.5, 10.0);
            while time < SECONDS {
                push(&mut time, 0.01, rate * (1.0 + 0.05 * random.normal()).max(0.1));
            }
        }
    }
    let pieces = pieces.into_iter().map(|(length, rate)| (Duration::from_secs_f64(length), rate * GBIT));
    Ok(Link::Series(Trace::new(pieces)?, Duration::ZERO))
}

/// The artifact's own model: one bandwidth per chunk, uniform from 0.1 to 10.
pub(crate) fn per_chunk(chunks: usize, random: &mut Random) -> Link {
    Link::PerChunk((0..chunks).map(|_| random.uniform(0.1, 10.0) * GBIT).collect())
}
