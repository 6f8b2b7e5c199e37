//! The adaptive client: a context comes chunk by chunk, each at the level that the controller chooses, and is decoded
//! while the next one is on the wire.
//!
//! ```text
//!   store ──transfers (tasks)──> received ──queue──> decoder (a thread, all cores) ──> Receiver
//!                 │  progress                              │ decoded                     │ prefix
//!                 └──────────────> Controller <────────────┘ <──recomputed── Recompute <─┘
//! ```
//!
//! Neither decoding nor recomputing holds up a socket; what is received and not decoded yet is bounded. A transfer that
//! breaks off goes on where it was; a chunk that is damaged or missing is fetched at another level or recomputed, and
//! reported. A request never takes longer than its deadline and [`grace`](FetchOptions::grace).

mod decode;
mod link;
mod receive;
mod recompute;
mod run;
mod transfer;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cacheg_core::{Backend, Cpu, Profile};

pub use link::{SharedLink, Turn};
pub use receive::{FileReceiver, MemoryReceiver, Receiver, Resumed};
pub use recompute::Recompute;
pub use run::fetch;

use crate::store::Manifest;

/// How to fetch.
#[derive(Clone)]
#[non_exhaustive]
pub struct FetchOptions {
    /// When all chunks must be there, from the call of [`fetch`] on. Without one, every chunk comes as the policy likes it
    /// best, however long that takes.
    pub slo: Option<Duration>,
    /// How long after the deadline it gives up.
    pub grace: Duration,
    /// Spec string of the policy; see [`policies`](crate::control::policies). By default `plan`, and without a deadline
    /// the best level of everything.
    pub policy: Option<String>,
    /// Spec string of the estimator; see [`estimators`](crate::control::estimators).
    pub estimator: String,
    /// Transfers at a time.
    pub connections: usize,
    /// How long the model takes to recompute a token from text, if it can. Only then chunks may be left to it.
    pub recompute: Option<Duration>,
    /// KV cache bytes per second that the backend decodes, as a first guess; what is measured replaces it.
    pub decode_rate: f64,
    /// Returns as soon as all chunks are there. Otherwise, and if there is a deadline, the time that is left until then
    /// is used to replace some of them by better ones, if the policy does such things.
    pub asap: bool,
    /// Decodes.
    pub backend: Arc<dyn Backend>,
    /// The link that this request shares with others of the program: they take turns.
    pub link: Option<Arc<SharedLink>>,
    /// A profile that is here already, as all contexts of a model share one; fetched if the context needs another.
    pub profile: Option<Arc<Profile>>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            slo: None,
            grace: Duration::from_secs(1),
            policy: None,
            estimator: "last".into(),
            connections: 2,
            recompute: None,
            decode_rate: 5e8,
            asap: false,
            backend: Arc::new(Cpu),
            link: None,
            profile: None,
        }
    }
}

impl FetchOptions {
    /// The policy that is used.
    pub fn policy(&self) -> &str {
        let unhurried = if self.slo.is_some() { "plan" } else { "fixed(level=0)" };
        self.policy.as_deref().unwrap_or(unhurried)
    }
}

impl std::fmt::Debug for FetchOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FetchOptions")
            .field("slo", &self.slo)
            .field("policy", &self.policy())
            .field("estimator", &self.estimator)
            .field("connections", &self.connections)
            .field("backend", &self.backend.name())
            .finish_non_exhaustive()
    }
}

/// How a chunk came.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Got {
    /// Decoded.
    Level {
        /// Name of the level.
        level: String,
        /// As the manifest says it.
        distortion: f64,
    },
    /// Recomputed from text.
    Text,
    /// The receiver had it already.
    Held,
    /// Left to the caller to recompute: nobody here can.
    Left,
    /// Not there: no time was left, or no level of it could be read.
    Missing,
}

/// What was done when; for pictures.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// What.
    pub work: Work,
    /// Index of the chunk.
    pub chunk: usize,
    /// Name of the level; none for text.
    pub level: Option<String>,
    /// From here, since the request's start,
    pub start: Duration,
    /// to here.
    pub end: Duration,
    /// Bytes that came.
    pub bytes: u64,
    /// Whether it was of use: not broken off, not failed.
    pub useful: bool,
}

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Bytes on the wire.
    Transfer,
    /// From bytes to a KV cache.
    Decode,
    /// From text to a KV cache.
    Recompute,
}

/// A context, as far as it came.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Fetched {
    /// What the store says of it.
    pub manifest: Manifest,
    /// By chunk.
    pub chunks: Vec<Got>,
    /// When the last chunk was there, since the request's start.
    pub complete: Option<Duration>,
    /// Bytes of chunks that came, abandoned ones too.
    pub bytes: u64,
    /// What went wrong on the way, and was got over.
    pub faults: Vec<String>,
    /// What was done when.
    pub timeline: Vec<Span>,
}

impl Fetched {
    /// Runs of tokens that the caller has to recompute, or do without: in order, as long as possible.
    pub fn absent(&self) -> Vec<Range<u64>> {
        let starts = self.manifest.starts();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, got) in self.chunks.iter().enumerate() {
            if !matches!(got, Got::Left | Got::Missing) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == starts[index] => run.end = starts[index + 1],
                _ => runs.push(starts[index]..starts[index + 1]),
            }
        }
        runs
    }

    /// Mean distortion over tokens of what came; of chunks that are missing, none is counted.
    pub fn distortion(&self) -> f64 {
        let (mut sum, mut tokens) = (0.0, 0);
        for (chunk, got) in self.manifest.chunks.iter().zip(&self.chunks) {
            if let Got::Level { distortion, .. } = got {
                sum += distortion * chunk.tokens as f64;
            }
            if matches!(got, Got::Level { .. } | Got::Text | Got::Left) {
                tokens += chunk.tokens;
            }
        }
        sum / tokens.max(1) as f64
    }
}
