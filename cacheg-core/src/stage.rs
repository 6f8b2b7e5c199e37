//! The traits of a pipeline's stages.
//!
//! A stage exists three times: as a [`Plugin`](crate::Plugin) (static: name, version, build function), as an
//! unbound stage (its settings, checked: [`Transform`], [`Quantizer`], [`Coder`]) and bound to a model
//! ([`BoundTransform`], [`BoundQuantizer`], [`BoundCoder`]: every size is known, every table is built).
//! Bound stages are called once per plane and part of a tile, from several threads, on buffers of the caller. A fourth
//! kind, [`Select`](crate::Select), goes before them and sees no values.
//!
//! Data flows as matrices `[rows, cols]`: rows are tokens (or anchors of groups of tokens), columns channels.
//!
//! # For implementations
//! * A bound stage must not allocate, lock or panic in its calls; what can depend on input is an error.
//! * Outputs must be overwritten whole; they come filled with rubbish.
//! * Equal inputs must give equal outputs on every machine: bytes that were written here are read elsewhere.
//!   Keep to IEEE operations that round correctly (`+ − × ÷ √`), give scales at most 16 significant bits so
//!   that `symbol × scale` is exact, and mind that a sum's order is part of its result. Matrix transforms
//!   may differ in the last bits; their documentation states the bound.
//! * `cacheg_core::testkit` (feature `testkit`) checks all of this with one macro.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    CoderKernel, Error, ExactTokens, Grader, Kernel, KernelStream, Kind, Plane, Result, StageData, Statistics,
};

/// What all stages have.
pub trait Stage: Debug + Send + Sync {
    /// The registered name.
    fn name(&self) -> &'static str;

    /// The settings with all defaults filled in; building a stage from them gives this stage again.
    fn config(&self) -> Value;
}

/// What a part of a plane is, for quantizers that treat parts differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// All of the plane.
    Whole,
    /// Tokens that others are predicted from.
    Anchor,
    /// What prediction leaves.
    Delta,
}

/// How many different symbols a stream may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alphabet {
    /// Symbols are `0 .. size`; 2 to 256.
    pub size: u16,
    /// The last symbol says that the value is among the tile's [`Escapes`].
    pub escape: bool,
}

/// Classes that a quantizer may tell its columns apart by: [`Part::classes`] are below this.
pub const CLASSES: usize = 96;

/// The class of columns whose deviation is one step.
pub const CLASS_OF_ONE: u8 = 40;

/// What is known of one part of a plane before any data is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Its role.
    pub role: Role,
    /// Its columns.
    pub cols: usize,
    /// One alphabet per symbol plane (a value may become several symbols); empty until a quantizer is bound.
    pub alphabets: Vec<Alphabet>,
    /// For each column how its symbols are distributed, if the quantizer knows: deviations in steps, in powers of
    /// 2<sup>¼</sup>, [`CLASS_OF_ONE`] being 1; below [`CLASSES`]. Otherwise empty.
    pub classes: Vec<u8>,
    /// By [grade](crate::Grader) what is added to the classes of its symbols; empty if the quantizer has no grades.
    pub grades: Vec<i8>,
}

impl Part {
    /// A part that no quantizer has seen yet.
    pub fn new(role: Role, cols: usize) -> Self {
        Self { role, cols, alphabets: Vec::new(), classes: Vec::new(), grades: Vec::new() }
    }
}

/// Where a stage's data (means, steps, tables) comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From a profile, calibrated on other contexts.
    Profile,
    /// From the chunk itself, which then carries it along.
    Chunk,
}

/// What a stage is bound to.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BindCx<'a> {
    /// The model's planes.
    pub planes: &'a [Plane],
    /// For each plane its parts; empty while transforms are bound.
    pub parts: &'a [Vec<Part>],
    /// What the stage's calibrator made; `None` for stages that have none.
    pub data: Option<&'a StageData>,
    /// Where `data` comes from, or will go.
    pub source: Source,
    /// Whether a tile's rows are consecutive tokens, so that [`TileCx::position`] says where each of them is. They are
    /// not behind a [`Select`](crate::Select); a stage that needs positions must then refuse to bind.
    pub consecutive: bool,
    /// What is known of the model beside KV caches: for calibrators only, and only if the user has given some.
    /// Binding never sees them, as decoders do not have them.
    pub statistics: Option<&'a Statistics>,
}

