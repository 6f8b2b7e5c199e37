//! Tiles of tabulated pipelines.

use std::ops::Range;

use super::{Bounds, Elements, check};
use crate::front::{FrontScratch, Quantized};
use crate::grade::CodedRows;
use crate::tile::{MAX_BATCH, Scratch, Tile, TileOut, TileScratch, most_escapes};
use crate::{
    ElementEncodeJob, ElementJob, ElementSink, ElementSource, ElementSpan, ElementWindow, Error, KvView,
    Plan, Result, ResultExt,
};

impl Plan {
    /// Encodes tiles of elements without any symbols in between. `false` if there are too many escapes for that.
    pub(crate) fn encode_elements(
        &self,
        bounds: &Bounds,
        view: &KvView<'_>,
        first: usize,
        tiles: &[Tile],
        scratch: &mut Scratch,
        take: &mut dyn FnMut(&Tile, [&[u8]; 2]),
    ) -> Result<bool> {
        let Scratch { front, coder, tiles: scratches } = scratch;
        let scratches = &mut scratches[..tiles.len()];
        for (tile, scratch) in tiles.iter().zip(&mut *scratches) {
            scratch.sizes = self.tile_sizes(tile, CodedRows::ungraded(0), &mut scratch.segments);
            let room = self.coder.max_len(&scratch.segments);
            if scratch.stream.len() < room {
                scratch.stream.resize(room, 0);
            }
            scratch.escaped.clear();
            scratch.escaped.reserve(most_escapes(scratch.sizes.symbols) + 1);
        }
        let mut used = tiles.iter().zip(&mut *scratches);
        let mut job = || {
            used.next().map_or_else(
                || ElementEncodeJob::new(&[], &[], &mut [], Vec::new()),
                |(tile, scratch)| {
                    let escaped = std::mem::take(&mut scratch.escaped);
                    ElementEncodeJob::new(&scratch.segments, bounds.of(tile), &mut scratch.stream, escaped)
                },
            )
        };
        let mut jobs: [ElementEncodeJob<'_>; MAX_BATCH] = std::array::from_fn(|_| job());
        self.coder.encode_elements(&mut jobs[..tiles.len()], &Source { tiles, view, first }, coder);
        let results = jobs.map(|job| (job.result, job.escaped));
        let mut lens = [0; MAX_BATCH];
        let mut few = true;
        for ((scratch, (result, escaped)), len) in scratches.iter_mut().zip(results).zip(&mut lens) {
            scratch.escaped = escaped;
            few &= scratch.escaped.len() <= most_escapes(scratch.sizes.symbols);
            *len = result?;
        }
        if !few {
            return Ok(false);
        }
        for (tile, scratch) in tiles.iter().zip(&mut *scratches) {
            self.gather_escapes(view, first, tile, front, scratch)?;
            scratch.before = 0;
            scratch.append_escapes(0);
        }
        for ((tile, scratch), len) in tiles.iter().zip(&*scratches).zip(lens) {
            take(tile, [&scratch.out[..scratch.before], &scratch.stream[..len]]);
        }
        Ok(true)
    }

    /// Has the stages do rows with escapes again, for their values, or for the error if they cannot be coded.
    fn gather_escapes(
        &self,
        view: &KvView<'_>,
        first: usize,
        tile: &Tile,
        front: &mut FrontScratch,
        scratch: &mut TileScratch,
    ) -> Result<()> {
        let TileScratch { escaped, escapes, row_escapes, out, .. } = scratch;
        escapes.clear();
        escaped.sort_unstable();
        let mut rest = escaped.as_slice();
        let mut begin = 0;
        for plane in tile.planes.clone() {
            let rows = CodedRows::ungraded(view.first_position() + first as u64);
            let cx = self.tile_cx(tile, plane, rows);
            let cols = cx.plane.channels();
            while let Some(index) =
                rest.first().map(|index| *index as usize - begin).filter(|i| *i < cols * tile.rows)
            {
                let row = index / cols;
                let mut one = cx;
                (one.first, one.rows, one.position) = (cx.first + row, 1, cx.position + row as u64);
                if out.len() < cols {
                    out.resize(cols, 0);
                }
                let base = begin + row * cols;
                let before = escapes.items().len();
                row_escapes.clear();
                let mut quantized = Quantized {
                    symbols: &mut out[..cols],
                    symbols_done: 0,
                    side: &mut [],
                    side_done: 0,
                    escapes: &mut *row_escapes,
                };
                self.front
                    .quantize(view, &one, first + one.first, front, &mut quantized)
                    .at(|| format!("tensor `{}`", cx.plane.name()))?;
                for (index, value) in row_escapes.items() {
                    escapes.push(base as u32 + index, *value);
                }
                let found = escapes.items()[before..].iter().map(|(index, _)| index);
                let count = rest.partition_point(|index| (*index as usize) < base + cols);
                if !found.eq(&rest[..count]) {
                    return Err(Error::data("a stage that says it is pointwise is not").at(cx.plane.name()));
                }
                rest = &rest[count..];
            }
            begin += cols * tile.rows;
        }
        Ok(())
    }

    /// Decodes open tiles whose symbols stand for elements.
    pub(crate) fn decode_elements(
        &self,
        elements: &Elements,
        tiles: &[(Tile, &[u8])],
        out: &mut TileOut<'_, '_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { front, coder, tiles: scratches } = scratch;
        let mut used = tiles.iter().zip(&*scratches);
        let mut job = || {
            used.next().map_or_else(
                || ElementJob::new(&[], &[], &[]),
                |((tile, bytes), s)| ElementJob::new(&s.segments, &bytes[s.before..], elements.of(tile)),
            )
        };
        let mut jobs: [ElementJob<'_>; MAX_BATCH] = std::array::from_fn(|_| job());
        self.coder.decode_elements(&mut jobs[..tiles.len()], &mut Sink { tiles, out: &mut *out }, coder);
        out.end();
        for (((tile, _), job), scratch) in tiles.iter().zip(jobs).zip(&*scratches) {
            job.result.at(|| tile.to_string())?;
            check(job.escaped, &scratch.escapes).at(|| tile.to_string())?;
            Elements::patch(&self.front, tile, &scratch.escapes, out, front).at(|| tile.to_string())?;
        }
        Ok(())
    }
}

/// Where the elements of a batch of tiles go. Pointwise pipelines have one segment for each plane.
struct Sink<'s, 'o, 'v> {
    tiles: &'s [(Tile, &'s [u8])],
    out: &'s mut TileOut<'o, 'v>,
}

impl ElementSink for Sink<'_, '_, '_> {
    fn open(
        &mut self,
        job: usize,
        segment: usize,
        cols: Range<usize>,
        write: &mut dyn FnMut(&mut ElementWindow<'_>),
    ) {
        let tile = &self.tiles[job].0;
        let (row, store) = (self.out.row + tile.first, self.out.store);
        self.out.plane(tile.planes.start + segment).windows(row, cols, store, write);
    }
}

/// Where they come from.
struct Source<'s, 'v> {
    tiles: &'s [Tile],
    view: &'s KvView<'v>,
    first: usize,
}

impl ElementSource for Source<'_, '_> {
    fn open(&self, job: usize, segment: usize, cols: Range<usize>, read: &mut dyn FnMut(&ElementSpan<'_>)) {
        let tile = &self.tiles[job];
        // The next batch, most likely.
        let all = self.tiles.first().zip(self.tiles.last());
        let planes = all.map_or(0, |(first, last)| last.planes.end - first.planes.start);
        let plane = tile.planes.start + segment;
        self.view.spans(plane, self.first + tile.first, cols, plane + planes, read);
    }
}
