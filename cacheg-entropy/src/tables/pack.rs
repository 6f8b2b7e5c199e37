//! The form in which a chunk carries its tables.
//!
//! ```text
//! class scope only:  for each group  u8      tables − 1
//!                    for each channel u8     class
//! then bits, least significant first, zero-padded to a byte:
//! with contexts:     for each channel that has them 5 + 5 bits  limits
//! for each table (scale scope: of a class that a channel of the group has):
//!   if buckets:      5 bits  buckets − 1, then 4 bits for each: log2 of its width
//!   always:          8 bits  first coded symbol with a weight
//!                    8 bits  number of weights − 1
//!                    4 bits  k
//!                    for each weight an Exp-Golomb code of order k
//! ```

use cacheg_core::{Error, Result};

use super::bits::{BitReader, BitWriter, golomb_len};
use super::layout::Layout;
use super::set::TableSet;
use super::settings::Scope;
use super::table::{MAX_BUCKETS, Table};

/// Writes all tables.
pub(crate) fn pack(set: &TableSet, layout: &Layout) -> Vec<u8> {
    let mut out = Vec::new();
    if layout.scope == Scope::Class {
        // 1 to 256 tables.
        out.extend(set.counts.iter().map(|count| (count - 1) as u8));
        out.extend_from_slice(&set.classes);
    }
    let mut bits = BitWriter::default();
    for limit in set.limits.as_flattened() {
        bits.put(u32::from(*limit), 5);
    }
    let mut tables = set.tables.iter();
    for (number, (group, count)) in layout.groups.iter().zip(&set.counts).enumerate() {
        let stored = stored(layout, number);
        for (_, table) in
            tables.by_ref().take(count * group.each).enumerate().filter(|(table, _)| stored(*table))
        {
            pack_table(table, &mut bits);
        }
    }
    out.extend(bits.finish());
    out
}

/// Which of a group's tables are stored: with scope `scale` those of classes that occur, which readers know, too.
fn stored(layout: &Layout, group: usize) -> impl Fn(usize) -> bool {
    let used = (layout.scope == Scope::Scale).then(|| layout.scales_of(group));
    move |table| used.is_none_or(|used| used[table])
}

fn pack_table(table: &Table, bits: &mut BitWriter) {
    if !table.bits.is_empty() {
        bits.put(table.bits.len() as u32 - 1, 5);
        for k in &table.bits {
            bits.put(u32::from(*k), 4);
        }
    }
    bits.put(u32::from(table.first), 8);
    bits.put(table.weights.len() as u32 - 1, 8);
    let cost = |k: &u32| table.weights.iter().map(|weight| golomb_len(*weight, *k)).sum::<u32>();
    let k = (0..16).min_by_key(cost).unwrap_or(0);
    bits.put(k, 4);
    for weight in &table.weights {
        bits.put_golomb(*weight, k);
    }
}

/// Reads what [`pack`] wrote, checked.
///
/// # Errors
/// If the bytes are anything else.
pub(crate) fn unpack(bytes: &[u8], layout: &Layout, split: bool) -> Result<TableSet> {
    let short = || Error::corrupt("tables are cut short");
    let (mut counts, mut classes, mut rest) = (Vec::new(), Vec::new(), bytes);
    if layout.scope == Scope::Class {
        let (head, tail) = rest.split_at_checked(layout.groups.len()).ok_or_else(short)?;
        counts.extend(head.iter().map(|count| usize::from(*count) + 1));
        let (head, tail) = tail.split_at_checked(layout.channels).ok_or_else(short)?;
        classes.extend_from_slice(head);
        rest = tail;
    } else {
        counts.extend(layout.groups.iter().map(|group| group.tables));
    }
    let mut bits = BitReader::new(rest);
    let mut limits = Vec::new();
    for _ in 0..layout.context_channels() {
        limits.push([bits.take(5)? as u8, bits.take(5)? as u8]);
    }
    let mut tables = Vec::new();
    for (number, (group, count)) in layout.groups.iter().zip(&counts).enumerate() {
        let stored = stored(layout, number);
        for table in 0..count * group.each {
            tables.push(if stored(table) {
                unpack_table(&mut bits, split && group.alphabet > MAX_BUCKETS)?
            } else {
                Table::unused(group.alphabet, split)
            });
        }
    }
    bits.finish()?;
    let set = TableSet { counts, tables, classes, limits };
    set.check(layout, split)?;
    Ok(set)
}

fn unpack_table(bits: &mut BitReader<'_>, buckets: bool) -> Result<Table> {
    let mut widths = Vec::new();
    if buckets {
        for _ in 0..=bits.take(5)? {
            widths.push(bits.take(4)? as u8);
        }
    }
    let (first, count, k) = (bits.take(8)? as u8, bits.take(8)? as usize + 1, bits.take(4)?);
    let weights = (0..count).map(|_| bits.take_golomb(k)).collect::<Result<_>>()?;
    Ok(Table { bits: widths, first, weights })
}
