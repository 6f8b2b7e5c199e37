//! `range`: range coding with static tables, one symbol after the other.
//!
//! What CacheGen's arithmetic coder amounts to: a range coder with 16-bit frequencies (Martin 1979; CacheGen,
//! arXiv 2310.07240, section 5.2), here that of the `constriction` crate with 16-bit words and a 64-bit state,
//! ended as tersely as can be: at most 2 bytes per run.
//!
//! * Sizes: 0.01 % above the tables' entropy plus half a byte per run.
//! * `streams=tile` (default): one run for all symbols of a tile. `streams=channel`: one run for each channel of
//!   each segment, as in the public CacheGen code, so that threads may decode channels independently.
//! * `cdf=N`: carried tables are cumulative distributions of `N` 16-bit entries per channel, also as in the
//!   public code (33 for up to 32 bins: 2.06 bits per value in chunks of 256 tokens).
//! * Errors: a symbol outside its alphabet is invalid data; on decoding, lengths and the end of every run are
//!   verified: a truncated stream is always found, most corruption too.
//!
//! Bytes: for each run its length, u32 little-endian; then the runs. FORMAT.md has the details.
//!
//! ```
//! use cacheg_core::{Build, spec};
//! let stage = &spec::parse("range(tables=channel;streams=channel;cdf=33)").unwrap()[0];
//! let Build::Coder(build) = cacheg_entropy::range::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stage.config).unwrap().config()["carried"], "channel");
//! ```

mod model;
mod run;

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundCoder, Build, Calibrator, Coder, CoderKernel, CoderScratch, Error, Kernel, KernelRun,
    KernelStream, Plugin, Result, Segment, Stage, StageData,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::segments;
use crate::tables::{Layout, Scope, TableSettings, TableStage, default_classes, default_scope};
use model::Model;

/// The plug-in.
pub const PLUGIN: Plugin = Plugin {
    name: "range",
    version: 1,
    origin: env!("CARGO_PKG_NAME"),
    summary: "range coder with static tables, as in CacheGen (whose form of tables is cdf=33)",
    usage: "range(tables=class;carried=class;classes=64;streams=tile)",
    build: Build::Coder(|config| Ok(Arc::new(Range::new(cacheg_core::settings("range", config)?)?))),
};

/// How a tile is cut into range-coded runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Streams {
    /// One run for all symbols.
    Tile,
    /// One run for each channel of each segment.
    Channel,
}

/// Settings of `range`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RangeSettings {
    /// What shares a table.
    pub tables: Scope,
    /// The same for tables that a chunk carries; as `tables` if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carried: Option<Scope>,
    /// Most classes, 1 to 256, for each alphabet of each part.
    pub classes: u16,
    /// How a tile is cut into runs.
    pub streams: Streams,
    /// Entries of carried tables in the public CacheGen form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdf: Option<u16>,
}

impl Default for RangeSettings {
    fn default() -> Self {
        Self {
            tables: default_scope(),
            carried: None,
            classes: default_classes(),
            streams: Streams::Tile,
            cdf: None,
        }
    }
}

/// The stage `range`.
#[derive(Debug)]
pub struct Range {
    settings: RangeSettings,
    stage: TableStage,
}

impl Range {
    /// Checks the settings.
    ///
    /// # Errors
    /// If `classes` or `cdf` is out of range, or `cdf` is set for tables that are not per channel.
    pub fn new(mut settings: RangeSettings) -> Result<Self> {
        let tables = TableSettings::new(settings.tables, settings.carried, settings.classes, settings.cdf)?;
        settings.carried = Some(tables.carried);
        Ok(Self { settings, stage: TableStage { settings: tables, split: None } })
    }
}

impl Stage for Range {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(&self.settings)
    }
}

