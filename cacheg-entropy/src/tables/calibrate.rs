//! From symbols to tables.

use cacheg_core::{
    Accumulator, BindCx, CLASSES, Calibrator, Error, PartCx, Plane, Result, Seen, Source, StageData, TileCx,
};

use super::cluster::{Clusters, cluster};
use super::contexts::{self, BANDS, Bands, CHOICE, Choice, Edges};
use super::counts::Counts;
use super::layout::{Group, Layout, Slot};
use super::scale;
use super::set::TableSet;
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

    /// Histograms are kept by channel where channels matter, by class where the quantizer tells; contexts always do.
    fn rows_of(&self, slot: &Slot) -> usize {
        if self.layout.scope == Scope::Scale {
            return CLASSES;
        }
        let by_channel = matches!(self.layout.scope, Scope::Channel | Scope::Class);
        if by_channel || self.layout.contexts { slot.cols } else { 1 }
    }

    /// By grade the class of each column, if the quantizer tells.
    fn classes_of(&self, slot: &Slot) -> Vec<Vec<u8>> {
        if self.layout.scope != Scope::Scale {
            return Vec::new();
        }
        let channels = || slot.first_channel..slot.first_channel + slot.cols;
        let of = |grade| channels().map(|channel| self.layout.scale(channel, grade) as u8).collect();
        (0..self.layout.grades.len()).map(of).collect()
    }

    /// What a slot's rows of counts consist of.
    fn bands(&self, slot: &Slot) -> Bands {
        Bands { alphabet: slot.alphabet, contexts: self.layout.has_contexts(slot) }
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

    /// One table for each group, which adds up its slots; with contexts, one for each of them.
    fn by_group(&self, counts: &Counts) -> (TableSet, Vec<Choice>) {
        let groups = &self.layout.groups;
        let (mut tables, mut choices) = (Vec::new(), Vec::new());
        if self.layout.contexts {
            let found = self.cluster(counts, &self.layout, 1);
            for (group, clusters) in groups.iter().zip(found.groups) {
                tables.extend(clusters.sums.iter().flat_map(|sums| self.tables(sums, group.alphabet)));
            }
            choices = found.choices;
        } else {
            let mut sums: Vec<Vec<u64>> = groups.iter().map(|group| vec![0; group.alphabet]).collect();
            for (row, slot) in self.layout.slots.iter().enumerate() {
                counts.add_to(row, &mut sums[slot.group]);
            }
            tables.extend(sums.iter().map(|sums| self.table(sums)));
        }
        let counts = vec![1; groups.len()];
        (TableSet { counts, tables, classes: Vec::new(), limits: Vec::new() }, choices)
    }

    fn by_channel(&self, counts: &Counts) -> (TableSet, Vec<Choice>) {
        let mut tables = Vec::with_capacity(self.layout.channels);
        let mut choices = Vec::new();
        if self.source == Source::Chunk {
            choices.resize(self.layout.channels, CHOICE);
            for slot in &self.layout.slots {
                let bands = self.bands(slot);
                for row in slot.first_channel..slot.first_channel + slot.cols {
                    let mut sums = vec![0; bands.folded()];
                    bands.fold(counts.row(row), CHOICE, &mut sums);
                    tables.extend(self.tables(&sums, slot.alphabet));
                }
            }
        } else {
            let found = self.cluster(counts, &self.classes, self.settings.classes);
            for (slot, grouped) in self.layout.slots.iter().zip(&self.classes.slots) {
                let bands = self.bands(slot);
                for row in slot.first_channel..slot.first_channel + slot.cols {
                    let class = &found.groups[grouped.group].sums[usize::from(found.classes[row])];
                    let mut own = vec![0; bands.folded()];
                    bands.fold(counts.row(row), found.choices[row], &mut own);
                    // Each context by itself.
                    let blocks = own.chunks_exact(slot.alphabet).zip(class.chunks_exact(slot.alphabet));
                    tables.extend(blocks.map(|(own, class)| self.table(&drawn(own, class, SHRINKAGE))));
                }
            }
            choices = found.choices;
        }
        let counts = self.layout.groups.iter().map(|group| group.tables).collect();
        (TableSet { counts, tables, classes: Vec::new(), limits: Vec::new() }, choices)
    }

    fn by_class(&self, counts: &Counts) -> (TableSet, Vec<Choice>) {
        let Found { classes, choices, groups } = self.cluster(counts, &self.classes, self.settings.classes);
        let tables = groups
            .iter()
            .zip(&self.classes.groups)
            .flat_map(|(clusters, group)| clusters.sums.iter().map(|sums| (sums, group.alphabet)))
            .flat_map(|(sums, alphabet)| self.tables(sums, alphabet))
            .collect();
        let counts = groups.iter().map(|group| group.sums.len()).collect();
        (TableSet { counts, tables, classes, limits: Vec::new() }, choices)
    }

    /// Tables of the quantizer's classes.
    fn by_scale(&self, counts: &Counts) -> TableSet {
        let groups = &self.layout.groups;
        let mut sums: Vec<Vec<Vec<u64>>> =
            groups.iter().map(|group| vec![vec![0; group.alphabet]; group.tables]).collect();
        for (number, slot) in self.layout.slots.iter().enumerate() {
            for (class, sums) in sums[slot.group].iter_mut().enumerate() {
                counts.add_to(number * CLASSES + class, sums);
            }
        }
        let mut tables = Vec::new();
        for (number, (group, sums)) in groups.iter().zip(&sums).enumerate() {
            // A chunk's tables are for its own symbols; a profile's for others, too, of any class.
            if self.source == Source::Chunk {
                let used = self.layout.scales_of(number);
                let all = sums.iter().zip(used);
                let unused = || Table::unused(group.alphabet, self.split.is_some());
                tables.extend(all.map(|(sums, used)| if used { self.table(sums) } else { unused() }));
            } else {
                tables.extend(scale::drawn(sums, group.symmetric).iter().map(|sums| self.table(sums)));
            }
        }
        let counts = groups.iter().map(|group| group.tables).collect();
        TableSet { counts, tables, classes: Vec::new(), limits: Vec::new() }
    }

    /// The class of every channel, and the classes of each group.
    fn cluster(&self, counts: &Counts, layout: &Layout, classes: usize) -> Found {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); layout.groups.len()];
        for slot in &layout.slots {
            members[slot.group].extend(slot.first_channel..slot.first_channel + slot.cols);
        }
        let mut found = Found {
            classes: vec![0; layout.channels],
            choices: vec![CHOICE; layout.channels],
            groups: Vec::with_capacity(layout.groups.len()),
        };
        for (members, Group { alphabet, each, .. }) in members.iter().zip(&layout.groups) {
            let bands = Bands { alphabet: *alphabet, contexts: *each > 1 };
            let clusters = cluster(counts, members, bands, classes);
            for ((channel, class), choice) in members.iter().zip(&clusters.class_of).zip(&clusters.choices) {
                (found.classes[*channel], found.choices[*channel]) = (*class, *choice);
            }
            found.groups.push(clusters);
        }
        found
    }
}

