//! From symbols to tables.

use cacheg_core::{
    Accumulator, BindCx, Calibrator, Error, PartCx, Plane, Result, Seen, Source, StageData, TileCx,
};

use super::cluster::{Clusters, cluster};
use super::counts::Counts;
use super::layout::{CONTEXT_TABLES, Layout, Slot};
use super::set::{Limits, MAX_LIMIT, TableSet};
use super::settings::{Scope, TableSettings};
use super::table::{Precision, Split, Table};

/// How much a channel's own counts must outweigh its class: a channel with this many symbols seen is taken
/// half from its class. Best between 256 and 1,024 where it was measured.
const SHRINKAGE: f64 = 256.0;

/// The same for a context's counts and all counts.
const CONTEXT_SHRINKAGE: f64 = 16.0;

/// Gathers histograms and makes tables of them.
#[derive(Debug)]
pub(crate) struct TableCalibrator {
    settings: TableSettings,
    source: Source,
    split: Split,
    layout: Layout,
    /// The same model with channels grouped for classes.
    classes: Layout,
}

impl TableCalibrator {
    pub(crate) fn new(settings: TableSettings, split: Split, cx: &BindCx<'_>) -> Result<Self> {
        let layout = Layout::new(cx, settings.scope(cx.source), settings.contexts)?;
        let classes = Layout::new(cx, Scope::Class, settings.contexts)?;
        Ok(Self { settings, source: cx.source, split, layout, classes })
    }

    /// Histograms are kept by channel where channels matter.
    fn rows_of(&self, slot: &Slot) -> usize {
        let by_channel = matches!(self.layout.scope, Scope::Channel | Scope::Class);
        if by_channel || self.layout.has_contexts(slot) { slot.cols } else { 1 }
    }

    /// Entries of a histogram: one for each context, if there are any, after that of all symbols.
    fn entries(&self, slot: &Slot) -> usize {
        let each = if self.layout.has_contexts(slot) { CONTEXT_TABLES } else { 1 };
        slot.alphabet * each
    }

    /// The tables of a histogram of `alphabet` symbols, or of one for each context.
    fn tables(&self, counts: &[u64], alphabet: usize) -> Vec<Table> {
        let (all, contexts) = counts.split_at(alphabet);
        let mut tables = vec![self.table(all)];
        for context in contexts.chunks_exact(alphabet) {
            // What was seen in a context is drawn a little towards what was seen at all.
            tables.push(self.table(&drawn(context, all, CONTEXT_SHRINKAGE)));
        }
        tables
    }

    fn table(&self, counts: &[u64]) -> Table {
        let precision = match self.source {
            Source::Chunk if self.settings.cdf.is_none() => Precision::Carried,
            _ => Precision::Full,
        };
        Table::from_counts(counts, self.split, precision)
    }

