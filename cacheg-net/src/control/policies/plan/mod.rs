//! Our policy: `plan(lambda=2;upgrade=true;…)`.
//!
//! * **Text beside levels.** The processor recomputes chunks from the front, as far as that fits the deadline; the link
//!   fetches the others, in order. Text costs no bytes and has no distortion, so that it is taken wherever the processor
//!   would idle. For chunks alike no other choice of chunks for text is better: text of a chunk needs all before it.
//! * **Levels** are chosen by a dynamic programme over the chunks to fetch and the time left ([`table`]), which
//!   minimises distortion + λ · [`Job::miss`](crate::control::Job::miss) · probability of a miss under the error
//!   distribution of the estimator. Slack is carried over by itself. It is made anew when the forecast has changed.
//! * **When the deadline can hardly be met**, the smallest level.
//! * **A transfer is abandoned** for a smaller level when the programme says that this pays; or when its chunk is being
//!   recomputed. Where transfers have rates of their own ([`watch`]) a slow chunk becomes text, and one that was to be
//!   text is fetched in its place.
//! * **Upgrades**: once every chunk is there or under way, better levels are fetched in the time that is left.

mod table;
mod upgrade;
mod watch;

use std::time::Duration;

use cacheg_core::{Error, Result};
use serde::Deserialize;

use crate::control::policy::{Move, Policy};
use crate::control::registry::{Plugin, settings};
use crate::control::state::{TextState, Transfer, View};
use table::{Link, Table};
use watch::Watch;

pub(super) const PLUGIN: Plugin<dyn Policy> = Plugin {
    name: "plan",
    origin: "cacheg-net",
    summary: "least distortion + lambda · risk of a miss; text beside transfers, abandonment, upgrades",
    usage: "plan(lambda=4;upgrade=true;abandon=true;spread=2;first=1;floor=0.05;hysteresis=0.02;swap=0.5)",
    build: |config| Ok(Box::new(Plan::new(settings(config)?)?)),
};

/// Below this chance of meeting the deadline with the smallest levels, they are taken.
const HOPELESS: f64 = 0.02;

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// What a miss costs, in units of [`Job::miss`](crate::control::Job::miss).
    lambda: f64,
    /// Whether chunks that are there are fetched again at a better level.
    upgrade: bool,
    /// Whether transfers are broken off.
    abandon: bool,
    /// The standard deviation of the estimator's error is multiplied by this.
    spread: f64,
    /// Breaking off must save this share of what a miss costs.
    hysteresis: f64,
    /// Level of the first chunk, as a position between best (0) and smallest (1).
    first: f64,
    /// The deviation is never taken to be less than this.
    floor: f64,
    /// Below this chance of meeting the deadline, another chunk is fetched in place of a slow one.
    swap: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lambda: 4.0,
            upgrade: true,
            abandon: true,
            spread: 2.0,
            hysteresis: 0.02,
            first: 1.0,
            floor: 0.05,
            swap: 0.5,
        }
    }
}

#[derive(Debug)]
struct Plan {
    settings: Settings,
    table: Table,
    /// Chunks to fetch, in order of fetching.
    fetch: Vec<usize>,
    /// Chunks whose transfer was broken off because it was slow, to be text.
    slow: Vec<usize>,
    watch: Watch,
}

/// What is to be said of a transfer.
struct Verdict {
    /// A smaller level of the chunk does better.
    pays: bool,
    /// The best chance to meet the deadline.
    hope: f64,
}

impl Plan {
    fn new(settings: Settings) -> Result<Self> {
        let Settings { lambda, spread, hysteresis, first, floor, swap, .. } = settings;
        if [lambda, spread, hysteresis, first, floor, swap].iter().any(|x| !(x.is_finite() && *x >= 0.0))
            || first > 1.0
        {
            return Err(Error::setting(
                "lambda, spread, hysteresis and floor are not negative, first is 0 to 1",
            ));
        }
        Ok(Self {
            settings,
            table: Table::default(),
            fetch: Vec::new(),
            slow: Vec::new(),
            watch: Watch::default(),
        })
    }

    /// What the link is taken to do; `None` before the first sample.
    fn link(&self, view: &View<'_>) -> Option<Link> {
        let forecast = view.forecast?;
        let sigma = (forecast.errors.sigma * self.settings.spread).max(self.settings.floor);
        Some(Link::new(forecast.rate * forecast.errors.mean.exp(), sigma))
    }

