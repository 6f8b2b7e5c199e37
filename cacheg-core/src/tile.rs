//! Tiles: what one thread encodes or decodes at a time, and the bytes of one.

use std::ops::Range;

use crate::front::{Coded, FrontScratch, Quantized};
use crate::wire::{MAX_VARINT, Reader, padding, put_varint, unzigzag, zigzag};
use crate::{
    CoderScratch, Error, Escapes, KvView, Limits, Plan, Plane, PlaneViewMut, Result, ResultExt, Segment,
    TileCx,
};

/// Values that a tile should have: enough that a stream's 128 bytes of final states do not count, few enough
/// that its scratch stays in a core's L2 cache.
const TARGET_VALUES: usize = 1 << 17;

/// How a chunk is cut into tiles: every `planes` consecutive planes by every `rows` consecutive tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// Tokens of the chunk.
    pub tokens: usize,
    /// Tokens of a tile (the last may have fewer).
    pub rows: usize,
    /// Planes of a tile (the last may have fewer).
    pub planes: usize,
    /// Planes of the model.
    pub all_planes: usize,
}

/// One tile of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) planes: Range<usize>,
    /// First token, counted from the chunk's first.
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl Layout {
    /// Tiles of about [`TARGET_VALUES`], with as equal rows as `row_multiple` allows; small planes share one.
    pub(crate) fn choose(planes: &[Plane], row_multiple: usize, tokens: usize) -> Self {
        let channels = planes.iter().map(Plane::channels).max().unwrap_or(1);
        let most = (TARGET_VALUES / channels).max(1);
        let blocks = tokens.div_ceil(most).max(1);
        let rows = tokens.div_ceil(blocks).next_multiple_of(row_multiple).max(1);
        let shared = TARGET_VALUES / (channels * rows.min(tokens.max(1)));
        Self { tokens, rows, planes: shared.clamp(1, planes.len().max(1)), all_planes: planes.len() }
    }

    /// Checks a layout that was read.
    pub(crate) fn new(
        tokens: usize,
        rows: u32,
        group: u32,
        planes: &[Plane],
        limits: &Limits,
    ) -> Result<Self> {
        let (rows, group, all_planes) = (rows as usize, group as usize, planes.len());
        if rows == 0 || group == 0 || group > all_planes {
            return Err(Error::corrupt(format!("tiles of {rows} tokens and {group} of {all_planes} planes")));
        }
        let layout = Self { tokens, rows, planes: group, all_planes };
        layout.check(planes, limits)?;
        Ok(layout)
    }

    /// Refuses tiles that no reader would take.
    pub(crate) fn check(&self, planes: &[Plane], limits: &Limits) -> Result<()> {
        let per_token = |tile: &[Plane]| tile.iter().map(|plane| plane.channels() as u64).sum::<u64>();
        let channels = planes.chunks(self.planes).map(per_token).max().unwrap_or(0);
        if channels.saturating_mul(self.rows.min(self.tokens) as u64) > limits.max_tile_values {
            return Err(Error::limit(format!("a tile of {} tokens × {channels} channels", self.rows)));
        }
        Ok(())
    }

    fn blocks(&self) -> usize {
        self.tokens.div_ceil(self.rows)
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.all_planes.div_ceil(self.planes) * self.blocks()
    }

    /// Tiles of one group of planes; they follow each other in the directory.
    pub(crate) fn tiles_of_group(&self, group: usize) -> Range<usize> {
        group * self.blocks()..(group + 1) * self.blocks()
    }

    /// The tile at a place of the directory: all blocks of tokens of the first planes, then of the next.
    pub(crate) fn tile(&self, index: usize) -> Tile {
        let (group, block) = (index / self.blocks(), index % self.blocks());
        let first = block * self.rows;
        Tile {
            planes: group * self.planes..((group + 1) * self.planes).min(self.all_planes),
            first,
            rows: self.rows.min(self.tokens - first),
        }
    }
}

