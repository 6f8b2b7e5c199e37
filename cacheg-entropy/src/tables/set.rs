//! All tables of a model, and their form as tensors.

use cacheg_core::{Error, Result, StageData};

use super::layout::Layout;
use super::settings::Scope;
use super::table::{MAX_BUCKETS, Table};

/// All tables, group after group, and the class of each channel if classes decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableSet {
    /// Tables of each group.
    pub(crate) counts: Vec<usize>,
    /// All of them.
    pub(crate) tables: Vec<Table>,
    /// The class of each channel; empty in other scopes.
    pub(crate) classes: Vec<u8>,
    /// Limits of each channel that has contexts.
    pub(crate) limits: Vec<Limits>,
}

/// Where the contexts of a channel's previous symbols begin: the second and the third.
pub(crate) type Limits = [u8; 2];

/// Limits are below this.
pub(crate) const MAX_LIMIT: u8 = 32;

impl TableSet {
    /// Checks everything against the layout.
    ///
    /// # Errors
    /// If anything does not fit.
    pub(crate) fn check(&self, layout: &Layout, split: bool) -> Result<()> {
        let by_class = layout.scope == Scope::Class;
        let fits = |(count, expected): (&usize, usize)| {
            if by_class { (1..=256).contains(count) } else { *count == expected }
        };
        if self.counts.len() != layout.groups.len()
            || !self.counts.iter().zip(layout.groups.iter().map(|g| g.tables)).all(fits)
            || self.counts.iter().zip(&layout.groups).map(|(count, group)| count * group.each).sum::<usize>()
                != self.tables.len()
            || self.limits.len() != layout.context_channels()
            || self.classes.len() != if by_class { layout.channels } else { 0 }
        {
            return Err(Error::corrupt("other tables than the model needs"));
        }
        let mut tables = self.tables.iter();
        for (group, count) in layout.groups.iter().zip(&self.counts) {
            for table in tables.by_ref().take(count * group.each) {
                table.check(group.alphabet, split)?;
            }
        }
        if self.limits.iter().any(|[a, b]| a > b || *b >= MAX_LIMIT) {
            return Err(Error::corrupt("impossible limits of contexts"));
        }
        if by_class {
            let mut classes = self.classes.iter();
            for slot in &layout.slots {
                let count = self.counts.get(slot.group).copied().unwrap_or(0);
                if classes.by_ref().take(slot.cols).any(|class| usize::from(*class) >= count) {
                    return Err(Error::corrupt("a channel of a class that does not exist"));
                }
            }
        }
        Ok(())
    }

    /// The limits of all channels, in a checked set; zeros where there are none.
    pub(crate) fn all_limits(&self, layout: &Layout) -> Vec<Limits> {
        if self.limits.is_empty() {
            return Vec::new();
        }
        let mut all = Vec::with_capacity(layout.channels);
        let mut limits = self.limits.iter();
        for slot in &layout.slots {
            if layout.has_contexts(slot) {
                all.extend(limits.by_ref().take(slot.cols));
            } else {
                all.extend(std::iter::repeat_n([0, 0], slot.cols));
            }
        }
        all
    }

    /// The number of each channel's first table, in checked tables; by grade, then channel.
    pub(crate) fn index(&self, layout: &Layout) -> Vec<u32> {
        let mut firsts = Vec::with_capacity(self.counts.len());
        let mut next = 0;
        for (count, group) in self.counts.iter().zip(&layout.groups) {
            firsts.push(next);
            next += count * group.each;
        }
        let mut index = Vec::with_capacity(layout.channels * layout.grades.len());
        let slots =
            (0..layout.grades.len()).flat_map(|grade| layout.slots.iter().map(move |slot| (grade, slot)));
        for (grade, slot) in slots {
            for col in 0..slot.cols {
                let within = match layout.scope {
                    Scope::One | Scope::Layer => 0,
                    Scope::Channel => col,
                    Scope::Class => usize::from(self.classes[slot.first_channel + col]),
                    Scope::Scale => layout.scale(slot.first_channel + col, grade),
                };
                // At most four tables for each channel, or 256 for each group.
                let within = within * layout.groups[slot.group].each;
                index.push((firsts[slot.group] + within) as u32);
            }
        }
        index
    }

