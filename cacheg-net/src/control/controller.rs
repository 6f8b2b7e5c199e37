//! The book-keeping around a policy: events in, actions out.

use std::time::Duration;

use super::estimator::{Estimator, Sample};
use super::job::Job;
use super::policy::{Move, Policy};
use super::state::{ChunkState, Oracle, Source, TextState, Transfer, TransferId, View};

/// A level whose transfers break off this often is given up.
const MAX_INTERRUPTED: u32 = 4;
/// A transfer that brings nothing for this long, or for the whole time to the deadline if that is longer, is broken off
/// like one whose connection broke.
const STALL: Duration = Duration::from_secs(2);
/// Samples are this long, unless a transfer ends.
const SAMPLE: Duration = Duration::from_millis(50);
/// Without events, look at running transfers this often: a stalled link makes none.
const LOOK: Duration = Duration::from_millis(20);

/// What the caller is to do.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Begin a transfer.
    Fetch(Fetch),
    /// Recompute the chunk from its tokens, on top of all chunks before it, which are decoded.
    Recompute {
        /// Index of the chunk.
        chunk: usize,
    },
    /// Break the transfer off; what it has brought is of no use. No event is expected for it.
    Abandon {
        /// The transfer.
        transfer: TransferId,
    },
    /// Nothing to do before the next event, or before this time since the start if nothing happens.
    Wait {
        /// When to poll again at the latest.
        until: Option<Duration>,
    },
    /// All chunks are there or cannot be had ([`Controller::lost`]); nothing is under way.
    Done,
}

/// A transfer to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Its name in events.
    pub transfer: TransferId,
    /// Index of the chunk.
    pub chunk: usize,
    /// Index of the level.
    pub level: usize,
    /// Index of the segment in the level.
    pub segment: usize,
    /// The chunk can do without.
    pub upgrade: bool,
}

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// What was asked for does not exist or is corrupt: it is not chosen again.
    Unusable,
    /// The connection broke: it may be chosen again, a few times.
    Interrupted,
}

/// Decides what to fetch, recompute and break off; see the [module](super).
#[derive(Debug)]
pub struct Controller {
    job: Job,
    policy: Box<dyn Policy>,
    estimator: Box<dyn Estimator>,
    connections: usize,
    oracle: Option<OracleBox>,
    chunks: Vec<ChunkState>,
    transfers: Vec<Transfer>,
    now: Duration,
    next_id: u64,
    /// Bytes of all transfers so far.
    arrived: u64,
    /// Since when the current sample runs, if the link is busy, and `arrived` then.
    sample: Option<(Duration, u64)>,
    /// Whether there was a sample since the link was idle.
    sampled: bool,
    last_rate: Option<f64>,
    decoder_free: Duration,
    done: bool,
}

struct OracleBox(Oracle);

impl std::fmt::Debug for OracleBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Oracle")
    }
}

impl Controller {
    /// A request that starts now, over one connection.
    pub fn new(job: Job, policy: Box<dyn Policy>, estimator: Box<dyn Estimator>) -> Self {
        let chunks = job.chunks().iter().map(ChunkState::new).collect();
        Self {
            job,
            policy,
            estimator,
            connections: 1,
            oracle: None,
            chunks,
            transfers: Vec::new(),
            now: Duration::ZERO,
            next_id: 0,
            arrived: 0,
            sample: None,
            sampled: false,
            last_rate: None,
            decoder_free: Duration::ZERO,
            done: false,
        }
    }

    /// Lets up to this many transfers run at once (at least one). They are taken to share one link.
    #[must_use]
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Lets policies that ask for it see the future.
    #[must_use]
    pub fn with_oracle(mut self, oracle: Oracle) -> Self {
        self.oracle = Some(OracleBox(oracle));
        self
    }

