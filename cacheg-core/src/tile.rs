//! Tiles: what one thread encodes or decodes at a time, and the bytes of one.

use std::ops::Range;

use crate::aligned::Aligned;
use crate::arrange::{self, Order};
use crate::dtype::{Store, fence};
use crate::elements::Elements;
use crate::front::{Coded, Front, FrontScratch, Quantized};
use crate::grade::{CodedRows, Grades};
use crate::predicted::Block;
use crate::wire::{MAX_VARINT, Reader, padding, put_varint, unzigzag, zigzag};
use crate::{
    CoderScratch, DecodeJob, EncodeJob, Error, Escapes, KvView, Limits, Plan, Plane, PlaneViewMut, Result,
    ResultExt, Segment, TileCx,
};

/// How a chunk is cut into tiles: every `planes` consecutive planes by every `rows` consecutive tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// Tokens of the chunk, less those that were dropped or are stored exactly.
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

/// For messages.
impl std::fmt::Display for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { planes, first, rows } = self;
        write!(
            f,
            "tile of planes {} to {}, tokens {first} to {}",
            planes.start,
            planes.end - 1,
            first + rows - 1
        )
    }
}

impl Layout {
    /// Tiles of about as many values as the front likes, with as equal rows as it allows; small planes share one.
    pub(crate) fn choose(front: &Front, tokens: usize) -> Self {
        let (planes, row_multiple, values) = (front.planes(), front.row_multiple(), front.tile_values());
        let channels = planes.iter().map(Plane::channels).max().unwrap_or(1);
        let most = (values / channels).max(1);
        let blocks = tokens.div_ceil(most).max(1);
        let rows = tokens.div_ceil(blocks).next_multiple_of(row_multiple).max(1);
        let shared = values / (channels * rows.min(tokens.max(1)));
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

    /// Number of runs of rows that tiles take.
    pub fn blocks(&self) -> usize {
        self.tokens.div_ceil(self.rows)
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.groups() * self.blocks()
    }

    /// Number of groups of planes that share tiles.
    pub fn groups(&self) -> usize {
        self.all_planes.div_ceil(self.planes)
    }

    /// A tile's planes and tokens, for messages.
    pub fn name(&self, index: usize) -> String {
        self.tile(index).to_string()
    }

    /// Tiles of some groups of planes; they follow each other in the directory.
    pub(crate) fn tiles_of_groups(&self, groups: Range<usize>) -> Range<usize> {
        groups.start * self.blocks()..groups.end * self.blocks()
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

/// A tile whose bytes have been checked and divided, for backends that decode it by [kernels](crate::Kernels).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenTile<'a> {
    /// Its planes.
    pub planes: Range<usize>,
    /// Its first token, counted from the first that is coded.
    pub first: usize,
    /// Its tokens.
    pub rows: usize,
    /// All of its bytes.
    pub bytes: &'a [u8],
    /// Where the coder's stream begins in them.
    pub stream: usize,
    /// What its symbols are, in their order.
    pub segments: Vec<Segment>,
    /// Where the side information of each segment's part begins, of segments with symbol plane 0.
    pub side: Vec<usize>,
    /// Of each plane the grades of its rows, `[rows, heads]`; none without grades. Symbols are head after head then, of each
    /// head segment after segment by grade, and in a segment in the order of the rows.
    pub grades: Vec<Vec<u8>>,
    /// Its escapes: number of the symbol, and what it stands for.
    pub escapes: Vec<(u32, f32)>,
}

impl Plan {
    pub(crate) fn open_tile<'a>(
        &self,
        tile: &Tile,
        bytes: &'a [u8],
        rows: CodedRows<'_>,
    ) -> Result<OpenTile<'a>> {
        let mut segments = Vec::new();
        let sizes = self.tile_sizes(tile, rows, &mut segments);
        let (_, coded, stream) = self.split_tile(sizes.side, bytes)?;
        let quantizer = self.front.quantizer()?;
        let (mut side, mut begin, mut next, mut last) = (Vec::with_capacity(segments.len()), 0, 0, None);
        for segment in &segments {
            let part = (segment.plane, segment.part);
            // Segments of several grades have one part, and share what is beside its symbols.
            if segment.symbol_plane > 0 || last != Some(part) {
                begin = next;
            }
            side.push(begin);
            if segment.symbol_plane == 0 && last.replace(part) != Some(part) {
                let plane = &self.planes()[segment.plane];
                let cx = self.tile_cx(tile, segment.plane, rows);
                let part = self.front.part_cxs(&cx).nth(segment.part).map(|(part, _)| part);
                next += part.map_or(0, |part| quantizer.side_len(plane, &part));
            }
        }
        let mut list = Escapes::default();
        get_escapes(coded, sizes.symbols, &mut list)?;
        let mut escapes = Vec::with_capacity(list.items().len());
        let (mut begin, mut of) = (0, segments.iter().peekable());
        for (index, value) in list.items() {
            while of.peek().is_some_and(|segment| *index as usize >= begin + segment.len()) {
                begin += of.next().map_or(0, Segment::len);
            }
            let segment = of.peek().ok_or_else(|| Error::corrupt("an escaped value beyond the tile"))?;
            if !segment.alphabet.escape {
                return Err(Error::corrupt("an escaped value without its symbol"));
            }
            let plane = &self.planes()[segment.plane];
            let col = segment.first_col + (*index as usize - begin) % segment.cols;
            let value = quantizer.escaped(plane, segment, col, *value).at(|| plane.name())?;
            escapes.push((*index, value));
        }
        let of =
            |plane: &Plane| rows.grades.of(plane.layer as usize, tile.first..tile.first + tile.rows).to_vec();
        let graded = if rows.grades.is_empty() { &[] } else { &self.planes()[tile.planes.clone()] };
        let grades = graded.iter().map(of).collect();
        Ok(OpenTile {
            planes: tile.planes.clone(),
            first: tile.first,
            rows: tile.rows,
            bytes,
            stream: bytes.len() - stream.len(),
            segments,
            side,
            grades,
            escapes,
        })
    }

