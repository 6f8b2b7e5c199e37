//! Decoding several streams at a time.

use std::ops::Range;

use cacheg_core::{ElementJob, ElementSink, ElementTable, ElementWindow, Error, Result, Segment};

use super::{
    BLOCK, CONTEXTS, DecodeRun, Kernel, Native, PLAIN, SPLIT, STREAMS, Scratch, State, Work, words_per_step,
};
use crate::rans::lanes::Lanes;
use crate::rans::stream::{self, LANES, Words, short};
use crate::rans::{BoundRans, Columns, Mode};

/// A stream on its way.
pub(in crate::rans) struct DecodeStream<'j> {
    bound: &'j BoundRans,
    result: &'j mut Result<()>,
    /// Segments behind the current one.
    segments: &'j [Segment],
    target: Target<'j>,
    columns: Columns<'j>,
    size: u16,
    /// The symbol that is an escape, if there is one.
    escape: Option<u8>,
    lanes: Lanes,
    /// Where the block began.
    first: usize,
    col: usize,
    step: usize,
    /// A symbol was outside its alphabet.
    outside: bool,
    state: State,
    words: Words<'j>,
}

/// What comes out.
enum Target<'j> {
    /// Symbols, row-major.
    Symbols {
        /// Those of the current segment.
        own: &'j mut [u8],
        /// Those of the segments behind it.
        later: &'j mut [u8],
    },
    /// Elements, to be given away.
    Elements {
        job: usize,
        /// Number of the segment behind the current one.
        next: usize,
        /// Tables of the current segment's columns.
        own: &'j [ElementTable],
        later: &'j [ElementTable],
        escaped: &'j mut usize,
    },
}

/// For streams of symbols.
pub(in crate::rans) struct NoSink;