    /// The next thing to do at this time. Call it after each event, and again until it says [`Action::Wait`] or
    /// [`Action::Done`]; each action is given once and taken as done.
    ///
    /// Times that run backwards count as standing still.
    pub fn poll(&mut self, now: Duration) -> Action {
        self.tick(now);
        if self.done {
            return Action::Done;
        }
        if let Some(chunk) = self.runnable_text() {
            self.chunks[chunk].text = TextState::Running(self.now);
            return Action::Recompute { chunk };
        }
        let complete = self.complete();
        if complete && self.now >= self.job.slo() {
            // Upgrades are worth nothing any more.
            return match self.transfers.first().map(|transfer| transfer.id) {
                Some(transfer) => self.abandon(transfer),
                None => self.finish(),
            };
        }
        let patience = STALL.max(self.job.slo());
        if let Some(stalled) =
            self.transfers.iter().find(|t| self.now.saturating_sub(t.news) >= patience).copied()
        {
            self.failed(self.now, stalled.id, Failure::Interrupted);
            return Action::Abandon { transfer: stalled.id };
        }
        let next = self.ask();
        if let Some(action) = self.carry_out(next) {
            return action;
        }
        if !self.busy() {
            if complete {
                return self.finish();
            }
            if let Some(action) = self.rescue() {
                return action;
            }
            // Nothing is left that could make another chunk complete.
            return self.finish();
        }
        let wanted = if let Move::Wait(until) = next { until } else { None };
        Action::Wait { until: self.wake(complete, wanted) }
    }

    /// Bytes of the transfer that have arrived so far. Optional, but without it a slow transfer is noticed only by its
    /// silence.
    pub fn progress(&mut self, now: Duration, transfer: TransferId, bytes: u64) {
        if let Some(found) = self.transfers.iter_mut().find(|t| t.id == transfer) {
            let bytes = bytes.min(found.bytes).max(found.done);
            if bytes > found.done {
                self.arrived = self.arrived.saturating_add(bytes - found.done);
                found.done = bytes;
                found.news = self.now.max(now);
            }
        }
        self.tick(now);
        self.end_sample(false, SAMPLE);
    }

    /// The transfer is complete; its segment goes to the decoder.
    pub fn received(&mut self, now: Duration, transfer: TransferId) {
        let Some(found) = self.transfers.iter().find(|t| t.id == transfer).copied() else { return };
        self.progress(now, transfer, found.bytes);
        let elapsed = self.now.saturating_sub(found.start).as_secs_f64();
        let bytes = self.arrived.saturating_sub(found.before);
        if elapsed > 0.0 {
            self.last_rate = Some(bytes as f64 / elapsed);
        }
        self.remove(transfer);
        let state = &mut self.chunks[found.chunk].levels[found.level];
        if found.segment >= state.usable {
            return;
        }
        state.received |= 1 << found.segment;
        let decode =
            self.job.segment(found.chunk, found.level, found.segment).map_or(Duration::ZERO, |s| s.decode);
        self.decoder_free = self.decoder_free.max(self.now).saturating_add(decode);
    }

    /// The transfer has come to nothing.
    pub fn failed(&mut self, now: Duration, transfer: TransferId, failure: Failure) {
        self.tick(now);
        let Some(found) = self.remove(transfer) else { return };
        let state = &mut self.chunks[found.chunk].levels[found.level];
        state.interrupted += u32::from(failure == Failure::Interrupted);
        if failure == Failure::Unusable || state.interrupted >= MAX_INTERRUPTED {
            state.give_up(found.segment);
        } else {
            state.asked &= !(1 << found.segment);
        }
    }

    /// A segment that was received is decoded.
    pub fn decoded(&mut self, now: Duration, chunk: usize, level: usize, segment: usize) {
        self.tick(now);
        let Some(value) = self.job.segment(chunk, level, segment) else { return };
        let state = &mut self.chunks[chunk];
        let of_level = &mut state.levels[level];
        if segment >= of_level.decodable() || segment < of_level.decoded {
            return;
        }
        of_level.decoded = segment + 1;
        if state.present.is_none_or(|distortion| value.distortion < distortion) {
            state.present = Some(value.distortion);
            state.source = Some(Source::Level { level, segments: segment + 1 });
        }
        if self.decoding() == 0 {
            self.decoder_free = self.now;
        }
    }