    /// Splits the chunks that need something into text, from the front, and levels. Chunks whose transfers were slow
    /// are text before all others.
    fn divide(&mut self, view: &View<'_>) {
        self.fetch.clear();
        let slo = view.job.slo();
        let compute =
            |chunk: usize| view.job.chunks()[chunk].text.filter(|_| view.chunks[chunk].text_usable());
        let mut free = view.processor_free;
        for chunk in view.needed().filter(|chunk| self.slow.contains(chunk)) {
            let end = compute(chunk).map(|compute| free.saturating_add(compute));
            match end.filter(|end| *end <= slo) {
                Some(end) => free = end,
                None => self.fetch.push(chunk),
            }
        }
        for chunk in view.needed().filter(|chunk| !self.slow.contains(chunk)) {
            let end = compute(chunk).map(|compute| free.saturating_add(compute));
            match end {
                Some(end) if end <= slo || smallest(view, chunk).is_none() => free = end,
                _ => self.fetch.push(chunk),
            }
        }
        self.fetch.sort_unstable();
    }

    /// Text for the first chunk that is missing, if the processor is idle and it is in time.
    fn text(&self, view: &View<'_>) -> Option<Move> {
        let chunk = view.chunks.iter().position(|state| state.present().is_none())?;
        let state = &view.chunks[chunk];
        if !state.text_usable() || state.received() || !view.text_ready(chunk) {
            return None;
        }
        let compute = view.job.chunks()[chunk].text?;
        let end = view.now.saturating_add(compute);
        // Chunks that were put off until text can have them come first.
        let waiting = self.slow.iter().filter(|slow| **slow != chunk && view.chunks[**slow].text_usable());
        let reserved = waiting.filter_map(|slow| view.job.chunks()[*slow].text).sum::<Duration>();
        if end <= view.job.slo() {
            return (end + reserved <= view.job.slo()).then_some(Move::Text { chunk });
        }
        // Late, one way or the other: whichever is sooner.
        if unknown(view, chunk).is_some() {
            return None;
        }
        let running = view.transfers.iter().find(|transfer| transfer.chunk == chunk);
        let bytes = match running {
            Some(transfer) => transfer.left(),
            None => match smallest(view, chunk) {
                Some(level) => view.job.chunks()[chunk].levels[level].segments[0].bytes,
                None => return Some(Move::Text { chunk }),
            },
        };
        let rate = view.forecast.map_or(0.0, |forecast| forecast.rate);
        (bytes as f64 > rate * compute.as_secs_f64()).then_some(Move::Text { chunk })
    }

    /// A transfer that is no use any more, or that does better broken off.
    fn review(&mut self, view: &View<'_>) -> Option<Move> {
        for transfer in view.transfers {
            let state = &view.chunks[transfer.chunk];
            let recomputed = match state.text() {
                TextState::Done => true,
                // In time, or there is no other way that is sooner.
                TextState::Running(_) | TextState::Queued => true,
                TextState::Off => false,
            };
            if recomputed {
                return Some(Move::Abandon { transfer: transfer.id });
            }
        }
        if let Some(transfer) = view.transfers.first() {
            self.watch.look(transfer, view.now);
        }
        let link = self.link(view)?;
        let transfer = view.transfers.iter().find(|transfer| !transfer.upgrade && transfer.segment == 0)?;
        let abandon = self.pays(view, link, transfer);
        let abandon = abandon.pays || (abandon.hope < self.settings.swap && self.swaps(view, transfer));
        abandon.then_some(Move::Abandon { transfer: transfer.id })
    }

    /// Whether another level of the same chunk, begun now, does better than the rest of this transfer.
    fn pays(&mut self, view: &View<'_>, link: Link, transfer: &Transfer) -> Verdict {
        let levels = &view.job.chunks()[transfer.chunk].levels;
        let smaller = |level: usize| levels[level].segments[0].bytes < transfer.left();
        if !self.settings.abandon || view.now >= view.job.slo() {
            return Verdict { pays: false, hope: 1.0 };
        }
        self.divide(view);
        self.table.prepare(view, link, &self.fetch, self.settings.lambda);
        let backlog = view.transfers.iter().filter(|other| other.id != transfer.id).map(Transfer::left);
        let backlog = backlog.fold(0.0, |sum, left| sum + left as f64);
        let after = |bytes: u64, level: usize| {
            let segment = levels[level].segments[0];
            let cost = self.table.cost(backlog + bytes as f64, segment.decode, view);
            (segment.distortion + cost.0, cost.1)
        };
        let (stay, hope) = after(transfer.left(), transfer.level);
        let usable = |level: &usize| view.chunks[transfer.chunk].next_segment(*level) == Some(0);
        let others = (0..levels.len()).filter(|level| smaller(*level) && usable(level));
        let best = others.map(|level| after(levels[level].segments[0].bytes, level));
        let (mut least, mut best_hope) = (f64::INFINITY, 0.0_f64);
        for (cost, hope) in best {
            least = least.min(cost);
            best_hope = best_hope.max(hope);
        }
        let pays = if hope.max(best_hope) < HOPELESS {
            // Whatever is sooner, and that by far: the rate may come back.
            (0..levels.len()).any(|l| levels[l].segments[0].bytes < transfer.left() / 2 && usable(&l))
        } else {
            least + self.settings.hysteresis * self.settings.lambda * view.job.miss() < stay
        };
        Verdict { pays, hope: hope.max(best_hope) }
    }