/// Working memory of one thread.
pub(crate) struct Scratch {
    front: FrontScratch,
    segments: Vec<Segment>,
    symbols: Vec<u8>,
    escapes: Escapes,
    coder: CoderScratch,
    /// An encoded tile.
    pub(crate) out: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            front: FrontScratch::default(),
            segments: Vec::new(),
            symbols: Vec::new(),
            escapes: Escapes::default(),
            coder: plan.coder.scratch(),
            out: Vec::new(),
        }
    }

    /// Makes room for any tile of the layout, except for the encoder's output.
    pub(crate) fn reserve(&mut self, plan: &Plan, layout: &Layout) {
        let rows = layout.rows.min(layout.tokens);
        plan.front.reserve(rows, &mut self.front);
        for group in plan.planes().chunks(layout.planes) {
            let tile = Tile { planes: group[0].index..group[group.len() - 1].index + 1, first: 0, rows };
            let sizes = plan.tile_sizes(&tile, &mut self.segments);
            if self.symbols.len() < sizes.symbols {
                self.symbols.resize(sizes.symbols, 0);
            }
        }
    }
}

/// What is known of a tile's bytes beforehand.
struct Sizes {
    symbols: usize,
    side: usize,
}

/// How a tile's bytes divide, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TileBytes {
    /// Side information of the quantizer: scales and the like.
    pub side: usize,
    /// Values beyond the alphabets, with their length.
    pub escapes: usize,
    /// The coder's stream.
    pub stream: usize,
    /// Zeros to the next multiple of 4.
    pub padding: usize,
}