impl<'a> BindCx<'a> {
    /// A context for binding.
    pub fn new(
        planes: &'a [Plane],
        parts: &'a [Vec<Part>],
        data: Option<&'a StageData>,
        source: Source,
    ) -> Self {
        Self { planes, parts, data, source, consecutive: true, statistics: None }
    }

    /// The same behind a stage that drops tokens.
    #[must_use]
    pub fn behind_selection(self) -> Self {
        Self { consecutive: false, ..self }
    }

    /// The same with statistics, for calibrators.
    #[must_use]
    pub fn with_statistics(self, statistics: Option<&'a Statistics>) -> Self {
        Self { statistics, ..self }
    }

    /// The data that this stage cannot do without.
    ///
    /// # Errors
    /// If there is none.
    pub fn require_data(&self) -> Result<&'a StageData> {
        self.data.ok_or_else(|| Error::profile("this stage needs calibrated data and there is none"))
    }
}

/// One plane's rows in one tile.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct TileCx<'a> {
    /// The plane.
    pub plane: &'a Plane,
    /// First token of the tile, counted from the chunk's first (of those that were kept).
    pub first: usize,
    /// Tokens of the tile.
    pub rows: usize,
    /// Position of the tile's first token in the model's sequence; means nothing if rows are not
    /// [`consecutive`](BindCx::consecutive).
    pub position: u64,
    /// The [grades](crate::Grader) of its rows, `[rows, heads]`; empty if the quantizer has none.
    pub grades: &'a [u8],
}

impl<'a> TileCx<'a> {
    /// Names a tile.
    pub fn new(plane: &'a Plane, first: usize, rows: usize, position: u64) -> Self {
        Self { plane, first, rows, position, grades: &[] }
    }

    /// The same with grades, `[rows, heads]`.
    #[must_use]
    pub fn with_grades(self, grades: &'a [u8]) -> Self {
        Self { grades, ..self }
    }
}

/// One part of a plane in one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartCx {
    /// Index among the plane's parts.
    pub index: usize,
    /// Its role.
    pub role: Role,
    /// Its rows in this tile.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
}

impl PartCx {
    /// Names a part.
    pub fn new(index: usize, role: Role, rows: usize, cols: usize) -> Self {
        Self { index, role, rows, cols }
    }
}

/// First lossy-side stage: turns a plane into one or several parts that are cheaper to code.
pub trait Transform: Stage {
    /// Fixes all sizes for a model.
    ///
    /// # Errors
    /// If the model or the data does not suit the settings.
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>>;

    /// What gathers this stage's data, if it needs any; it sees whole planes.
    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        let _ = cx;
        None
    }

    /// Tokens that are stored bit for bit beside the tiles: no stage sees them. One stage of a pipeline may ask.
    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens::default()
    }
}

/// Most planes that one plane is predicted from.
pub const MAX_REFERENCES: usize = 16;

/// A transform bound to a model.
pub trait BoundTransform: Send + Sync {
    /// The parts of a plane, in coding order; at least one. Several only in the last transform of a pipeline.
    fn parts(&self, plane: &Plane) -> Vec<Part> {
        vec![Part::new(Role::Whole, plane.channels())]
    }

    /// Rows of a part when the tile has `rows` tokens.
    fn part_rows(&self, part: usize, rows: usize) -> usize {
        let _ = part;
        rows
    }

    /// Tiles begin at multiples of this many tokens.
    fn row_multiple(&self) -> usize {
        1
    }

    /// Whether a tile may be done in pieces, cut at multiples of [`row_multiple`](Self::row_multiple) tokens, with
    /// the results of the whole tile, cut likewise (each part: `part_rows` adds up). Pieces stay in the fastest cache; this
    /// is what makes a pipeline fast.
    fn independent_rows(&self) -> bool {
        false
    }

    /// Gives every bit back, NaN included; other transforms are never given values that are not finite.
    fn exact(&self) -> bool {
        false
    }

