//! What a program works on: some tiles of a chunk as records and buffers, without any GPU.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use cacheg_core::{Chunk, Error, OpenTile, Order, Plan, Plane, Result, ResultExt, dtype_code};

use crate::program::Program;

/// Most loop iterations of an invocation in one dispatch. Mesa 22 ends invocations without a word after 65,535.
const MOST_ITERATIONS: u32 = 24_576;

/// `Window` in prelude.wgsl.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Window {
    pub(crate) runs: u32,
    pub(crate) segments: u32,
    pub(crate) tiles: u32,
    pub(crate) planes: u32,
    pub(crate) escapes: u32,
    pub(crate) outputs: u32,
    pub(crate) run_count: u32,
    pub(crate) escape_count: u32,
    pub(crate) round: u32,
    pub(crate) rows: u32,
    pub(crate) first_row: u32,
    pub(crate) tile_rows: u32,
    pub(crate) tile_planes: u32,
    pub(crate) blocks: u32,
    pub(crate) first_block: u32,
    pub(crate) first_plane: u32,
    pub(crate) plane_count: u32,
    pub(crate) order: u32,
    pub(crate) plane_offset: u32,
    pub(crate) capacity: u32,
    pub(crate) row_offset: u32,
    pub(crate) unused: u32,
}

/// Where rows go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// To a buffer of the window's planes and rows, one after the other, head-major.
    Window,
    /// Each plane to a buffer of its own, of so many rows, this one being the first that is coded.
    Planes { order: Order, capacity: usize, row: usize },
}

/// Some tiles of a chunk: these groups of planes by these blocks of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub(crate) groups: Range<usize>,
    pub(crate) blocks: Range<usize>,
}

/// Where a plane is in the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlaneOutput {
    pub(crate) plane: usize,
    /// Its first word.
    pub(crate) word: usize,
    /// Its bytes.
    pub(crate) bytes: usize,
}

/// Everything that is sent to a GPU for some tiles, and what comes back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Work {
    pub(crate) window: Window,
    pub(crate) payload: Vec<u32>,
    pub(crate) table: Vec<u32>,
    pub(crate) scratch_words: usize,
    pub(crate) state_words: usize,
    pub(crate) output_words: usize,
    /// Dispatches of `decode`.
    pub(crate) rounds: u32,
    /// Most words of a plane.
    pub(crate) plane_words: usize,
    /// Most words of a plane of a tile.
    pub(crate) tile_words: usize,
    pub(crate) outputs: Vec<PlaneOutput>,
    /// Rows of the output, and the first of them among the coded ones.
    pub(crate) rows: Range<usize>,
    /// For messages.
    pub(crate) names: Vec<String>,
    /// Values that come out.
    pub(crate) values: u64,
}

/// Bytes of the output of a group of planes for so many rows.
fn group_bytes(plan: &Plan, planes: Range<usize>, rows: usize) -> usize {
    plan.planes()[planes].iter().map(|plane| plane_bytes(plane, rows)).sum()
}

fn plane_bytes(plane: &Plane, rows: usize) -> usize {
    (plane.channels() * plane.shape.dtype.size() * rows).next_multiple_of(4)
}

/// Cuts some groups of planes of a chunk into windows whose output has at most `most` bytes, unless a single tile has more.
pub(crate) fn windows(chunk: &Chunk<'_>, plan: &Plan, groups: Range<usize>, most: usize) -> Vec<Tiles> {
    let layout = chunk.layout();
    let (blocks, all) = (layout.blocks(), layout.all_planes);
    let planes = |group: usize| group * layout.planes..((group + 1) * layout.planes).min(all);
    let mut windows: Vec<Tiles> = Vec::new();
    let mut room = 0;
    for group in groups {
        let bytes = group_bytes(plan, planes(group), layout.tokens);
        if bytes > most {
            let tile = group_bytes(plan, planes(group), layout.rows.min(layout.tokens)).max(1);
            let step = (most / tile).max(1);
            for first in (0..blocks).step_by(step) {
                let blocks = first..blocks.min(first + step);
                windows.push(Tiles { groups: group..group + 1, blocks });
            }
            room = 0;
        } else if bytes <= room
            && let Some(last) = windows.last_mut()
        {
            last.groups.end += 1;
            room -= bytes;
        } else if blocks > 0 {
            windows.push(Tiles { groups: group..group + 1, blocks: 0..blocks });
            room = most - bytes;
        }
    }
    windows
}

/// A record number, or an error where 32 bits do not suffice.
fn word(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::limit("a window of more than 4 GiB"))
}

