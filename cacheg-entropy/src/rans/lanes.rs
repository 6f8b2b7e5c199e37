//! How the rows of a column are dealt out to the lanes.

use super::Columns;
use super::stream::LANES;

/// Rows and lanes of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes {
    /// Steps of every lane.
    pub(super) whole: usize,
    /// Lanes with one more: the first ones.
    pub(super) more: usize,
    pub(super) cols: usize,
}

impl Lanes {
    pub(super) fn new(columns: Columns<'_>) -> Self {
        Self { whole: columns.rows / LANES, more: columns.rows % LANES, cols: columns.cols }
    }

    /// Rows of the segment.
    pub(super) fn rows(&self) -> usize {
        self.whole * LANES + self.more
    }

    /// Steps of a column.
    pub(super) fn steps(&self) -> usize {
        self.whole + usize::from(self.more > 0)
    }

    /// Distance between columns in native order, in steps: at distances of a large power of two, the columns of a
    /// block would compete for a few lines of the cache.
    pub(super) fn stride(&self) -> usize {
        let steps = self.steps();
        if steps.is_multiple_of(16) { steps + 2 } else { steps }
    }

    /// Lanes of a step: always the first ones.
    pub(super) fn active(&self, step: usize) -> usize {
        if step < self.whole { LANES } else { self.more }
    }

    /// A lane's first row.
    pub(super) fn row(&self, lane: usize) -> usize {
        lane * self.whole + lane.min(self.more)
    }

    /// Index of each lane's symbol in the first step of a column.
    pub(super) fn starts(&self, col: usize) -> [usize; LANES] {
        std::array::from_fn(|lane| self.row(lane) * self.cols + col)
    }
}