    /// Whether every value that comes back depends on nothing but what is at its place and on its channel: not on
    /// other rows or channels, side information or position; and whether it never falls as the value rises. What a
    /// symbol means, and where symbols change, can then be tabulated.
    fn pointwise(&self) -> bool {
        false
    }

    /// Planes that this one is predicted from, by index; all are before it. Their rows, as [`inverse`](Self::inverse) gave them
    /// to the decoder, are handed to [`forward`](Self::forward) as `done` and to `inverse` behind the part, in this order.
    ///
    /// One transform of a pipeline may have references, at most [`MAX_REFERENCES`] for each plane; then every transform has one
    /// part and [independent rows](Self::independent_rows), and so has the quantizer. This transform and all behind it must
    /// give the same bits on all machines and devices: differences would add up from plane to plane.
    fn references(&self, plane: &Plane) -> &[usize] {
        let _ = plane;
        &[]
    }

    /// The inverse as WGSL, if there is one.
    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        let _ = planes;
        None
    }

    /// Computes a part from the tile `x`. `done` holds the earlier parts as the decoder will see them, or the
    /// [references](Self::references).
    ///
    /// # Errors
    /// If a value cannot be transformed.
    fn forward(
        &self,
        tile: &TileCx<'_>,
        part: usize,
        x: ArrayView2<'_, f32>,
        done: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;

    /// Computes the tile from all its parts, and the [references](Self::references) behind them.
    ///
    /// # Errors
    /// If a value cannot be transformed.
    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;
}

/// Second lossy-side stage: values to symbols and side information of known length.
pub trait Quantizer: Stage {
    /// Fixes alphabets and steps for a model.
    ///
    /// # Errors
    /// If the model or the data does not suit the settings.
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>>;

    /// What gathers this stage's data, if it needs any; it sees the parts of the planes.
    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        let _ = cx;
        None
    }

    /// Whether it has a [grader](BoundQuantizer::grader) once it is bound: chunks then carry grades.
    fn graded(&self) -> bool {
        false
    }

    /// Whether it goes by how much attention tokens got ([`Importance`](crate::Importance)), when it encodes.
    fn wants_importance(&self) -> bool {
        false
    }
}

/// A quantizer bound to a model.
///
/// A part of `rows × cols` values becomes `rows × cols` symbols for each alphabet, one symbol plane after the
/// other, each row-major.
pub trait BoundQuantizer: Send + Sync {
    /// The alphabets of a part's symbol planes; at least one.
    fn alphabets(&self, plane: &Plane, part: &Part, index: usize) -> Vec<Alphabet>;

    /// The [classes](Part::classes) of a part's columns, one for each, if there are any: coders may share tables by them.
    fn classes(&self, plane: &Plane, part: &Part, index: usize) -> Vec<u8> {
        let _ = (plane, part, index);
        Vec::new()
    }

    /// What gives single tokens finer or coarser steps, if something does; see [`TileCx::grades`]. The quantizer then has one
    /// part, of one symbol plane.
    fn grader(&self) -> Option<&dyn Grader> {
        None
    }

    /// By grade what it adds to the [classes](Self::classes), if there are grades.
    fn grades(&self) -> Vec<i8> {
        Vec::new()
    }

    /// Bytes of side information of a part, exactly.
    fn side_len(&self, plane: &Plane, part: &PartCx) -> usize;

    /// Tiles begin at multiples of this many tokens.
    fn row_multiple(&self) -> usize {
        1
    }

    /// Whether a tile may be done in pieces, cut at multiples of [`row_multiple`](Self::row_multiple) tokens, with
    /// the results of the whole tile, cut likewise (symbols of each symbol plane, side information). Pieces stay in the fastest cache; this
    /// is what makes a pipeline fast.
    fn independent_rows(&self) -> bool {
        false
    }

    /// Reproduces every bit, NaN included; other quantizers are never given values that are not finite.
    fn exact(&self) -> bool {
        false
    }

    /// Whether symbols of this quantizer may escape.
    fn escapes(&self) -> bool {
        false
    }