    /// One table for each group, which adds up its slots.
    fn by_group(&self, counts: &Counts) -> TableSet {
        let groups = &self.layout.groups;
        let mut sums: Vec<Vec<u64>> =
            groups.iter().map(|group| vec![0; group.alphabet * group.each]).collect();
        let mut row = 0;
        for slot in &self.layout.slots {
            for _ in 0..self.rows_of(slot) {
                counts.add_to(row, &mut sums[slot.group]);
                row += 1;
            }
        }
        let tables = sums.iter().zip(groups).flat_map(|(sums, group)| self.tables(sums, group.alphabet));
        TableSet {
            counts: vec![1; groups.len()],
            tables: tables.collect(),
            classes: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn by_channel(&self, counts: &Counts) -> TableSet {
        let mut tables = Vec::with_capacity(self.layout.channels);
        if self.source == Source::Chunk {
            for slot in &self.layout.slots {
                for row in slot.first_channel..slot.first_channel + slot.cols {
                    let mut sums = vec![0; self.entries(slot)];
                    counts.add_to(row, &mut sums);
                    tables.extend(self.tables(&sums, slot.alphabet));
                }
            }
        } else {
            let (classes, groups) = self.cluster(counts);
            for (slot, grouped) in self.layout.slots.iter().zip(&self.classes.slots) {
                let classes = classes.iter().enumerate().skip(slot.first_channel).take(slot.cols);
                for (row, class) in classes {
                    let class = &groups[grouped.group].sums[usize::from(*class)];
                    let mut own = vec![0; class.len()];
                    counts.add_to(row, &mut own);
                    // Each context by itself.
                    let blocks = own.chunks_exact(slot.alphabet).zip(class.chunks_exact(slot.alphabet));
                    tables.extend(blocks.map(|(own, class)| self.table(&drawn(own, class, SHRINKAGE))));
                }
            }
        }
        let counts = self.layout.groups.iter().map(|group| group.tables).collect();
        TableSet { counts, tables, classes: Vec::new(), limits: Vec::new() }
    }

    fn by_class(&self, counts: &Counts) -> TableSet {
        let (classes, groups) = self.cluster(counts);
        let tables = groups
            .iter()
            .zip(&self.classes.groups)
            .flat_map(|(clusters, group)| clusters.sums.iter().map(|sums| (sums, group.alphabet)))
            .flat_map(|(sums, alphabet)| self.tables(sums, alphabet))
            .collect();
        let counts = groups.iter().map(|group| group.sums.len()).collect();
        TableSet { counts, tables, classes, limits: Vec::new() }
    }

    /// The class of every channel, and the classes of each group.
    fn cluster(&self, counts: &Counts) -> (Vec<u8>, Vec<Clusters>) {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.classes.groups.len()];
        for slot in &self.classes.slots {
            members[slot.group].extend(slot.first_channel..slot.first_channel + slot.cols);
        }
        let mut classes = vec![0; self.classes.channels];
        let groups = members
            .iter()
            .zip(&self.classes.groups)
            .map(|(members, group)| {
                let clusters = cluster(counts, members, (group.alphabet, group.each), self.settings.classes);
                for (channel, class) in members.iter().zip(&clusters.class_of) {
                    classes[*channel] = *class;
                }
                clusters
            })
            .collect();
        (classes, groups)
    }
}

/// Counts drawn towards others, which weigh as much as this many symbols.
fn drawn(own: &[u64], others: &[u64], symbols: f64) -> Vec<u64> {
    let total = others.iter().sum::<u64>().max(1) as f64;
    let weights = own.iter().zip(others).map(|(own, other)| *own as f64 + *other as f64 / total * symbols);
    // Below 2^33 before it is scaled.
    weights.map(|weight| (weight * 65_536.0) as u64).collect()
}

impl Calibrator for TableCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let slots = self.layout.plane_slots(plane);
        let tallies = slots.iter().map(|slot| {
            let contexts = self.layout.has_contexts(slot);
            let pairs = if contexts { slot.alphabet } else { 0 };
            Tally {
                slot: *slot,
                contexts,
                counts: vec![0; self.rows_of(slot) * slot.alphabet],
                pairs: vec![0; slot.cols * pairs * slot.alphabet],
            }
        });
        Box::new(Tallies(tallies.collect()))
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        let other = || Error::profile("histograms of another model");
        let mut counts = Counts::default();
        let mut limits = Vec::new();
        let mut slots = self.layout.planes();
        for data in &planes {
            let slots = slots.next().ok_or_else(other)?;
            let entries =
                slots.iter().flat_map(|slot| std::iter::repeat_n(self.entries(slot), self.rows_of(slot)));
            counts.append(data, entries)?;
            if slots.iter().any(|slot| self.layout.has_contexts(slot)) {
                limits.extend_from_slice(data.get_u8("limits")?.1.as_chunks::<2>().0);
            }
        }
        if slots.next().is_some() {
            return Err(other());
        }
        let mut set = match self.layout.scope {
            Scope::One | Scope::Layer => self.by_group(&counts),
            Scope::Channel => self.by_channel(&counts),
            Scope::Class => self.by_class(&counts),
        };
        set.limits = limits;
        Ok(set.to_data())
    }
}