impl Coder for Range {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        let tables = self.stage.bind(cx)?;
        let (mut cdf, mut starts) = (Vec::new(), Vec::with_capacity(tables.tables.len()));
        for (alphabet, table) in &tables.tables {
            starts.push(cdf.len());
            model::push_cdf(&table.frequencies(*alphabet), &mut cdf);
        }
        let starts = tables.index.iter().map(|table| starts[*table as usize]).collect();
        Ok(Box::new(BoundRange { streams: self.settings.streams, layout: tables.layout, cdf, starts }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        self.stage.calibrator(cx)
    }

    fn pack(&self, cx: &BindCx<'_>, data: &StageData) -> Result<Vec<u8>> {
        self.stage.pack(cx, data)
    }

    fn unpack(&self, cx: &BindCx<'_>, bytes: &[u8]) -> Result<StageData> {
        self.stage.unpack(cx, bytes)
    }
}

/// Most loop iterations of a symbol in WGSL: its own and the search of 256 entries.
const SYMBOL_COST: u32 = 10;

/// `range` with its tables.
struct BoundRange {
    streams: Streams,
    layout: Layout,
    /// Cumulative distributions of all tables.
    cdf: Vec<u16>,
    /// Where each channel's begins.
    starts: Vec<usize>,
}

/// A segment with its channels' tables and its symbols.
struct Piece<'a, S> {
    segment: &'a Segment,
    starts: &'a [usize],
    symbols: S,
}

impl BoundRange {
    /// Runs of a stream; segments without symbols have none.
    fn runs(&self, segments: &[Segment]) -> usize {
        let filled = || segments.iter().filter(|segment| !segment.is_empty());
        match self.streams {
            Streams::Tile => usize::from(filled().next().is_some()),
            Streams::Channel => filled().map(|segment| segment.cols).sum(),
        }
    }

    /// The tables of a segment's channels.
    fn starts(&self, segment: &Segment) -> Result<&[usize]> {
        let first = self.layout.first_column(segment)?;
        self.starts
            .get(first..first + segment.cols)
            .ok_or_else(|| Error::data("a segment that the coder was not bound to"))
    }

    fn model(&self, start: usize, segment: &Segment) -> Model<'_> {
        Model::new(&self.cdf[start..=start + usize::from(segment.alphabet.size)])
    }

    /// Pieces with symbols. `take` splits off the symbols of a piece.
    fn pieces<'a, S>(
        &'a self,
        segments: &'a [Segment],
        mut take: impl FnMut(usize) -> S + 'a,
    ) -> impl Iterator<Item = Result<Piece<'a, S>>> + 'a {
        segments.iter().filter(|segment| !segment.is_empty()).map(move |segment| {
            let symbols = take(segment.len());
            Ok(Piece { segment, starts: self.starts(segment)?, symbols })
        })
    }
}

