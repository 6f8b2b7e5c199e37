//! A part, bound: symbols of values and values of symbols.

use cacheg_core::{Error, EscapeReader, EscapeWriter, Result};
use multiversion::multiversion;

use crate::escaping::{self, symbol_of};
use crate::rows::{Values, ValuesMut, check_len};

/// What each column of a part needs.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) reach: u8,
    pub(super) classes: Vec<u8>,
    pub(super) steps: Vec<f32>,
    /// 256ths of the steps.
    pub(super) fractions: Vec<f32>,
    /// For `|q|` = 0, 1, 2, 3 and more by how many of those values lie nearer to 0; a byte each, the lowest first.
    pub(super) shifts: Vec<u32>,
}

impl Columns {
    /// With room for some columns.
    pub(super) fn new(reach: u8, cols: usize) -> Self {
        Self {
            reach,
            classes: Vec::with_capacity(cols),
            steps: Vec::with_capacity(cols),
            fractions: Vec::with_capacity(cols),
            shifts: Vec::with_capacity(cols),
        }
    }

    /// Adds a column; `centroid` is for `|q|` = 1, 2, 3 and more.
    pub(super) fn push(&mut self, class: u8, step: f32, centroid: [u8; 3]) {
        let [one, two, more] = centroid;
        self.classes.push(class);
        self.steps.push(step);
        self.fractions.push(step / 256.0);
        self.shifts.push(u32::from_le_bytes([0, one, two, more]));
    }

    /// The value of an escape.
    ///
    /// # Errors
    /// If it is infinite, or there is no such column.
    pub(super) fn escaped(&self, col: usize, value: i32) -> Result<f32> {
        let step = self.steps.get(col).ok_or_else(|| Error::data("a column that is not there"))?;
        escaping::escaped(value, *step)
    }

    pub(super) fn quantize(
        &self,
        cols: usize,
        x: &impl Values,
        symbols: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        check_len("columns", cols, self.steps.len())?;
        if let Some(x) = x.flat() {
            if !quantize(x, &self.steps, self.reach, symbols) {
                return Ok(());
            }
        } else {
            for (row, symbols) in symbols.chunks_exact_mut(cols).enumerate() {
                for ((symbol, x), step) in symbols.iter_mut().zip(x.values(row, 0..cols)).zip(&self.steps) {
                    *symbol = symbol_of(*x, *step, self.reach);
                }
            }
        }
        escaping::push(cols, x, symbols, self.reach, |_, col| self.steps[col], escapes)
    }

    pub(super) fn dequantize(
        &self,
        cols: usize,
        symbols: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        check_len("columns", cols, self.steps.len())?;
        if let Some(out) = out.flat_mut() {
            if !dequantize(symbols, &self.fractions, &self.shifts, self.reach, out) {
                return escapes.finish();
            }
        } else {
            for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
                let columns = self.fractions.iter().zip(&self.shifts);
                let out = out.values_mut(row, 0..cols);
                for ((out, symbol), (fraction, shifts)) in out.zip(symbols).zip(columns) {
                    *out = value_of(*symbol, *fraction, *shifts, self.reach);
                }
            }
        }
        escaping::fill(cols, symbols, self.reach, |_, col| self.steps[col], escapes, out)
    }
}

/// Columns by grade, for parts whose rows have one for each head.
pub(super) struct Graded<'a> {
    columns: &'a [Columns],
    grades: &'a [u8],
    heads: usize,
    width: usize,
}

impl<'a> Graded<'a> {
    /// `grades` are `[rows, heads]`.
    pub(super) fn new(columns: &'a [Columns], grades: &'a [u8], rows: usize, cols: usize) -> Result<Self> {
        let heads = grades.len().checked_div(rows).unwrap_or(1).max(1);
        check_len("grades", grades.len(), rows * heads)?;
        let fits = cols.is_multiple_of(heads) && columns.iter().all(|columns| columns.steps.len() == cols);
        if !fits || grades.iter().any(|grade| usize::from(*grade) >= columns.len()) {
            return Err(Error::data("grades of another part"));
        }
        Ok(Self { columns, grades, heads, width: cols / heads })
    }

