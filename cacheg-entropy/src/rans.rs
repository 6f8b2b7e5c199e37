//! `rans`: interleaved rANS with static tables, laid out for SIMD registers and GPU subgroups.
//!
//! 32 lanes with 32-bit states share one stream of 16-bit words (Duda 2013, arXiv 1311.2540; interleaving after
//! Giesen 2014, arXiv 1402.3392). Lanes are runs of tokens of one channel, so that all lanes use one table at a
//! time. Symbols are found by an alias table of 32 buckets (Walker 1977; Vose 1991) instead of a lookup table of
//! 65,536 entries: it fits in vector registers, and needs no gather. Alphabets above 32 are coded as a bucket
//! and raw low bits.
//!
//! * Sizes: 128 bytes per stream for the states, 100 of which are overhead, and otherwise 0.1 % over the entropy
//!   of the tables. Prefer large tiles: 20,000 symbols of 3 bits lose 1.4 %, 200,000 lose 0.2 %.
//! * Errors: a symbol outside its alphabet is invalid data. On decoding, every state must end where the encoder
//!   began and every word must be used: truncation is always found, nearly all corruption too.
//!
//! # Stream
//! Without symbols: empty. Otherwise 32 final states (u32, little-endian, lane 0 first; each at least 2^16) and
//! the words (u16, little-endian), in the order in which the decoder needs them.
//!
//! # Decoding
//! Segment after segment, in a segment column after column. Of a column of `R` rows, with `q = R div 32` and
//! `m = R mod 32`, lane `j` holds the rows from `j·q + min(j, m)`: `q + 1` of them if `j < m`, else `q`. In step
//! `i` every lane that has one decodes its `i`-th row. A step, with `x` the state of a lane:
//!
//! 1. All lanes of the step: find the symbol and offset of slot `x mod 2^16` in the channel's table and set
//!    `x = f·(x div 2^16) + offset`. Then, in lane order: where `x < 2^16`, `x = x·2^16 + next word`.
//! 2. If the alphabet has more than 32 symbols, all lanes of the step, with `k` the log2 of the width of the
//!    decoded bucket: the low bits are `(x mod 2^16) div 2^(16−k)`, and
//!    `x = (x div 2^16)·2^(16−k) + x mod 2^(16−k)`. Then refill as before. (`k = 0` leaves `x` as it is.)
//!
//! At the end every state is 2^16 and no word is left. The encoder runs all of this backwards.
//!
//! # Contexts
//! With `contexts=3`, channels of at most 32 symbols have four tables: one for the first symbol of each lane, the
//! others for those behind a symbol below, between and above two limits of the channel. On real KV caches that is
//! 5 % smaller, and decodes at two thirds of the speed.
//!
//! # Alias table
//! Bucket `b` is slots `2048·b ..`, 32 of them. Each has a threshold, an alias and a delta. Slot `2048·b + r`
//! belongs to symbol `b` with offset `r` if `r < threshold`, else to the alias with offset
//! `(r + delta) mod 2^16`. With `rest[s]` the frequency of `s` (0 where there is no such symbol) and all buckets
//! open, the table is built so:
//!
//! 1. Take the lowest open bucket `b` with `rest[b] < 2048` and the lowest open `l` with `rest[l] > 2048`. Set
//!    `threshold[b] = rest[b]`, `alias[b] = l`, subtract `2048 − rest[b]` from `rest[l]`, close `b`. Repeat as
//!    long as there is such a `b` (then there is such an `l` too).
//! 2. All open buckets have `rest = 2048`: `threshold[b] = 2048`, `alias[b] = b`, `delta[b] = 0`.
//! 3. Let `next[s] = threshold[s]`. For every bucket of step 1, in ascending order, `delta[b] = next[alias] −
//!    threshold[b]` (mod 2^16), and `next[alias]` grows by `2048 − threshold[b]`.
//!
//! # Buckets of large alphabets
//! A table for `n > 32` symbols cuts `0 .. 2^⌈log2 n⌉` into aligned intervals of `2^k` symbols, `k ≤ 8`, 2 to 32
//! of them, the last being the one that holds `n − 1`. What is coded by the alias table is the interval; the
//! symbol is its base plus the low bits. Symbols of `n` or more are an error.
//!
//! ```
//! use cacheg_core::{Build, spec};
//! let stage = &spec::parse("rans(tables=channel)").unwrap()[0];
//! let Build::Coder(build) = cacheg_entropy::rans::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stage.config).unwrap().config()["classes"], 64);
//! ```

