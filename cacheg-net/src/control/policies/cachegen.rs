//! The rule of the paper: `cachegen`.
//!
//! CacheGen, SIGCOMM'24 (arXiv 2310.07240), section 5.3 and algorithm 1: the throughput of the previous chunk is
//! assumed to hold; if all remaining chunks can be recomputed from text before the deadline, the next one is; otherwise
//! it is fetched at the best level whose bytes, over all remaining chunks, fit the time left. The first chunk is fetched
//! at a medium level, since nothing is known yet. If nothing fits, the smallest level.
//!
//! The paper says nothing of the time to decode the last chunk, and a rule that fills the time to the deadline without it
//! always misses. In favour of the rule it is counted here: chunks must have arrived one decode before the deadline, and
//! text begins when the chunks before it are decoded.
//!
//! `cachegen(overlap=true)` is the same rule for levels, with text taken as `plan` does: from the front, as far as it fits,
//! while the link fetches the other chunks. It shows how much of `plan` is that.

use serde::Deserialize;

use super::{nearest, refine, smallest};
use crate::control::job::Level;
use crate::control::policy::{Move, Policy};
use crate::control::registry::{Plugin, settings};
use crate::control::state::View;

pub(super) const PLUGIN: Plugin<dyn Policy> = Plugin {
    name: "cachegen",
    origin: "cacheg-net",
    summary: "the paper's rule: best level whose remaining bytes fit the time left at the last chunk's throughput",
    usage: "cachegen(overlap=false)",
    build: |config| Ok(Box::new(settings::<CacheGen>(config)?)),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheGen {
    #[serde(default)]
    overlap: bool,
}

/// Chunks that text from the front cannot have in time: the processor is taken to have nothing else to do.
fn beyond_text(view: &View<'_>) -> Vec<usize> {
    let mut free = view.processor_free;
    let beyond = view.needed().filter(|chunk| {
        let compute = view.job.chunks()[*chunk].text.filter(|_| view.chunks[*chunk].text_usable());
        let end = compute.map(|compute| free.saturating_add(compute)).filter(|end| *end <= view.job.slo());
        free = end.unwrap_or(free);
        end.is_none()
    });
    beyond.collect()
}

impl Policy for CacheGen {
    fn decide(&mut self, view: &View<'_>) -> Move {
        let needed: Vec<usize> = if self.overlap { beyond_text(view) } else { view.needed().collect() };
        if self.overlap {
            let first = view
                .needed()
                .next()
                .filter(|chunk| needed.binary_search(chunk).is_err() && view.text_ready(*chunk));
            if let Some(chunk) = first {
                return Move::Text { chunk };
            }
        }
        let Some(&chunk) = needed.first() else { return refine(view) };
        // A chunk is decided upon when the one before it has come.
        if !view.can_fetch() {
            return Move::Wait(None);
        }
        let start = view.processor_free.max(view.decoder_free);
        let text = needed.iter().try_fold(start, |end, c| {
            let compute = view.job.chunks()[*c].text.filter(|_| view.chunks[*c].text_usable())?;
            Some(end.saturating_add(compute))
        });
        if !self.overlap && text.is_some_and(|end| end <= view.job.slo()) {
            return Move::Text { chunk };
        }
        let levels = view.job.chunks()[chunk].levels.len();
        let last = view.job.chunks().last().and_then(|last| last.levels.iter().map(Level::decode).max());
        let left = view.left().saturating_sub(last.unwrap_or_default());
        let Some(rate) = view.last_rate else { return nearest(view, chunk, levels.saturating_sub(1) / 2) };
        let budget = rate * left.as_secs_f64();
        let backlog: f64 = view.transfers.iter().map(|transfer| transfer.left() as f64).sum();
        let fits = |level: &usize| {
            let bytes = needed.iter().map(|c| {
                let levels = &view.job.chunks()[*c].levels;
                levels.get(*level).or(levels.last()).map_or(0.0, |level| level.bytes() as f64)
            });
            bytes.sum::<f64>() + backlog <= budget
        };
        let level = (0..levels).filter(|l| view.chunks[chunk].next_segment(*l).is_some()).find(fits);
        match level.or_else(|| smallest(view, chunk)) {
            Some(level) => nearest(view, chunk, level),
            None => nearest(view, chunk, levels),
        }
    }
}
