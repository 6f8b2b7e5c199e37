//! Which tiles of which chunks are decoded at a time.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;
use std::vec::IntoIter;

use cacheg_core::{Chunk, GRADES, OpenChunk, Order, Plan, Plane, Result, ResultExt};

use crate::program::Program;
use crate::work::{PlaneTarget, TileName, Work};

/// Rows of the tiles of a chunk, at most; rounded up, so that there are few programs.
pub(crate) fn tile_rows(chunk: &Chunk<'_>) -> usize {
    let layout = chunk.layout();
    layout.rows.min(layout.tokens).next_power_of_two()
}

/// A tile of one of the chunks that are decoded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    chunk: usize,
    index: usize,
    /// Bytes of its elements, as if it had as many rows as the scratch of coders is made for.
    weight: usize,
    /// Which buffer its elements go to, if it is one.
    buffer: Option<usize>,
    /// Whether it is in the window of the tile before: planes that are predicted from others need their rows.
    with_last: bool,
}

/// Rows whose symbols take up all of their scratch.
const SCRATCH_ROWS: usize = 128;

/// Bytes of a value while others are predicted from it: it, and its symbol.
const KEPT_BYTES: usize = 5;

/// Where elements go that are not the window's own: in which order, and of each plane to which buffer and where in it.
pub(crate) struct Elsewhere<'a> {
    pub(crate) order: Order,
    pub(crate) buffer: &'a dyn Fn(usize) -> usize,
    pub(crate) target: &'a dyn Fn(usize) -> PlaneTarget,
}

/// Cuts some groups of planes of chunks into windows.
pub(crate) struct Windows<'a, 'c> {
    chunks: &'a [&'a Chunk<'c>],
    plan: &'a Plan,
    program: &'a Program,
    elsewhere: Option<Elsewhere<'a>>,
    tiles: Peekable<IntoIter<Tile>>,
    most: usize,
    /// Of the chunks, for messages.
    names: Vec<Arc<str>>,
    /// The chunk that the last tile was of.
    open: Option<(usize, OpenChunk<'a, 'c>)>,
}

impl<'a, 'c> Windows<'a, 'c> {
    /// Windows of at most about `most` bytes of elements and of whatever else a window has, unless a single tile has more, or, where
    /// planes are predicted from others, all tiles of the same rows together: then `groups` are all.
    pub(crate) fn new(
        chunks: &'a [&'a Chunk<'c>],
        plan: &'a Plan,
        program: &'a Program,
        groups: Range<usize>,
        most: usize,
        elsewhere: Option<Elsewhere<'a>>,
    ) -> Self {
        let (mut tiles, predicts) = (Vec::new(), program.predicted.is_some());
        for (number, chunk) in chunks.iter().enumerate() {
            let (layout, rows) = (chunk.layout(), chunk.layout().rows.min(chunk.layout().tokens));
            let begin = tiles.len();
            for group in groups.clone() {
                let mut planes = group * layout.planes..layout.all_planes.min((group + 1) * layout.planes);
                let least = if predicts { KEPT_BYTES } else { 1 };
                let bytes = |plane: &Plane| plane.channels() * plane.shape.dtype.size().max(least);
                let row: usize = plan.planes()[planes.clone()].iter().map(bytes).sum();
                if predicts {
                    planes = 0..layout.all_planes;
                }
                let buffer = elsewhere.as_ref().and_then(|elsewhere| {
                    let first = (elsewhere.buffer)(planes.start);
                    planes.all(|plane| (elsewhere.buffer)(plane) == first).then_some(first)
                });
                // Every grade has scratch of its own; half of them are usual.
                let more = if program.graded { SCRATCH_ROWS * GRADES / 2 } else { 0 };
                let weight = row * (rows.next_multiple_of(SCRATCH_ROWS) + more);
                tiles.extend((0..layout.blocks()).map(|block| Tile {
                    chunk: number,
                    index: group * layout.blocks() + block,
                    weight,
                    buffer,
                    with_last: predicts && group > groups.start,
                }));
            }
            if predicts {
                // Group after group of the same rows.
                tiles[begin..].sort_by_key(|tile| tile.index % layout.blocks());
            }
        }
        let names = chunks.iter().map(|chunk| chunk.to_string().into()).collect();
        let tiles = tiles.into_iter().peekable();
        Self { chunks, plan, program, elsewhere, tiles, most, names, open: None }
    }

    /// The next window, and which buffer its elements go to, if it is one. Where it is not, they are the window's own, and it has no
    /// more tiles than it must.
    pub(crate) fn next(&mut self) -> Result<Option<(Work, Option<usize>)>> {
        let Some(first) = self.tiles.next() else { return Ok(None) };
        let (mut work, mut weight) = (Work::default(), first.weight);
        let direct = first.buffer.is_some();
        self.add(&mut work, first, direct)?;
        let alone = self.elsewhere.is_some() && !direct;
        while let Some(tile) = self.tiles.next_if(|tile| {
            let fits = weight + tile.weight <= self.most && work.bytes() <= self.most;
            tile.with_last || !alone && fits && tile.buffer == first.buffer
        }) {
            weight += tile.weight;
            self.add(&mut work, tile, direct)?;
        }
        let order = self.elsewhere.as_ref().map_or(Order::HeadMajor, |elsewhere| elsewhere.order);
        work.close(self.plan, self.program, order)?;
        Ok(Some((work, first.buffer)))
    }

    fn add(&mut self, work: &mut Work, tile: Tile, direct: bool) -> Result<()> {
        let (chunk, name) = (self.chunks[tile.chunk], &self.names[tile.chunk]);
        let open = match self.open.take() {
            Some((number, open)) if number == tile.chunk => open,
            _ => chunk.open(self.plan).at(|| name.to_string())?,
        };
        let planes = self.elsewhere.as_ref().filter(|_| direct).map(|elsewhere| elsewhere.target);
        work.add((tile.chunk, &open), tile.index, self.plan, self.program, planes).at(|| name.to_string())?;
        self.open = Some((tile.chunk, open));
        work.tiles.push(TileName { chunk: name.clone(), layout: *chunk.layout(), index: tile.index });
        Ok(())
    }
}