mod alias;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod differential;
#[cfg(target_arch = "x86_64")]
mod elements;
mod kernel;
mod lanes;
mod level;
#[cfg(target_arch = "x86_64")]
mod native;
mod partition;
mod scalar;
mod stream;
mod table;
#[cfg(target_arch = "x86_64")]
mod transpose;

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundCoder, Build, Calibrator, Coder, CoderKernel, CoderScratch, DecodeJob, ElementEncodeJob,
    ElementJob, ElementSink, ElementSource, EncodeJob, Error, KernelStream, Plugin, Result, Segment, Stage,
    StageData,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::segments::{self, outside};
use crate::tables::{
    Layout, Limits, MAX_BUCKETS, Scope, TableSettings, TableStage, default_classes, default_scope,
};
#[doc(hidden)]
pub use differential::differential;
use lanes::Lanes;
#[doc(hidden)]
pub use level::Level;
use stream::{HEADER, WordWriter};
use table::{DecodeTable, EncodeTable};

/// The plug-in.
pub const PLUGIN: Plugin = Plugin {
    name: "rans",
    version: 1,
    origin: env!("CARGO_PKG_NAME"),
    summary: "32-lane rANS with static alias tables, for SIMD and GPUs",
    usage: "rans(tables=class;carried=class;classes=64;contexts=1)",
    build: Build::Coder(|config| Ok(Arc::new(Rans::new(cacheg_core::settings("rans", config)?)?))),
};

/// Settings of `rans`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RansSettings {
    /// What shares a table.
    pub tables: Scope,
    /// The same for tables that a chunk carries; as `tables` if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carried: Option<Scope>,
    /// Most classes, 1 to 256, for each alphabet of each part.
    pub classes: u16,
    /// Contexts of the previous symbol, 1 (none) or 3, for alphabets of at most 32 symbols.
    #[serde(skip_serializing_if = "is_one")]
    pub contexts: u8,
}

// Files that do without keep the configuration, and the fingerprint, that they had before there was the setting.
fn is_one(contexts: &u8) -> bool {
    *contexts == 1
}

impl Default for RansSettings {
    fn default() -> Self {
        Self { tables: default_scope(), carried: None, classes: default_classes(), contexts: 1 }
    }
}

/// The stage `rans`.
#[derive(Debug)]
pub struct Rans {
    settings: RansSettings,
    stage: TableStage,
}

impl Rans {
    /// Checks the settings.
    ///
    /// # Errors
    /// If `classes` or `contexts` is out of range.
    pub fn new(mut settings: RansSettings) -> Result<Self> {
        let mut tables = TableSettings::new(settings.tables, settings.carried, settings.classes, None)?;
        tables.contexts = match settings.contexts {
            1 => false,
            3 => true,
            other => return Err(Error::setting(format!("contexts = {other}, not 1 or 3"))),
        };
        if tables.contexts && [tables.tables, tables.carried].contains(&Scope::Scale) {
            return Err(Error::setting("tables (or carried) = scale has no contexts: set contexts to 1"));
        }
        settings.carried = Some(tables.carried);
        Ok(Self { settings, stage: TableStage { settings: tables, split: Some(partition::partition) } })
    }

    /// Binds with the kernels of this level, or the best below it that the machine can run.
    #[doc(hidden)]
    pub fn bind_at(&self, cx: &BindCx<'_>, level: Level) -> Result<Box<dyn BoundCoder>> {
        let tables = self.stage.bind(cx)?;
        let decode: Vec<DecodeTable> =
            tables.tables.iter().map(|(alphabet, table)| DecodeTable::new(*alphabet, table)).collect();
        let encode = decode.iter().map(EncodeTable::new).collect();
        let kernels = Kernels::new(level);
        let (layout, index, limits) = (tables.layout, tables.index, tables.limits);
        Ok(Box::new(BoundRans { layout, index, limits, decode, encode, kernels }))
    }
}

impl Stage for Rans {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(&self.settings)
    }
}

impl Coder for Rans {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        self.bind_at(cx, Level::detect())
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

/// `rans` with its tables.
struct BoundRans {
    layout: Layout,
    /// Number of each channel's table; of the first of them, if it has contexts. By grade, then channel.
    index: Vec<u32>,
    /// Limits of each channel's contexts; nothing if there are none at all.
    limits: Vec<Limits>,
    decode: Vec<DecodeTable>,
    encode: Vec<EncodeTable>,
    kernels: Kernels,
}

/// The kernels that a bound coder uses.
#[derive(Debug, Clone, Copy)]
enum Kernels {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Kernels {
    /// The best up to a level.
    fn new(level: Level) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = || (level >= Level::Avx512).then(avx512::Avx512::new).flatten().map(Self::Avx512);
            let avx2 = || (level >= Level::Avx2).then(avx2::Avx2::new).flatten().map(Self::Avx2);
            if let Some(kernels) = avx512().or_else(avx2) {
                return kernels;
            }
        }
        let _ = level;
        Self::Scalar
    }
}

