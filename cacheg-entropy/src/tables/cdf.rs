//! Carried tables as the public CacheGen code ships them: for each channel of each plane a cumulative
//! distribution with 16 bits, sized for the largest alphabet.
//!
//! A table is `entries` little-endian u16: `c[0] = 0`, `c[s + 1] = c[s] + frequency of s`, modulo 65,536. So
//! entry `alphabet` is 65,536, written as 0, and all entries after it are the same.

use cacheg_core::{Error, Result};

use super::layout::Layout;
use super::set::TableSet;
use super::table::Table;

/// Checks that every alphabet fits a table of so many entries.
///
/// # Errors
/// If one does not.
pub(crate) fn check(layout: &Layout, entries: u16) -> Result<()> {
    match layout.groups.iter().map(|group| group.alphabet).max() {
        Some(largest) if largest >= usize::from(entries) => Err(Error::setting(format!(
            "cdf = {entries} is too small for an alphabet of {largest} symbols, which needs {}",
            largest + 1
        ))),
        _ => Ok(()),
    }
}

/// Writes all tables.
pub(crate) fn pack(set: &TableSet, layout: &Layout, entries: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(set.tables.len() * usize::from(entries) * 2);
    let mut tables = set.tables.iter();
    for (group, count) in layout.groups.iter().zip(&set.counts) {
        for table in tables.by_ref().take(*count) {
            let mut sum = 0u16;
            let freqs = table.frequencies(group.alphabet);
            for entry in 0..usize::from(entries) {
                out.extend_from_slice(&sum.to_le_bytes());
                sum = sum.wrapping_add(freqs.get(entry).copied().unwrap_or(0));
            }
        }
    }
    out
}

/// Reads what [`pack`] wrote, checked.
///
/// # Errors
/// If the bytes are anything else.
pub(crate) fn unpack(bytes: &[u8], layout: &Layout, entries: u16) -> Result<TableSet> {
    let counts: Vec<usize> = layout.groups.iter().map(|group| group.tables).collect();
    let entries = usize::from(entries);
    if Some(bytes.len()) != counts.iter().sum::<usize>().checked_mul(entries * 2) {
        return Err(Error::corrupt("other tables than the model needs"));
    }
    let mut rows = bytes.chunks_exact(entries * 2);
    let mut tables = Vec::with_capacity(rows.len());
    for (group, count) in layout.groups.iter().zip(&counts) {
        for row in rows.by_ref().take(*count) {
            let cdf: Vec<u16> = row.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
            tables.push(table(&cdf, group.alphabet)?);
        }
    }
    let set = TableSet { counts, tables, classes: Vec::new(), limits: Vec::new() };
    set.check(layout, false)?;
    Ok(set)
}

fn table(cdf: &[u16], alphabet: usize) -> Result<Table> {
    let bad = || Error::corrupt("a table that is no cumulative distribution");
    let (inner, top) = cdf.split_at_checked(alphabet).ok_or_else(bad)?;
    let rises = inner.windows(2).all(|pair| pair[0] < pair[1]);
    if inner.first() != Some(&0) || !rises || top.is_empty() || top.iter().any(|entry| *entry != 0) {
        return Err(bad());
    }
    let freqs: Vec<u16> = (0..alphabet).map(|s| cdf[s + 1].wrapping_sub(cdf[s])).collect();
    Ok(Table::from_freqs(Vec::new(), &freqs))
}
