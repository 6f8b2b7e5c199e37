//! What the controller knows, as policies see it.

use std::fmt;
use std::time::Duration;

use super::estimator::Forecast;
use super::job::{Chunk, Job};

/// Names a transfer for as long as the request runs; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransferId(pub(super) u64);

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A transfer under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// Its name.
    pub id: TransferId,
    /// What is on the wire: the chunk,
    pub chunk: usize,
    /// its level,
    pub level: usize,
    /// and the segment of the level.
    pub segment: usize,
    /// Bytes it has.
    pub bytes: u64,
    /// Bytes of these that have arrived.
    pub done: u64,
    /// When it began.
    pub start: Duration,
    /// The chunk can do without: it was there, or on its way, at another quality.
    pub upgrade: bool,
    /// When bytes arrived last.
    pub(super) news: Duration,
    /// Bytes of all transfers that had arrived when it began.
    pub(super) before: u64,
}

impl Transfer {
    /// Bytes still to come.
    pub fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.done)
    }
}

/// How far recomputing a chunk from text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextState {
    /// Not chosen, or not to be had.
    Off,
    /// Chosen; waits for the chunks before it, or for the processor.
    Queued,
    /// Runs since then.
    Running(Duration),
    /// Done.
    Done,
}

/// How much of a level is there. Sets of segments are bits: there are at most 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LevelState {
    /// Segments that can be chosen: those before the first that is known to be missing or corrupt.
    pub(super) usable: usize,
    /// Segments that are on the wire or arrived.
    pub(super) asked: u64,
    /// Segments that arrived.
    pub(super) received: u64,
    /// Segments that are decoded: the first so many.
    pub(super) decoded: usize,
    /// Transfers that broke off.
    pub(super) interrupted: u32,
}

impl LevelState {
    /// Segments that can be decoded, those that are included.
    pub(super) fn decodable(&self) -> usize {
        self.received.trailing_ones() as usize
    }

    /// A segment is missing or corrupt: it and those after it are of no use.
    pub(super) fn give_up(&mut self, segment: usize) {
        self.usable = self.usable.min(segment);
        // Those after it on the wire are dropped when they arrive.
        self.received &= (1_u64 << segment) - 1;
        self.asked &= (1_u64 << segment) - 1;
    }
}

/// Where a chunk stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkState {
    pub(super) levels: Vec<LevelState>,
    pub(super) text: TextState,
    pub(super) text_usable: bool,
    /// Distortion of the best that is decoded.
    pub(super) present: Option<f64>,
    /// Where it came from.
    pub(super) source: Option<Source>,
}

/// What a chunk that is there was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The first segments of a level.
    Level {
        /// The level.
        level: usize,
        /// How many of its segments.
        segments: usize,
    },
    /// Recomputed from text.
    Text,
}

impl ChunkState {
    pub(super) fn new(chunk: &Chunk) -> Self {
        let level = |usable| LevelState { usable, asked: 0, received: 0, decoded: 0, interrupted: 0 };
        Self {
            levels: chunk.levels.iter().map(|l| level(l.segments.len())).collect(),
            text: TextState::Off,
            text_usable: chunk.text.is_some(),
            present: None,
            source: None,
        }
    }

    /// Distortion of the best that is decoded, if the chunk is there at all.
    pub fn present(&self) -> Option<f64> {
        self.present
    }

    /// What it was made of, if it is there.
    pub fn source(&self) -> Option<Source> {
        self.source
    }

    /// Recomputing it from text.
    pub fn text(&self) -> TextState {
        self.text
    }

    /// Whether it can still be recomputed from text, as far as is known, and nobody has asked for it yet.
    pub fn text_usable(&self) -> bool {
        self.text_usable && self.text == TextState::Off
    }

    /// The next segment of a level to fetch, if there is one and it is not known to be missing or corrupt.
    pub fn next_segment(&self, level: usize) -> Option<usize> {
        let state = self.levels.get(level)?;
        let next = state.asked.trailing_ones() as usize;
        (next < state.usable).then_some(next)
    }

    /// Whether the base of a level is on the wire, arrived or decoded.
    pub fn asked(&self, level: usize) -> bool {
        self.levels.get(level).is_some_and(|state| state.asked & 1 != 0)
    }

    /// Whether the base of some level has arrived, decoded or not.
    pub fn received(&self) -> bool {
        self.levels.iter().any(|state| state.received & 1 != 0)
    }

    /// Nothing more has to be done for it: it is there, or on its way in some form.
    pub fn settled(&self) -> bool {
        self.present.is_some()
            || self.text != TextState::Off
            || self.levels.iter().any(|state| state.asked & 1 != 0)
    }

    /// Whether there is still a way to get it, or it is there.
    pub fn possible(&self) -> bool {
        self.settled() || self.text_usable || self.levels.iter().any(|state| state.usable > 0)
    }
}

/// The rate in bytes per second at which a transfer of some bytes of a chunk, begun at some time, will run: what only
/// a simulator knows.
pub type Oracle = Box<dyn Fn(Duration, usize, u64) -> f64 + Send>;

/// What a policy decides upon.
pub struct View<'a> {
    /// What is to be fetched.
    pub job: &'a Job,
    /// Time since the request's start.
    pub now: Duration,
    /// Where each chunk stands.
    pub chunks: &'a [ChunkState],
    /// Transfers under way, oldest first.
    pub transfers: &'a [Transfer],
    /// How many transfers may run at once.
    pub connections: usize,
    /// What the estimator expects of the link; `None` before anything has arrived.
    pub forecast: Option<Forecast>,
    /// The rate of the last finished transfer, bytes per second of all connections.
    pub last_rate: Option<f64>,
    /// When the decoder will have decoded all that has arrived (not before `now`).
    pub decoder_free: Duration,
    /// When the processor will have recomputed all chunks of text that were chosen, as far as it does not have to wait
    /// for others (not before `now`).
    pub processor_free: Duration,
    pub(super) oracle: Option<&'a Oracle>,
}

impl View<'_> {
    /// Time left until the deadline.
    pub fn left(&self) -> Duration {
        self.job.slo().saturating_sub(self.now)
    }

    /// Whether another transfer may start.
    pub fn can_fetch(&self) -> bool {
        self.transfers.len() < self.connections
    }

    /// Chunks that nothing is being done for yet and that can still be had, in order.
    pub fn needed(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.chunks
            .iter()
            .enumerate()
            .filter(|(_, chunk)| !chunk.settled() && chunk.possible())
            .map(|(index, _)| index)
    }

    /// Whether recomputing this chunk could start at once: all chunks before it are there and the processor is idle.
    pub fn text_ready(&self, chunk: usize) -> bool {
        self.chunks[..chunk].iter().all(|c| c.present.is_some())
            && self.chunks.iter().all(|c| matches!(c.text, TextState::Off | TextState::Done))
    }

    /// The rate at which a transfer begun now will run, where an oracle tells.
    pub fn oracle_rate(&self, chunk: usize, bytes: u64) -> Option<f64> {
        self.oracle.map(|oracle| oracle(self.now, chunk, bytes))
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("now", &self.now)
            .field("chunks", &self.chunks)
            .field("transfers", &self.transfers)
            .field("forecast", &self.forecast)
            .finish_non_exhaustive()
    }
}
