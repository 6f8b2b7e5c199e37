//! Does the rate belong to the link or to the transfer?
//!
//! On a link that many share the rate changes while a transfer runs. Where chunks come from different servers or caches
//! (or in the model of CacheGen's public code) each transfer has a rate of its own. Only then is there sense in giving
//! up a slow transfer for another chunk.

use std::time::Duration;

use crate::control::state::{Transfer, TransferId};

/// Rates are compared over times of this length.
const WINDOW: Duration = Duration::from_millis(40);
/// Rates that differ by more than this factor are different.
const DIFFERENT: f64 = 1.25;

/// Watches transfers.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The transfer, since when, what it had then, its rate before that.
    mark: Option<(TransferId, Duration, u64, Option<f64>)>,
    /// Windows of this transfer that agree.
    agree: u32,
    /// The rate has changed within a transfer.
    varies: bool,
}

impl Watch {
    /// Looks at a transfer.
    pub(super) fn look(&mut self, transfer: &Transfer, now: Duration) {
        let Some((_, since, had, before)) = self.mark.filter(|mark| mark.0 == transfer.id) else {
            self.mark = Some((transfer.id, transfer.start, 0, None));
            self.agree = 0;
            return;
        };
        let long = now.saturating_sub(since);
        if long < WINDOW {
            return;
        }
        let rate = (transfer.done.saturating_sub(had)).max(1) as f64 / long.as_secs_f64();
        match before {
            Some(before) if rate > before * DIFFERENT || before > rate * DIFFERENT => self.varies = true,
            _ => self.agree += 1,
        }
        self.mark = Some((transfer.id, now, transfer.done, Some(rate)));
    }

    /// Whether this transfer has a rate of its own, as far as can be seen: it, and all before it, kept theirs.
    pub(super) fn constant(&self, transfer: &Transfer) -> bool {
        !self.varies && self.agree >= 2 && self.mark.is_some_and(|mark| mark.0 == transfer.id)
    }
}
