//! Streams in flight: what the vector kernels are fed with.
//!
//! A kernel runs one or several streams for some whole steps of one column each. It reads and writes symbols in
//! *native order*: one `[u8; 32]` for each step, all steps of a column one after the other, column after column.
//! This module walks through segments and columns, cuts the work into such runs, and hands out or asks for
//! native symbols in blocks of up to 64 columns, small enough for the cache.

mod decode;
mod encode;

pub(super) use decode::{DecodeStream, NoSink, decode};
pub(super) use encode::{EncodeStream, NoSource, encode};

use std::ops::Range;

use cacheg_core::{CoderScratch, ElementSpan, ElementTable, ElementWindow, SymbolBounds};

use super::lanes::Lanes;
use super::stream::{LANES, Words};
use super::table::{DecodeTable, EncodeTable};
use super::{Mode, elements};
use crate::tables::{CONTEXT_TABLES, Limits};

/// [`Mode`]s as kernels are compiled for them.
pub(super) const PLAIN: u8 = 0;
pub(super) const SPLIT: u8 = 1;
pub(super) const CONTEXTS: u8 = 2;

/// Words that a step may need.
pub(super) const fn words_per_step(mode: u8) -> usize {
    if mode == SPLIT { 2 * LANES } else { LANES }
}

/// Streams in flight at most.
pub(super) const STREAMS: usize = 4;

/// Columns of a block.
pub(super) const BLOCK: usize = 64;

/// One step's symbols, lane by lane.
pub(super) type Step = [u8; LANES];

/// Working memory: the native symbols of a block of each stream.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    native: [Native; STREAMS],
}

/// Native symbols of a block, aligned to lines of the cache.
#[derive(Debug, Default)]
struct Native(Vec<u8>);

impl Native {
    const LINE: usize = 64;

    /// Makes room for a block.
    fn reserve(&mut self, lanes: Lanes) {
        let bytes = lanes.stride() * lanes.cols.min(BLOCK) * LANES + Self::LINE;
        if self.0.len() < bytes {
            self.0.resize(bytes, 0);
        }
    }

    /// The largest symbol of the first columns.
    fn top(&mut self, lanes: Lanes, columns: usize) -> u16 {
        // Lane by lane, so that it is vectorised.
        let (steps, stride) = (lanes.steps(), lanes.stride());
        let mut top = [0; LANES];
        for column in self.steps().chunks(stride).take(columns) {
            for step in &column[..steps] {
                for (top, symbol) in top.iter_mut().zip(step) {
                    *top = (*top).max(*symbol);
                }
            }
        }
        u16::from(top.into_iter().max().unwrap_or(0))
    }

    fn steps(&mut self) -> &mut [Step] {
        let offset = self.0.as_ptr().align_offset(Self::LINE).min(self.0.len());
        self.0[offset..].as_chunks_mut().0
    }
}

/// A coder's own scratch; another coder's is replaced.
pub(super) fn scratch(any: &mut CoderScratch) -> &mut Scratch {
    if !any.is::<Scratch>() {
        *any = Box::new(Scratch::default());
    }
    #[expect(clippy::unwrap_used, reason = "it has just been made one")]
    any.downcast_mut().unwrap()
}

/// States, halved: vectors of 32 × u16.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(super) struct State {
    pub(super) lo: [u16; LANES],
    pub(super) hi: [u16; LANES],
}

impl State {
    pub(super) fn new(states: &[u32; LANES]) -> Self {
        Self { lo: states.map(|x| x as u16), hi: states.map(|x| (x >> 16) as u16) }
    }

    pub(super) fn states(&self) -> [u32; LANES] {
        std::array::from_fn(|lane| u32::from(self.hi[lane]) << 16 | u32::from(self.lo[lane]))
    }
}

