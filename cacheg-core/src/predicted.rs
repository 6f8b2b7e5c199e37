//! Pipelines that predict planes from others. Encoders and decoders take some rows through all planes, in the order of the
//! planes; rows have nothing to do with each other, so that threads share them. Tiles are what is entropy-coded, as ever.

use std::ops::Range;

use rayon::prelude::*;

use crate::dtype::Store;
use crate::front::{Coded, Front, PREDICTED_ROWS, Quantized};
use crate::grade::{CodedRows, Grades};
use crate::kv::PlaneViewMut;
use crate::tile::{Layout, MAX_BATCH, Scratch, Tile, TileScratch};
use crate::{Error, Escapes, KvView, Plan, Plane, Progress, Result, ResultExt, TileCx};

/// Some rows of all planes as symbols.
pub(crate) struct Block {
    /// Its first row, counted from the chunk's first.
    first: usize,
    /// Plane after plane, `[rows, channels]`.
    symbols: Vec<u8>,
    /// Plane after plane.
    side: Vec<u8>,
    /// Where each plane's symbols and side information begin, and where the last plane's end.
    starts: Vec<[usize; 2]>,
    /// By number of the symbol.
    escapes: Escapes,
}

/// A tile whose entropy coding has been undone.
struct Opened<'a> {
    tile: Tile,
    symbols: Vec<u8>,
    side: &'a [u8],
    escapes: Escapes,
}

/// What blocks a layout's rows are cut into; none has rows of two tiles.
fn cut(layout: &Layout) -> Vec<Range<usize>> {
    let blocks = (0..layout.blocks()).flat_map(|block| {
        let end = layout.tokens.min((block + 1) * layout.rows);
        (block * layout.rows..end).step_by(PREDICTED_ROWS).map(move |at| at..end.min(at + PREDICTED_ROWS))
    });
    blocks.collect()
}

impl Front {
    /// Symbols and bytes of side information of some rows of a plane.
    fn lengths_of(&self, plane: &Plane, rows: usize) -> Result<[usize; 2]> {
        let (symbols, side) = self.lengths(&TileCx::new(plane, 0, rows, 0))?;
        Ok([symbols, side])
    }

    /// Where each plane's begin, if they lie one after the other, and where the last one's end.
    fn starts(&self, rows: usize) -> Result<Vec<[usize; 2]>> {
        let mut starts = vec![[0; 2]];
        let mut at = [0; 2];
        for plane in self.planes() {
            let [symbols, side] = self.lengths_of(plane, rows)?;
            at = [at[0] + symbols, at[1] + side];
            starts.push(at);
        }
        Ok(starts)
    }
}

impl Plan {
    /// Quantises all rows of a chunk whose first token in the view is `first`.
    pub(crate) fn quantize_predicted(
        &self,
        view: &KvView<'_>,
        first: usize,
        grades: &Grades,
        layout: &Layout,
    ) -> Result<Vec<Block>> {
        let one = |range: &Range<usize>| {
            let rows = range.len();
            let starts = self.front.starts(rows)?;
            let [symbols, side] = starts.last().copied().unwrap_or_default();
            let mut block = Block {
                first: range.start,
                symbols: vec![0; symbols],
                side: vec![0; side],
                starts,
                escapes: Escapes::default(),
            };
            let mut out = Quantized {
                symbols: &mut block.symbols,
                symbols_done: 0,
                side: &mut block.side,
                side_done: 0,
                escapes: &mut block.escapes,
            };
            self.with_scratch(layout, |scratch| {
                self.planes().iter().try_for_each(|plane| {
                    let position = view.first_position() + (first + range.start) as u64;
                    let cx = TileCx::new(plane, range.start, rows, position)
                        .with_grades(grades.of(plane.layer as usize, range.clone()));
                    let token = first + range.start;
                    let quantized = self.front.quantize(view, &cx, token, &mut scratch.front, &mut out);
                    quantized.at(|| format!("tensor `{}`", plane.name()))
                })
            })?;
            Ok(block)
        };
        cut(layout).par_iter().map(one).collect()
    }

    /// Gathers a tile's symbols, side information and escapes, its sizes being known.
    pub(crate) fn gather_tile(&self, blocks: &[Block], tile: &Tile, scratch: &mut TileScratch) -> Result<()> {
        let from = blocks.partition_point(|block| block.first < tile.first);
        let (mut symbols, mut side) = (0, 0);
        for plane in tile.planes.clone() {
            for block in blocks[from..].iter().take_while(|block| block.first < tile.first + tile.rows) {
                let [begin, end] = [block.starts[plane], block.starts[plane + 1]];
                let own = &block.symbols[begin[0]..end[0]];
                scratch.symbols[symbols..symbols + own.len()].copy_from_slice(own);
                let items = block.escapes.items();
                let [first, last] =
                    [begin, end].map(|at| items.partition_point(|(i, _)| (*i as usize) < at[0]));
                for (index, value) in &items[first..last] {
                    scratch.escapes.push((symbols + *index as usize - begin[0]) as u32, *value);
                }
                symbols += own.len();
                let own = &block.side[begin[1]..end[1]];
                scratch.out[side..side + own.len()].copy_from_slice(own);
                side += own.len();
            }
        }
        Ok(())
    }

