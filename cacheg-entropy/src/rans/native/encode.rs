//! Encoding several streams at a time: everything backwards.

use std::ops::Range;

use cacheg_core::{ElementEncodeJob, ElementSource, ElementSpan, Error, Result, Segment, SymbolBounds};

use super::{Ahead, BLOCK, CONTEXTS, EncodeRun, Kernel, Native, PLAIN, SPLIT, STREAMS, Scratch, State, Work};
use crate::rans::lanes::Lanes;
use crate::rans::stream::{self, HEADER};
use crate::rans::{BoundRans, Columns, Mode};
use crate::segments::outside;

/// A stream on its way. Its words are written behind the header, the last one first, and turned round at the end.
pub(in crate::rans) struct EncodeStream<'j> {
    bound: &'j BoundRans,
    result: &'j mut Result<usize>,
    /// Segments before the current one.
    segments: &'j [Segment],
    input: Input<'j>,
    columns: Columns<'j>,
    size: u16,
    lanes: Lanes,
    /// Where the block begins.
    first: usize,
    /// Columns and steps of the current one that are not done.
    cols: usize,
    steps: usize,
    state: State,
    header: &'j mut [u8; HEADER],
    room: &'j mut [[u8; 2]],
    written: usize,
    ahead: Ahead,
}

/// What goes in.
enum Input<'j> {
    Symbols {
        /// Those of the segments before the current one.
        earlier: &'j [u8],
        own: &'j [u8],
    },
    Elements {
        job: usize,
        /// Bounds of the columns of the segments before the current one.
        earlier: &'j [SymbolBounds],
        own: &'j [SymbolBounds],
        /// The number of the current segment's first symbol.
        base: usize,
        escaped: &'j mut Vec<u32>,
    },
}

/// For streams of symbols.
pub(in crate::rans) struct NoSource;

