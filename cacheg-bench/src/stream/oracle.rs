//! The best that could be done by who knows the future.
//!
//! All chunks of the job are alike (same levels, same decode time at each level, same time as text), which makes this
//! exact for links with a rate over time:
//!
//! * Text of k chunks is best in front: it then waits for nothing, takes k times a chunk's time on the processor, and
//!   any other k chunks do no less and may wait.
//! * The others are fetched back to back. With a count of chunks per level given, in ascending order of bytes: that makes
//!   the sum of bytes before every place in the queue, and so every arrival, the earliest possible, and decode times are
//!   equal.
//! * All counts are tried. Breaking off and fetching twice only add bytes.
//!
//! Where each chunk has a rate of its own, which chunks are text matters; there text may wait for nothing (a relaxation),
//! decoding is only that of the last chunk, and the bound is found by an exact search of Pareto-optimal (time,
//! distortion) pairs. It is a bound: no policy can do better, and perhaps nobody can do as well.

use std::time::Duration;

use cacheg_net::control::{Job, Level};

use super::links::Link;

/// What the oracle reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bound {
    /// Whether the deadline can be met.
    pub(crate) met: bool,
    /// Least mean distortion by the deadline; if that cannot be met, of what is done soonest.
    pub(crate) distortion: f64,
}

pub(crate) fn bound(job: &Job, link: &Link) -> Bound {
    match link {
        Link::Series(..) => series(job, link),
        Link::PerChunk(rates) => per_chunk(job, rates),
    }
}

fn series(job: &Job, link: &Link) -> Bound {
    let n = job.chunks().len();
    let Some(chunk) = job.chunks().first() else { return Bound { met: true, distortion: 0.0 } };
    let compute = chunk.text.unwrap_or(Duration::MAX);
    let decode = chunk.levels.first().map_or(Duration::ZERO, Level::decode);
    // (bytes, distortion), ascending in bytes.
    let mut levels: Vec<(u64, f64)> =
        chunk.levels.iter().map(|level| (level.bytes(), level.distortion())).collect();
    levels.sort_by_key(|level| level.0);
    let finish = |counts: &[usize]| -> Option<Duration> {
        let (mut sent, mut free) = (0_u64, Duration::ZERO);
        for (count, (bytes, _)) in counts.iter().zip(&levels) {
            for _ in 0..*count {
                sent = sent.saturating_add(*bytes);
                free = free.max(link.time_to_send(Duration::ZERO, 0, sent)?) + decode;
            }
        }
        Some(free)
    };
    let mut best = Bound { met: false, distortion: f64::INFINITY };
    let mut soonest = (Duration::MAX, 0.0);
    for texts in 0..=n {
        let text_end = compute.saturating_mul(texts as u32);
        if texts > 0 && chunk.text.is_none() {
            break;
        }
        let mut counts = vec![0; levels.len()];
        each_split(n - texts, &mut counts, 0, &mut |counts| {
            let distortion =
                counts.iter().zip(&levels).map(|(count, level)| *count as f64 * level.1).sum::<f64>()
                    / n as f64;
            let met_already = best.met && distortion >= best.distortion;
            let hopeless = best.met && text_end > job.slo();
            if met_already || hopeless {
                return;
            }
            let Some(end) = finish(counts) else { return };
            let end = end.max(text_end);
            if end <= job.slo() {
                best = Bound { met: true, distortion };
            } else if (end, distortion) < soonest {
                soonest = (end, distortion);
            }
        });
    }
    if best.met { best } else { Bound { met: false, distortion: soonest.1 } }
}

/// All ways to split `left` among the counts from `index` on.
fn each_split(left: usize, counts: &mut [usize], index: usize, visit: &mut impl FnMut(&[usize])) {
    if index + 1 >= counts.len() {
        if let Some(last) = counts.get_mut(index) {
            *last = left;
        }
        if !counts.is_empty() || left == 0 {
            visit(counts);
        }
        return;
    }
    for count in 0..=left {
        counts[index] = count;
        each_split(left - count, counts, index + 1, visit);
    }
}

fn per_chunk(job: &Job, rates: &[f64]) -> Bound {
    let n = job.chunks().len();
    let slo = job.slo().as_secs_f64();
    let compute =
        job.chunks().iter().filter_map(|chunk| chunk.text).max().unwrap_or(Duration::MAX).as_secs_f64();
    let texts = ((slo / compute + 1e-9) as usize).min(n);
    let decode = job
        .chunks()
        .iter()
        .flat_map(|c| &c.levels)
        .map(Level::decode)
        .min()
        .unwrap_or_default()
        .as_secs_f64();
    // By the number of texts: Pareto-optimal (seconds on the link, distortion).
    let mut fronts: Vec<Vec<(f64, f64)>> = vec![Vec::new(); texts + 1];
    fronts[0].push((0.0, 0.0));
    for (chunk, rate) in job.chunks().iter().zip(rates) {
        let mut next: Vec<Vec<(f64, f64)>> = vec![Vec::new(); texts + 1];
        for (used, front) in fronts.iter().enumerate() {
            for &(seconds, distortion) in front {
                if used < texts && chunk.text.is_some() {
                    next[used + 1].push((seconds, distortion));
                }
                for level in &chunk.levels {
                    next[used].push((seconds + level.bytes() as f64 / rate, distortion + level.distortion()));
                }
            }
        }
        next.iter_mut().for_each(pareto);
        fronts = next;
    }
    let all = || fronts.iter().flatten().filter(|(seconds, _)| seconds.is_finite());
    let fits = |seconds: f64| seconds == 0.0 || seconds + decode <= slo;
    let best = all().filter(|(seconds, _)| fits(*seconds)).map(|pair| pair.1).min_by(f64::total_cmp);
    match best {
        Some(distortion) => Bound { met: true, distortion: distortion / n.max(1) as f64 },
        None => {
            let soonest = all().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |pair| pair.1);
            Bound { met: false, distortion: soonest / n.max(1) as f64 }
        }
    }
}

fn pareto(front: &mut Vec<(f64, f64)>) {
    front.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let mut least = f64::INFINITY;
    front.retain(|(_, distortion)| {
        let keep = *distortion < least;
        least = least.min(*distortion);
        keep
    });
}
