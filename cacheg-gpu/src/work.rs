//! What a program works on: some tiles of a chunk as records and buffers, without any GPU.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cacheg_core::{
    Error, GRADES, Layout, OpenChunk, OpenTile, Order, Plan, Plane, Result, ResultExt, dtype_code,
};

use crate::program::{MOST_STAGES, Predicted, Program};

/// Most loop iterations of an invocation in one dispatch. Mesa 22 ends invocations without a word after 65,535.
const MOST_ITERATIONS: u32 = 24_576;

/// Zeros behind the coded tiles: lanes read the word that they would take next, whether they take it or not.
const PADDING: usize = 32;

/// Segments of a tile, at most: invocations go past them in each dispatch.
const MOST_SEGMENTS: usize = 32_768;

/// Elements of a plane of a tile are counted in 22 bits; see quotient.wgsl.
const MOST_ELEMENTS: usize = 1 << 22;

/// `Window` in prelude.wgsl.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Window {
    pub(crate) runs: u32,
    pub(crate) segments: u32,
    pub(crate) tiles: u32,
    pub(crate) pieces: u32,
    pub(crate) escapes: u32,
    pub(crate) run_count: u32,
    pub(crate) piece_count: u32,
    pub(crate) escape_count: u32,
    pub(crate) round: u32,
    pub(crate) first_piece: u32,
    pub(crate) order: u32,
    pub(crate) marks: u32,
    pub(crate) planes: u32,
    pub(crate) orders: u32,
    pub(crate) kept: u32,
    pub(crate) unused: u32,
    pub(crate) stages: [u32; MOST_STAGES],
}

/// Words of the records in prelude.wgsl.
const RUN_WORDS: usize = 8;
const SEGMENT_WORDS: usize = 11;
const PIECE_WORDS: usize = 17;
/// Which word of a piece says its plane.
const PIECE_PLANE: usize = 5;
const ESCAPE_WORDS: usize = 4;
const SEGMENT_COMPLETE: u32 = 16;
const SEGMENT_KEPT: u32 = 32;

/// Where a plane's elements go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlaneTarget {
    /// The first word of the plane in the output.
    pub(crate) word: usize,
    /// Rows that it has there.
    pub(crate) capacity: usize,
    /// Which of them is the first one that is coded.
    pub(crate) row: usize,
}

/// Rows of a plane in the output of a window, where elements do not go elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlaneOutput {
    /// Which of the chunks that are decoded together.
    pub(crate) chunk: usize,
    pub(crate) plane: usize,
    /// Counted from the first row that is coded.
    pub(crate) rows: Range<usize>,
    /// Its first word.
    pub(crate) word: usize,
    /// Its bytes.
    pub(crate) bytes: usize,
}

/// Which tile: layout of its chunk, and place in it.
#[derive(Debug, Clone)]
pub(crate) struct TileName {
    pub(crate) chunk: Arc<str>,
    pub(crate) layout: Layout,
    pub(crate) index: usize,
}

impl std::fmt::Display for TileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.chunk, self.layout.name(self.index))
    }
}

/// Everything that is sent to a GPU for some tiles, and what comes back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    pub(crate) window: Window,
    pub(crate) payload: Vec<u32>,
    pub(crate) table: Vec<u32>,
    pub(crate) scratch_words: usize,
    pub(crate) state_words: usize,
    /// 0 if elements go elsewhere.
    pub(crate) output_words: usize,
    /// Whether the output must hold zeros before.
    pub(crate) zeros: bool,
    /// Dispatches of `decode`.
    pub(crate) rounds: u32,
    /// Most workgroups that the elements of a piece need.
    pub(crate) groups: usize,
    /// The same of its prediction, and of values that are kept.
    pub(crate) predict_groups: usize,
    pub(crate) keep_groups: usize,
    /// Words of values that are kept; the rows that the last tile's are among, and where these begin.
    kept_words: usize,
    kept_rows: Option<(usize, usize, usize)>,
    pub(crate) outputs: Vec<PlaneOutput>,
    /// The tiles, for messages.
    pub(crate) tiles: Vec<TileName>,
    /// Values that come out.
    pub(crate) values: u64,
    records: Records,
}

