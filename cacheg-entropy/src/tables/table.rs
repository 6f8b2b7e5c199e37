//! One frequency table as it is stored: weights over coded symbols.

use cacheg_core::{Error, Result};

use super::normalize::normalize;

/// Alphabets above this are coded as a bucket and raw low bits where the coder's form says so.
pub(crate) const MAX_BUCKETS: usize = 32;

/// Weights of a carried table sum to about this: 12 bits cost 0.2 % or less and pack well.
const CARRIED_TOTAL: u64 = 1 << 12;

/// How a coder wants its tables: full, or large alphabets split into buckets by this function, which returns
/// log2 of the width of each bucket.
pub(crate) type Split = Option<fn(&[u64]) -> Vec<u8>>;

/// Weights of the coded symbols, zero outside a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// log2 of the width of each bucket; empty if symbols are coded as they are.
    pub(crate) bits: Vec<u8>,
    /// The first coded symbol of the run.
    pub(crate) first: u8,
    /// Weights of the run, at least one.
    pub(crate) weights: Vec<u16>,
}

/// How precise a table must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 16 bits: tables of a profile, and cumulative distributions.
    Full,
    /// 12 bits, exact if there are few counts: tables that a chunk carries.
    Carried,
}

impl Table {
    /// A table for these counts of symbols, of which there are 2 to 256.
    pub(crate) fn from_counts(counts: &[u64], split: Split, precision: Precision) -> Self {
        let bits = match split {
            Some(split) if counts.len() > MAX_BUCKETS => split(counts),
            _ => Vec::new(),
        };
        let mut coded = Vec::new();
        if bits.is_empty() {
            coded.extend_from_slice(counts);
        } else {
            let mut base = 0;
            for k in &bits {
                let end = (base + (1 << k)).min(counts.len());
                coded.push(counts[base..end].iter().sum());
                base = end;
            }
        }
        match precision {
            Precision::Full => Self::from_freqs(bits, &normalize(&coded)),
            Precision::Carried => {
                let sum: u64 = coded.iter().sum();
                let weight = |count: u64| {
                    if sum <= CARRIED_TOTAL {
                        count as u16
                    } else {
                        // Counts are far below 2^64 / 4096: they are sums of 32-bit ones.
                        (count.saturating_mul(CARRIED_TOTAL).saturating_add(sum / 2) / sum) as u16
                    }
                };
                Self::trimmed(bits, &coded.into_iter().map(weight).collect::<Vec<_>>(), 0)
            }
        }
    }

    /// The table of classes that no channel has: nothing is coded by it.
    pub(crate) fn unused(alphabet: usize, split: bool) -> Self {
        let bits = if split && alphabet > MAX_BUCKETS {
            let width = alphabet.div_ceil(MAX_BUCKETS).next_power_of_two();
            vec![width.ilog2() as u8; alphabet.div_ceil(width)]
        } else {
            Vec::new()
        };
        Self { bits, first: 0, weights: vec![0] }
    }

    /// A table of these frequencies, which sum to 65,536; ones at both ends are left out.
    pub(crate) fn from_freqs(bits: Vec<u8>, freqs: &[u16]) -> Self {
        Self::trimmed(bits, freqs, 1)
    }

    fn trimmed(bits: Vec<u8>, weights: &[u16], implied: u16) -> Self {
        let first = weights.iter().position(|w| *w > implied).unwrap_or(0);
        let last = weights.iter().rposition(|w| *w > implied).unwrap_or(0);
        // At most 256 coded symbols: positions fit a byte.
        Self { bits, first: first as u8, weights: weights[first..=last].to_vec() }
    }

    /// Number of coded symbols.
    pub(crate) fn coded(&self, alphabet: usize) -> usize {
        if self.bits.is_empty() { alphabet } else { self.bits.len() }
    }

    /// Frequencies of the coded symbols.
    pub(crate) fn frequencies(&self, alphabet: usize) -> Vec<u16> {
        let mut weights = vec![0; self.coded(alphabet)];
        let first = usize::from(self.first);
        for (to, from) in weights.iter_mut().skip(first).zip(&self.weights) {
            *to = u64::from(*from);
        }
        normalize(&weights)
    }

    /// Checks everything that was read.
    ///
    /// # Errors
    /// If this is no table for that alphabet, or its buckets are not as `split` demands.
    pub(crate) fn check(&self, alphabet: usize, split: bool) -> Result<()> {
        if split && alphabet > MAX_BUCKETS {
            check_buckets(&self.bits, alphabet)?;
        } else if !self.bits.is_empty() {
            return Err(Error::corrupt("buckets in a table that has none"));
        }
        if self.weights.is_empty() || usize::from(self.first) + self.weights.len() > self.coded(alphabet) {
            return Err(Error::corrupt("a table for more symbols than there are"));
        }
        Ok(())
    }
}

/// Buckets must be aligned, 2 to 32, and end with the one that holds the last symbol.
fn check_buckets(bits: &[u8], alphabet: usize) -> Result<()> {
    let mut base = 0usize;
    for k in bits {
        if *k > 8 || base >= alphabet || base & ((1 << k) - 1) != 0 {
            return Err(Error::corrupt("misplaced bucket in a table"));
        }
        base += 1 << k;
    }
    if !(2..=MAX_BUCKETS).contains(&bits.len()) || base < alphabet || base > alphabet.next_power_of_two() {
        return Err(Error::corrupt("the buckets of a table do not cover its alphabet"));
    }
    Ok(())
}