/// The shape of a segment and the tables of its columns: what the inner loops work on.
#[derive(Debug, Clone, Copy)]
struct Columns<'a> {
    rows: usize,
    cols: usize,
    mode: Mode,
    /// Number of each column's table; of the first of them, if there are contexts.
    index: &'a [u32],
    /// Limits of each column's contexts, if there are any.
    limits: &'a [Limits],
}

/// How symbols are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// As they are.
    Plain,
    /// As buckets with low bits.
    Split,
    /// As they are, by the table of the symbol before.
    Contexts,
}

impl Columns<'_> {
    /// Which of a column's tables codes the symbol behind this one, or the first one of a lane.
    #[inline(always)]
    fn context(&self, col: usize, before: Option<u8>) -> usize {
        match (self.limits.get(col), before) {
            (Some([a, b]), Some(before)) => 1 + usize::from(before >= *a) + usize::from(before >= *b),
            _ => 0,
        }
    }
}

fn is_split(segment: &Segment) -> bool {
    usize::from(segment.alphabet.size) > MAX_BUCKETS
}

impl BoundRans {
    fn columns(&self, segment: &Segment) -> Result<Columns<'_>> {
        let (slot, first) = (self.layout.slot(segment)?, self.layout.first_column(segment)?);
        let index = self
            .index
            .get(first..first + segment.cols)
            .ok_or_else(|| Error::data("a segment that the coder was not bound to"))?;
        let contexts = self.layout.has_contexts(slot);
        let limits = if contexts {
            let first = slot.first_channel + segment.first_col;
            self.limits.get(first..first + segment.cols).unwrap_or_default()
        } else {
            &[]
        };
        let mode = match (is_split(segment), contexts) {
            (true, _) => Mode::Split,
            (false, true) => Mode::Contexts,
            (false, false) => Mode::Plain,
        };
        Ok(Columns { rows: segment.rows, cols: segment.cols, mode, index, limits })
    }
}