    /// As tensors, see the format description.
    pub(crate) fn to_data(&self) -> StageData {
        let mut data = StageData::new();
        let counts: Vec<u32> = self.counts.iter().map(|count| *count as u32).collect();
        data.put_u32("tables", &[counts.len()], &counts);
        if !self.classes.is_empty() {
            data.put_u8("class", &[self.classes.len()], &self.classes);
        }
        if !self.limits.is_empty() {
            data.put_u8("limits", &[2 * self.limits.len()], self.limits.as_flattened());
        }
        let first: Vec<u8> = self.tables.iter().map(|table| table.first).collect();
        // 1 to 256 weights.
        let span: Vec<u8> = self.tables.iter().map(|table| (table.weights.len() - 1) as u8).collect();
        let weight: Vec<u16> = self.tables.iter().flat_map(|table| table.weights.iter().copied()).collect();
        data.put_u8("first", &[first.len()], &first);
        data.put_u8("span", &[span.len()], &span);
        data.put_u16("weight", &[weight.len()], &weight);
        let buckets: Vec<u8> =
            self.tables.iter().map(|table| table.bits.len() as u8).filter(|len| *len > 0).collect();
        if !buckets.is_empty() {
            let bits: Vec<u8> = self.tables.iter().flat_map(|table| table.bits.iter().copied()).collect();
            data.put_u8("buckets", &[buckets.len()], &buckets);
            data.put_u8("bits", &[bits.len()], &bits);
        }
        data
    }

    /// From tensors, checked.
    ///
    /// # Errors
    /// If tensors are missing or do not fit the model.
    pub(crate) fn from_data(data: &StageData, layout: &Layout, split: bool) -> Result<Self> {
        let short = || Error::profile("tables are cut short or too long");
        let counts: Vec<usize> = data.get_u32("tables")?.1.into_iter().map(|count| count as usize).collect();
        let classes = if layout.scope == Scope::Class { data.get_u8("class")?.1 } else { Vec::new() };
        let limits = if layout.context_channels() > 0 { data.get_u8("limits")?.1 } else { Vec::new() };
        let (limits, []) = limits.as_chunks::<2>() else { return Err(short()) };
        let limits = limits.to_vec();
        let (first, span) = (data.get_u8("first")?.1, data.get_u8("span")?.1);
        let weight = data.get_u16("weight")?.1;
        if first.len() != span.len() || counts.len() != layout.groups.len() {
            return Err(short());
        }
        let with_buckets = |alphabet: usize| split && alphabet > MAX_BUCKETS;
        let (buckets, bits) = if layout.groups.iter().any(|group| with_buckets(group.alphabet)) {
            (data.get_u8("buckets")?.1, data.get_u8("bits")?.1)
        } else {
            (Vec::new(), Vec::new())
        };
        let (mut weight, mut buckets, mut bits) = (&weight[..], buckets.into_iter(), &bits[..]);
        let mut rows = first.into_iter().zip(span);
        let mut tables = Vec::new();
        for (group, count) in layout.groups.iter().zip(&counts) {
            // Counts are 32-bit numbers.
            for _ in 0..count.saturating_mul(group.each) {
                // Ends at the tensors' end, however large the count.
                let (first, span) = rows.next().ok_or_else(short)?;
                let (weights, more) = weight.split_at_checked(usize::from(span) + 1).ok_or_else(short)?;
                weight = more;
                let mut table = Table { bits: Vec::new(), first, weights: weights.to_vec() };
                if with_buckets(group.alphabet) {
                    let len = usize::from(buckets.next().ok_or_else(short)?);
                    let (own, more) = bits.split_at_checked(len).ok_or_else(short)?;
                    bits = more;
                    table.bits = own.to_vec();
                }
                tables.push(table);
            }
        }
        if rows.next().is_some() || !weight.is_empty() || buckets.next().is_some() || !bits.is_empty() {
            return Err(short());
        }
        let set = Self { counts, tables, classes, limits };
        set.check(layout, split).map_err(|error| Error::profile(error.to_string()))?;
        Ok(set)
    }
}
