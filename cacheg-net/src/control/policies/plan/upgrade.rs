//! What to do with spare time: fetch again, better.

use super::table::Link;
use crate::control::policy::Move;
use crate::control::state::{TextState, View};

/// Upgrades that will hardly arrive are not begun.
const LEAST: f64 = 0.02;
/// Grid of the knapsack over the time left.
const POINTS: usize = 64;

/// A better quality for a chunk that is there or on its way.
#[derive(Debug, Clone, Copy)]
struct Upgrade {
    chunk: usize,
    level: usize,
    /// Distortion that it takes away, of its chance to arrive.
    gain: f64,
    /// Seconds that it takes.
    seconds: f64,
    chance: f64,
}

/// The next upgrade, if one is worth it: one of the set that gains most in the time left at the rate expected, and in
/// that the one with the most gain per second; when none fits, the best bet.
pub(super) fn best(view: &View<'_>, link: Option<Link>) -> Option<Move> {
    let link = link?;
    let left = view.left().as_secs_f64();
    if left <= 0.0 {
        return None;
    }
    let candidates: Vec<Vec<Upgrade>> = (0..view.chunks.len())
        .map(|chunk| of_chunk(view, link, chunk, left))
        .filter(|list| !list.is_empty())
        .collect();
    let chosen = knapsack(&candidates, left).or_else(|| {
        let all = candidates.iter().flatten().copied();
        all.max_by(|a, b| (a.gain * a.chance).total_cmp(&(b.gain * b.chance)))
    })?;
    Some(Move::Fetch { chunk: chosen.chunk, level: chosen.level })
}

fn of_chunk(view: &View<'_>, link: Link, chunk: usize, left: f64) -> Vec<Upgrade> {
    let state = &view.chunks[chunk];
    let levels = &view.job.chunks()[chunk].levels;
    let on_the_way = view.transfers.iter().any(|transfer| transfer.chunk == chunk);
    if state.text() != TextState::Off || on_the_way {
        return Vec::new();
    }
    // What it has, or will have once it is decoded.
    let received = (0..levels.len()).filter_map(|l| {
        let segments = state.levels[l].decodable().checked_sub(1)?;
        Some(levels[l].segments[segments].distortion)
    });
    let Some(have) = received.chain(state.present()).min_by(f64::total_cmp) else { return Vec::new() };
    let queue = view.decoder_free.saturating_sub(view.now).as_secs_f64();
    let upgrade = |level: usize| {
        let segment = levels[level].segments[state.next_segment(level)?];
        let gain = have - segment.distortion;
        let decode = segment.decode.as_secs_f64();
        let bytes = segment.bytes as f64;
        let chance = if queue + decode > left { 0.0 } else { link.probability(bytes, left - decode) };
        let seconds = bytes / link.rate;
        (gain > 0.0 && chance >= LEAST).then_some(Upgrade { chunk, level, gain, seconds, chance })
    };
    (0..levels.len()).filter_map(upgrade).collect()
}

/// At most one upgrade of each chunk, together within the time left, with the most gain.
fn knapsack(candidates: &[Vec<Upgrade>], left: f64) -> Option<Upgrade> {
    let step = left / (POINTS - 1) as f64;
    let mut best = [0.0_f64; POINTS];
    let mut picks = vec![[usize::MAX; POINTS]; candidates.len()];
    for (list, picks) in candidates.iter().zip(&mut picks) {
        let before = best;
        for (number, upgrade) in list.iter().enumerate() {
            let cost = (upgrade.seconds / step).ceil();
            if cost >= POINTS as f64 {
                continue;
            }
            for point in cost as usize..POINTS {
                let gain = before[point - cost as usize] + upgrade.gain * upgrade.chance;
                if gain > best[point] {
                    best[point] = gain;
                    picks[point] = number;
                }
            }
        }
    }
    let mut point = POINTS - 1;
    let mut chosen: Option<Upgrade> = None;
    for (list, picks) in candidates.iter().zip(&picks).rev() {
        let Some(upgrade) = list.get(picks[point]) else { continue };
        point -= (upgrade.seconds / step).ceil() as usize;
        let denser = |other: Upgrade| upgrade.gain * other.seconds > other.gain * upgrade.seconds;
        if chosen.is_none_or(denser) {
            chosen = Some(*upgrade);
        }
    }
    chosen
}