    /// Whether every value that comes back depends on nothing but what is at its place and on its channel: not on
    /// other rows or channels, side information or position; and whether it never falls as the value rises. What a
    /// symbol means, and where symbols change, can then be tabulated.
    fn pointwise(&self) -> bool {
        false
    }

    /// [`dequantize`](Self::dequantize) as WGSL, if there is such a thing.
    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        let _ = planes;
        None
    }

    /// The value that an escape among the symbols of a segment stands for, in a column of its part; of quantizers that
    /// [escape](Self::escapes) and have a kernel.
    ///
    /// # Errors
    /// If that is impossible.
    fn escaped(&self, plane: &Plane, segment: &Segment, col: usize, value: i32) -> Result<f32> {
        let _ = (plane, segment, col, value);
        Err(Error::unsupported("this quantizer gives no value to single escapes"))
    }

    /// Quantises one part.
    ///
    /// # Errors
    /// If a value cannot be represented.
    fn quantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        x: ArrayView2<'_, f32>,
        symbols: &mut [u8],
        side: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()>;

    /// Reconstructs one part. Symbols are below their alphabet's size; everything else may be corrupt.
    ///
    /// # Errors
    /// If side information or escapes are impossible.
    fn dequantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;
}

/// The values whose symbols are escapes, in the order of the symbols: `(symbol index, value)`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Escapes {
    items: Vec<(u32, i32)>,
}

impl Escapes {
    /// All of them; indices count the tile's symbols and increase.
    pub fn items(&self) -> &[(u32, i32)] {
        &self.items
    }

    /// Forgets them, keeps the memory.
    pub fn clear(&mut self) {
        self.items.clear();
    }

    /// Adds one; indices must increase.
    pub(crate) fn push(&mut self, index: u32, value: i32) {
        self.items.push((index, value));
    }

    /// Gives all of them other indices, and sorts them.
    pub(crate) fn renumber(&mut self, number: impl Fn(u32) -> u32) {
        self.items.iter_mut().for_each(|(index, _)| *index = number(*index));
        self.items.sort_unstable_by_key(|(index, _)| *index);
    }

    /// A writer for the part whose first symbol is number `base` of the tile.
    pub fn writer(&mut self, base: u32) -> EscapeWriter<'_> {
        EscapeWriter { escapes: self, base }
    }

    /// A reader for the `len` symbols from number `base` of the tile.
    pub fn reader(&self, base: u32, len: u32) -> EscapeReader<'_> {
        let from = self.items.partition_point(|(index, _)| *index < base);
        let to =
            self.items.partition_point(|(index, _)| u64::from(*index) < u64::from(base) + u64::from(len));
        EscapeReader { items: &self.items[from..to], base }
    }

    /// A reader of all from the item `from`, of the part whose first symbol is number `base` of the tile.
    pub(crate) fn reader_from(&self, from: usize, base: u32) -> EscapeReader<'_> {
        EscapeReader { items: &self.items[from..], base }
    }
}

/// Takes a part's escapes.
#[derive(Debug)]
pub struct EscapeWriter<'a> {
    escapes: &'a mut Escapes,
    base: u32,
}

impl EscapeWriter<'_> {
    /// The value of the part's symbol number `index`; indices must increase.
    pub fn push(&mut self, index: usize, value: i32) {
        self.escapes.push(self.base + index as u32, value);
    }
}

/// Hands out a part's escapes.
#[derive(Debug)]
pub struct EscapeReader<'a> {
    items: &'a [(u32, i32)],
    base: u32,
}

impl EscapeReader<'_> {
    /// The value of the part's symbol number `index`, which is an escape.
    ///
    /// # Errors
    /// If the next escape belongs to another symbol.
    pub fn next(&mut self, index: usize) -> Result<i32> {
        match self.items.split_first() {
            Some((&(at, value), rest)) if at == self.base + index as u32 => {
                self.items = rest;
                Ok(value)
            }
            _ => Err(Error::corrupt("an escape symbol without its value")),
        }
    }

    /// Checks that all were used.
    ///
    /// # Errors
    /// If some are left.
    pub fn finish(&self) -> Result<()> {
        if self.items.is_empty() {
            Ok(())
        } else {
            Err(Error::corrupt("an escaped value without its symbol"))
        }
    }
}