/// Classes of all channels.
struct Found {
    classes: Vec<u8>,
    choices: Vec<Choice>,
    groups: Vec<Clusters>,
}

/// Counts drawn towards others, which weigh as much as this many symbols.
pub(super) fn drawn(own: &[u64], others: &[u64], symbols: f64) -> Vec<u64> {
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
                classes: self.classes_of(slot),
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
        let mut edges: Vec<Edges> = Vec::new();
        let mut slots = self.layout.planes();
        for data in &planes {
            let slots = slots.next().ok_or_else(other)?;
            let entries = slots
                .iter()
                .flat_map(|slot| std::iter::repeat_n(self.bands(slot).entries(), self.rows_of(slot)));
            counts.append(data, entries)?;
            if slots.iter().any(|slot| self.layout.has_contexts(slot)) {
                edges.extend_from_slice(data.get_u8("edges")?.1.as_chunks().0);
            }
        }
        if slots.next().is_some() || edges.len() != self.layout.context_channels() {
            return Err(other());
        }
        let (mut set, choices) = match self.layout.scope {
            Scope::One | Scope::Layer => self.by_group(&counts),
            Scope::Channel => self.by_channel(&counts),
            Scope::Class => self.by_class(&counts),
            Scope::Scale => (self.by_scale(&counts), Vec::new()),
        };
        let channels = self.layout.slots.iter().filter(|slot| self.layout.has_contexts(slot));
        let channels = channels.flat_map(|slot| slot.first_channel..slot.first_channel + slot.cols);
        let limits = channels.zip(&edges).map(|(channel, edges)| contexts::limits(edges, choices[channel]));
        set.limits = limits.collect();
        Ok(set.to_data())
    }
}

/// Histograms of one plane.
struct Tallies(Vec<Tally>);

struct Tally {
    slot: Slot,
    /// By grade the class of each column; scope `scale` only.
    classes: Vec<Vec<u8>>,
    contexts: bool,
    /// `[row][symbol]`; one row, or one for each column or class.
    counts: Vec<u32>,
    /// `[column][symbol before][symbol]`, if there are contexts: their bands are not known yet.
    pairs: Vec<u32>,
}

impl Tally {
    /// Counts symbols by the quantizer's classes.
    fn by_class(&mut self, tile: &TileCx<'_>, symbols: &[u8]) {
        let (cols, rows) = (self.slot.cols.max(1), tile.rows.max(1));
        let heads = (tile.grades.len() / rows).max(1);
        for (number, row) in symbols.chunks_exact(cols).enumerate() {
            for (head, row) in row.chunks(cols.div_ceil(heads)).enumerate() {
                let grade = tile.grades.get(number * heads + head).copied().unwrap_or(0);
                let classes = &self.classes[usize::from(grade) % self.classes.len()];
                let classes = &classes[head * cols.div_ceil(heads)..];
                for (class, symbol) in classes.iter().zip(row) {
                    let at = usize::from(*class) * self.slot.alphabet + usize::from(*symbol);
                    self.counts[at] = self.counts[at].saturating_add(1);
                }
            }
        }
    }
}

impl Accumulator for Tallies {
    fn observe(&mut self, tile: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()> {
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
        if !tally.classes.is_empty() {
            tally.by_class(tile, symbols);
        } else if tally.counts.len() == alphabet {
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
        let mut all_edges = Vec::new();
        for tally in &self.0 {
            let alphabet = tally.slot.alphabet;
            let mut pairs = tally.pairs.chunks_exact(alphabet * alphabet);
            for row in tally.counts.chunks_exact(alphabet) {
                let Some(pairs) = pairs.next().filter(|_| tally.contexts) else {
                    counts.push(row);
                    continue;
                };
                let edges = contexts::edges(row);
                let mut all = row.to_vec();
                all.resize((1 + BANDS) * alphabet, 0);
                for (before, pairs) in pairs.chunks_exact(alphabet).enumerate() {
                    let band = edges.iter().filter(|edge| before >= usize::from(**edge)).count();
                    for (sum, count) in all[(1 + band) * alphabet..].iter_mut().zip(pairs) {
                        *sum = sum.saturating_add(*count);
                    }
                }
                counts.push(&all);
                all_edges.extend(edges);
            }
        }
        let mut data = counts.to_data();
        if self.0.iter().any(|tally| tally.contexts) {
            data.put_u8("edges", &[all_edges.len()], &all_edges);
        }
        Ok(data)
    }
}