/// Steps of one stream to decode, in one column or in several that follow each other, equally many in each.
#[derive(Debug)]
pub(super) struct DecodeRun<'r, 'b> {
    pub(super) tables: &'r [DecodeTable],
    /// The number of each column's table; of the first of them, if there are contexts.
    pub(super) columns: &'r [u32],
    /// The limits of each column's contexts, if there are any.
    pub(super) limits: &'r [Limits],
    /// With contexts: the symbols of the step before the first; nothing at the beginning of columns.
    pub(super) before: Option<Step>,
    pub(super) state: &'r mut State,
    /// For the first column there are at least 32 words for each step, 64 if symbols are split: more than it can
    /// use.
    pub(super) words: &'r mut Words<'b>,
    pub(super) out: &'r mut [Step],
    /// Whole steps of a column in `out`.
    pub(super) steps: usize,
    /// Lanes of one more step behind them, the first ones, if there are any; then there are whole steps as well, and
    /// words for one more.
    pub(super) more: usize,
    /// From the beginning of a column to that of the next.
    pub(super) stride: usize,
}

/// Steps of one stream to encode, in one column or in several that follow each other, equally many in each; the
/// last column first, in each the last step first. Lanes are in reverse order everywhere, so that words come in
/// the order in which they are written.
#[derive(Debug)]
pub(super) struct EncodeRun<'r> {
    pub(super) tables: &'r [EncodeTable],
    /// The number of each column's table; of the first of them, if there are contexts.
    pub(super) columns: &'r [u32],
    /// The limits of each column's contexts, if there are any.
    pub(super) limits: &'r [Limits],
    /// With contexts: the symbols of the step before the first; nothing at the beginning of columns.
    pub(super) before: Option<Step>,
    pub(super) state: &'r mut State,
    /// There is room for a word for each lane of each step, two if symbols are split: all that they can need.
    pub(super) room: &'r mut [[u8; 2]],
    /// How many of them were written.
    pub(super) written: &'r mut usize,
    pub(super) symbols: &'r [Step],
    /// Whole steps of a column in `symbols`.
    pub(super) steps: usize,
    /// Lanes of one more step behind them, the last ones, if there are any; then there are whole steps as well.
    pub(super) more: usize,
    /// From the beginning of a column to that of the next.
    pub(super) stride: usize,
    /// A line of memory to ask for with every step.
    pub(super) ahead: Ahead,
}

/// Lines of memory that will be read soon. They are asked for one by one while other work is done, which the memory
/// would otherwise stand idle for. Asking is harmless, whatever has become of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    line: *const u8,
    left: usize,
}

impl Ahead {
    /// Nothing.
    pub(super) const NONE: Self = Self { line: std::ptr::null(), left: 0 };

    /// These bytes.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { line: bytes.as_ptr(), left: bytes.len() / 64 }
    }

    /// The first so many lines, which are not there any longer.
    pub(super) fn take(&mut self, lines: usize) -> Self {
        let first = Self { line: self.line, left: lines.min(self.left) };
        self.line = self.line.wrapping_add(64 * first.left);
        self.left -= first.left;
        first
    }

    /// Where the first line is, and the distance of lines: 0 if there are none.
    pub(super) fn lines(self) -> (*const u8, usize) {
        (self.line, if self.left == 0 { 0 } else { 64 })
    }
}

impl<'r> DecodeRun<'r, '_> {
    /// The tables of a column: one, or four with contexts.
    #[inline]
    pub(super) fn tables<const MODE: u8>(&self, column: usize) -> &'r [DecodeTable] {
        let first = self.columns[column] as usize;
        &self.tables[first..first + if MODE == CONTEXTS { CONTEXT_TABLES } else { 1 }]
    }

    /// The limits of a column's contexts, if there are any.
    #[inline]
    pub(super) fn limits<const MODE: u8>(&self, column: usize) -> Limits {
        if MODE == CONTEXTS { self.limits[column] } else { [0; 2] }
    }
}

impl<'r> EncodeRun<'r> {
    /// The tables of a column: one, or four with contexts.
    #[inline]
    pub(super) fn tables<const MODE: u8>(&self, column: usize) -> &'r [EncodeTable] {
        let first = self.columns[column] as usize;
        &self.tables[first..first + if MODE == CONTEXTS { CONTEXT_TABLES } else { 1 }]
    }

    /// The limits of a column's contexts, if there are any.
    #[inline]
    pub(super) fn limits<const MODE: u8>(&self, column: usize) -> Limits {
        if MODE == CONTEXTS { self.limits[column] } else { [0; 2] }
    }
}

