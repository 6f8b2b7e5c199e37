//! Where contexts begin: chosen among some limits of each channel, by what codes it in the fewest bits.
//!
//! Symbols before are put into bands of about equal weight; contexts are bands that follow each other. A row of
//! counts is the histogram of all symbols, then one for each band of the symbol before.

use super::layout::CONTEXT_TABLES;
use super::set::{Limits, MAX_LIMIT};

/// Bands of each channel. 32, one for each symbol, would save another 0.03 %.
pub(super) const BANDS: usize = 8;

/// Where each band but the first begins.
pub(super) type Edges = [u8; BANDS - 1];

/// The bands with which the second and the third context begin.
pub(crate) type Choice = [u8; 2];

/// The first guess: contexts of about equal weight.
pub(crate) const CHOICE: Choice = [3, 5];

/// What rows of counts consist of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bands {
    pub(crate) alphabet: usize,
    /// Otherwise a row is just a histogram.
    pub(crate) contexts: bool,
}

impl Bands {
    /// Contexts of the symbol before; 1 if there are none.
    pub(crate) fn contexts(self) -> usize {
        if self.contexts { CONTEXT_TABLES - 1 } else { 1 }
    }

    /// Entries of a row.
    pub(crate) fn entries(self) -> usize {
        self.alphabet * if self.contexts { 1 + BANDS } else { 1 }
    }

    /// Entries of a folded row.
    pub(crate) fn folded(self) -> usize {
        self.alphabet * if self.contexts { CONTEXT_TABLES } else { 1 }
    }

    /// The context of a band.
    pub(crate) fn context(self, band: usize, choice: Choice) -> usize {
        if self.contexts { choice.iter().filter(|begin| band >= usize::from(**begin)).count() } else { 0 }
    }

    /// Each band of a row: its number, first symbol and counts. Without contexts all is one.
    pub(crate) fn each(self, (first, row): (usize, &[u32]), mut each: impl FnMut(usize, usize, &[u32])) {
        if !self.contexts {
            return each(0, first, row);
        }
        for band in 0..BANDS {
            let from = (1 + band) * self.alphabet;
            let (begin, end) = (from.max(first), (from + self.alphabet).min(first + row.len()));
            let counts = if begin < end { &row[begin - first..end - first] } else { &[] };
            each(band, begin - from, counts);
        }
    }

    /// Adds a row to the histogram of all symbols and to those of each context.
    pub(crate) fn fold(self, row: (usize, &[u32]), choice: Choice, sums: &mut [u64]) {
        let (first, counts) = row;
        for (sum, count) in sums[..self.alphabet].iter_mut().skip(first).zip(counts) {
            *sum += u64::from(*count);
        }
        if self.contexts {
            self.each(row, |band, first, counts| {
                let context = 1 + self.context(band, choice);
                for (sum, count) in sums[context * self.alphabet + first..].iter_mut().zip(counts) {
                    *sum += u64::from(*count);
                }
            });
        }
    }
}

/// Edges between bands of about equal weight.
pub(super) fn edges(counts: &[u32]) -> Edges {
    let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let (mut symbol, mut below) = (0, 0);
    std::array::from_fn(|edge| {
        let wanted = total * (1 + edge as u64);
        // As near as symbols come to that weight.
        while let Some(next) = counts.get(usize::from(symbol)).map(|count| below + u64::from(*count)) {
            let wide = BANDS as u64;
            if symbol == MAX_LIMIT - 1 || (wide * next).abs_diff(wanted) > (wide * below).abs_diff(wanted) {
                break;
            }
            (symbol, below) = (symbol + 1, next);
        }
        symbol
    })
}

/// The limits that a choice of bands means.
pub(super) fn limits(edges: &Edges, choice: Choice) -> Limits {
    // The first band begins with symbol 0.
    choice.map(|band| usize::from(band).checked_sub(1).map_or(0, |band| edges[band]))
}
