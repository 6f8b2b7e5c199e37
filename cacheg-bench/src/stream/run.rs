//! One request on one link, in simulated time: the controller, a link, a decoder and a processor.

use std::collections::VecDeque;
use std::time::Duration;

use cacheg_net::control::{Action, Controller, Estimator, Fetch, Job, Level, Policy, Source};

use super::links::Link;

/// Progress of a transfer is reported this often.
const TICK: Duration = Duration::from_millis(10);
/// A request that is not done by then has failed.
const END: Duration = Duration::from_secs(120);

/// How a request went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Outcome {
    /// When all chunks were there; `END` if never.
    pub(crate) finish: Duration,
    pub(crate) missed: bool,
    /// Mean over chunks, upgrades included; a chunk that never came counts as its worst level.
    pub(crate) distortion: f64,
    /// Bytes that crossed the link, those of abandoned transfers included.
    pub(crate) bytes: u64,
    pub(crate) texts: usize,
    pub(crate) abandoned: usize,
    pub(crate) upgrades: usize,
    /// Actions that the controller gave, for tests.
    pub(crate) actions: usize,
}

struct Running {
    fetch: Fetch,
    bytes: u64,
    start: Duration,
    end: Option<Duration>,
    next_tick: Duration,
}

/// Runs it to its end.
pub(crate) fn run(job: &Job, policy: Box<dyn Policy>, estimator: Box<dyn Estimator>, link: &Link) -> Outcome {
    let oracle = link.clone();
    let mut controller =
        Controller::new(job.clone(), policy, estimator).with_oracle(Box::new(move |now, chunk, bytes| {
            oracle
                .time_to_send(now, chunk, bytes)
                .map_or(0.0, |time| bytes as f64 / time.as_secs_f64().max(1e-9))
        }));
    let mut outcome = Outcome { finish: END, ..Outcome::default() };
    let mut now = Duration::ZERO;
    let mut transfer: Option<Running> = None;
    // (end, what), in order: one decoder.
    let mut decoding: VecDeque<(Duration, Fetch)> = VecDeque::new();
    let mut computing: Option<(Duration, usize)> = None;
    loop {
        let until = loop {
            outcome.actions += 1;
            match controller.poll(now) {
                Action::Fetch(fetch) => {
                    let bytes = job.chunks()[fetch.chunk].levels[fetch.level].segments[fetch.segment].bytes;
                    let end = link.time_to_send(now, fetch.chunk, bytes).map(|time| now + time);
                    outcome.upgrades += usize::from(fetch.upgrade);
                    transfer = Some(Running { fetch, bytes, start: now, end, next_tick: now + TICK });
                }
                Action::Recompute { chunk } => {
                    let compute = job.chunks()[chunk].text.unwrap_or_default();
                    computing = Some((now + compute, chunk));
                    outcome.texts += 1;
                }
                Action::Abandon { .. } => {
                    if let Some(running) = transfer.take() {
                        outcome.bytes += link.bytes_between(running.start, now, running.fetch.chunk);
                        outcome.abandoned += 1;
                    }
                }
                Action::Wait { until } => break until,
                _ => {
                    if !controller.complete() {
                        outcome.finish = END;
                    }
                    return ended(outcome, &controller, job);
                }
            }
        };
        let link_event = transfer.as_ref().map(|t| t.end.map_or(t.next_tick, |end| end.min(t.next_tick)));
        let events = [link_event, decoding.front().map(|d| d.0), computing.map(|c| c.0), until];
        let Some(next) = events.into_iter().flatten().min().filter(|next| *next < END) else {
            return ended(outcome, &controller, job);
        };
        now = next.max(now);
        if let Some((_, chunk)) = computing.take_if(|(end, _)| *end <= now) {
            controller.recomputed(now, chunk);
        }
        while let Some((_, fetch)) = decoding.front().copied().filter(|(end, _)| *end <= now) {
            decoding.pop_front();
            controller.decoded(now, fetch.chunk, fetch.level, fetch.segment);
        }
        if let Some(running) = transfer.take_if(|t| t.end.is_some_and(|end| end <= now)) {
            controller.received(now, running.fetch.transfer);
            outcome.bytes += running.bytes;
            let fetch = running.fetch;
            let cost = job.chunks()[fetch.chunk].levels[fetch.level].segments[fetch.segment].decode;
            let free = decoding.back().map_or(now, |last| last.0);
            decoding.push_back((free + cost, fetch));
        } else if let Some(running) = transfer.as_mut().filter(|t| t.next_tick <= now) {
            running.next_tick = now + TICK;
            let done = link.bytes_between(running.start, now, running.fetch.chunk).min(running.bytes);
            controller.progress(now, running.fetch.transfer, done);
        }
        if outcome.finish == END && controller.complete() {
            outcome.finish = now;
        }
    }
}

fn ended(mut outcome: Outcome, controller: &Controller, job: &Job) -> Outcome {
    let chunks = controller.chunks().iter().zip(job.chunks());
    let distortions = chunks.map(|(state, chunk)| {
        let worst = || chunk.levels.iter().map(Level::distortion).fold(0.0, f64::max);
        state.present().unwrap_or_else(worst)
    });
    outcome.distortion = distortions.sum::<f64>() / job.chunks().len().max(1) as f64;
    outcome.texts = controller.chunks().iter().filter(|state| state.source() == Some(Source::Text)).count();
    if job.chunks().is_empty() {
        outcome.finish = Duration::ZERO;
    }
    outcome.missed = outcome.finish > job.slo();
    outcome
}