/// Last stage: symbols to bytes and back, exactly.
pub trait Coder: Stage {
    /// Builds the tables for a model.
    ///
    /// # Errors
    /// If the data does not suit the parts.
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundCoder>>;

    /// What gathers the tables, if there are any; it sees the symbols.
    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        let _ = cx;
        None
    }

    /// Writes the data that a chunk carries for this stage.
    ///
    /// # Errors
    /// If `data` is not this stage's.
    fn pack(&self, cx: &BindCx<'_>, data: &StageData) -> Result<Vec<u8>> {
        let _ = cx;
        data.to_bytes()
    }

    /// Reads what [`pack`](Self::pack) wrote.
    ///
    /// # Errors
    /// If the bytes are corrupt.
    fn unpack(&self, cx: &BindCx<'_>, bytes: &[u8]) -> Result<StageData> {
        let _ = cx;
        StageData::from_bytes(bytes)
    }
}

/// A run of symbols with one alphabet: one symbol plane of one part of one plane, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// Index of the plane.
    pub plane: usize,
    /// Index of the part.
    pub part: usize,
    /// Index of the symbol plane.
    pub symbol_plane: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// The alphabet.
    pub alphabet: Alphabet,
    /// Its first column among those of the part.
    pub first_col: usize,
    /// The [grade](crate::Grader) of its rows; 0 without grades.
    pub grade: u8,
}

impl Segment {
    /// Describes a run of symbols.
    pub fn new(
        plane: usize,
        part: usize,
        symbol_plane: usize,
        rows: usize,
        cols: usize,
        alphabet: Alphabet,
    ) -> Self {
        Self { plane, part, symbol_plane, rows, cols, alphabet, first_col: 0, grade: 0 }
    }

    /// The same of some of the part's columns, from `first_col`, in rows of one grade.
    #[must_use]
    pub fn of_grade(self, first_col: usize, grade: u8) -> Self {
        Self { first_col, grade, ..self }
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no symbols.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A coder's working memory, one per thread.
pub type CoderScratch = Box<dyn Any + Send>;

/// A stream to write, one of a batch: the arguments of [`BoundCoder::encode`], and its answer.
#[derive(Debug)]
pub struct EncodeJob<'a> {
    /// Its segments.
    pub segments: &'a [Segment],
    /// Their symbols.
    pub symbols: &'a [u8],
    /// Room for at least `max_len` bytes.
    pub out: &'a mut [u8],
    /// The stream's length; 0 until it is written.
    pub result: Result<usize>,
}

impl<'a> EncodeJob<'a> {
    /// A stream that is not written yet.
    pub fn new(segments: &'a [Segment], symbols: &'a [u8], out: &'a mut [u8]) -> Self {
        Self { segments, symbols, out, result: Ok(0) }
    }
}

/// A stream to read, one of a batch: the arguments of [`BoundCoder::decode`], and its answer.
#[derive(Debug)]
pub struct DecodeJob<'a> {
    /// Its segments.
    pub segments: &'a [Segment],
    /// The whole stream.
    pub bytes: &'a [u8],
    /// Room for the symbols.
    pub symbols: &'a mut [u8],
    /// Whether the stream was good.
    pub result: Result<()>,
}

impl<'a> DecodeJob<'a> {
    /// A stream that is not read yet.
    pub fn new(segments: &'a [Segment], bytes: &'a [u8], symbols: &'a mut [u8]) -> Self {
        Self { segments, bytes, symbols, result: Ok(()) }
    }
}

/// The element (f16 or bf16 bits) that each symbol of an alphabet of up to 32 stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ElementTable(pub [u16; 32]);

/// A stream to read as elements, one of a batch; see [`BoundCoder::decode_elements`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ElementJob<'a> {
    /// Its segments; none has more than 32 symbols.
    pub segments: &'a [Segment],
    /// The whole stream.
    pub bytes: &'a [u8],
    /// One for each column, those of one segment after the other.
    pub tables: &'a [ElementTable],
    /// How many symbols were escapes.
    pub escaped: usize,
    /// Whether the stream was good.
    pub result: Result<()>,
}