impl BoundCoder for BoundRange {
    /// Every symbol moves at most one 16-bit word out of the state, and a run ends with at most 2 bytes more.
    fn max_len(&self, segments: &[Segment]) -> usize {
        let symbols: usize = segments.iter().map(Segment::len).sum();
        symbols * 2 + self.runs(segments) * (4 + run::MAX_TAIL)
    }

    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<usize> {
        segments::check(segments, symbols)?;
        segments::check_room(out, self.max_len(segments))?;
        let (lengths, payload) = out.split_at_mut(self.runs(segments) * 4);
        let (mut lengths, mut end) = (lengths.as_chunks_mut::<4>().0.iter_mut(), 0);
        let put = |len: usize, length: Option<&mut [u8; 4]>| match (u32::try_from(len), length) {
            (Ok(len), Some(length)) => {
                *length = len.to_le_bytes();
                Ok(())
            }
            _ => Err(Error::limit("a run of more than 4 GiB")),
        };
        let mut rest = symbols;
        let take = |len| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        let mut pieces = self.pieces(segments, take).peekable();
        match self.streams {
            Streams::Tile if pieces.peek().is_none() => {}
            Streams::Tile => {
                let mut encoder = run::Encoder::new(payload);
                for piece in pieces {
                    let piece = piece?;
                    for row in piece.symbols.chunks_exact(piece.segment.cols) {
                        for (symbol, start) in row.iter().zip(piece.starts) {
                            encoder.put(*symbol, self.model(*start, piece.segment))?;
                        }
                    }
                }
                end = encoder.finish()?;
                put(end, lengths.next())?;
            }
            Streams::Channel => {
                for piece in pieces {
                    let piece = piece?;
                    for (col, start) in piece.starts.iter().enumerate() {
                        let model = self.model(*start, piece.segment);
                        let mut encoder = run::Encoder::new(&mut payload[end..]);
                        for symbol in piece.symbols[col..].iter().step_by(piece.segment.cols) {
                            encoder.put(*symbol, model)?;
                        }
                        let len = encoder.finish()?;
                        put(len, lengths.next())?;
                        end += len;
                    }
                }
            }
        }
        Ok(self.runs(segments) * 4 + end)
    }

    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<()> {
        segments::check(segments, symbols)?;
        let short = || Error::corrupt("a range-coded stream of the wrong length");
        let (lengths, mut payload) = bytes.split_at_checked(self.runs(segments) * 4).ok_or_else(short)?;
        let mut lengths = lengths.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
        let mut next = || {
            let (run, rest) = payload.split_at_checked(lengths.next()?)?;
            payload = rest;
            Some(run)
        };
        let mut rest = symbols;
        let take = |len| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        };
        let mut pieces = self.pieces(segments, take).peekable();
        match self.streams {
            Streams::Tile if pieces.peek().is_none() => {}
            Streams::Tile => {
                let mut decoder = run::Decoder::new(next().ok_or_else(short)?);
                for piece in pieces {
                    let piece = piece?;
                    for row in piece.symbols.chunks_exact_mut(piece.segment.cols) {
                        for (symbol, start) in row.iter_mut().zip(piece.starts) {
                            *symbol = decoder.take(self.model(*start, piece.segment))?;
                        }
                    }
                }
                decoder.finish()?;
            }
            Streams::Channel => {
                for piece in pieces {
                    let piece = piece?;
                    for (col, start) in piece.starts.iter().enumerate() {
                        let model = self.model(*start, piece.segment);
                        let mut decoder = run::Decoder::new(next().ok_or_else(short)?);
                        for symbol in piece.symbols[col..].iter_mut().step_by(piece.segment.cols) {
                            *symbol = decoder.take(model)?;
                        }
                        decoder.finish()?;
                    }
                }
            }
        }
        if payload.is_empty() { Ok(()) } else { Err(short()) }
    }

    fn kernel(&self) -> Option<CoderKernel> {
        let by_column = self.streams == Streams::Channel;
        let mut data = vec![2 + self.starts.len() as u32, u32::from(by_column)];
        data.extend(self.starts.iter().map(|start| *start as u32));
        data.extend(self.cdf.iter().map(|entry| u32::from(*entry)));
        Some(CoderKernel::new(Kernel::new(include_str!("range/decode.wgsl"), data), 1, 8))
    }

    fn kernel_stream(&self, segments: &[Segment], bytes: &[u8]) -> Result<KernelStream> {
        let short = || Error::corrupt("a range-coded stream of the wrong length");
        let lengths = bytes.get(..self.runs(segments) * 4).ok_or_else(short)?;
        let mut next = lengths.len();
        let mut lengths = lengths.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
        let mut take = || {
            let begin = next;
            next = begin.checked_add(lengths.next()?).filter(|end| *end <= bytes.len())?;
            Some(begin as u32..next as u32)
        };
        let mut stream = KernelStream::default();
        for (number, segment) in (0..).zip(segments) {
            let own = self.layout.first_column(segment)? as u32;
            let words = match self.streams {
                Streams::Tile => segment.len().div_ceil(4),
                Streams::Channel => segment.cols * segment.rows.div_ceil(4),
            };
            stream.segments.push([words as u32, own]);
            if self.streams == Streams::Channel && !segment.is_empty() {
                for col in 0..segment.cols as u32 {
                    let bytes = take().ok_or_else(short)?;
                    let units = segment.rows as u32;
                    stream.runs.push(KernelRun::new(bytes, number..number + 1, 1 + col, units, SYMBOL_COST));
                }
            }
        }
        let symbols = segments::count(segments)?;
        if self.streams == Streams::Tile && symbols > 0 {
            let bytes = take().ok_or_else(short)?;
            let all = 0..segments.len() as u32;
            stream.runs.push(KernelRun::new(bytes, all, 0, symbols as u32, SYMBOL_COST));
        }
        if next == bytes.len() { Ok(stream) } else { Err(short()) }
    }

    fn ideal_bits(&self, segments: &[Segment], symbols: &[u8]) -> Option<f64> {
        segments::check(segments, symbols).ok()?;
        let mut rest = symbols;
        let take = |len| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        let mut bits = 0.0;
        for piece in self.pieces(segments, take) {
            let piece = piece.ok()?;
            for row in piece.symbols.chunks_exact(piece.segment.cols) {
                for (symbol, start) in row.iter().zip(piece.starts) {
                    bits += self.model(*start, piece.segment).bits(*symbol)?;
                }
            }
        }
        Some(bits)
    }
}