    /// A segment that was received turned out to be corrupt: it and those after it are not chosen again.
    pub fn decode_failed(&mut self, now: Duration, chunk: usize, level: usize, segment: usize) {
        self.tick(now);
        let Some(state) = self.chunks.get_mut(chunk).and_then(|c| c.levels.get_mut(level)) else { return };
        if segment >= state.decodable() || segment < state.decoded {
            return;
        }
        state.give_up(segment);
        if self.decoding() == 0 {
            self.decoder_free = self.now;
        }
    }

    /// The chunk is recomputed from text.
    pub fn recomputed(&mut self, now: Duration, chunk: usize) {
        self.tick(now);
        let Some(state) = self.chunks.get_mut(chunk) else { return };
        if matches!(state.text, TextState::Running(_)) {
            state.text = TextState::Done;
            state.present = Some(0.0);
            state.source = Some(Source::Text);
        }
    }

    /// The chunk could not be recomputed; that is not tried again.
    pub fn recompute_failed(&mut self, now: Duration, chunk: usize) {
        self.tick(now);
        if let Some(state) = self.chunks.get_mut(chunk).filter(|state| state.text != TextState::Done) {
            state.text = TextState::Off;
            state.text_usable = false;
        }
    }

    /// What is being fetched.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Where each chunk stands.
    pub fn chunks(&self) -> &[ChunkState] {
        &self.chunks
    }

    /// Transfers under way, oldest first.
    pub fn transfers(&self) -> &[Transfer] {
        &self.transfers
    }

