//! From symbols to tables.

use cacheg_core::{
    Accumulator, BindCx, Calibrator, Error, PartCx, Plane, Result, Seen, Source, StageData, TileCx,
};

use super::cluster::{Clusters, cluster};
use super::counts::Counts;
use super::layout::{Layout, Slot};
use super::set::TableSet;
use super::settings::{Scope, TableSettings};
use super::table::{Precision, Split, Table};

/// How much a channel's own counts must outweigh its class: a channel with this many symbols seen is taken
/// half from its class. Best between 256 and 1,024 where it was measured.
const SHRINKAGE: f64 = 256.0;

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
        let layout = Layout::new(cx, settings.scope(cx.source))?;
        let classes = Layout::new(cx, Scope::Class)?;
        Ok(Self { settings, source: cx.source, split, layout, classes })
    }

    /// Histograms are kept by channel where channels matter.
    fn rows_of(&self, slot: &Slot) -> usize {
        if matches!(self.layout.scope, Scope::Channel | Scope::Class) { slot.cols } else { 1 }
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
        let mut sums: Vec<Vec<u64>> =
            self.layout.groups.iter().map(|group| vec![0; group.alphabet]).collect();
        for (row, slot) in self.layout.slots.iter().enumerate() {
            counts.add_to(row, &mut sums[slot.group]);
        }
        let tables: Vec<Table> = sums.iter().map(|sums| self.table(sums)).collect();
        TableSet { counts: vec![1; tables.len()], tables, classes: Vec::new() }
    }

    fn by_channel(&self, counts: &Counts) -> TableSet {
        let mut tables = Vec::with_capacity(self.layout.channels);
        if self.source == Source::Chunk {
            for slot in &self.layout.slots {
                for row in slot.first_channel..slot.first_channel + slot.cols {
                    let mut sums = vec![0; slot.alphabet];
                    counts.add_to(row, &mut sums);
                    tables.push(self.table(&sums));
                }
            }
        } else {
            let (classes, groups) = self.cluster(counts);
            for (slot, grouped) in self.layout.slots.iter().zip(&self.classes.slots) {
                let classes = classes.iter().enumerate().skip(slot.first_channel).take(slot.cols);
                for (row, class) in classes {
                    let class = &groups[grouped.group].sums[usize::from(*class)];
                    tables.push(self.table(&shrunk(counts.row(row), class)));
                }
            }
        }
        let counts = self.layout.groups.iter().map(|group| group.tables).collect();
        TableSet { counts, tables, classes: Vec::new() }
    }

    fn by_class(&self, counts: &Counts) -> TableSet {
        let (classes, groups) = self.cluster(counts);
        let tables = groups.iter().flat_map(|group| &group.sums).map(|sums| self.table(sums)).collect();
        TableSet { counts: groups.iter().map(|group| group.sums.len()).collect(), tables, classes }
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
                let clusters = cluster(counts, members, group.alphabet, self.settings.classes);
                for (channel, class) in members.iter().zip(&clusters.class_of) {
                    classes[*channel] = *class;
                }
                clusters
            })
            .collect();
        (classes, groups)
    }
}

/// A channel's counts, drawn towards those of its class.
fn shrunk((first, row): (usize, &[u32]), class: &[u64]) -> Vec<u64> {
    let total = class.iter().sum::<u64>().max(1) as f64;
    let mut weights: Vec<f64> = class.iter().map(|count| *count as f64 / total * SHRINKAGE).collect();
    for (weight, count) in weights.iter_mut().skip(first).zip(row) {
        *weight += f64::from(*count);
    }
    // Below 2^33 before it is scaled.
    weights.into_iter().map(|weight| (weight * 65_536.0) as u64).collect()
}

impl Calibrator for TableCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let slots = self.layout.plane_slots(plane);
        let tallies = slots
            .iter()
            .map(|slot| Tally { slot: *slot, counts: vec![0; self.rows_of(slot) * slot.alphabet] });
        Box::new(Tallies(tallies.collect()))
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        let mut counts = Counts::default();
        let mut slots = self.layout.planes();
        for data in &planes {
            let slots = slots.next().ok_or_else(|| Error::profile("histograms of another model"))?;
            let alphabets =
                slots.iter().flat_map(|slot| std::iter::repeat_n(slot.alphabet, self.rows_of(slot)));
            counts.append(data, alphabets)?;
        }
        if slots.next().is_some() {
            return Err(Error::profile("histograms of another model"));
        }
        let set = match self.layout.scope {
            Scope::One | Scope::Layer => self.by_group(&counts),
            Scope::Channel => self.by_channel(&counts),
            Scope::Class => self.by_class(&counts),
        };
        Ok(set.to_data())
    }
}

/// Histograms of one plane.
struct Tallies(Vec<Tally>);

struct Tally {
    slot: Slot,
    /// `[row][symbol]`; one row, or one for each column.
    counts: Vec<u32>,
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
        let alphabet = tally.slot.alphabet;
        if symbols.iter().any(|symbol| usize::from(*symbol) >= alphabet) {
            return Err(Error::data("a symbol outside its alphabet"));
        }
        if tally.counts.len() == alphabet {
            for symbol in symbols {
                let count = &mut tally.counts[usize::from(*symbol)];
                *count = count.saturating_add(1);
            }
        } else {
            for row in symbols.chunks_exact(tally.slot.cols.max(1)) {
                for (counts, symbol) in tally.counts.chunks_exact_mut(alphabet).zip(row) {
                    let count = &mut counts[usize::from(*symbol)];
                    *count = count.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        let mut counts = Counts::default();
        for tally in &self.0 {
            for row in tally.counts.chunks_exact(tally.slot.alphabet) {
                counts.push(row);
            }
        }
        Ok(counts.to_data())
    }
}