    /// How the coder's kernel decodes a tile.
    ///
    /// # Errors
    /// If the stream's lengths are impossible, or the coder has no kernel.
    pub fn kernel_stream(&self, tile: &OpenTile<'_>) -> Result<crate::KernelStream> {
        self.coder.kernel_stream(&tile.segments, &tile.bytes[tile.stream..])
    }
}

impl std::fmt::Display for OpenTile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Tile { planes: self.planes.clone(), first: self.first, rows: self.rows }.fmt(f)
    }
}

/// Most tiles that one thread has in hand at a time: with more, their symbols would leave the L2 cache.
pub(crate) const MAX_BATCH: usize = 4;

/// Where decoded tiles go.
pub(crate) struct TileOut<'o, 'v> {
    /// Some planes, among them those of the tiles.
    pub(crate) planes: &'o mut [PlaneViewMut<'v>],
    /// The number of the first.
    pub(crate) first_plane: usize,
    /// The row of the chunk's first token.
    pub(crate) row: usize,
    pub(crate) store: Store,
}

impl<'v> TileOut<'_, 'v> {
    pub(crate) fn plane(&mut self, plane: usize) -> &mut PlaneViewMut<'v> {
        &mut self.planes[plane - self.first_plane]
    }

    fn store(&mut self, plane: usize, first: usize, rows: usize, values: &[f32]) {
        let (store, first) = (self.store, self.row + first);
        self.plane(plane).store_by(store, first, rows, values);
    }

    /// Nothing more will be written for the time being.
    pub(crate) fn end(&self) {
        if self.store == Store::Streaming {
            fence();
        }
    }
}