impl Work {
    /// Opens tiles and lists what they consist of.
    ///
    /// # Errors
    /// Corrupt tiles; tiles that one invocation would take too long for.
    pub(crate) fn new(
        chunk: &Chunk<'_>,
        plan: &Plan,
        program: &Program,
        tiles: &Tiles,
        target: Target,
    ) -> Result<Self> {
        let layout = *chunk.layout();
        let mut work = Self::default();
        let mut records = Records::default();
        for group in tiles.groups.clone() {
            for block in tiles.blocks.clone() {
                let tile = chunk.open_tile(plan, group * layout.blocks() + block)?;
                work.add_tile(plan, program, &tile, &mut records).at(|| tile.to_string())?;
            }
        }
        let first_row = tiles.blocks.start * layout.rows;
        work.rows = first_row..layout.tokens.min(tiles.blocks.end * layout.rows);
        let planes =
            tiles.groups.start * layout.planes..layout.all_planes.min(tiles.groups.end * layout.planes);
        if !matches!(target, Target::Window) && planes.len() > u16::MAX.into() {
            return Err(Error::unsupported("a model of so many planes on a GPU"));
        }
        for plane in &plan.planes()[planes.clone()] {
            let bytes = plane_bytes(plane, work.rows.len());
            let shape = plane.shape;
            let at = if matches!(target, Target::Window) { word(work.output_words)? } else { 0 };
            let output = [at, shape.heads, shape.head_dim, dtype_code(shape.dtype)];
            records.outputs.extend(output);
            work.outputs.push(PlaneOutput {
                plane: plane.index,
                word: work.output_words,
                bytes: plane.channels() * shape.dtype.size() * work.rows.len(),
            });
            work.output_words += bytes / 4;
            work.plane_words = work.plane_words.max(bytes / 4);
            let rows = layout.rows.min(work.rows.len());
            work.tile_words = work.tile_words.max(plane_bytes(plane, rows) / 4);
            work.values += (plane.channels() * work.rows.len()) as u64;
        }
        let (order, capacity, row_offset) = match target {
            Target::Window => (Order::HeadMajor, work.rows.len(), 0),
            Target::Planes { order, capacity, row } => (order, capacity, row + first_row),
        };
        let mut place = |record: Vec<u32>| {
            let at = word(work.table.len());
            work.table.extend(record);
            at
        };
        work.window = Window {
            run_count: word(records.runs.len() / 8)?,
            escape_count: word(records.escapes.len() / 4)?,
            runs: place(records.runs)?,
            segments: place(records.segments)?,
            tiles: place(records.tiles)?,
            planes: place(records.planes)?,
            escapes: place(records.escapes)?,
            outputs: place(records.outputs)?,
            round: 0,
            rows: word(work.rows.len())?,
            first_row: word(first_row)?,
            tile_rows: word(layout.rows)?,
            tile_planes: word(layout.planes)?,
            blocks: word(tiles.blocks.len())?,
            first_block: word(tiles.blocks.start)?,
            first_plane: word(planes.start)?,
            plane_count: word(planes.len())?,
            order: u32::from(order == Order::TokenMajor),
            plane_offset: 0,
            capacity: word(capacity)?,
            row_offset: word(row_offset)?,
            unused: 0,
        };
        Ok(work)
    }

    fn add_tile(
        &mut self,
        plan: &Plan,
        program: &Program,
        tile: &OpenTile<'_>,
        records: &mut Records,
    ) -> Result<()> {
        let number = word(self.names.len())?;
        self.names.push(tile.to_string());
        let address = word(self.payload.len() * 4)?;
        let (whole, rest) = tile.bytes.as_chunks::<4>();
        self.payload.extend(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.payload.push(u32::from_le_bytes(last));

        let stream = plan.kernel_stream(tile)?;
        let first_segment = word(records.segments.len() / 8)?;
        let escapes = records.escapes.len() / 4;
        let stream_address = word(address as usize + tile.stream)?;
        let plane_record = word(records.planes.len())?;
        records.tiles.extend([
            stream_address,
            word(escapes)?,
            word(escapes + tile.escapes.len())?,
            plane_record,
        ]);
        let mut symbols = 0;
        let mut escaped = tile.escapes.iter().peekable();
        let mut part = None;
        for (index, (segment, own)) in (0u32..).zip(tile.segments.iter().zip(&stream.segments)) {
            let at = first_segment + index;
            if part != Some((segment.plane, segment.part)) {
                if part.is_none_or(|(plane, _)| plane != segment.plane) {
                    records.planes.extend([0; 4]);
                }
                let parts = records.planes.len() - 4;
                records.planes[parts + segment.part] = at;
                part = Some((segment.plane, segment.part));
            }
            records.segments.extend([
                word(segment.rows)?,
                word(segment.cols)?,
                word(address as usize + tile.side[index as usize])?,
                word(self.scratch_words)?,
                own[1],
                word(symbols)?,
                u32::from(segment.alphabet.size),
                number,
            ]);
            self.scratch_words += own[0] as usize;
            while let Some((index, value)) =
                escaped.next_if(|(index, _)| (*index as usize) < symbols + segment.len())
            {
                records.escapes.extend([*index, value.to_bits(), at, index - symbols as u32]);
            }
            symbols += segment.len();
        }
        for run in stream.runs {
            let step = (MOST_ITERATIONS / run.cost.max(1)) & !3;
            let step = step.max(1);
            if run.cost > 2 * MOST_ITERATIONS {
                return Err(Error::unsupported("tiles of so many rows on a GPU; the CPU decodes them"));
            }
            self.rounds = self.rounds.max(run.units.div_ceil(step));
            records.runs.extend([
                stream_address + run.bytes.start,
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
#[derive(Debug, Default)]
struct Records {
    runs: Vec<u32>,
    segments: Vec<u32>,
    tiles: Vec<u32>,
    planes: Vec<u32>,
    escapes: Vec<u32>,
    outputs: Vec<u32>,
}