impl Plan {
    fn tile_cx<'a>(&'a self, tile: &Tile, plane: usize, position: u64) -> TileCx<'a> {
        TileCx::new(&self.planes()[plane], tile.first, tile.rows, position + tile.first as u64)
    }

    /// Lists the tile's segments and adds up its sizes.
    fn tile_sizes(&self, tile: &Tile, segments: &mut Vec<Segment>) -> Sizes {
        segments.clear();
        let mut sizes = Sizes { symbols: 0, side: 0 };
        for plane in tile.planes.clone() {
            let cx = self.tile_cx(tile, plane, 0);
            for (part, alphabets) in self.front.part_cxs(&cx) {
                sizes.side +=
                    self.front.quantizer().map_or(0, |quantizer| quantizer.side_len(cx.plane, &part));
                for (symbol_plane, alphabet) in alphabets.iter().enumerate() {
                    sizes.symbols += part.rows * part.cols;
                    segments.push(Segment::new(
                        plane,
                        part.index,
                        symbol_plane,
                        part.rows,
                        part.cols,
                        *alphabet,
                    ));
                }
            }
        }
        sizes
    }

    /// Encodes a tile into `scratch.out` and returns its length. `first` is the chunk's first token in the
    /// view. Does not allocate once `scratch` has grown.
    pub(crate) fn encode_tile(
        &self,
        view: &KvView<'_>,
        first: usize,
        tile: &Tile,
        scratch: &mut Scratch,
    ) -> Result<usize> {
        let Sizes { symbols, side } = self.tile_sizes(tile, &mut scratch.segments);
        // Escapes are coded after the symbols are known: their room is reserved then.
        let bound = self.coder.max_len(&scratch.segments);
        if scratch.out.len() < side + bound + 8 {
            scratch.out.resize(side + bound + 8, 0);
        }
        scratch.escapes.clear();
        let mut out = Quantized {
            symbols: &mut scratch.symbols[..symbols],
            symbols_done: 0,
            side: &mut scratch.out[..side],
            side_done: 0,
            escapes: &mut scratch.escapes,
        };
        for plane in tile.planes.clone() {
            let cx = self.tile_cx(tile, plane, view.first_position() + first as u64);
            self.front
                .quantize(view, &cx, first + tile.first, &mut scratch.front, &mut out)
                .at(|| format!("tensor `{}`", cx.plane.name()))?;
        }
        let mut len = pad(&mut scratch.out, side);
        if self.front.escapes() {
            let room = len + 4 + scratch.escapes.items().len() * 2 * MAX_VARINT + 4 + bound;
            if scratch.out.len() < room {
                scratch.out.resize(room, 0);
            }
            let coded = put_escapes(&scratch.escapes, &mut scratch.out[len + 4..]);
            scratch.out[len..len + 4].copy_from_slice(&(coded as u32).to_le_bytes());
            len = pad(&mut scratch.out, len + 4 + coded);
        }
        let out = &mut scratch.out[len..];
        let stream =
            self.coder.encode(&scratch.segments, &scratch.symbols[..symbols], out, &mut scratch.coder)?;
        Ok(len + stream)
    }

    /// Divides a tile's bytes.
    pub(crate) fn split_tile<'t>(
        &self,
        side: usize,
        bytes: &'t [u8],
    ) -> Result<(&'t [u8], &'t [u8], &'t [u8])> {
        let mut reader = Reader::new(bytes);
        let side_bytes = reader.take(side)?;
        reader.padding(side)?;
        let mut escapes: &[u8] = &[];
        if self.front.escapes() {
            let len = reader.u32()? as usize;
            escapes = reader.take(len)?;
            reader.padding(len)?;
        }
        Ok((side_bytes, escapes, reader.rest()))
    }

    /// Decodes a tile into the planes `tile.planes` at row `to + tile.first`. Does not allocate once
    /// `scratch` has grown.
    pub(crate) fn decode_tile(
        &self,
        bytes: &[u8],
        tile: &Tile,
        position: u64,
        planes: &mut [PlaneViewMut<'_>],
        to: usize,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let sizes = self.decode_symbols(bytes, tile, scratch)?;
        let mut coded = Coded {
            symbols: &scratch.symbols[..sizes.symbols],
            symbols_done: 0,
            side: &bytes[..sizes.side],
            side_done: 0,
            escapes: &scratch.escapes,
        };
        for (plane, out) in tile.planes.clone().zip(planes) {
            let cx = self.tile_cx(tile, plane, position);
            let rows = self
                .front
                .dequantize(&cx, &mut scratch.front, &mut coded)
                .at(|| format!("tensor `{}`", cx.plane.name()))?;
            out.store(to + tile.first, tile.rows, rows);
        }
        Ok(())
    }

    /// Undoes the entropy coding only.
    fn decode_symbols(&self, bytes: &[u8], tile: &Tile, scratch: &mut Scratch) -> Result<Sizes> {
        let sizes = self.tile_sizes(tile, &mut scratch.segments);
        let (_, escapes, stream) = self.split_tile(sizes.side, bytes)?;
        get_escapes(escapes, sizes.symbols, &mut scratch.escapes)?;
        let symbols = &mut scratch.symbols[..sizes.symbols];
        self.coder.decode(&scratch.segments, stream, symbols, &mut scratch.coder)?;
        Ok(sizes)
    }

    /// How a tile's bytes divide; with the bits an ideal coder would have used, if the coder can tell.
    pub(crate) fn account(
        &self,
        bytes: &[u8],
        tile: &Tile,
        scratch: &mut Scratch,
    ) -> Result<(TileBytes, Option<f64>)> {
        let sizes = self.decode_symbols(bytes, tile, scratch)?;
        let (side, escapes, stream) = self.split_tile(sizes.side, bytes)?;
        let escapes = if self.front.escapes() { escapes.len() + 4 } else { 0 };
        let (side, stream) = (side.len(), stream.len());
        let padding = bytes.len() - side - escapes - stream;
        let ideal = self.coder.ideal_bits(&scratch.segments, &scratch.symbols[..sizes.symbols]);
        Ok((TileBytes { side, escapes, stream, padding }, ideal))
    }

    /// Shows a coder's calibrator the symbols of one plane.
    pub(crate) fn observe_symbols(
        front: &crate::front::Front,
        view: &KvView<'_>,
        cx: &TileCx<'_>,
        token: usize,
        scratch: &mut SymbolScratch,
        see: &mut SeeSymbols<'_>,
    ) -> Result<()> {
        let quantizer = front.quantizer()?;
        let (mut symbols, mut side) = (0, 0);
        for (part, alphabets) in front.part_cxs(cx) {
            symbols += part.rows * part.cols * alphabets.len();
            side += quantizer.side_len(cx.plane, &part);
        }
        scratch.symbols.resize(symbols, 0);
        scratch.side.resize(side, 0);
        scratch.escapes.clear();
        front.reserve(cx.rows, &mut scratch.front);
        let mut out = Quantized {
            symbols: &mut scratch.symbols,
            symbols_done: 0,
            side: &mut scratch.side,
            side_done: 0,
            escapes: &mut scratch.escapes,
        };
        front.quantize(view, cx, token, &mut scratch.front, &mut out)?;
        let mut rest = scratch.symbols.as_slice();
        for (part, alphabets) in front.part_cxs(cx) {
            for symbol_plane in 0..alphabets.len() {
                let (own, others) = rest.split_at(part.rows * part.cols);
                see(&part, symbol_plane, own)?;
                rest = others;
            }
        }
        Ok(())
    }
}