/// A record number, or an error where 32 bits do not suffice.
fn word(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::limit("more than 32 bits can count on a GPU"))
}

impl Work {
    /// Nothing to do.
    pub(crate) fn empty(plan: &Plan, program: &Program) -> Result<Self> {
        let mut work = Self::default();
        work.close(plan, program, Order::HeadMajor)?;
        Ok(work)
    }

    /// Opens a tile of one of the chunks and lists what it consists of. Its elements go to a place among the window's own, or to planes
    /// that are elsewhere.
    ///
    /// # Errors
    /// A corrupt tile; one that an invocation would take too long for.
    pub(crate) fn add(
        &mut self,
        (number, open): (usize, &OpenChunk<'_, '_>),
        index: usize,
        plan: &Plan,
        program: &Program,
        elsewhere: Option<&dyn Fn(usize) -> PlaneTarget>,
    ) -> Result<()> {
        let (chunk, tile) = (open.chunk(), open.tile(index)?);
        let mut targets = Vec::with_capacity(tile.planes.len());
        for plane in &plan.planes()[tile.planes.clone()] {
            self.values += (plane.channels() * tile.rows) as u64;
            if let Some(target) = elsewhere {
                let target = target(plane.index);
                targets.push(PlaneTarget { row: target.row + tile.first, ..target });
                continue;
            }
            let bytes = plane.channels() * plane.shape.dtype.size() * tile.rows;
            self.outputs.push(PlaneOutput {
                chunk: number,
                plane: plane.index,
                rows: tile.first..tile.first + tile.rows,
                word: self.output_words,
                bytes,
            });
            targets.push(PlaneTarget { word: self.output_words, capacity: tile.rows, row: 0 });
            self.output_words += bytes.div_ceil(4);
        }
        let position = chunk.position() + (chunk.exact_rows()[0] + tile.first) as u64;
        let kept = self.keep(number, plan, program, &tile);
        self.add_tile(plan, program, &tile, position, kept, &targets).at(|| tile.to_string())?;
        Ok(())
    }

    /// Where the values of a tile's rows are kept, if planes are predicted from others: those of all its planes together. Tiles of
    /// the same rows follow each other.
    fn keep(&mut self, chunk: usize, plan: &Plan, program: &Program, tile: &OpenTile<'_>) -> usize {
        if program.predicted.is_none() {
            return 0;
        }
        match self.kept_rows {
            Some((same, first, at)) if (same, first) == (chunk, tile.first) => at,
            _ => {
                let at = self.kept_words;
                self.kept_words += tile.rows * plan.planes().iter().map(Plane::channels).sum::<usize>();
                self.kept_rows = Some((chunk, tile.first, at));
                at
            }
        }
    }

    /// Bytes of the largest of what is not elements.
    pub(crate) fn bytes(&self) -> usize {
        let table = self.records.escapes.len() + self.records.segments.len() + self.records.orders.len();
        let scratch = self.scratch_words + self.kept_words;
        4 * self.payload.len().max(table).max(scratch).max(self.state_words)
    }

