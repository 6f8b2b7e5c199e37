//! Which tiles of which chunks are decoded at a time.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;
use std::vec::IntoIter;

use cacheg_core::{Chunk, Order, Plan, Plane, Result, ResultExt};

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
}

/// Rows whose symbols take up all of their scratch.
const SCRATCH_ROWS: usize = 128;

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
}

impl<'a, 'c> Windows<'a, 'c> {
    /// Windows of at most about `most` bytes of elements and of whatever else a window has, unless a single tile has more.
    pub(crate) fn new(
        chunks: &'a [&'a Chunk<'c>],
        plan: &'a Plan,
        program: &'a Program,
        groups: Range<usize>,
        most: usize,
        elsewhere: Option<Elsewhere<'a>>,
    ) -> Self {
        let mut tiles = Vec::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let (layout, rows) = (chunk.layout(), chunk.layout().rows.min(chunk.layout().tokens));
            for group in groups.clone() {
                let mut planes = group * layout.planes..layout.all_planes.min((group + 1) * layout.planes);
                let bytes = |plane: &Plane| plane.channels() * plane.shape.dtype.size();
                let row: usize = plan.planes()[planes.clone()].iter().map(bytes).sum();
                let buffer = elsewhere.as_ref().and_then(|elsewhere| {
                    let first = (elsewhere.buffer)(planes.start);
                    planes.all(|plane| (elsewhere.buffer)(plane) == first).then_some(first)
                });
                let weight = row * rows.next_multiple_of(SCRATCH_ROWS);
                tiles.extend((0..layout.blocks()).map(|block| Tile {
                    chunk: number,
                    index: group * layout.blocks() + block,
                    weight,
                    buffer,
                }));
            }
        }
        let names = chunks.iter().map(|chunk| chunk.to_string().into()).collect();
        Self { chunks, plan, program, elsewhere, tiles: tiles.into_iter().peekable(), most, names }
    }

    /// The next window, and which buffer its elements go to, if it is one. Where it is not, they are the window's own, and its
    /// only tile's.
    pub(crate) fn next(&mut self) -> Result<Option<(Work, Option<usize>)>> {
        let Some(first) = self.tiles.next() else { return Ok(None) };
        let (mut work, mut weight) = (Work::default(), first.weight);
        let direct = first.buffer.is_some();
        self.add(&mut work, first, direct)?;
        let alone = self.elsewhere.is_some() && !direct;
        while !alone
            && let Some(tile) = self.tiles.next_if(|tile| {
                weight + tile.weight <= self.most && tile.buffer == first.buffer && work.bytes() <= self.most
            })
        {
            weight += tile.weight;
            self.add(&mut work, tile, direct)?;
        }
        let order = self.elsewhere.as_ref().map_or(Order::HeadMajor, |elsewhere| elsewhere.order);
        work.close(self.program, order)?;
        Ok(Some((work, first.buffer)))
    }

    fn add(&self, work: &mut Work, tile: Tile, direct: bool) -> Result<()> {
        let chunk = self.chunks[tile.chunk];
        let planes = self.elsewhere.as_ref().filter(|_| direct).map(|elsewhere| elsewhere.target);
        let name = &self.names[tile.chunk];
        work.add((tile.chunk, chunk), tile.index, self.plan, self.program, planes).at(|| name.to_string())?;
        work.tiles.push(TileName { chunk: name.clone(), layout: *chunk.layout(), index: tile.index });
        Ok(())
    }
}