    /// Whether all chunks are there: from here on only upgrades are fetched, until the deadline. A caller that would
    /// rather have it sooner than better can stop here.
    pub fn complete(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.present.is_some())
    }

    /// Chunks that cannot be had: no level is usable and text is none, or follows such a chunk.
    pub fn lost(&self) -> impl Iterator<Item = usize> + '_ {
        let missing = self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.present.is_none());
        missing.filter(|_| self.done).map(|(index, _)| index)
    }

    /// Something the user should be told about how the policy works here.
    pub fn remark(&self) -> Option<&str> {
        self.policy.remark()
    }

    fn ask(&mut self) -> Move {
        let running = self.chunks.iter().zip(self.job.chunks()).filter_map(|(state, chunk)| {
            let compute = chunk.text.unwrap_or_default();
            match state.text {
                TextState::Running(start) => Some((start, compute)),
                TextState::Queued => Some((self.now, compute)),
                _ => None,
            }
        });
        let mut free = Duration::ZERO;
        for (start, compute) in running {
            free = free.max(start).saturating_add(compute);
        }
        self.policy.decide(&View {
            job: &self.job,
            now: self.now,
            chunks: &self.chunks,
            transfers: &self.transfers,
            connections: self.connections,
            forecast: self.estimator.forecast(),
            last_rate: self.last_rate,
            decoder_free: self.decoder_free.max(self.now),
            processor_free: free.max(self.now),
            oracle: self.oracle.as_ref().map(|oracle| &oracle.0),
        })
    }

    fn carry_out(&mut self, next: Move) -> Option<Action> {
        match next {
            Move::Fetch { chunk, level } if self.transfers.len() < self.connections => {
                self.fetch(chunk, level)
            }
            Move::Text { chunk } => {
                let state = self.chunks.get_mut(chunk).filter(|state| state.text_usable())?;
                state.text = TextState::Queued;
                if self.runnable_text() == Some(chunk) {
                    self.chunks[chunk].text = TextState::Running(self.now);
                    return Some(Action::Recompute { chunk });
                }
                // It waits for others: the policy goes on.
                let next = self.ask();
                self.carry_out(next)
            }
            Move::Abandon { transfer } if self.transfers.iter().any(|t| t.id == transfer) => {
                Some(self.abandon(transfer))
            }
            _ => None,
        }
    }

    fn fetch(&mut self, chunk: usize, level: usize) -> Option<Action> {
        let state = self.chunks.get_mut(chunk)?;
        let segment = state.next_segment(level)?;
        let bytes = self.job.segment(chunk, level, segment)?.bytes;
        let upgrade = state.settled();
        state.levels[level].asked |= 1 << segment;
        let id = TransferId(self.next_id);
        self.next_id += 1;
        if self.transfers.is_empty() {
            self.sample = Some((self.now, self.arrived));
            self.sampled = false;
        }
        let (start, before) = (self.now, self.arrived);
        let transfer =
            Transfer { id, chunk, level, segment, bytes, done: 0, start, upgrade, news: start, before };
        self.transfers.push(transfer);
        Some(Action::Fetch(Fetch { transfer: id, chunk, level, segment, upgrade }))
    }

    fn abandon(&mut self, transfer: TransferId) -> Action {
        if let Some(found) = self.remove(transfer) {
            let state = &mut self.chunks[found.chunk].levels[found.level];
            state.asked &= !(1 << found.segment);
        }
        Action::Abandon { transfer }
    }

    fn finish(&mut self) -> Action {
        self.done = true;
        Action::Done
    }

    /// When the policy has nothing to say though nothing is under way: the smallest level, or text.
    fn rescue(&mut self) -> Option<Action> {
        for chunk in 0..self.chunks.len() {
            let state = &self.chunks[chunk];
            if state.present.is_some() {
                continue;
            }
            let levels = self.job.chunks()[chunk].levels.iter().enumerate();
            let usable = levels.filter(|(level, _)| state.next_segment(*level).is_some());
            if let Some((level, _)) = usable.min_by_key(|(_, level)| level.segments[0].bytes) {
                return self.fetch(chunk, level);
            }
            // A chunk before it that is lost takes text away from all that follow.
            if state.text_usable() && self.chunks[..chunk].iter().all(|c| c.present.is_some()) {
                self.chunks[chunk].text = TextState::Running(self.now);
                return Some(Action::Recompute { chunk });
            }
        }
        None
    }

    /// The first queued chunk of text, if it can start.
    fn runnable_text(&self) -> Option<usize> {
        if self.chunks.iter().any(|chunk| matches!(chunk.text, TextState::Running(_))) {
            return None;
        }
        let missing = self.chunks.iter().position(|chunk| chunk.present.is_none())?;
        (self.chunks[missing].text == TextState::Queued).then_some(missing)
    }

    fn decoding(&self) -> usize {
        let levels = self.chunks.iter().flat_map(|chunk| &chunk.levels);
        levels.map(|level| level.decodable().saturating_sub(level.decoded)).sum()
    }

    /// Whether an event will come.
    fn busy(&self) -> bool {
        !self.transfers.is_empty()
            || self.decoding() > 0
            || self.chunks.iter().any(|chunk| matches!(chunk.text, TextState::Running(_)))
    }

    fn wake(&self, complete: bool, wanted: Option<Duration>) -> Option<Duration> {
        let look = (!self.transfers.is_empty()).then(|| self.now.saturating_add(LOOK));
        let end = complete.then(|| self.job.slo());
        let times = [look, end, wanted.filter(|time| *time > self.now)];
        times.into_iter().flatten().min()
    }

    fn remove(&mut self, transfer: TransferId) -> Option<Transfer> {
        let index = self.transfers.iter().position(|t| t.id == transfer)?;
        let found = self.transfers.remove(index);
        self.end_sample(self.transfers.is_empty(), SAMPLE / 2);
        Some(found)
    }

    fn tick(&mut self, now: Duration) {
        self.now = self.now.max(now);
        // Reports of progress are late by a few milliseconds: a sample ends with one, or where none comes any more.
        self.end_sample(false, 2 * SAMPLE);
    }

    /// Hands the current sample to the estimator if it is long enough. What is left over when the link falls idle counts
    /// only if it is long, too, or all there is: bytes are reported late, and in a few milliseconds those of many more can
    /// seem to arrive.
    fn end_sample(&mut self, last: bool, least: Duration) {
        let Some((start, before)) = self.sample else { return };
        let long = self.now.saturating_sub(start);
        if !long.is_zero() && (long >= least || last && !self.sampled) {
            self.estimator.observe(Sample {
                bytes: self.arrived.saturating_sub(before),
                start,
                end: self.now,
            });
            self.sample = Some((self.now, self.arrived));
            self.sampled = true;
        }
        if last {
            self.sample = None;
        }
    }
}