impl BoundRans {
    /// Checks the sizes of what is to be encoded; `None` if there are no symbols.
    fn checked<'o>(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &'o mut [u8],
    ) -> Result<Option<&'o mut [u8]>> {
        segments::check(segments, symbols)?;
        let max_len = self.max_len(segments);
        segments::check_room(out, max_len)?;
        if symbols.is_empty() {
            return Ok(None);
        }
        Ok(Some(&mut out[..max_len]))
    }

    fn encode_scalar(&self, segments: &[Segment], symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        let Some(out) = self.checked(segments, symbols, out)? else { return Ok(0) };
        let mut rest = symbols;
        for segment in segments {
            let (own, more) = rest.split_at(segment.len());
            rest = more;
            // No early exit: this way it is vectorised.
            let top = own.iter().fold(0, |top, symbol| top.max(*symbol));
            if !own.is_empty() && u16::from(top) >= segment.alphabet.size {
                return Err(outside());
            }
        }
        let mut writer = WordWriter::new(out)?;
        let mut states = stream::START;
        let mut rest = symbols;
        for segment in segments.iter().rev() {
            let (more, own) = rest.split_at(rest.len() - segment.len());
            rest = more;
            scalar::encode(self.columns(segment)?, &self.encode, own, &mut states, &mut writer)?;
        }
        Ok(writer.finish(&states))
    }

    fn decode_scalar(&self, segments: &[Segment], bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        if !check_stream(segments, bytes, symbols)? {
            return Ok(());
        }
        let (mut states, mut words) = stream::open(bytes)?;
        let mut rest = symbols;
        for segment in segments {
            let (own, more) = std::mem::take(&mut rest).split_at_mut(segment.len());
            rest = more;
            scalar::decode(self.columns(segment)?, &self.decode, &mut words, &mut states, own)?;
            // In small alphabets tables have no other symbols.
            if is_split(segment) && own.iter().any(|symbol| u16::from(*symbol) >= segment.alphabet.size) {
                return Err(Error::corrupt("a symbol outside its alphabet"));
            }
        }
        stream::close(&states, words)
    }

    /// Opens a stream for writing, unless the job is done by that.
    #[cfg(target_arch = "x86_64")]
    fn open_encode<'j>(&'j self, job: &'j mut EncodeJob<'_>) -> Option<native::EncodeStream<'j>> {
        let EncodeJob { segments, symbols, out, result, .. } = job;
        match self.checked(segments, symbols, out) {
            Ok(Some(out)) => native::EncodeStream::new(self, segments, symbols, out, result),
            done => {
                *result = done.map(|_| 0);
                None
            }
        }
    }

    /// The same for elements.
    #[cfg(target_arch = "x86_64")]
    fn open_encode_elements<'j>(
        &'j self,
        number: usize,
        job: &'j mut ElementEncodeJob<'_>,
    ) -> Option<native::EncodeStream<'j>> {
        let checked = check_columns(job.segments, job.bounds.len()).and_then(|count| {
            if job.segments.iter().any(|segment| !segment.alphabet.escape) {
                return Err(Error::unsupported("elements of alphabets without escapes"));
            }
            segments::check_room(job.out, self.max_len(job.segments))?;
            Ok(count)
        });
        match checked {
            Ok(1..) => native::EncodeStream::of_elements(self, number, job),
            done => {
                job.result = done;
                None
            }
        }
    }

    /// The same for elements.
    #[cfg(target_arch = "x86_64")]
    fn open_elements<'j>(
        &'j self,
        number: usize,
        job: &'j mut ElementJob<'_>,
    ) -> Option<native::DecodeStream<'j>> {
        let opened = check_elements(job);
        match opened {
            Ok(true) => native::DecodeStream::open_elements(self, number, job),
            done => {
                job.result = done.map(|_| ());
                None
            }
        }
    }

    /// Opens a stream for reading, unless the job is done by that.
    #[cfg(target_arch = "x86_64")]
    fn open_decode<'j>(&'j self, job: &'j mut DecodeJob<'_>) -> Option<native::DecodeStream<'j>> {
        let DecodeJob { segments, bytes, symbols, result, .. } = job;
        match check_stream(segments, bytes, symbols) {
            Ok(true) => native::DecodeStream::open(self, segments, bytes, symbols, result),
            done => {
                *result = done.map(|_| ());
                None
            }
        }
    }
}

/// Checks the sizes of what is to be decoded; `false` if nothing is.
fn check_stream(segments: &[Segment], bytes: &[u8], symbols: &[u8]) -> Result<bool> {
    segments::check(segments, symbols)?;
    if symbols.is_empty() && !bytes.is_empty() {
        return Err(Error::corrupt("a stream without symbols must be empty"));
    }
    Ok(!symbols.is_empty())
}

/// Checks the sizes of what is to be decoded to elements; `false` if nothing is.
#[cfg(target_arch = "x86_64")]
fn check_elements(job: &ElementJob<'_>) -> Result<bool> {
    let count = check_columns(job.segments, job.tables.len())?;
    if count == 0 && !job.bytes.is_empty() {
        return Err(Error::corrupt("a stream without symbols must be empty"));
    }
    Ok(count > 0)
}

/// Checks segments of elements, of which so many columns are known; returns how many symbols they have.
#[cfg(target_arch = "x86_64")]
fn check_columns(segments: &[Segment], columns: usize) -> Result<usize> {
    if segments.iter().any(is_split) {
        return Err(Error::unsupported("elements of alphabets of more than 32 symbols"));
    }
    if segments.iter().map(|segment| segment.cols).sum::<usize>() != columns {
        return Err(Error::data("a table for each column is needed"));
    }
    segments::count(segments)
}

impl BoundCoder for BoundRans {
    /// Every step of a symbol moves at most one word out of the state: one step, or two in large alphabets.
    fn max_len(&self, segments: &[Segment]) -> usize {
        let words = |segment: &Segment| segment.len() * (1 + usize::from(is_split(segment)));
        match segments.iter().map(words).sum::<usize>() {
            0 => 0,
            words => HEADER + 2 * words,
        }
    }

    fn kernel(&self) -> Option<CoderKernel> {
        Some(kernel::kernel(self))
    }

    fn kernel_stream(&self, segments: &[Segment], bytes: &[u8]) -> Result<KernelStream> {
        kernel::stream(self, segments, bytes)
    }

