//! What the public code of CacheGen does: `artifact`.
//!
//! `config_selection` in `src/utils.py` of github.com/UChi-JCL/CacheGen (6bed34c): the time to the deadline is divided
//! equally among the chunks once and for all; each chunk gets the best level that its own bandwidth, read from the trace
//! in advance, carries within that share, and text if none does. What a chunk leaves of its share is lost.
//!
//! Only a simulator can tell the bandwidth in advance. Without an oracle the rate of the last transfer stands in, and
//! the policy remarks it.

use serde::Deserialize;

use super::{nearest, refine, smallest};
use crate::control::policy::{Move, Policy};
use crate::control::registry::{Plugin, settings};
use crate::control::state::View;

pub(super) const PLUGIN: Plugin<dyn Policy> = Plugin {
    name: "artifact",
    origin: "cacheg-net",
    summary: "CacheGen's public code: an equal share of the time for each chunk, its bandwidth known in advance",
    usage: "artifact",
    build: |config| Ok(Box::new(settings::<Artifact>(config)?)),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Artifact {
    #[serde(skip)]
    blind: bool,
}

impl Policy for Artifact {
    fn decide(&mut self, view: &View<'_>) -> Move {
        let Some(chunk) = view.needed().next() else { return refine(view) };
        let state = &view.chunks[chunk];
        // The code decides chunk by chunk: one whose turn has not come is not decided.
        if !view.can_fetch() {
            return Move::Wait(None);
        }
        let share = view.job.slo().as_secs_f64() / view.job.chunks().len() as f64;
        let levels = &view.job.chunks()[chunk].levels;
        let fits = |level: &usize| {
            let bytes = levels[*level].bytes();
            let rate = view.oracle_rate(chunk, bytes).or(view.last_rate);
            rate.is_none_or(|rate| bytes as f64 / rate < share)
        };
        let usable = (0..levels.len()).filter(|level| state.next_segment(*level).is_some());
        self.blind |= view.oracle_rate(chunk, 1).is_none();
        match usable.clone().find(fits) {
            Some(level) => nearest(view, chunk, level),
            None if state.text_usable() => Move::Text { chunk },
            None => nearest(view, chunk, smallest(view, chunk).unwrap_or(levels.len())),
        }
    }

    fn remark(&self) -> Option<&str> {
        self.blind.then_some(
            "`artifact` needs the bandwidth of each chunk in advance; the rate of the last transfer stands in for it",
        )
    }
}
