//! Histograms, trimmed to the symbols that occur.

use cacheg_core::{Error, Result, StageData};

/// Histograms of many channels, one row each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    rows: Vec<Row>,
    counts: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    first: u8,
    start: usize,
    len: usize,
}

impl Counts {
    /// Adds a row.
    pub(crate) fn push(&mut self, histogram: &[u32]) {
        let first = histogram.iter().position(|count| *count > 0).unwrap_or(0);
        let end = histogram.iter().rposition(|count| *count > 0).map_or(first, |last| last + 1);
        // Histograms have at most 256 entries.
        self.rows.push(Row { first: first as u8, start: self.counts.len(), len: end - first });
        self.counts.extend_from_slice(&histogram[first..end]);
    }

    /// The first symbol of a row and its counts; nothing if nothing was seen.
    pub(crate) fn row(&self, index: usize) -> (usize, &[u32]) {
        let row = self.rows[index];
        (usize::from(row.first), &self.counts[row.start..row.start + row.len])
    }

    /// Adds a row to `sums`.
    pub(crate) fn add_to(&self, index: usize, sums: &mut [u64]) {
        let (first, counts) = self.row(index);
        for (sum, count) in sums.iter_mut().skip(first).zip(counts) {
            *sum += u64::from(*count);
        }
    }

    /// As tensors, on the way from an accumulator to the calibrator.
    pub(crate) fn to_data(&self) -> StageData {
        let mut data = StageData::new();
        let first: Vec<u8> = self.rows.iter().map(|row| row.first).collect();
        let span: Vec<u16> = self.rows.iter().map(|row| row.len as u16).collect();
        data.put_u8("first", &[first.len()], &first);
        data.put_u16("span", &[span.len()], &span);
        data.put_u32("count", &[self.counts.len()], &self.counts);
        data
    }

    /// Appends what [`to_data`](Self::to_data) made of rows with these alphabets.
    ///
    /// # Errors
    /// If it is anything else.
    pub(crate) fn append(&mut self, data: &StageData, alphabets: impl Iterator<Item = usize>) -> Result<()> {
        let (first, span) = (data.get_u8("first")?.1, data.get_u16("span")?.1);
        let counts = data.get_u32("count")?.1;
        let (mut rows, mut start) = (first.into_iter().zip(span), self.counts.len());
        let end = start + counts.len();
        for alphabet in alphabets {
            let (first, span) = rows.next().ok_or_else(|| Error::profile("histograms of another model"))?;
            let len = usize::from(span);
            if usize::from(first) + len > alphabet || len > end - start {
                return Err(Error::profile("histograms of another model"));
            }
            self.rows.push(Row { first, start, len });
            start += len;
        }
        if rows.next().is_some() || start != end {
            return Err(Error::profile("histograms of another model"));
        }
        self.counts.extend(counts);
        Ok(())
    }
}