/// Working memory of one thread.
pub(crate) struct Scratch {
    pub(crate) front: FrontScratch,
    pub(crate) coder: CoderScratch,
    pub(crate) tiles: [TileScratch; MAX_BATCH],
}

/// Working memory for one tile of a batch.
#[derive(Default)]
pub(crate) struct TileScratch {
    pub(crate) segments: Vec<Segment>,
    pub(crate) symbols: Aligned<u8>,
    /// The same in another order, if there are grades.
    pub(crate) arranged: Aligned<u8>,
    pub(crate) order: Order,
    pub(crate) escapes: Escapes,
    /// The tile's bytes, when it is encoded.
    pub(crate) out: Vec<u8>,
    /// How many there are before the coder's stream.
    pub(crate) before: usize,
    /// The coder's stream, where it is known before what goes before it.
    pub(crate) stream: Vec<u8>,
    /// Numbers of symbols that are escapes.
    pub(crate) escaped: Vec<u32>,
    /// The escapes of one row.
    pub(crate) row_escapes: Escapes,
    pub(crate) sizes: Sizes,
}

impl TileScratch {
    /// Puts symbols and escapes in the order that grades give them.
    fn arrange(&mut self, planes: &[Plane], tile: &Tile, rows: CodedRows<'_>) {
        let symbols = self.sizes.symbols;
        self.order.find(planes, tile, rows);
        self.arranged.grow(symbols);
        let (from, to) = (&self.symbols[..symbols], &mut self.arranged[..symbols]);
        self.order.arrange(planes, tile, from, to, &mut self.escapes);
        std::mem::swap(&mut self.symbols, &mut self.arranged);
    }

    /// Undoes [`arrange`](Self::arrange).
    pub(crate) fn restore(&mut self, planes: &[Plane], tile: &Tile, rows: CodedRows<'_>) {
        let symbols = self.sizes.symbols;
        self.order.find(planes, tile, rows);
        self.arranged.grow(symbols);
        let (from, to) = (&self.symbols[..symbols], &mut self.arranged[..symbols]);
        self.order.restore(planes, tile, from, to, &mut self.escapes);
        std::mem::swap(&mut self.symbols, &mut self.arranged);
    }

    /// Appends the escapes to `out`, and room for that many bytes.
    pub(crate) fn append_escapes(&mut self, room: usize) {
        let at = self.before + 4;
        let most = at + self.escapes.items().len() * 2 * MAX_VARINT + 4 + room;
        if self.out.len() < most {
            self.out.resize(most, 0);
        }
        let coded = put_escapes(&self.escapes, &mut self.out[at..]);
        self.out[self.before..at].copy_from_slice(&(coded as u32).to_le_bytes());
        self.before = pad(&mut self.out, at + coded);
    }
}

/// Escapes of so many symbols that are still dealt with one by one.
pub(crate) fn most_escapes(symbols: usize) -> usize {
    symbols / 1024
}

impl Scratch {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            front: FrontScratch::default(),
            coder: plan.coder.scratch(),
            tiles: std::array::from_fn(|_| TileScratch::default()),
        }
    }

    /// Makes room for any tile of the layout, except for the encoder's output.
    pub(crate) fn reserve(&mut self, plan: &Plan, layout: &Layout) {
        let rows = layout.rows.min(layout.tokens);
        plan.front.reserve(rows, &mut self.front);
        for group in plan.planes().chunks(layout.planes) {
            let tile = Tile { planes: group[0].index..group[group.len() - 1].index + 1, first: 0, rows };
            for scratch in &mut self.tiles[..plan.batch()] {
                let sizes = plan.tile_sizes(&tile, CodedRows::ungraded(0), &mut scratch.segments);
                scratch.symbols.grow(sizes.symbols);
                if plan.front.grader().is_some() {
                    scratch.arranged.grow(sizes.symbols);
                }
            }
        }
    }
}