impl<'a> ElementJob<'a> {
    /// A stream that is not read yet.
    pub fn new(segments: &'a [Segment], bytes: &'a [u8], tables: &'a [ElementTable]) -> Self {
        Self { segments, bytes, tables, escaped: 0, result: Ok(()) }
    }
}

/// Orders elements (f16 or bf16 bits) as numbers, `-0` below `+0` and NaNs at the ends.
#[inline(always)]
pub const fn element_key(bits: u16) -> i16 {
    let key = bits.cast_signed();
    key ^ ((key >> 15).cast_unsigned() >> 1).cast_signed()
}

/// The ascending [keys](element_key) at which the symbols of a column change, of an alphabet of `n + 1`, the last being
/// an escape: with `k` of them at or below an element's key, its symbol is `k − 1`, but an escape if `k` is 0 or above
/// `n`. Those behind `n + 1` are no finite number's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct SymbolBounds(pub [i16; 32]);

impl SymbolBounds {
    /// The symbol of an element.
    #[inline(always)]
    pub fn symbol(&self, element: u16, escape: u8) -> u8 {
        let key = element_key(element);
        let count = self.0.iter().map(|bound| u16::from(*bound <= key)).sum::<u16>();
        count.wrapping_sub(1).min(u16::from(escape)) as u8
    }
}

/// A stream to write from elements, one of a batch; see [`BoundCoder::encode_elements`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ElementEncodeJob<'a> {
    /// Its segments; all have escapes, and none more than 32 symbols.
    pub segments: &'a [Segment],
    /// One for each column, those of one segment after the other.
    pub bounds: &'a [SymbolBounds],
    /// Room for at least `max_len` bytes.
    pub out: &'a mut [u8],
    /// Takes the indices of the symbols that are escapes, in any order; those beyond its capacity are left out.
    pub escaped: Vec<u32>,
    /// The stream's length; 0 until it is written.
    pub result: Result<usize>,
}

impl<'a> ElementEncodeJob<'a> {
    /// A stream that is not written yet.
    pub fn new(
        segments: &'a [Segment],
        bounds: &'a [SymbolBounds],
        out: &'a mut [u8],
        escaped: Vec<u32>,
    ) -> Self {
        Self { segments, bounds, out, escaped, result: Ok(0) }
    }
}

/// Where elements of some columns of a segment are, as [`ElementWindow`] says where they go.
#[derive(Debug)]
#[non_exhaustive]
pub struct ElementSpan<'a> {
    /// The columns of the segment.
    pub cols: Range<usize>,
    /// Memory that holds all of the segment's rows.
    pub bytes: &'a [u8],
    /// Where in it the first column of the first row is.
    pub begin: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Where what is read next probably begins, with the same stride: worth asking the memory for, no more.
    pub next: &'a [u8],
}

impl<'a> ElementSpan<'a> {
    /// A span; all of its rows must be inside `bytes`.
    pub fn new(cols: Range<usize>, bytes: &'a [u8], begin: usize, stride: usize, next: &'a [u8]) -> Self {
        Self { cols, bytes, begin, stride, next }
    }
}

/// Shows where elements are.
pub trait ElementSource {
    /// Calls `read` with spans that together are these columns of a segment of one of the batch's streams.
    fn open(&self, job: usize, segment: usize, cols: Range<usize>, read: &mut dyn FnMut(&ElementSpan<'_>));
}

/// Where elements of some columns of a segment go; little-endian, 2 bytes each, the columns of a row side by side.
#[derive(Debug)]
#[non_exhaustive]
pub struct ElementWindow<'a> {
    /// The columns of the segment.
    pub cols: Range<usize>,
    /// Memory that has room for all of the segment's rows.
    pub bytes: &'a mut [u8],
    /// Where in it the first column of the first row is.
    pub begin: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Lines may go past the cache. Whoever has given the window sees to the fence.
    pub streaming: bool,
}

impl<'a> ElementWindow<'a> {
    /// A window; all of its rows must be inside `bytes`.
    pub fn new(
        cols: Range<usize>,
        bytes: &'a mut [u8],
        begin: usize,
        stride: usize,
        streaming: bool,
    ) -> Self {
        Self { cols, bytes, begin, stride, streaming }
    }
}

/// Opens windows for elements.
pub trait ElementSink {
    /// Calls `write` with windows that together are these columns of a segment of one of the batch's streams.
    fn open(
        &mut self,
        job: usize,
        segment: usize,
        cols: Range<usize>,
        write: &mut dyn FnMut(&mut ElementWindow<'_>),
    );
}

/// A coder bound to a model. A stream is one tile: its segments lie one after the other in `symbols`.
pub trait BoundCoder: Send + Sync {
    /// Bytes that [`encode`](Self::encode) never exceeds, whatever the symbols.
    fn max_len(&self, segments: &[Segment]) -> usize;