impl DecodeRun<'_, '_> {
    /// Steps of a column, whole or not.
    pub(super) fn all_steps(&self) -> usize {
        self.steps + usize::from(self.more > 0)
    }
}

impl EncodeRun<'_> {
    /// Steps of a column, whole or not.
    pub(super) fn all_steps(&self) -> usize {
        self.steps + usize::from(self.more > 0)
    }

    /// Words that there is room for.
    pub(super) fn words(&self, mode: u8) -> usize {
        self.columns.len() * (self.steps * LANES + self.more) * (words_per_step(mode) / LANES)
    }
}

/// What can be run next: so many columns of so many steps.
#[derive(Debug, Clone, Copy)]
struct Work {
    columns: usize,
    /// Whole ones.
    steps: usize,
    /// Lanes of one more step.
    more: usize,
    mode: Mode,
}

impl Work {
    /// Steps of a column, whole or not.
    fn all_steps(self) -> usize {
        self.steps + usize::from(self.more > 0)
    }

    /// Length of a slice of so many steps and columns.
    fn len(self, stride: usize) -> usize {
        (self.columns - 1) * stride + self.all_steps()
    }

    /// Whether streams can do it at the same time.
    fn is_like(self, other: Self) -> bool {
        let of = |work: Self| (work.mode, work.steps, work.more > 0);
        of(self) == of(other)
    }

    /// What all that are like the first one can do: so many columns.
    fn together(all: &[Option<Self>; STREAMS]) -> Option<Self> {
        let first = all.iter().flatten().next()?;
        let like = all.iter().flatten().filter(|work| work.is_like(*first));
        Some(Self { columns: like.map(|work| work.columns).min()?, ..*first })
    }
}

/// A set of kernels; having one is the proof that the processor can run it.
pub(super) trait Kernel: Copy {
    /// Runs some streams; all have the same number of columns and whole steps, and all or none have more lanes. Returns
    /// how many columns were done, the same in all: it stops where words might run out.
    fn decode<const N: usize, const MODE: u8>(self, runs: [DecodeRun<'_, '_>; N]) -> usize;

    /// One step of the first `active` lanes; the others' symbols are 0.
    fn decode_part<const MODE: u8>(self, run: DecodeRun<'_, '_>, active: usize);

    /// Runs some streams; all have the same number of columns and whole steps, and all or none have more lanes.
    fn encode<const N: usize, const MODE: u8>(self, runs: [EncodeRun<'_>; N]);

    /// One step of the last `active` lanes, which are the first of the stream.
    fn encode_part<const MODE: u8>(self, run: EncodeRun<'_>, active: usize);

    /// Turns words round.
    fn reverse(self, words: &mut [[u8; 2]]);

    /// From native order to rows: some columns from `col` on.
    fn scatter_rows(self, native: &[Step], lanes: Lanes, columns: Range<usize>, rows: &mut [u8]);

    /// From native order to what symbols stand for: the columns of a window, which begin with `native`. Returns how
    /// many symbols were escapes.
    fn scatter_elements(
        self,
        native: &[Step],
        lanes: Lanes,
        tables: &[ElementTable],
        escape: Option<u8>,
        window: &mut ElementWindow<'_>,
    ) -> usize {
        elements::scatter(0..lanes.steps(), native, lanes, tables, escape, window)
    }

    /// From the elements of a span to the native order of their symbols, lanes in reverse, where `native` begins.
    /// `escaped` gets the row and the column, counted from the span's first, of every escape.
    fn gather_elements(
        self,
        span: &ElementSpan<'_>,
        lanes: Lanes,
        bounds: &[SymbolBounds],
        escape: u8,
        native: &mut [Step],
        escaped: &mut dyn FnMut(usize, usize),
    ) {
        elements::gather(0..lanes.steps(), span, lanes, bounds, escape, native, escaped);
    }

    /// From rows to native order, lanes in reverse.
    fn gather_rows(self, rows: &[u8], lanes: Lanes, columns: Range<usize>, native: &mut [Step]);
}