/// What is known of a tile's bytes beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    pub(crate) symbols: usize,
    pub(crate) side: usize,
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
    pub(crate) fn tile_cx<'a>(&'a self, tile: &Tile, plane: usize, rows: CodedRows<'a>) -> TileCx<'a> {
        let plane = &self.planes()[plane];
        TileCx::new(plane, tile.first, tile.rows, rows.position + tile.first as u64)
            .with_grades(rows.grades.of(plane.layer as usize, tile.first..tile.first + tile.rows))
    }

    /// Lists the tile's segments and adds up its sizes.
    pub(crate) fn tile_sizes(&self, tile: &Tile, rows: CodedRows<'_>, segments: &mut Vec<Segment>) -> Sizes {
        segments.clear();
        let mut sizes = Sizes { symbols: 0, side: 0 };
        for plane in tile.planes.clone() {
            let cx = self.tile_cx(tile, plane, rows);
            for (part, alphabets) in self.front.part_cxs(&cx) {
                sizes.side +=
                    self.front.quantizer().map_or(0, |quantizer| quantizer.side_len(cx.plane, &part));
                for (symbol_plane, alphabet) in alphabets.iter().enumerate() {
                    sizes.symbols += part.rows * part.cols;
                    if !rows.grades.is_empty() {
                        arrange::segments(cx.plane, tile, rows, *alphabet, segments);
                        continue;
                    }
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

    /// How many tiles are best done at a time.
    pub(crate) fn batch(&self) -> usize {
        self.coder.batch().clamp(1, MAX_BATCH)
    }

    /// Encodes tiles, at most [`batch`](Self::batch), and gives `take` the bytes of each, in two pieces. `first` is the chunk's
    /// first token in the view; `blocks` has all its rows if planes are predicted from others. Does not allocate once `scratch` has grown.
    #[expect(clippy::too_many_arguments, reason = "what, from where, with what, to where")]
    pub(crate) fn encode_tiles(
        &self,
        view: &KvView<'_>,
        first: usize,
        grades: &Grades,
        tiles: &[Tile],
        blocks: Option<&[Block]>,
        scratch: &mut Scratch,
        take: &mut dyn FnMut(&Tile, [&[u8]; 2]),
    ) -> Result<()> {
        if let Some(bounds) = self.bounds()
            && self.encode_elements(bounds, view, first, tiles, scratch, take)?
        {
            return Ok(());
        }
        let Scratch { front, coder, tiles: scratches } = scratch;
        for (tile, scratch) in tiles.iter().zip(&mut *scratches) {
            self.quantize_tile(view, first, grades, tile, blocks, front, scratch)?;
        }
        let mut used = scratches[..tiles.len()].iter_mut();
        let mut job = || {
            used.next().map_or_else(
                || EncodeJob::new(&[], &[], &mut []),
                |s| EncodeJob::new(&s.segments, &s.symbols[..s.sizes.symbols], &mut s.out[s.before..]),
            )
        };
        let mut jobs: [EncodeJob<'_>; MAX_BATCH] = std::array::from_fn(|_| job());
        self.coder.encode_batch(&mut jobs[..tiles.len()], coder);
        let mut lens = [0; MAX_BATCH];
        for (len, job) in lens.iter_mut().zip(jobs) {
            *len = job.result?;
        }
        for ((tile, scratch), len) in tiles.iter().zip(scratches).zip(lens) {
            take(tile, scratch.out[..scratch.before + len].split_at(scratch.before).into());
        }
        Ok(())
    }

    /// Everything of a tile but the coder's stream, for which it makes room.
    #[expect(clippy::too_many_arguments, reason = "what, from where, with what, to where")]
    fn quantize_tile(
        &self,
        view: &KvView<'_>,
        first: usize,
        grades: &Grades,
        tile: &Tile,
        blocks: Option<&[Block]>,
        front: &mut FrontScratch,
        scratch: &mut TileScratch,
    ) -> Result<()> {
        let rows = CodedRows { position: view.first_position() + first as u64, grades };
        scratch.sizes = self.tile_sizes(tile, rows, &mut scratch.segments);
        let Sizes { symbols, side } = scratch.sizes;
        // Escapes are coded after the symbols are known: their room is reserved then.
        let bound = self.coder.max_len(&scratch.segments);
        if scratch.out.len() < side + bound + 8 {
            scratch.out.resize(side + bound + 8, 0);
        }
        scratch.escapes.clear();
        if let Some(blocks) = blocks {
            self.gather_tile(blocks, tile, scratch)?;
        } else {
            let mut out = Quantized {
                symbols: &mut scratch.symbols[..symbols],
                symbols_done: 0,
                side: &mut scratch.out[..side],
                side_done: 0,
                escapes: &mut scratch.escapes,
            };
            for plane in tile.planes.clone() {
                let cx = self.tile_cx(tile, plane, rows);
                self.front
                    .quantize(view, &cx, first + tile.first, front, &mut out)
                    .at(|| format!("tensor `{}`", cx.plane.name()))?;
            }
        }
        if !grades.is_empty() {
            scratch.arrange(self.planes(), tile, rows);
        }
        scratch.before = pad(&mut scratch.out, side);
        if self.front.escapes() {
            scratch.append_escapes(bound);
        }
        Ok(())
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

    /// Decodes tiles, at most [`batch`](Self::batch), by tables if there are any. Does not allocate once `scratch` has grown.
    pub(crate) fn decode_tiles(
        &self,
        elements: Option<&Elements>,
        tiles: &[(Tile, &[u8])],
        rows: CodedRows<'_>,
        out: &mut TileOut<'_, '_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.open_tiles(tiles, rows, scratch)?;
        // Escapes are filled in one by one.
        let few = |s: &TileScratch| s.escapes.items().len() <= most_escapes(s.sizes.symbols);
        if let Some(elements) = elements.filter(|_| scratch.tiles[..tiles.len()].iter().all(few)) {
            return self.decode_elements(elements, tiles, out, scratch);
        }
        self.decode_symbols(tiles, scratch)?;
        if !rows.grades.is_empty() {
            for ((tile, _), scratch) in tiles.iter().zip(&mut scratch.tiles) {
                scratch.restore(self.planes(), tile, rows);
            }
        }
        for ((tile, bytes), TileScratch { symbols, escapes, sizes, .. }) in tiles.iter().zip(&scratch.tiles) {
            let mut coded = Coded {
                symbols: &symbols[..sizes.symbols],
                symbols_done: 0,
                side: &bytes[..sizes.side],
                side_done: 0,
                escapes,
            };
            for plane in tile.planes.clone() {
                let cx = self.tile_cx(tile, plane, rows);
                let mut give = |first, rows, values: &[f32]| out.store(plane, first, rows, values);
                self.front
                    .dequantize(&cx, &mut scratch.front, &mut coded, &mut give)
                    .at(|| format!("tensor `{}`", cx.plane.name()))?;
            }
        }
        out.end();
        Ok(())
    }

    /// Finds what a tile consists of, and reads its escapes.
    pub(crate) fn open_tiles(
        &self,
        tiles: &[(Tile, &[u8])],
        rows: CodedRows<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        for ((tile, bytes), scratch) in tiles.iter().zip(&mut scratch.tiles) {
            scratch.sizes = self.tile_sizes(tile, rows, &mut scratch.segments);
            let (_, escapes, stream) = self.split_tile(scratch.sizes.side, bytes).at(|| tile.to_string())?;
            scratch.before = bytes.len() - stream.len();
            get_escapes(escapes, scratch.sizes.symbols, &mut scratch.escapes).at(|| tile.to_string())?;
        }
        Ok(())
    }

    /// Undoes the entropy coding of tiles that are open; errors name the tile.
    pub(crate) fn decode_symbols(&self, tiles: &[(Tile, &[u8])], scratch: &mut Scratch) -> Result<()> {
        let Scratch { coder, tiles: scratches, .. } = scratch;
        let mut used = tiles.iter().zip(&mut scratches[..]);
        let mut job = || {
            used.next().map_or_else(
                || DecodeJob::new(&[], &[], &mut []),
                |((_, bytes), s)| {
                    DecodeJob::new(&s.segments, &bytes[s.before..], &mut s.symbols[..s.sizes.symbols])
                },
            )
        };
        let mut jobs: [DecodeJob<'_>; MAX_BATCH] = std::array::from_fn(|_| job());
        self.coder.decode_batch(&mut jobs[..tiles.len()], coder);
        for ((tile, _), job) in tiles.iter().zip(jobs) {
            job.result.at(|| tile.to_string())?;
        }
        Ok(())
    }

    /// How a tile's bytes divide; with the bits an ideal coder would have used, if the coder can tell.
    pub(crate) fn account(
        &self,
        bytes: &[u8],
        tile: &Tile,
        rows: CodedRows<'_>,
        scratch: &mut Scratch,
    ) -> Result<(TileBytes, Option<f64>)> {
        let tiles = [(tile.clone(), bytes)];
        self.open_tiles(&tiles, rows, scratch)?;
        self.decode_symbols(&tiles, scratch)?;
        let TileScratch { segments, symbols, sizes, .. } = &scratch.tiles[0];
        let (side, escapes, stream) = self.split_tile(sizes.side, bytes)?;
        let escapes = if self.front.escapes() { escapes.len() + 4 } else { 0 };
        let (side, stream) = (side.len(), stream.len());
        let padding = bytes.len() - side - escapes - stream;
        let ideal = self.coder.ideal_bits(segments, &symbols[..sizes.symbols]);
        Ok((TileBytes { side, escapes, stream, padding }, ideal))
    }

    /// Shows a coder's calibrator the symbols of one plane.
    pub(crate) fn observe_symbols(
        front: &Front,
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

/// Encodes and decodes the first tiles of a chunk, `work` being given each step twice: to warm up and to be
/// measured. For tests that prove that neither step allocates.
///
/// # Errors
/// Whatever encoding or decoding reports.
#[cfg(feature = "testkit")]
pub fn tile_work(plan: &Plan, view: &KvView<'_>, work: &mut dyn FnMut(&str, &mut dyn FnMut())) -> Result<()> {
    let layout = plan.layout(view.tokens());
    let tiles: Vec<Tile> = (0..layout.tiles().min(plan.batch())).map(|index| layout.tile(index)).collect();
    let mut scratch = Scratch::new(plan);
    scratch.reserve(plan, &layout);
    let grades = Grades::choose(plan.front.grader(), plan.planes(), view, &(0..view.tokens()), 0.0)?;
    let mut bytes = vec![Vec::with_capacity(1 << 20); tiles.len()];
    let mut result = Ok(());
    work("encode", &mut || {
        let mut next = bytes.iter_mut();
        result = plan.encode_tiles(view, 0, &grades, &tiles, None, &mut scratch, &mut |_, coded| {
            if let Some(bytes) = next.next() {
                bytes.clear();
                coded.iter().for_each(|coded| bytes.extend(*coded));
            }
        });
    });
    result?;
    let coded: Vec<(Tile, &[u8])> = tiles.into_iter().zip(bytes.iter().map(Vec::as_slice)).collect();
    let mut cache = crate::KvCache::zeros(view.geometry(), view.tokens(), view.first_position());
    let mut planes = cache.view_mut();
    let mut out = TileOut { planes: planes.planes_mut(), first_plane: 0, row: 0, store: Store::Streaming };
    let elements = plan.elements(view.tokens());
    let mut result = Ok(());
    work("decode", &mut || {
        let rows = CodedRows { position: 0, grades: &grades };
        result = plan.decode_tiles(elements, &coded, rows, &mut out, &mut scratch);
    });
    result
}
