//! Several requests on one link: whose transfer is next.
//!
//! Each request has a [`Controller`](super::Controller) of its own. Where they share a link (one server's uplink, a
//! client's connections), a program asks a scheduler before it begins a transfer, and lets the others wait.
//!
//! ```
//! use std::time::Duration;
//! use cacheg_net::control::{Waiting, schedulers};
//!
//! let request = |deadline, chunk, bytes| Waiting { deadline: Duration::from_millis(deadline), chunk, bytes };
//! let waiting = [request(900, 0, 7_000), request(500, 2, 9_000), request(1_200, 1, 0)];
//! let now = Duration::from_millis(100);
//! let pick = |name: &str| schedulers().build(name).map(|scheduler| scheduler.pick(now, &waiting));
//! assert_eq!(pick("fair")?, Some(2));
//! assert_eq!(pick("deadline")?, Some(1));
//! assert_eq!(pick("batch")?, Some(0));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::registry::{Plugin, Registry, settings};

/// A request that wants to begin a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// When all its chunks must be there, on the clock of all requests.
    pub deadline: Duration,
    /// Index of the chunk in its context.
    pub chunk: usize,
    /// Bytes that it has had so far.
    pub bytes: u64,
}

/// Picks whose transfer is next.
pub trait Scheduler: fmt::Debug + Send {
    /// An index into `waiting`; `None` only if that is empty.
    fn pick(&self, now: Duration, waiting: &[Waiting]) -> Option<usize>;
}

/// The built-in schedulers: `fair` (least bytes so far), `deadline` (earliest first, late ones last), `batch` (lowest
/// chunk first, as CacheGen batches requests, arXiv 2310.07240, section 5.3).
pub fn schedulers() -> Registry<dyn Scheduler> {
    const ORIGIN: &str = "cacheg-net";
    const ALL: &[Plugin<dyn Scheduler>] = &[
        Plugin {
            name: "batch",
            origin: ORIGIN,
            summary: "chunk 0 of all requests, then chunk 1 of all: the paper's batches",
            usage: "batch",
            build: |config| settings::<NoSettings>(config).map(|_| Box::new(Batch) as _),
        },
        Plugin {
            name: "deadline",
            origin: ORIGIN,
            summary: "earliest deadline first; requests that are late already last",
            usage: "deadline",
            build: |config| settings::<NoSettings>(config).map(|_| Box::new(Deadline) as _),
        },
        Plugin {
            name: "fair",
            origin: ORIGIN,
            summary: "whoever has had the fewest bytes",
            usage: "fair",
            build: |config| settings::<NoSettings>(config).map(|_| Box::new(Fair) as _),
        },
    ];
    Registry::builtin("scheduler", ALL)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

#[derive(Debug)]
struct Fair;

impl Scheduler for Fair {
    fn pick(&self, _: Duration, waiting: &[Waiting]) -> Option<usize> {
        (0..waiting.len()).min_by_key(|index| (waiting[*index].bytes, *index))
    }
}

#[derive(Debug)]
struct Deadline;

impl Scheduler for Deadline {
    fn pick(&self, now: Duration, waiting: &[Waiting]) -> Option<usize> {
        (0..waiting.len()).min_by_key(|index| {
            let deadline = waiting[*index].deadline;
            // Who is late loses nothing more by waiting.
            (Reverse(deadline > now), deadline, *index)
        })
    }
}

#[derive(Debug)]
struct Batch;

impl Scheduler for Batch {
    fn pick(&self, _: Duration, waiting: &[Waiting]) -> Option<usize> {
        (0..waiting.len()).min_by_key(|index| (waiting[*index].chunk, waiting[*index].deadline, *index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_requests_come_last_and_nobody_is_no_answer() {
        let request = |seconds, bytes| Waiting { deadline: Duration::from_secs(seconds), chunk: 0, bytes };
        let pick = |name: &str, waiting: &[Waiting]| {
            schedulers().build(name).unwrap().pick(Duration::from_secs(5), waiting)
        };
        assert_eq!(pick("deadline", &[request(4, 0), request(9, 0), request(6, 0)]), Some(2));
        assert_eq!(pick("deadline", &[request(4, 0), request(3, 0)]), Some(1));
        assert_eq!(pick("fair", &[request(4, 2), request(3, 1), request(3, 1)]), Some(1));
        for name in ["fair", "deadline", "batch"] {
            assert_eq!(pick(name, &[]), None);
            assert!(schedulers().build(&format!("{name}(x=1)")).is_err());
        }
    }
}