    /// Whether another chunk, that was to be text, can be fetched in place of this one: then this one is to be text.
    fn swaps(&mut self, view: &View<'_>, transfer: &Transfer) -> bool {
        let chunk = transfer.chunk;
        if !self.watch.constant(transfer) || self.slow.contains(&chunk) || transfer.done > transfer.bytes / 4
        {
            return false;
        }
        let state = &view.chunks[chunk];
        let Some(compute) = view.job.chunks()[chunk].text.filter(|_| state.text_usable()) else {
            return false;
        };
        let waiting = self.slow.iter().filter(|slow| view.chunks[**slow].text_usable());
        let reserved = waiting.filter_map(|slow| view.job.chunks()[*slow].text).sum::<Duration>();
        if view.processor_free.saturating_add(compute + reserved) > view.job.slo() {
            return false;
        }
        let other = view.needed().any(|other| {
            !self.slow.contains(&other) && !self.fetch.contains(&other) && smallest(view, other).is_some()
        });
        if other {
            self.slow.push(chunk);
        }
        other
    }

    /// The next chunk to fetch, and how.
    fn fetch(&mut self, view: &View<'_>) -> Option<Move> {
        if !view.can_fetch() {
            return None;
        }
        self.divide(view);
        let &chunk = self.fetch.first()?;
        let state = &view.chunks[chunk];
        let levels = &view.job.chunks()[chunk].levels;
        let usable = |level: &usize| state.next_segment(*level) == Some(0);
        if view.now >= view.job.slo() {
            return Some(Move::Fetch { chunk, level: smallest(view, chunk)? });
        }
        let Some(link) = self.link(view) else {
            let wanted = (self.settings.first * levels.len().saturating_sub(1) as f64).round() as usize;
            let level = (wanted..levels.len()).chain((0..wanted).rev()).find(usable)?;
            return Some(Move::Fetch { chunk, level });
        };
        self.table.prepare(view, link, &self.fetch[1..], self.settings.lambda);
        let backlog: f64 = view.transfers.iter().map(|transfer| transfer.left() as f64).sum();
        let mut best: Option<(f64, u64, usize)> = None;
        let mut hope = 0.0_f64;
        for level in (0..levels.len()).filter(usable) {
            let segment = levels[level].segments[0];
            let (cost, meets) = self.table.cost(backlog + segment.bytes as f64, segment.decode, view);
            let cost = cost + segment.distortion;
            hope = hope.max(meets);
            let better = |(least, bytes, _): (f64, u64, usize)| (cost, segment.bytes) < (least, bytes);
            if best.is_none_or(better) {
                best = Some((cost, segment.bytes, level));
            }
        }
        let level = if hope < HOPELESS { smallest(view, chunk)? } else { best?.2 };
        Some(Move::Fetch { chunk, level })
    }
}

impl Policy for Plan {
    fn decide(&mut self, view: &View<'_>) -> Move {
        if let Some(text) = self.text(view) {
            return text;
        }
        if let Some(abandon) = self.review(view) {
            return abandon;
        }
        if let Some(fetch) = self.fetch(view) {
            return fetch;
        }
        if self.settings.upgrade
            && view.can_fetch()
            && view.needed().next().is_none_or(|_| self.fetch.is_empty())
            && let Some(upgrade) = upgrade::best(view, self.link(view))
        {
            return upgrade;
        }
        let missing = view.chunks.iter().position(|state| state.present().is_none());
        Move::Wait(missing.and_then(|chunk| unknown(view, chunk)))
    }
}

/// Until when a link of which nothing is known yet is given a chance before text that would be late: as long as text
/// takes.
fn unknown(view: &View<'_>, chunk: usize) -> Option<Duration> {
    let compute = view.job.chunks()[chunk].text?;
    let waits = view.forecast.is_none() && view.now < compute && smallest(view, chunk).is_some();
    waits.then_some(compute)
}

/// The level with the smallest base of those that can still be had.
fn smallest(view: &View<'_>, chunk: usize) -> Option<usize> {
    let levels = &view.job.chunks()[chunk].levels;
    let usable = (0..levels.len()).filter(|level| view.chunks[chunk].next_segment(*level) == Some(0));
    usable.min_by_key(|level| levels[*level].segments[0].bytes)
}