/// Takes a part's symbols: the part, the number of the symbol plane, the symbols.
pub(crate) type SeeSymbols<'s> = dyn FnMut(&crate::PartCx, usize, &[u8]) -> Result<()> + 's;

/// Working memory of a calibrating thread.
#[derive(Default)]
pub(crate) struct SymbolScratch {
    pub(crate) front: FrontScratch,
    symbols: Vec<u8>,
    side: Vec<u8>,
    escapes: Escapes,
}

/// Zeros to the next multiple of 4; returns the padded length.
fn pad(out: &mut [u8], len: usize) -> usize {
    let padded = len + padding(len);
    out[len..padded].fill(0);
    padded
}

/// Gap to the previous escape and value, as varints.
fn put_escapes(escapes: &Escapes, out: &mut [u8]) -> usize {
    let (mut len, mut next) = (0, 0);
    for (index, value) in escapes.items() {
        len += put_varint(index - next, &mut out[len..]);
        len += put_varint(zigzag(*value), &mut out[len..]);
        next = index + 1;
    }
    len
}

fn get_escapes(bytes: &[u8], symbols: usize, escapes: &mut Escapes) -> Result<()> {
    escapes.clear();
    let mut reader = Reader::new(bytes);
    let mut next = 0u64;
    while !reader.rest().is_empty() {
        let index = next + u64::from(reader.varint()?);
        if index >= symbols as u64 {
            return Err(Error::corrupt("an escaped value beyond the tile"));
        }
        escapes.push(index as u32, unzigzag(reader.varint()?));
        next = index + 1;
    }
    Ok(())
}

/// Encodes and decodes the first tile of a chunk, `work` being given each step twice: to warm up and to be
/// measured. For tests that prove that neither step allocates.
///
/// # Errors
/// Whatever encoding or decoding reports.
#[cfg(feature = "testkit")]
pub fn tile_work(plan: &Plan, view: &KvView<'_>, work: &mut dyn FnMut(&str, &mut dyn FnMut())) -> Result<()> {
    let layout = plan.layout(view.tokens());
    let tile = layout.tile(0);
    let mut scratch = Scratch::new(plan);
    scratch.reserve(plan, &layout);
    let mut result = Ok(0);
    work("encode", &mut || result = plan.encode_tile(view, 0, &tile, &mut scratch));
    let bytes = scratch.out[..result?].to_vec();
    let mut cache = crate::KvCache::zeros(view.geometry(), view.tokens(), view.first_position());
    let mut out = cache.view_mut();
    let planes = &mut out.planes_mut()[tile.planes.clone()];
    let mut result = Ok(());
    work("decode", &mut || result = plan.decode_tile(&bytes, &tile, 0, planes, 0, &mut scratch));
    result
}