impl ElementSource for NoSource {
    fn open(&self, _: usize, _: usize, _: Range<usize>, _: &mut dyn FnMut(&ElementSpan<'_>)) {}
}

impl<'j> EncodeStream<'j> {
    /// `symbols` are those of the segments, at least one, `out` has room for a
    /// header and a word for each step of a symbol.
    pub(in crate::rans) fn new(
        bound: &'j BoundRans,
        segments: &'j [Segment],
        symbols: &'j [u8],
        out: &'j mut [u8],
        result: &'j mut Result<usize>,
    ) -> Option<Self> {
        Self::with_input(bound, segments, Input::Symbols { earlier: symbols, own: &[] }, out, result)
    }

    /// As [`new`](Self::new), of stream number `number`; there are bounds for each column of each segment.
    pub(in crate::rans) fn of_elements(
        bound: &'j BoundRans,
        number: usize,
        job: &'j mut ElementEncodeJob<'_>,
    ) -> Option<Self> {
        let ElementEncodeJob { segments, bounds, out, escaped, result, .. } = job;
        let base = segments.iter().map(Segment::len).sum();
        let input = Input::Elements { job: number, earlier: bounds, own: &[], base, escaped };
        Self::with_input(bound, segments, input, out, result)
    }

    /// There are no kernels for it.
    pub(in crate::rans) fn refuse(self) {
        *self.result = Err(Error::unsupported("elements without vector kernels"));
    }

    fn with_input(
        bound: &'j BoundRans,
        segments: &'j [Segment],
        input: Input<'j>,
        out: &'j mut [u8],
        result: &'j mut Result<usize>,
    ) -> Option<Self> {
        let Some((header, room)) = out.split_first_chunk_mut() else {
            *result = Err(stream::full());
            return None;
        };
        let columns = Columns { rows: 0, cols: 0, mode: Mode::Plain, index: &[], limits: &[] };
        Some(Self {
            bound,
            result,
            segments,
            input,
            columns,
            size: 0,
            lanes: Lanes::new(columns),
            first: 0,
            cols: 0,
            steps: 0,
            state: State::new(&stream::START),
            header,
            room: room.as_chunks_mut().0,
            written: 0,
            ahead: Ahead::NONE,
        })
    }

    /// Goes on to the next run; `None` at the end.
    fn advance<K: Kernel>(
        &mut self,
        kernel: K,
        native: &mut Native,
        source: &dyn ElementSource,
    ) -> Result<Option<Work>> {
        loop {
            if self.steps == 0 {
                if self.cols == 0 && !self.next_segment(native)? {
                    return Ok(None);
                }
                if self.cols == self.first {
                    self.begin_block(kernel, native, source)?;
                }
                self.cols -= 1;
                self.steps = self.lanes.steps();
            }
            let whole = self.lanes.whole;
            if whole > 0 {
                let more = if self.steps > whole { self.lanes.more } else { 0 };
                let fresh = self.steps == self.lanes.steps();
                let columns = if fresh { self.cols - self.first + 1 } else { 1 };
                let steps = self.steps.min(whole);
                return Ok(Some(Work { columns, steps, more, mode: self.columns.mode }));
            }
            self.part(kernel, native);
        }
    }

    /// The step that has fewer lanes.
    fn part<K: Kernel>(&mut self, kernel: K, native: &mut Native) {
        let at = (self.cols - self.first) * self.lanes.stride() + self.lanes.whole;
        self.steps -= 1;
        let mode = self.columns.mode;
        let run = EncodeRun {
            tables: &self.bound.encode,
            columns: &self.columns.index[self.cols..=self.cols],
            limits: self.columns.limits.get(self.cols..=self.cols).unwrap_or_default(),
            before: (self.steps > 0).then(|| native.steps()[at - 1]),
            state: &mut self.state,
            room: &mut self.room[self.written..],
            written: &mut self.written,
            symbols: &native.steps()[at..=at],
            steps: 1,
            more: 0,
            stride: 1,
            ahead: Ahead::NONE,
        };
        match mode {
            Mode::Plain => kernel.encode_part::<PLAIN>(run, self.lanes.more),
            Mode::Split => kernel.encode_part::<SPLIT>(run, self.lanes.more),
            Mode::Contexts => kernel.encode_part::<CONTEXTS>(run, self.lanes.more),
        }
    }

    /// Begins the segment before this one that has symbols.
    fn next_segment(&mut self, native: &mut Native) -> Result<bool> {
        while let Some((segment, rest)) = self.segments.split_last() {
            self.segments = rest;
            if segment.is_empty() {
                if let Input::Elements { earlier, .. } = &mut self.input {
                    *earlier = &earlier[..earlier.len() - segment.cols];
                }
                continue;
            }
            self.columns = self.bound.columns(segment)?;
            self.size = segment.alphabet.size;
            match &mut self.input {
                Input::Symbols { earlier, own } => {
                    (*earlier, *own) = earlier.split_at(earlier.len() - segment.len());
                }
                Input::Elements { earlier, own, base, .. } => {
                    (*earlier, *own) = earlier.split_at(earlier.len() - segment.cols);
                    *base -= segment.len();
                }
            }
            self.lanes = Lanes::new(self.columns);
            (self.cols, self.first) = (self.columns.cols, self.columns.cols);
            native.reserve(self.lanes);
            return Ok(true);
        }
        Ok(false)
    }

    fn begin_block<K: Kernel>(
        &mut self,
        kernel: K,
        native: &mut Native,
        source: &dyn ElementSource,
    ) -> Result<()> {
        let end = self.cols;
        self.first = (end - 1) / BLOCK * BLOCK;
        let (first, lanes) = (self.first, self.lanes);
        match &mut self.input {
            Input::Symbols { own, .. } => {
                kernel.gather_rows(own, lanes, first..end, native.steps());
                if native.top(lanes, end - first) >= self.size { Err(outside()) } else { Ok(()) }
            }
            Input::Elements { job, own, base, escaped, .. } => {
                let escape = (self.size - 1) as u8;
                source.open(*job, self.segments.len(), first..end, &mut |span| {
                    let native = &mut native.steps()[(span.cols.start - first) * lanes.stride()..];
                    let bounds = &own[span.cols.clone()];
                    // Rows that follow each other without gaps, as those of a head do.
                    let bytes = lanes.rows() * span.stride;
                    let dense = span.stride == 2 * bounds.len();
                    self.ahead = Ahead::new(span.next.get(..bytes).filter(|_| dense).unwrap_or_default());
                    kernel.gather_elements(span, lanes, bounds, escape, native, &mut |row, col| {
                        if escaped.len() < escaped.capacity() {
                            escaped.push((*base + row * lanes.cols + span.cols.start + col) as u32);
                        }
                    });
                });
                Ok(())
            }
        }
    }

    /// Does this work next.
    fn run<'r>(&'r mut self, native: &'r mut Native, work: Work) -> EncodeRun<'r> {
        let stride = self.lanes.stride();
        let end = (self.cols - self.first) * stride + self.steps;
        let col = self.cols + 1 - work.columns;
        let columns = &self.columns.index[col..=self.cols];
        let limits = self.columns.limits.get(col..=self.cols).unwrap_or_default();
        self.steps -= work.all_steps();
        self.cols = col;
        EncodeRun {
            tables: &self.bound.encode,
            columns,
            limits,
            before: (self.steps > 0).then(|| native.steps()[end - work.all_steps() - 1]),
            state: &mut self.state,
            room: &mut self.room[self.written..],
            written: &mut self.written,
            symbols: &native.steps()[end - work.len(stride)..end],
            steps: work.steps,
            more: work.more,
            stride,
            ahead: self.ahead.take(work.columns * work.all_steps()),
        }
    }

    fn finish<K: Kernel>(self, kernel: K) {
        let mut states = self.state.states();
        states.reverse();
        for (bytes, state) in self.header.as_chunks_mut().0.iter_mut().zip(&states) {
            *bytes = state.to_le_bytes();
        }
        kernel.reverse(&mut self.room[..self.written]);
        *self.result = Ok(HEADER + 2 * self.written);
    }
}

/// Encodes streams, a few at a time; a stream that ends makes room for the next one.
pub(in crate::rans) fn encode<'j, K: Kernel>(
    kernel: K,
    mut queue: impl Iterator<Item = EncodeStream<'j>>,
    scratch: &mut Scratch,
    source: &dyn ElementSource,
) {
    let mut slots: [Option<EncodeStream<'j>>; STREAMS] = std::array::from_fn(|_| queue.next());
    loop {
        let mut next: [Option<Work>; STREAMS] = [None; STREAMS];
        for ((slot, native), next) in slots.iter_mut().zip(&mut scratch.native).zip(&mut next) {
            while let Some(mut stream) = slot.take() {
                match stream.advance(kernel, native, source) {
                    Ok(Some(work)) => {
                        *next = Some(work);
                        *slot = Some(stream);
                        break;
                    }
                    Ok(None) => stream.finish(kernel),
                    Err(error) => *stream.result = Err(error),
                }
                *slot = queue.next();
            }
        }
        // A round is for streams that do alike; usually all of them do.
        let Some(work) = Work::together(&next) else { return };
        let mut runs =
            slots.iter_mut().zip(&mut scratch.native).zip(next).filter_map(|((slot, native), own)| {
                let own = own.filter(|own| own.is_like(work))?;
                Some(slot.as_mut()?.run(native, Work { columns: work.columns, ..own }))
            });
        let runs = (runs.next(), runs.next(), runs.next(), runs.next());
        match work.mode {
            Mode::Plain => dispatch::<K, PLAIN>(kernel, runs),
            Mode::Split => dispatch::<K, SPLIT>(kernel, runs),
            Mode::Contexts => dispatch::<K, CONTEXTS>(kernel, runs),
        }
    }
}

type Runs<T> = (Option<T>, Option<T>, Option<T>, Option<T>);

fn dispatch<K: Kernel, const MODE: u8>(kernel: K, runs: Runs<EncodeRun<'_>>) {
    match runs {
        (Some(a), Some(b), Some(c), Some(d)) => kernel.encode::<4, MODE>([a, b, c, d]),
        (Some(a), Some(b), Some(c), _) => kernel.encode::<3, MODE>([a, b, c]),
        (Some(a), Some(b), ..) => kernel.encode::<2, MODE>([a, b]),
        (Some(a), ..) => kernel.encode::<1, MODE>([a]),
        _ => {}
    }
}
