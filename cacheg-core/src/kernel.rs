//! Stages as WGSL: the text and the parameters that a GPU backend composes into programs. Core knows no GPU.
//!
//! A stage that can be undone on a GPU offers a [`Kernel`]: WGSL text and a block of words that the text reads. `$name` in
//! the text is the stage's own `name`, so that stages cannot collide; these are special:
//!
//! | | |
//! |---|---|
//! | `$data(i)` | word `i` of the stage's block |
//! | `$inner(p)` | of transforms: the value that the next stage gives back at place `p` |
//!
//! Texts are written for one place at a time: a backend asks the first transform for a value, which asks the next stage,
//! and so on to the coder. What a text defines:
//!
//! * a **transform**: `fn $value(p: Place) -> f32`, its output at row and column `p.row`, `p.col`. It asks for a part by
//!   `$inner(in_part(p, part, row))`, and for another channel by `$inner(in_col(p, col))`.
//! * a **transform by a matrix** ([`Rows::Matrix`]), whose every output depends on a whole head: instead of `$value`
//!   `fn $rows(t: HeadRows, lane: u32)`; see below.
//! * a **transform by other planes** ([`Rows::References`]): `$value`, and `fn $predict`; see below.
//! * a **quantizer**: `fn $value(p: Place) -> f32`, from `symbol(p, symbol_plane)`, `grade(p)` (the [grade](crate::Grader) of its
//!   row and head, 0 without grades), `side_u16(p, i)` (the `i`-th two bytes of the part's side information) and, where the
//!   symbol (of symbol plane 0) is an escape, `escape(p)`: what [`escaped`](crate::BoundQuantizer::escaped) made of it. An [`exact`](crate::BoundQuantizer::exact) one also defines
//!   `fn $element(p: Place) -> u32`, the element's bits.
//! * a **coder**: `fn $symbol(segment: u32, row: u32, col: u32) -> u32`, and what [`CoderKernel`] says.
//!
//! Any may also define `fn $enter(plane: u32)`, which is called before its values of that plane are asked for: to keep what
//! `$data` says of the plane in private variables.
//!
//! All may use `Place { plane, part, row, col, tile }`, `part_rows(p)`, `part_cols(p)`, `position(p)` (where a row of the
//! tile is in the model's sequence: a low and a high word), `widen(dtype, bits)`, `narrow(dtype, value)` (`dtype` as
//! [`dtype_code`]), and `fault(tile, code)` with one of the constants `FAULT_…`, which makes decoding fail as an error of the
//! CPU's would. `cacheg-gpu/src/wgsl/prelude.wgsl` is the reference.
//!
//! Bits must be those of the CPU's inverse: keep to `+ − ×`, of which every product that is added to something is exact
//! (contraction must not matter), and round in integers; WGSL's division and conversions do not round as IEEE 754 does.
//! Transforms that cannot (rotations, products with matrices) state the bound of their error.
//!
//! # Whole rows of heads
//!
//! A transform by a matrix works in place on some rows of one head, in workgroup memory, with all `ROWS_LANES` (256)
//! invocations of a workgroup: `t` has `plane`, `tile`, `head`, `first` (which row of the tile its first is), `rows` and `dim`
//! (channels of a head), and the value at row `r`, channel `c` is `row_values[r * t.dim + c]`. When `$rows` is called all
//! values are there, and when it returns all must be; between, what others have written is there behind a
//! `workgroupBarrier()`. An invocation's share is at most `ROWS_VALUES / ROWS_LANES` values (16), so that a product with a
//! matrix can be summed up in an array of that size and be written behind a barrier. `t` is the same for all invocations, so
//! loops over it may have barriers; there are 16 KiB of workgroup memory in WebGPU, all taken by `row_values`.
//!
//! A program has at most one such transform. Those in front of it must say [`Rows::Head`] or [`Rows::Same`], as only one
//! head's rows are there; behind it anything goes. Where planes are predicted from others, all that is between it and the
//! predicting transform must, and no more.
//!
//! # Planes that are predicted from others
//!
//! A transform with [references](crate::BoundTransform::references), and no other, says [`Rows::References`]. Planes are made in their
//! order then, each in two steps, and what the transform gives back for a plane is kept for those after it:
//!
//! 1. `fn $predict(t: PlaneRows, lane: u32)`, of planes with references, sees nothing but these. It is for some rows and columns
//!    of a plane, `t` having `plane`, `first` (the first row), `rows` (at most `PREDICT_ROWS`, 16), `col` (the first column) and
//!    `cols` (at most `PREDICT_COLS`, 256), the same for all invocations of a workgroup, of which there are `PREDICT_COLS`. All
//!    of WebGPU's 16 KiB of workgroup memory are the text's own, not zeros at first. `reference(plane, row, col)` is a value of a
//!    plane before, at a row of the tile. For each place it leaves a word: `foretell(t, row, col, word)`.
//! 2. `$value(p)` makes the value of `$inner(p)` at its own place and of that word, `foretold(p)`, which says nothing where the plane
//!    has no references.
//!
//! Drivers end invocations that loop too often: backends refuse references of more than 32,768 channels together, and a text may
//! loop over these once.

use std::borrow::Cow;
use std::ops::Range;

use crate::Dtype;

/// A stage's share of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernel {
    /// WGSL text.
    pub source: Cow<'static, str>,
    /// What `$data(i)` reads.
    pub data: Vec<u32>,
    /// Of transforms: which rows a value needs.
    pub rows: Rows,
}