    /// Puts the records together.
    ///
    /// # Errors
    /// If they are too many.
    pub(crate) fn close(&mut self, plan: &Plan, program: &Program, order: Order) -> Result<()> {
        let mut records = std::mem::take(&mut self.records);
        let counts = [
            records.runs.len() / RUN_WORDS,
            records.pieces.len() / PIECE_WORDS,
            records.escapes.len() / ESCAPE_WORDS,
        ];
        if program.predicted.is_some() {
            // Plane after plane, as they are dispatched. (What segments say of pieces is for one pass.)
            let mut pieces: Vec<&[u32]> = records.pieces.chunks(PIECE_WORDS).collect();
            pieces.sort_by_key(|piece| piece[PIECE_PLANE]);
            records.pieces = pieces.concat();
            let mut before = 0;
            for plane in plan.planes() {
                records.planes.extend([word(plane.channels())?, word(before)?]);
                before += plane.channels();
            }
        }
        self.table = records.runs;
        let mut place = |record: Vec<u32>| {
            let at = word(self.table.len());
            self.table.extend(record);
            at
        };
        let window = Window {
            runs: 0,
            segments: place(records.segments)?,
            tiles: place(records.tiles)?,
            pieces: place(records.pieces)?,
            escapes: place(records.escapes)?,
            run_count: word(counts[0])?,
            piece_count: word(counts[1])?,
            escape_count: word(counts[2])?,
            round: 0,
            first_piece: 0,
            order: u32::from(order == Order::TokenMajor),
            marks: word(self.scratch_words + self.kept_words)?,
            planes: place(records.planes)?,
            orders: place(records.orders)?,
            kept: word(self.scratch_words)?,
            unused: 0,
            stages: program.stages,
        };
        self.scratch_words += self.kept_words;
        if program.one_pass {
            self.scratch_words += counts[2];
        }
        self.payload.extend([0; PADDING]);
        self.zeros = !program.whole_words;
        self.window = window;
        Ok(())
    }