impl ElementSink for NoSink {
    fn open(&mut self, _: usize, _: usize, _: Range<usize>, _: &mut dyn FnMut(&mut ElementWindow<'_>)) {}
}

impl<'j> DecodeStream<'j> {
    /// Reads the header. `symbols` are those of the segments, at least one. `None`, and the error in `result`, if
    /// the header is bad.
    pub(in crate::rans) fn open(
        bound: &'j BoundRans,
        segments: &'j [Segment],
        bytes: &'j [u8],
        symbols: &'j mut [u8],
        result: &'j mut Result<()>,
    ) -> Option<Self> {
        Self::new(bound, segments, bytes, Target::Symbols { own: &mut [], later: symbols }, result)
    }

    /// As [`open`](Self::open), of stream number `number`; there is a table for each column of each segment, of which
    /// none is split.
    pub(in crate::rans) fn open_elements(
        bound: &'j BoundRans,
        number: usize,
        job: &'j mut ElementJob<'_>,
    ) -> Option<Self> {
        let ElementJob { segments, bytes, tables, escaped, result, .. } = job;
        let target = Target::Elements { job: number, next: 0, own: &[], later: tables, escaped };
        Self::new(bound, segments, bytes, target, result)
    }

    /// There are no kernels for it.
    pub(in crate::rans) fn refuse(self) {
        *self.result = Err(Error::unsupported("elements without vector kernels"));
    }

    fn new(
        bound: &'j BoundRans,
        segments: &'j [Segment],
        bytes: &'j [u8],
        target: Target<'j>,
        result: &'j mut Result<()>,
    ) -> Option<Self> {
        let (states, words) = match stream::open(bytes) {
            Ok(open) => open,
            Err(error) => {
                *result = Err(error);
                return None;
            }
        };
        let columns = Columns { rows: 0, cols: 0, mode: Mode::Plain, index: &[], limits: &[] };
        Some(Self {
            bound,
            result,
            segments,
            target,
            columns,
            size: 0,
            escape: None,
            lanes: Lanes::new(columns),
            first: 0,
            col: 0,
            step: 0,
            outside: false,
            state: State::new(&states),
            words,
        })
    }

    /// Goes on to the next run; `None` at the end of a good stream.
    fn advance<K: Kernel>(
        &mut self,
        kernel: K,
        native: &mut Native,
        sink: &mut dyn ElementSink,
    ) -> Result<Option<Work>> {
        loop {
            if self.col == self.columns.cols {
                if self.outside {
                    return Err(Error::corrupt("a symbol outside its alphabet"));
                }
                if !self.next_segment(native)? {
                    stream::close(&self.state.states(), self.words)?;
                    return Ok(None);
                }
            }
            if self.step == self.lanes.steps() {
                self.step = 0;
                self.col += 1;
                if self.col == self.columns.cols || self.col - self.first == BLOCK {
                    self.end_block(kernel, native, sink);
                }
                continue;
            }
            let left = self.lanes.whole.saturating_sub(self.step);
            let available = self.words.len() / words_per_step(self.columns.mode as u8);
            let steps = left.min(available);
            if steps > 0 {
                let more = if self.step == 0 && available > left { self.lanes.more } else { 0 };
                let work = Work { columns: 1, steps, more, mode: self.columns.mode };
                let whole = self.step == 0 && work.all_steps() == self.lanes.steps();
                let end = self.columns.cols.min(self.first + BLOCK);
                return Ok(Some(Work { columns: if whole { end - self.col } else { 1 }, ..work }));
            }
            self.single(kernel, native)?;
        }
    }

    /// Begins the next segment that has symbols.
    fn next_segment(&mut self, native: &mut Native) -> Result<bool> {
        while let Some((segment, more)) = self.segments.split_first() {
            self.segments = more;
            if segment.is_empty() {
                if let Target::Elements { next, later, .. } = &mut self.target {
                    *next += 1;
                    *later = &later[segment.cols..];
                }
                continue;
            }
            self.columns = self.bound.columns(segment)?;
            self.size = segment.alphabet.size;
            self.escape = segment.alphabet.escape.then(|| (segment.alphabet.size - 1) as u8);
            match &mut self.target {
                Target::Symbols { own, later } => {
                    (*own, *later) = std::mem::take(later).split_at_mut(segment.len());
                }
                Target::Elements { next, own, later, .. } => {
                    *next += 1;
                    (*own, *later) = later.split_at(segment.cols);
                }
            }
            self.lanes = Lanes::new(self.columns);
            (self.first, self.col, self.step) = (0, 0, 0);
            native.reserve(self.lanes);
            return Ok(true);
        }
        Ok(false)
    }

    fn end_block<K: Kernel>(&mut self, kernel: K, native: &mut Native, sink: &mut dyn ElementSink) {
        if self.columns.mode == Mode::Split {
            self.outside |= native.top(self.lanes, self.col - self.first) >= self.size;
        }
        let (columns, native) = (self.first..self.col, native.steps());
        match &mut self.target {
            Target::Symbols { own, .. } => kernel.scatter_rows(native, self.lanes, columns, own),
            Target::Elements { job, next, own, escaped, .. } => {
                let (own, escape, lanes) = (*own, self.escape, self.lanes);
                sink.open(*job, *next - 1, columns.clone(), &mut |window| {
                    let native = &native[(window.cols.start - columns.start) * lanes.stride()..];
                    let tables = &own[window.cols.clone()];
                    **escaped += kernel.scatter_elements(native, lanes, tables, escape, window);
                });
            }
        }
        self.first = self.col;
    }

    /// One step that has fewer lanes, or that might need more words than there are.
    fn single<K: Kernel>(&mut self, kernel: K, native: &mut Native) -> Result<()> {
        let active = self.lanes.active(self.step);
        let mut padded = [[0; 2]; 2 * LANES];
        let left = self.words.len();
        let few = left < words_per_step(self.columns.mode as u8);
        if few {
            padded[..left].copy_from_slice(self.words);
        }
        let mut words = if few { &padded[..] } else { self.words };
        let all = words.len();
        let mode = self.columns.mode;
        let at = (self.col - self.first) * self.lanes.stride() + self.step;
        let run = DecodeRun {
            tables: &self.bound.decode,
            columns: &self.columns.index[self.col..=self.col],
            limits: self.columns.limits.get(self.col..=self.col).unwrap_or_default(),
            before: (self.step > 0).then(|| native.steps()[at - 1]),
            state: &mut self.state,
            words: &mut words,
            out: &mut native.steps()[at..=at],
            steps: 1,
            more: 0,
            stride: 1,
        };
        match mode {
            Mode::Plain => kernel.decode_part::<PLAIN>(run, active),
            Mode::Split => kernel.decode_part::<SPLIT>(run, active),
            Mode::Contexts => kernel.decode_part::<CONTEXTS>(run, active),
        }
        let used = all - words.len();
        self.words = self.words.get(used..).ok_or_else(short)?;
        self.step += 1;
        Ok(())
    }

    /// Does this work next.
    fn run<'r>(&'r mut self, native: &'r mut Native, work: Work) -> DecodeRun<'r, 'j> {
        let at = (self.col - self.first) * self.lanes.stride() + self.step;
        DecodeRun {
            tables: &self.bound.decode,
            columns: &self.columns.index[self.col..self.col + work.columns],
            limits: self.columns.limits.get(self.col..self.col + work.columns).unwrap_or_default(),
            before: (self.step > 0).then(|| native.steps()[at - 1]),
            state: &mut self.state,
            words: &mut self.words,
            out: &mut native.steps()[at..at + work.len(self.lanes.stride())],
            steps: work.steps,
            more: work.more,
            stride: self.lanes.stride(),
        }
    }

    /// It was done.
    fn done(&mut self, work: Work) {
        self.col += work.columns - 1;
        self.step += work.all_steps();
    }
}

/// Decodes streams, a few at a time; a stream that ends makes room for the next one.
pub(in crate::rans) fn decode<'j, K: Kernel>(
    kernel: K,
    mut queue: impl Iterator<Item = DecodeStream<'j>>,
    scratch: &mut Scratch,
    sink: &mut dyn ElementSink,
) {
    let mut slots: [Option<DecodeStream<'j>>; STREAMS] = std::array::from_fn(|_| queue.next());
    loop {
        let mut next: [Option<Work>; STREAMS] = [None; STREAMS];
        for ((slot, native), next) in slots.iter_mut().zip(&mut scratch.native).zip(&mut next) {
            while let Some(stream) = slot {
                match stream.advance(kernel, native, sink) {
                    Ok(Some(work)) => {
                        *next = Some(work);
                        break;
                    }
                    end => {
                        *stream.result = end.map(|_| ());
                        *slot = queue.next();
                    }
                }
            }
        }
        // A round is for streams that do alike; usually all of them do.
        let Some(mut work) = Work::together(&next) else { return };
        let like = next.map(|next| next.filter(|next| next.is_like(work)));
        let mut runs =
            slots.iter_mut().zip(&mut scratch.native).zip(like).filter_map(|((slot, native), own)| {
                Some(slot.as_mut()?.run(native, Work { columns: work.columns, ..own? }))
            });
        let runs = (runs.next(), runs.next(), runs.next(), runs.next());
        work.columns = match work.mode {
            Mode::Plain => dispatch::<K, PLAIN>(kernel, runs),
            Mode::Split => dispatch::<K, SPLIT>(kernel, runs),
            Mode::Contexts => dispatch::<K, CONTEXTS>(kernel, runs),
        };
        for (stream, own) in slots.iter_mut().zip(like) {
            if let (Some(stream), Some(_)) = (stream, own) {
                stream.done(work);
            }
        }
    }
}

type Runs<T> = (Option<T>, Option<T>, Option<T>, Option<T>);

fn dispatch<K: Kernel, const MODE: u8>(kernel: K, runs: Runs<DecodeRun<'_, '_>>) -> usize {
    match runs {
        (Some(a), Some(b), Some(c), Some(d)) => kernel.decode::<4, MODE>([a, b, c, d]),
        (Some(a), Some(b), Some(c), _) => kernel.decode::<3, MODE>([a, b, c]),
        (Some(a), Some(b), ..) => kernel.decode::<2, MODE>([a, b]),
        (Some(a), ..) => kernel.decode::<1, MODE>([a]),
        _ => 0,
    }
}