    fn of(&self, row: usize, head: usize) -> &Columns {
        &self.columns[usize::from(self.grades[row * self.heads + head])]
    }

    fn step(&self, row: usize, col: usize) -> f32 {
        self.of(row, col / self.width).steps[col]
    }

    fn reach(&self) -> u8 {
        self.columns.first().map_or(1, |columns| columns.reach)
    }

    pub(super) fn quantize(
        &self,
        x: &impl Values,
        symbols: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        let (cols, reach) = (self.heads * self.width, self.reach());
        for (number, symbols) in symbols.chunks_exact_mut(self.width).enumerate() {
            let (row, head) = (number / self.heads, number % self.heads);
            let range = head * self.width..(head + 1) * self.width;
            let steps = &self.of(row, head).steps[range.clone()];
            if let Some(x) = x.flat() {
                quantize(&x[number * self.width..(number + 1) * self.width], steps, reach, symbols);
            } else {
                for ((symbol, x), step) in symbols.iter_mut().zip(x.values(row, range)).zip(steps) {
                    *symbol = symbol_of(*x, *step, reach);
                }
            }
        }
        escaping::push(cols, x, symbols, reach, |row, col| self.step(row, col), escapes)
    }

    pub(super) fn dequantize(
        &self,
        symbols: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let (cols, reach) = (self.heads * self.width, self.reach());
        for (number, symbols) in symbols.chunks_exact(self.width).enumerate() {
            let (row, head) = (number / self.heads, number % self.heads);
            let range = head * self.width..(head + 1) * self.width;
            let columns = self.of(row, head);
            let (fractions, shifts) = (&columns.fractions[range.clone()], &columns.shifts[range.clone()]);
            if let Some(out) = out.flat_mut() {
                let out = &mut out[number * self.width..(number + 1) * self.width];
                dequantize(symbols, fractions, shifts, reach, out);
            } else {
                let columns = fractions.iter().zip(shifts);
                for ((out, symbol), (fraction, shifts)) in
                    out.values_mut(row, range).zip(symbols).zip(columns)
                {
                    *out = value_of(*symbol, *fraction, *shifts, reach);
                }
            }
        }
        escaping::fill(cols, symbols, reach, |row, col| self.step(row, col), escapes, out)
    }
}

/// The value of a symbol that is no escape.
#[inline(always)]
fn value_of(symbol: u8, fraction: f32, shifts: u32, reach: u8) -> f32 {
    let q = i32::from(symbol) - i32::from(reach);
    let size = q.unsigned_abs();
    let shift = (shifts >> (8 * size.min(3))) & 0xff;
    // 15 bits; times the step's 8 that is exact.
    let size = (256 * size - shift).cast_signed();
    (if q < 0 { -size } else { size }) as f32 * fraction
}

/// The symbols of rows of values; whether any is an escape.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn quantize(x: &[f32], steps: &[f32], reach: u8, symbols: &mut [u8]) -> bool {
    let mut top = 0;
    for (x, symbols) in x.chunks_exact(steps.len()).zip(symbols.chunks_exact_mut(steps.len())) {
        for ((symbol, x), step) in symbols.iter_mut().zip(x).zip(steps) {
            *symbol = symbol_of(*x, *step, reach);
            top = top.max(*symbol);
        }
    }
    top > 2 * reach
}

/// The values of rows of symbols; whether any is an escape.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn dequantize(symbols: &[u8], fractions: &[f32], shifts: &[u32], reach: u8, out: &mut [f32]) -> bool {
    let (mut top, cols) = (0, fractions.len());
    for (out, symbols) in out.chunks_exact_mut(cols).zip(symbols.chunks_exact(cols)) {
        for (((out, symbol), fraction), shifts) in out.iter_mut().zip(symbols).zip(fractions).zip(shifts) {
            *out = value_of(*symbol, *fraction, *shifts, reach);
            top = top.max(*symbol);
        }
    }
    top > 2 * reach
}