/// Histograms of one plane.
struct Tallies(Vec<Tally>);

struct Tally {
    slot: Slot,
    contexts: bool,
    /// `[row][symbol]`; one row, or one for each column.
    counts: Vec<u32>,
    /// `[column][symbol before][symbol]`, if there are contexts: their limits are not known yet.
    pairs: Vec<u32>,
}

impl Accumulator for Tallies {
    fn observe(&mut self, _: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()> {
        let Seen::Symbols(symbol_plane, symbols) = seen else {
            return Err(Error::data("a coder is calibrated on symbols"));
        };
        let tally = self
            .0
            .iter_mut()
            .find(|tally| tally.slot.part == part.index && tally.slot.symbol_plane == symbol_plane)
            .filter(|tally| symbols.len() == part.rows * tally.slot.cols)
            .ok_or_else(|| Error::data("symbols that the coder was not bound to"))?;
        let (alphabet, cols) = (tally.slot.alphabet, tally.slot.cols.max(1));
        if symbols.iter().any(|symbol| usize::from(*symbol) >= alphabet) {
            return Err(Error::data("a symbol outside its alphabet"));
        }
        let add = |count: &mut u32| *count = count.saturating_add(1);
        if tally.counts.len() == alphabet {
            for symbol in symbols {
                add(&mut tally.counts[usize::from(*symbol)]);
            }
        } else {
            for row in symbols.chunks_exact(cols) {
                for (counts, symbol) in tally.counts.chunks_exact_mut(alphabet).zip(row) {
                    add(&mut counts[usize::from(*symbol)]);
                }
            }
        }
        if tally.contexts {
            let after = symbols.get(cols..).unwrap_or_default();
            for (before, row) in symbols.chunks_exact(cols).zip(after.chunks_exact(cols)) {
                let pairs = tally.pairs.chunks_exact_mut(alphabet * alphabet);
                for ((pairs, before), symbol) in pairs.zip(before).zip(row) {
                    add(&mut pairs[usize::from(*before) * alphabet + usize::from(*symbol)]);
                }
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        let mut counts = Counts::default();
        let mut all_limits = Vec::new();
        for tally in &self.0 {
            let alphabet = tally.slot.alphabet;
            let mut pairs = tally.pairs.chunks_exact(alphabet * alphabet);
            let rows = if tally.contexts { tally.slot.cols } else { usize::MAX };
            for row in tally.counts.chunks_exact(alphabet).take(rows) {
                if let Some(pairs) = pairs.next() {
                    let limits = limits(row);
                    all_limits.extend(limits);
                    let mut all = vec![0u32; CONTEXT_TABLES * alphabet];
                    all[..alphabet].copy_from_slice(row);
                    for (before, pairs) in pairs.chunks_exact(alphabet).enumerate() {
                        let context = limits.iter().filter(|limit| before >= usize::from(**limit)).count();
                        let sums = &mut all[(1 + context) * alphabet..][..alphabet];
                        for (sum, count) in sums.iter_mut().zip(pairs) {
                            *sum = sum.saturating_add(*count);
                        }
                    }
                    counts.push(&all);
                } else {
                    counts.push(row);
                }
            }
        }
        let mut data = counts.to_data();
        if !all_limits.is_empty() {
            data.put_u8("limits", &[all_limits.len()], &all_limits);
        }
        Ok(data)
    }
}

/// Limits that make three contexts of about equal weight.
fn limits(counts: &[u32]) -> Limits {
    let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let mut below = 0;
    let mut limits = [0, 0];
    for (symbol, count) in counts.iter().enumerate() {
        below += u64::from(*count);
        // Symbols of contexts are below 32.
        if 3 * below < total {
            limits[0] = symbol as u8 + 1;
        }
        if 3 * below < 2 * total {
            limits[1] = symbol as u8 + 1;
        }
    }
    [limits[0].min(MAX_LIMIT - 1), (limits[1] + 1).min(MAX_LIMIT - 1)]
}