impl Kernel {
    /// A text and its parameters. Of a transform, values may need any others.
    pub fn new(source: impl Into<Cow<'static, str>>, data: Vec<u32>) -> Self {
        Self { source: source.into(), data, rows: Rows::Any }
    }

    /// The same, of a transform whose values need only such rows.
    #[must_use]
    pub fn with_rows(self, rows: Rows) -> Self {
        Self { rows, ..self }
    }
}

/// Which rows of the next stage the values of a transform's inverse need. A backend makes values as soon as symbols are
/// decoded, in one pass, where all transforms say `Same` or `Parts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rows {
    /// Any rows and channels.
    Any,
    /// One part; each value needs the one at its own place.
    Same,
    /// Several parts; each value needs one of its channel in a row of the last part that has one for it, and others of its
    /// channel in earlier parts. The text defines `fn $row(part: u32, row: u32) -> u32`: the row whose values are complete with
    /// this row of a part.
    Parts,
    /// One part; each value may need all of its own row and head.
    Head,
    /// One part; the text defines `$rows` instead of `$value`, on whole rows of heads.
    Matrix,
    /// One part; each value needs the one at its own place, and the same row of the plane's references.
    References,
}

/// A coder's share of a program.
///
/// Streams consist of runs that are decoded independently, each by so many invocations, which keep what they know from
/// dispatch to dispatch. With lanes, the text also defines `fn $decode(run: Run, lane: u32)`: it takes the run's units from
/// `run.first` to `run.end`, reads and writes `state(run, i)` and `set_state(run, i, word)`, and leaves the symbols where
/// `$symbol` finds them, in the segments' scratch (`scratch_get`, `scratch_set`). `run.first` and `run.end` are the same for
/// all lanes of a run. If there are several they may use barriers, `ballot(lane, vote)`, which tells all of them who votes
/// (bit `i` for lane `i`), and `give(lane, entry)` and then `given_x(i)`, `given_y(i)` and
/// `given_z(i)`: the words of the entry, a `vec3<u32>`, of lane `i`.
///
/// A coder that [hands over columns](Self::columns) makes one pass of the program possible: its units are the columns of its
/// segments, and where `columns_together(segment)` is not 0 it calls `emit(segment, row, col, symbols)` for every row of so many
/// columns, of which `col` is the first, once they are decoded. It leaves symbols in scratch only where `kept(segment)` says so,
/// and begins segments with `storageBarrier()`. Dispatches are cut at multiples of four units only. `STASH_WORDS` words of workgroup memory are enough for one byte per row of these columns,
/// each lane's rows rounded up to a multiple of four.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoderKernel {
    /// Text and parameters.
    pub kernel: Kernel,
    /// Invocations of a run; 0 if `$symbol` reads the stream itself and nothing needs to run before.
    pub lanes: u32,
    /// Words of state of each run.
    pub state: u32,
    /// Whether it hands over columns as soon as they are decoded.
    pub columns: bool,
}

impl CoderKernel {
    /// A coder's text, parameters and shape.
    pub fn new(kernel: Kernel, lanes: u32, state: u32) -> Self {
        Self { kernel, lanes, state, columns: false }
    }

    /// The same, of a coder that hands over columns.
    #[must_use]
    pub fn with_columns(self) -> Self {
        Self { columns: true, ..self }
    }
}

/// How a stream is decoded by a [`CoderKernel`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelStream {
    /// Of each segment: words of scratch, and a word of the coder's own.
    pub segments: Vec<[u32; 2]>,
    /// What is decoded.
    pub runs: Vec<KernelRun>,
}

impl KernelStream {
    /// Segments and runs.
    pub fn new(segments: Vec<[u32; 2]>, runs: Vec<KernelRun>) -> Self {
        Self { segments, runs }
    }
}

/// A part of a stream that is decoded by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelRun {
    /// Its bytes in the stream.
    pub bytes: Range<u32>,
    /// Its segments.
    pub segments: Range<u32>,
    /// A word of the coder's own.
    pub own: u32,
    /// Units of work, which dispatches can be cut between.
    pub units: u32,
    /// Most loop iterations of one unit.
    pub cost: u32,
}

impl KernelRun {
    /// A run.
    pub fn new(bytes: Range<u32>, segments: Range<u32>, own: u32, units: u32, cost: u32) -> Self {
        Self { bytes, segments, own, units, cost }
    }
}

/// All kernels of a plan, in the order of its stages, with their names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kernels {
    /// Of the transforms.
    pub transforms: Vec<(String, Kernel)>,
    /// Of the quantizer.
    pub quantizer: (String, Kernel),
    /// Of the coder.
    pub coder: (String, CoderKernel),
    /// Whether elements come from the quantizer as they are, not by way of values.
    pub exact: bool,
    /// Whether tokens have grades; symbols then are [arranged](crate::Segment::grade) by them.
    pub graded: bool,
    /// The planes that each plane is predicted from, by index; empty if none is.
    pub references: Vec<Vec<usize>>,
}

/// The number of an element type in WGSL: 0 to 4 for f16, bf16, f32, f8 e4m3 and f8 e5m2.
pub fn dtype_code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 0,
        Dtype::Bf16 => 1,
        Dtype::F32 => 2,
        Dtype::F8E4m3 => 3,
        Dtype::F8E5m2 => 4,
    }
}
