//! The controller of a streamed context: which level of which chunk to fetch next, so that all chunks are there by the
//! deadline and as good as the link allows.
//!
//! It does no I/O and has no clock. Time is a [`Duration`](std::time::Duration) since the request's start, handed in
//! with every call. Events go in ([`Controller::progress`], [`received`](Controller::received),
//! [`failed`](Controller::failed), [`decoded`](Controller::decoded), [`recomputed`](Controller::recomputed)), actions
//! come out of [`Controller::poll`]. The simulator (`cacheg-bench stream`) and a real client run the same code.
//!
//! ```text
//!            progress, received, failed        ┌────────────┐   View    ┌────────┐
//!   sockets ──────────────────────────────────>│            │──────────>│ Policy │  fixed, cachegen, artifact, plan
//!           <──────────────────────────────────│ Controller │<──────────└────────┘
//!            Fetch, Abandon                    │            │   Move
//!   decoder ──decoded, decode_failed──────────>│            │  Sample   ┌───────────┐
//!     model ──recomputed, recompute_failed────>│            │──────────>│ Estimator │  last, harmonic, ewma, holt, quantile
//!           <─────Recompute────────────────────└────────────┘ Forecast  └───────────┘
//! ```
//!
//! What to fetch is a [`Job`]: chunks in order, each with levels (bytes, distortion, time to decode) and perhaps a time
//! in which it can be recomputed from text, and the deadline. A level is a run of segments: discrete levels have one,
//! progressive levels a base and refinements.
//!
//! Driving it: after every event, and at the time a [`Action::Wait`] names, poll until it says `Wait` or `Done`.
//!
//! * `Fetch`: begin a transfer on a free connection. There are never more than
//!   [`with_connections`](Controller::with_connections) at once; they are taken to share one link. When it has arrived,
//!   say `received` and give the bytes to a decoder; when that is done, `decoded`. Chunks are decoded in any order; a
//!   level's segments in theirs.
//! * `Recompute`: let the model compute the chunk's KV from its tokens. Only asked for when all chunks before it are
//!   decoded, one at a time.
//! * `Abandon`: cancel the transfer. Late events for it are ignored.
//! * `Done`: nothing is left to do. `lost` names chunks that could not be had.
//!
//! A caller that wants the context as soon as all chunks are there, and no upgrades, stops at
//! [`complete`](Controller::complete).
//!
//! A link that carries 100 MB/s, with nothing else to it:
//!
//! ```
//! use std::time::Duration;
//! use cacheg_net::control::{Action, Chunk, Controller, Job, Level, estimators, policies};
//!
//! let decode = Duration::from_millis(40);
//! let levels = vec![Level::new(40_000_000, 0.014, decode), Level::new(20_000_000, 0.33, decode)];
//! let chunk = Chunk { levels, text: Some(Duration::from_millis(200)) };
//! let job = Job::new(vec![chunk; 4], Duration::from_millis(1_500))?;
//! let policy = policies().build("fixed(level=1)")?;
//! let mut controller = Controller::new(job, policy, estimators().build("last")?);
//!
//! let mut now = Duration::ZERO;
//! loop {
//!     match controller.poll(now) {
//!         Action::Fetch(fetch) => {
//!             let bytes = controller.job().chunks()[fetch.chunk].levels[fetch.level].segments[fetch.segment].bytes;
//!             now += Duration::from_secs_f64(bytes as f64 / 100e6);
//!             controller.received(now, fetch.transfer);
//!             // A real client decodes while the next transfer runs.
//!             controller.decoded(now, fetch.chunk, fetch.level, fetch.segment);
//!         }
//!         Action::Recompute { chunk } => controller.recomputed(now, chunk),
//!         Action::Abandon { .. } | Action::Wait { .. } => unreachable!("nothing is ever under way here"),
//!         Action::Done => break,
//!         _ => unreachable!("actions that this program does not know"),
//!     }
//! }
//! assert_eq!(now, Duration::from_millis(800));
//! assert_eq!(controller.chunks()[3].present(), Some(0.33));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod controller;
mod errors;
mod estimator;
mod estimators;
mod job;
mod policies;
mod policy;
mod registry;
mod schedule;
mod state;
#[cfg(test)]
mod tests;

pub use controller::{Action, Controller, Failure, Fetch};
pub use errors::{ErrorTracker, Errors};
pub use estimator::{Estimator, Forecast, Sample};
pub use estimators::estimators;
pub use job::{Chunk, Job, Level, Segment};
pub use policies::policies;
pub use policy::{Move, Policy};
pub use registry::{Plugin, Registry};
pub use schedule::{Scheduler, Waiting, schedulers};
pub use state::{ChunkState, Oracle, Source, TextState, Transfer, TransferId, View};