    /// Decodes all tiles of a chunk: `bytes` gives those of each. The first of the `coded` rows is `row` of `planes`.
    pub(crate) fn decode_predicted<'a>(
        &self,
        layout: &Layout,
        bytes: impl Fn(usize) -> Result<&'a [u8]> + Sync,
        coded: CodedRows<'_>,
        planes: &mut [PlaneViewMut<'_>],
        row: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        if planes.len() != self.planes().len() {
            return Err(Error::unsupported(
                "planes that are predicted from others cannot be decoded without them",
            ));
        }
        let batch = self.batch().min(MAX_BATCH);
        let batches: Vec<usize> = (0..layout.tiles()).step_by(batch).collect();
        let open = |first: &usize| -> Result<Vec<Opened<'a>>> {
            let tiles = (*first..layout.tiles().min(first + batch))
                .map(|index| Ok((layout.tile(index), bytes(index)?)));
            let tiles: Vec<(Tile, &'a [u8])> = tiles.collect::<Result<_>>()?;
            self.with_scratch(layout, |scratch| {
                self.open_tiles(&tiles, coded, scratch)?;
                self.decode_symbols(&tiles, scratch)?;
                if !coded.grades.is_empty() {
                    for ((tile, _), scratch) in tiles.iter().zip(&mut scratch.tiles) {
                        scratch.restore(self.planes(), tile, coded);
                    }
                }
                let opened =
                    tiles.into_iter().zip(&mut scratch.tiles).map(|((tile, bytes), scratch)| Opened {
                        tile,
                        symbols: scratch.symbols[..scratch.sizes.symbols].to_vec(),
                        side: &bytes[..scratch.sizes.side],
                        escapes: std::mem::take(&mut scratch.escapes),
                    });
                Ok(opened.collect())
            })
        };
        let opened: Vec<Opened<'a>> =
            batches.par_iter().map(open).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        // Of the planes before each.
        let channels: Vec<usize> = self
            .planes()
            .iter()
            .scan(0, |sum, plane| {
                *sum += plane.channels();
                Some(*sum - plane.channels())
            })
            .collect();
        let blocks = cut(layout);
        let values = self.geometry().values_per_token();
        // A few at a time: they are stored when threads are done with them, so that each plane has one writer.
        for some in blocks.chunks(rayon::current_num_threads().max(1)) {
            let decode = |rows: &Range<usize>| {
                self.with_scratch(layout, |scratch| self.decode_block(layout, &opened, rows, coded, scratch))
            };
            let done = some.par_iter().map(decode).collect::<Result<Vec<_>>>()?;
            planes.par_iter_mut().zip(self.planes()).zip(&channels).for_each(|((out, plane), before)| {
                for (rows, values) in some.iter().zip(&done) {
                    let own = before * rows.len()..(before + plane.channels()) * rows.len();
                    out.store_by(Store::Cached, row + rows.start, rows.len(), &values[own]);
                }
            });
            progress(some.iter().map(|rows| rows.len() as u64).sum::<u64>() * values);
        }
        Ok(())
    }

    /// Rows of all planes, plane after plane.
    fn decode_block(
        &self,
        layout: &Layout,
        opened: &[Opened<'_>],
        rows: &Range<usize>,
        of: CodedRows<'_>,
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(self.geometry().values_per_token() as usize * rows.len());
        let block = rows.start / layout.rows;
        for group in 0..layout.groups() {
            let Opened { tile, symbols, side, escapes } =
                &opened[layout.tiles_of_groups(group..group + 1).start + block];
            let mut done = [0; 2];
            for plane in &self.planes()[tile.planes.clone()] {
                let before = match rows.start - tile.first {
                    0 => [0; 2],
                    before => self.front.lengths_of(plane, before)?,
                };
                let mut coded = Coded {
                    symbols,
                    symbols_done: done[0] + before[0],
                    side,
                    side_done: done[1] + before[1],
                    escapes,
                };
                let cx = TileCx::new(plane, rows.start, rows.len(), of.position + rows.start as u64)
                    .with_grades(of.grades.of(plane.layer as usize, rows.clone()));
                self.front
                    .dequantize(&cx, &mut scratch.front, &mut coded, &mut |_, _, rows| values.extend(rows))
                    .at(|| format!("tensor `{}`", plane.name()))?;
                let all = self.front.lengths_of(plane, tile.rows)?;
                done = [done[0] + all[0], done[1] + all[1]];
            }
        }
        Ok(values)
    }
}
