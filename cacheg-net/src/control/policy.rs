//! What chooses levels: a plug-in.

use std::fmt;

use super::state::{TransferId, View};

/// What a policy wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// Fetch the next segment of this level of the chunk; if the chunk is there already, as an upgrade.
    Fetch {
        /// Index of the chunk.
        chunk: usize,
        /// Index of the level.
        level: usize,
    },
    /// Recompute the chunk from text as soon as those before it are there and the processor is idle.
    Text {
        /// Index of the chunk.
        chunk: usize,
    },
    /// Break a transfer off. If the chunk needs another, that is the next move.
    Abandon {
        /// The transfer.
        transfer: TransferId,
    },
    /// Nothing now; look again at the next event, or at this time since the start if nothing happens before.
    Wait(Option<std::time::Duration>),
}

/// Chooses what to fetch, what to recompute and what to break off. It sees time only as `view.now`.
///
/// The controller asks again after each move until the answer is [`Move::Wait`], and at every event. A move that
/// cannot be carried out (no such chunk or level, known to be missing, no connection free, already recomputing) counts
/// as `Wait`. When a policy waits though nothing is under way, the controller takes the smallest level of the first
/// chunk that is missing, so that no policy can make a request hang.
pub trait Policy: fmt::Debug + Send {
    /// The next move.
    fn decide(&mut self, view: &View<'_>) -> Move;

    /// Something the user should be told about how the policy works here.
    fn remark(&self) -> Option<&str> {
        None
    }
}