    fn scratch(&self) -> CoderScratch {
        #[cfg(target_arch = "x86_64")]
        return Box::new(native::Scratch::default());
        #[cfg(not(target_arch = "x86_64"))]
        Box::new(())
    }

    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        scratch: &mut CoderScratch,
    ) -> Result<usize> {
        let mut jobs = [EncodeJob::new(segments, symbols, out)];
        self.encode_batch(&mut jobs, scratch);
        let [job] = jobs;
        job.result
    }

    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        scratch: &mut CoderScratch,
    ) -> Result<()> {
        let mut jobs = [DecodeJob::new(segments, bytes, symbols)];
        self.decode_batch(&mut jobs, scratch);
        let [job] = jobs;
        job.result
    }

    fn batch(&self) -> usize {
        match self.kernels {
            Kernels::Scalar => 1,
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(_) | Kernels::Avx512(_) => native::STREAMS,
        }
    }

    fn encode_batch(&self, jobs: &mut [EncodeJob<'_>], scratch: &mut CoderScratch) {
        match self.kernels {
            Kernels::Scalar => {
                for job in jobs {
                    job.result = self.encode_scalar(job.segments, job.symbols, job.out);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(kernel) => {
                let streams = jobs.iter_mut().filter_map(|job| self.open_encode(job));
                native::encode(kernel, streams, native::scratch(scratch), &native::NoSource);
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(kernel) => {
                let streams = jobs.iter_mut().filter_map(|job| self.open_encode(job));
                native::encode(kernel, streams, native::scratch(scratch), &native::NoSource);
            }
        }
    }

    fn decode_batch(&self, jobs: &mut [DecodeJob<'_>], scratch: &mut CoderScratch) {
        match self.kernels {
            Kernels::Scalar => {
                for job in jobs {
                    job.result = self.decode_scalar(job.segments, job.bytes, job.symbols);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(kernel) => {
                let streams = jobs.iter_mut().filter_map(|job| self.open_decode(job));
                native::decode(kernel, streams, native::scratch(scratch), &mut native::NoSink);
            }
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(kernel) => {
                let streams = jobs.iter_mut().filter_map(|job| self.open_decode(job));
                native::decode(kernel, streams, native::scratch(scratch), &mut native::NoSink);
            }
        }
    }

    fn has_elements(&self) -> bool {
        match self.kernels {
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(_) => true,
            // Symbols are as fast.
            _ => false,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn encode_elements(
        &self,
        jobs: &mut [ElementEncodeJob<'_>],
        source: &dyn ElementSource,
        scratch: &mut CoderScratch,
    ) {
        let streams =
            jobs.iter_mut().enumerate().filter_map(|(number, job)| self.open_encode_elements(number, job));
        let scratch = native::scratch(scratch);
        match self.kernels {
            Kernels::Scalar => streams.for_each(native::EncodeStream::refuse),
            Kernels::Avx2(kernel) => native::encode(kernel, streams, scratch, source),
            Kernels::Avx512(kernel) => native::encode(kernel, streams, scratch, source),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn decode_elements(
        &self,
        jobs: &mut [ElementJob<'_>],
        sink: &mut dyn ElementSink,
        scratch: &mut CoderScratch,
    ) {
        let streams = jobs.iter_mut().enumerate().filter_map(|(number, job)| self.open_elements(number, job));
        let scratch = native::scratch(scratch);
        match self.kernels {
            Kernels::Scalar => streams.for_each(native::DecodeStream::refuse),
            Kernels::Avx2(kernel) => native::decode(kernel, streams, scratch, sink),
            Kernels::Avx512(kernel) => native::decode(kernel, streams, scratch, sink),
        }
    }

    fn ideal_bits(&self, segments: &[Segment], symbols: &[u8]) -> Option<f64> {
        segments::check(segments, symbols).ok()?;
        let (mut rest, mut bits) = (symbols, 0.0);
        for segment in segments.iter().filter(|segment| !segment.is_empty()) {
            let (own, more) = rest.split_at(segment.len());
            rest = more;
            let columns = self.columns(segment).ok()?;
            let lanes = Lanes::new(columns);
            let starts: [usize; stream::LANES] = std::array::from_fn(|lane| lanes.row(lane));
            let mut before: Option<&[u8]> = None;
            for (number, row) in own.chunks_exact(segment.cols).enumerate() {
                before = before.filter(|_| !starts.contains(&number));
                for (col, (symbol, table)) in row.iter().zip(columns.index).enumerate() {
                    if u16::from(*symbol) >= segment.alphabet.size {
                        return None;
                    }
                    let context = columns.context(col, before.map(|before| before[col]));
                    bits += self.encode[*table as usize + context].bits(*symbol);
                }
                before = Some(row);
            }
        }
        Some(bits)
    }
}
