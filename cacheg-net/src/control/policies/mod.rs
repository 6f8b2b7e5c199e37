//! The built-in policies: file = name.

mod artifact;
mod cachegen;
mod fixed;
mod plan;

use super::policy::{Move, Policy};
use super::registry::{Plugin, Registry};
use super::state::View;

/// The built-in policies.
///
/// ```
/// let policies = cacheg_net::control::policies();
/// assert!(policies.build("fixed(level=1)").is_ok());
/// let error = policies.build("fixd").unwrap_err().to_string();
/// assert!(error.contains("cachegen"), "{error}");
/// ```
pub fn policies() -> Registry<dyn Policy> {
    const ALL: &[Plugin<dyn Policy>] = &[artifact::PLUGIN, cachegen::PLUGIN, fixed::PLUGIN, plan::PLUGIN];
    Registry::builtin("policy", ALL)
}

/// The smallest level that can still be had, counting all its segments.
fn smallest(view: &View<'_>, chunk: usize) -> Option<usize> {
    let state = &view.chunks[chunk];
    let levels = view.job.chunks()[chunk].levels.iter().enumerate();
    levels
        .filter(|(level, _)| state.next_segment(*level).is_some())
        .min_by_key(|(level, value)| (value.bytes(), *level))
        .map(|(level, _)| level)
}

/// This level of the chunk if it can be had, else the next smaller, else the next better, else text.
fn nearest(view: &View<'_>, chunk: usize, wanted: usize) -> Move {
    let state = &view.chunks[chunk];
    let levels = state.levels.len();
    let level =
        (wanted..levels).chain((0..wanted.min(levels)).rev()).find(|l| state.next_segment(*l).is_some());
    match level {
        Some(level) if view.can_fetch() => Move::Fetch { chunk, level },
        None if state.text_usable() => Move::Text { chunk },
        _ => Move::Wait(None),
    }
}

/// Further segments of levels whose base is there: what policies without a notion of refinements do once all chunks
/// are settled.
fn refine(view: &View<'_>) -> Move {
    if !view.can_fetch() || view.left().is_zero() {
        return Move::Wait(None);
    }
    for (chunk, state) in view.chunks.iter().enumerate() {
        let started = (0..state.levels.len()).find(|level| state.asked(*level));
        if let Some(level) = started.filter(|level| state.next_segment(*level).is_some()) {
            return Move::Fetch { chunk, level };
        }
    }
    Move::Wait(None)
}