    fn add_tile(
        &mut self,
        plan: &Plan,
        program: &Program,
        tile: &OpenTile<'_>,
        position: u64,
        kept: usize,
        targets: &[PlaneTarget],
    ) -> Result<()> {
        if tile.segments.len() > MOST_SEGMENTS {
            return Err(Error::unsupported(
                "tiles of so many heads and grades on a GPU; the CPU decodes them",
            ));
        }
        let number = word(self.tiles.len())?;
        let address = word(self.payload.len() * 4)?;
        let (whole, rest) = tile.bytes.as_chunks::<4>();
        self.payload.extend(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.payload.push(u32::from_le_bytes(last));

        let records = &mut self.records;
        let stream = plan.kernel_stream(tile)?;
        let first_segment = word(records.segments.len() / SEGMENT_WORDS)?;
        let first_piece = word(records.pieces.len() / PIECE_WORDS)?;
        let escapes = records.escapes.len() / ESCAPE_WORDS;
        let stream_address = word(address as usize + tile.stream)?;
        records.tiles.extend([word(escapes)?, word(escapes + tile.escapes.len())?]);
        for (target, plane) in targets.iter().zip(&plan.planes()[tile.planes.clone()]) {
            let elements = plane.channels() * tile.rows;
            if elements >= MOST_ELEMENTS {
                return Err(Error::unsupported("tiles of so many values on a GPU; the CPU decodes them"));
            }
            let shape = plane.shape;
            self.groups = self.groups.max(program.shape(plane).groups(plane, tile.rows));
            if let Some(predicted) = &program.predicted {
                self.keep_groups = self.keep_groups.max(predicted.shape().groups(plane, tile.rows));
                self.predict_groups = self.predict_groups.max(Predicted::groups(plane, tile.rows));
            }
            records.pieces.extend([0, 0, 0, 0, number, word(plane.index)?, word(target.word)?]);
            records.pieces.extend([shape.heads, shape.head_dim, dtype_code(shape.dtype), word(tile.rows)?]);
            records.pieces.extend([word(target.row)?, word(target.capacity)?]);
            records.pieces.extend([position as u32, (position >> 32) as u32]);
            records.pieces.extend([word(records.orders.len())?, word(kept)?]);
            if let Some(grades) = tile.grades.get(plane.index - tile.planes.start) {
                records.order(plane, tile, grades, first_segment);
            }
        }
        let mut symbols = 0;
        let mut escaped = tile.escapes.iter().peekable();
        for (index, (segment, own)) in (0u32..).zip(tile.segments.iter().zip(&stream.segments)) {
            let at = first_segment + index;
            let piece = first_piece + word(segment.plane - tile.planes.start)?;
            if segment.symbol_plane == 0 {
                records.pieces[piece as usize * PIECE_WORDS + segment.part] = at;
            }
            let next = tile.segments.get(index as usize + 1);
            let follows =
                |part: usize| next.is_some_and(|next| next.plane == segment.plane && next.part == part);
            let complete = !follows(segment.part);
            let asked_for = !complete || follows(segment.part + 1);
            let kept = asked_for || !program.one_pass;
            let flags = segment.part as u32
                | if complete { SEGMENT_COMPLETE } else { 0 }
                | if kept { SEGMENT_KEPT } else { 0 };
            records.segments.extend([
                word(segment.rows)?,
                word(segment.cols)?,
                word(address as usize + tile.side[index as usize])?,
                word(self.scratch_words)?,
                own[1],
                word(symbols)?,
                u32::from(segment.alphabet.size),
                number,
                piece,
                flags,
                stream_address,
            ]);
            if kept {
                self.scratch_words += own[0] as usize;
            }
            while let Some((index, value)) =
                escaped.next_if(|(index, _)| (*index as usize) < symbols + segment.len())
            {
                records.escapes.extend([*index, value.to_bits(), at, index - symbols as u32]);
            }
            symbols += segment.len();
        }
        // In one pass elements are made of the symbols of each step, of all symbol planes, and escapes are looked for.
        let planes =
            tile.segments.iter().map(|segment| segment.symbol_plane).max().map_or(1, |most| most + 1);
        let search = if tile.escapes.is_empty() { 0 } else { 2 * (1 + tile.escapes.len().ilog2()) };
        let per_step = 4 + planes as u32 + search;
        for run in stream.runs {
            // Columns of one word are never apart.
            let least = if program.one_pass { 4 } else { 1 };
            let cost = if program.one_pass { run.cost.saturating_mul(per_step) } else { run.cost };
            let step = ((MOST_ITERATIONS / cost.max(1)) & !3).max(least);
            if cost > 2 * MOST_ITERATIONS / least {
                return Err(Error::unsupported("tiles of so many rows on a GPU; the CPU decodes them"));
            }
            self.rounds = self.rounds.max(run.units.div_ceil(step));
            records.runs.extend([
                word(stream_address as usize + run.bytes.start as usize)?,
                run.bytes.end - run.bytes.start,
                first_segment + run.segments.start,
                run.segments.end - run.segments.start,
                run.own,
                run.units,
                step,
                number,
            ]);
            self.state_words += program.state as usize;
        }
        Ok(())
    }
}

/// Records by kind.
#[derive(Debug, Clone, Default)]
struct Records {
    /// Channels of a plane, and of those before it.
    planes: Vec<u32>,
    /// How graded symbols are arranged: graded.wgsl.
    orders: Vec<u32>,
    runs: Vec<u32>,
    segments: Vec<u32>,
    tiles: Vec<u32>,
    pieces: Vec<u32>,
    escapes: Vec<u32>,
}

impl Records {
    /// How the symbols of a plane are arranged by its grades, `[rows, heads]`, if the tile's first segment has this number.
    fn order(&mut self, plane: &Plane, tile: &OpenTile<'_>, grades: &[u8], first_segment: u32) {
        let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
        let at = self.orders.len();
        self.orders.resize(at + GRADES * heads, 0);
        for (number, segment) in (first_segment..).zip(&tile.segments) {
            if segment.plane == plane.index {
                self.orders[at + GRADES * (segment.first_col / dim) + usize::from(segment.grade)] = number;
            }
        }
        for head in 0..heads {
            let mut rows = [0; GRADES];
            self.orders.extend(grades.iter().skip(head).step_by(heads).map(|grade| {
                let row = &mut rows[usize::from(*grade)];
                *row += 1;
                // Below 2^22: tiles of more elements are refused.
                u32::from(*grade) << 28 | (*row - 1)
            }));
        }
    }
}