    /// Fresh working memory.
    fn scratch(&self) -> CoderScratch {
        Box::new(())
    }

    /// Writes a stream to the front of `out`, which holds at least `max_len` bytes; returns its length.
    ///
    /// # Errors
    /// If a symbol is outside its alphabet.
    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        scratch: &mut CoderScratch,
    ) -> Result<usize>;

    /// Reads a stream. `bytes` is the whole stream and nothing else; any other length is an error, symbols
    /// outside their alphabet too.
    ///
    /// # Errors
    /// If the bytes are corrupt. `symbols` then holds rubbish.
    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        scratch: &mut CoderScratch,
    ) -> Result<()>;

    /// How many streams at a time the batch calls like best. Worth 2 or more to coders that wait for results
    /// of one stream and can work on another meanwhile.
    fn batch(&self) -> usize {
        1
    }

    /// Writes streams that have nothing to do with each other. Each job gets what [`encode`](Self::encode)
    /// would have returned, whatever becomes of the others.
    fn encode_batch(&self, jobs: &mut [EncodeJob<'_>], scratch: &mut CoderScratch) {
        for job in jobs {
            job.result = self.encode(job.segments, job.symbols, job.out, scratch);
        }
    }

    /// Reads streams that have nothing to do with each other. Each job gets what [`decode`](Self::decode)
    /// would have returned, whatever becomes of the others.
    fn decode_batch(&self, jobs: &mut [DecodeJob<'_>], scratch: &mut CoderScratch) {
        for job in jobs {
            job.result = self.decode(job.segments, job.bytes, job.symbols, scratch);
        }
    }

    /// As [`encode_batch`](Self::encode_batch), but symbols are found from where they change, and elements are read from
    /// where `source` says.
    fn encode_elements(
        &self,
        jobs: &mut [ElementEncodeJob<'_>],
        source: &dyn ElementSource,
        scratch: &mut CoderScratch,
    ) {
        let _ = (source, scratch);
        for job in jobs {
            job.result = Err(Error::unsupported("this coder takes symbols only"));
        }
    }

    /// Whether [`decode_elements`](Self::decode_elements) and [`encode_elements`](Self::encode_elements) are there, and
    /// faster than symbols.
    fn has_elements(&self) -> bool {
        false
    }

    /// As [`decode_batch`](Self::decode_batch), but what the symbols stand for is written to where `sink` says. It is
    /// rubbish if the job's result is not that the stream was good.
    fn decode_elements(
        &self,
        jobs: &mut [ElementJob<'_>],
        sink: &mut dyn ElementSink,
        scratch: &mut CoderScratch,
    ) {
        let _ = (sink, scratch);
        for job in jobs {
            job.result = Err(Error::unsupported("this coder gives symbols only"));
        }
    }

    /// [`decode`](Self::decode) as WGSL, if there is such a thing.
    fn kernel(&self) -> Option<CoderKernel> {
        None
    }

    /// How the kernel decodes a stream. Checks the stream's lengths.
    ///
    /// # Errors
    /// If they are impossible.
    fn kernel_stream(&self, segments: &[Segment], bytes: &[u8]) -> Result<KernelStream> {
        let _ = (segments, bytes);
        Err(Error::unsupported("this coder has no kernel"))
    }

    /// Bits that an ideal coder would need for these symbols under the same tables, for reports.
    fn ideal_bits(&self, segments: &[Segment], symbols: &[u8]) -> Option<f64> {
        let _ = (segments, symbols);
        None
    }
}

/// Gathers a stage's data over any number of chunks, plane by plane.
pub trait Calibrator: Send + Sync {
    /// An empty accumulator for one plane.
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator>;

    /// Planes before this one, by index, whose rows its accumulator wants to see, too: as a decoder has them, once there is
    /// one. See [`BoundTransform::references`].
    fn references(&self, plane: &Plane) -> Vec<usize> {
        let _ = plane;
        Vec::new()
    }

    /// Of quantizers: what grades the tokens that accumulators see, those of transforms, too, as [the bound
    /// one's](BoundQuantizer::grader) would. It does not depend on the parts that the calibrator is made for.
    fn grader(&self) -> Option<&dyn Grader> {
        None
    }

    /// Makes the stage's data from the finished accumulators, in the order of the planes.
    ///
    /// # Errors
    /// If nothing useful was seen.
    fn finish(&self, planes: Vec<StageData>) -> Result<StageData>;
}

/// Gathers one plane's statistics.
pub trait Accumulator: Send {
    /// Sees one part of one tile.
    ///
    /// # Errors
    /// If the data is unusable.
    fn observe(&mut self, tile: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()>;

    /// What was gathered.
    ///
    /// # Errors
    /// If nothing useful was seen.
    fn finish(self: Box<Self>) -> Result<StageData>;
}

/// What a calibrator is shown: the input of its stage.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// To transforms and quantizers.
    Values(ArrayView2<'a, f32>),
    /// To transforms whose calibrator has [references](Calibrator::references): the plane, and these.
    Predicted(ArrayView2<'a, f32>, &'a [ArrayView2<'a, f32>]),
    /// To coders: one symbol plane, row-major, with its index.
    Symbols(usize, &'a [u8]),
}

/// Reads a stage's settings and names the stage in errors.
///
/// # Errors
/// Unknown or ill-typed settings.
pub fn settings<T: DeserializeOwned>(stage: &str, config: &Value) -> Result<T> {
    let config = if config.is_null() { &Value::Object(serde_json::Map::new()) } else { config };
    T::deserialize(config).map_err(|e| Error::setting(e.to_string()).at(format!("stage `{stage}`")))
}

/// Writes a stage's settings.
///
/// # Panics
/// If the settings cannot be written as JSON, which their type rules out.
pub fn config<T: Serialize>(settings: &T) -> Value {
    #[expect(clippy::expect_used, reason = "settings are plain structs of numbers, strings and lists")]
    serde_json::to_value(settings).expect("settings are JSON")
}

/// A setting with one value for everything, or a list (say one value per layer group); written in a spec
/// string as `k=32` or `k=32,16,16`. Never empty.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct List<T>(Vec<T>);

impl<T: Copy> List<T> {
    /// The values.
    pub fn values(&self) -> &[T] {
        &self.0
    }

    /// The value of the `index`-th of `count` items that are split into groups as equal as can be, one for
    /// each value.
    pub fn spread(&self, index: usize, count: usize) -> T {
        let groups = self.0.len();
        self.0[(index * groups / count.max(1)).min(groups - 1)]
    }

    /// The value for keys (the first), values or latents (the last).
    pub fn of_kind(&self, kind: Kind) -> T {
        match kind {
            Kind::Key => self.0[0],
            Kind::Value | Kind::Latent => self.0[self.0.len() - 1],
        }
    }
}

impl<T> From<T> for List<T> {
    fn from(value: T) -> Self {
        Self(vec![value])
    }
}

impl<T: Clone> From<&[T]> for List<T> {
    /// # Panics
    /// If the slice is empty.
    fn from(values: &[T]) -> Self {
        assert!(!values.is_empty(), "a list setting is never empty");
        Self(values.to_vec())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let value = Value::deserialize(deserializer)?;
        let items = match value {
            Value::Array(items) => items,
            single => vec![single],
        };
        if items.is_empty() {
            return Err(D::Error::custom("the list is empty"));
        }
        items.into_iter().map(T::deserialize).collect::<Result<_, _>>().map(Self).map_err(D::Error::custom)
    }
}
