//! A chunk: tokens that are encoded, stored, fetched and decoded by themselves. `FORMAT.md` has its bytes.

mod encode;

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::dtype::Store;
use crate::exact::ExactRows;
use crate::front::Front;
use crate::grade::{CodedRows, Grades};
use crate::kept::{Bitmaps, Kept};
use crate::plan::Wanted;
use crate::profile::short;
use crate::spec::StageSpec;
use crate::tile::{Layout, Tile, TileBytes, TileOut};
use crate::wire::{Reader, padding};
use crate::{
    BindCx, Error, ExactTokens, Geometry, KvViewMut, Limits, OpenTile, Pipeline, Plan, PlaneViewMut, Profile,
    Registry, Result, Source,
};
pub(crate) use encode::all_tiles;
pub use encode::{EncodedChunk, Encoder};

const MAGIC: [u8; 4] = *b"CGKC";
/// Version of containers, and of chunks whose tokens are all coded.
pub(crate) const VERSION: [u8; 2] = [0, 1];
/// Version of chunks from which tokens were dropped, or that store some exactly.
const NOT_ALL_CODED: [u8; 2] = [0, 2];
pub(crate) const PREFIX: usize = 40;
pub(crate) const ENTRY: usize = 12;

/// Bytes of output that no cache will hold for whoever reads it next.
const LARGE: u64 = 8 << 20;

/// Called with the number of values (or tokens) that have been dealt with since the last call.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// The chunks of a context: runs of `chunk_tokens`, the last one shorter.
pub(crate) fn ranges(tokens: usize, chunk_tokens: usize) -> impl Iterator<Item = Range<usize>> {
    let step = chunk_tokens.max(1);
    (0..tokens).step_by(step).map(move |first| first..(first + step).min(tokens))
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    geometry: Geometry,
    pipeline: Vec<StageSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    tile: TileHeader,
    tokens: TokensHeader,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TileHeader {
    planes: u32,
    rows: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensHeader {
    count: u64,
    /// Index of the first in its container.
    first: u64,
    /// Tokens that every head has left, if there is a selection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<u64>,
    /// How many of the first and of the last ones are stored exactly, beside the tiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exact: Option<[u64; 2]>,
    /// Position of the first in the model's sequence.
    position: u64,
}

/// Of everything before the tiles but the place of the checksum itself.
pub(crate) fn checksum(prefix: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&prefix[..32]);
    hash.update(&prefix[40..]);
    hash.digest()
}

/// A chunk whose header and directory have been checked; its tiles are checked when they are decoded.
#[derive(Debug, Clone)]
pub struct Chunk<'a> {
    header: Header,
    len: usize,
    carried: Vec<&'a [u8]>,
    entries: Vec<Entry>,
    payload: &'a [u8],
    /// Of the tokens that are coded.
    layout: Layout,
    exact: ExactRows,
    sizes: ChunkBytes,
    kept: Option<Bitmaps<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: usize,
    len: usize,
    hash: u64,
}

/// How a chunk's bytes divide; they add up to its length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkBytes {
    /// Fixed fields and the JSON header.
    pub header: usize,
    /// What the chunk carries for each stage, with its length.
    pub carried: Vec<usize>,
    /// Lengths and checksums of the tiles.
    pub directory: usize,
    /// The tiles.
    pub tiles: TileBytes,
    /// Zeros between all of these.
    pub padding: usize,
}

impl ChunkBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        let TileBytes { side, escapes, stream, padding } = self.tiles;
        self.header
            + self.carried.iter().sum::<usize>()
            + self.directory
            + self.padding
            + side
            + escapes
            + stream
            + padding
    }
}

impl<'a> Chunk<'a> {
    /// Reads the chunk at the front of `bytes`; whatever follows it is not looked at.
    ///
    /// # Errors
    /// Corrupt or truncated bytes, another version, sizes over the limits.
    pub fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != MAGIC {
            return Err(Error::corrupt("not a cacheg chunk (no `CGKC` at its front)"));
        }
        let version = check_version("chunk", [reader.u8()?, reader.u8()?], &[VERSION, NOT_ALL_CODED])?;
        if reader.u16()? != 0 {
            return Err(Error::unsupported("a chunk with unknown flags"));
        }
        let total = usize::try_from(reader.u64()?).map_err(|_| Error::limit("a chunk larger than memory"))?;
        let (header_len, carried_len, tiles) = (reader.u32()?, reader.u32()?, reader.u32()? as usize);
        if reader.u32()? != 0 {
            return Err(Error::corrupt("a reserved field is not zero"));
        }
        let sum = reader.u64()?;
        if header_len > limits.max_header {
            return Err(Error::limit(format!("a chunk header of {header_len} bytes")));
        }
        if carried_len > limits.max_carried {
            return Err(Error::limit(format!("{carried_len} bytes of carried data")));
        }
        if total > bytes.len() {
            return Err(Error::corrupt(format!(
                "truncated: a chunk of {total} bytes, {} are here",
                bytes.len()
            )));
        }
        let (header_len, carried_len) = (header_len as usize, carried_len as usize);
        let header_bytes = reader.take(header_len)?;
        reader.padding(header_len)?;
        let mut carried_reader = Reader::new(reader.take(carried_len)?);
        let directory =
            reader.take(tiles.checked_mul(ENTRY).ok_or_else(|| Error::corrupt("too many tiles"))?)?;
        let prefix = PREFIX + header_len + padding(header_len) + carried_len + directory.len();
        if prefix > total || checksum(&bytes[..prefix]) != sum {
            return Err(Error::corrupt("checksum of the chunk's header"));
        }
        let header: Header =
            serde_json::from_slice(header_bytes).map_err(|e| Error::corrupt(format!("chunk header: {e}")))?;
        header.geometry.validate(limits)?;
        let rows = header.tokens.kept.unwrap_or(header.tokens.count);
        let tokens = check_tokens(rows, &header.geometry, limits)?;
        let ends = header
            .tokens
            .first
            .checked_add(header.tokens.count)
            .zip(header.tokens.position.checked_add(header.tokens.count));
        if ends.is_none() {
            return Err(Error::corrupt("positions beyond 64 bits"));
        }
        let exact =
            header.tokens.exact.map(|[first, last]| ExactRows::check(first, last, tokens)).transpose()?;
        let exact = exact.unwrap_or_default();
        let coded = tokens - exact.first - exact.last;
        let layout =
            Layout::new(coded, header.tile.rows, header.tile.planes, &header.geometry.planes(), limits)?;
        if layout.tiles() != tiles {
            return Err(Error::corrupt(format!("{tiles} tiles where {} are expected", layout.tiles())));
        }
        let mut sizes =
            ChunkBytes { header: PREFIX + header_len, directory: directory.len(), ..ChunkBytes::default() };
        let mut carried = Vec::new();
        while !carried_reader.rest().is_empty() {
            let len = carried_reader.u32()? as usize;
            carried.push(carried_reader.take(len)?);
            carried_reader.padding(len)?;
            sizes.carried.push(4 + len);
            sizes.padding += padding(len);
        }
        if !carried.is_empty() && carried.len() != header.pipeline.len() {
            return Err(Error::corrupt("carried data of another number of stages"));
        }
        sizes.padding += padding(header_len);
        let mut directory = Reader::new(directory);
        let mut entries = Vec::with_capacity(tiles);
        let mut offset = 0usize;
        for _ in 0..tiles {
            let (len, hash) = (directory.u32()? as usize, directory.u64()?);
            entries.push(Entry { offset, len, hash });
            offset = offset
                .checked_add(len + padding(len))
                .ok_or_else(|| Error::corrupt("tiles beyond memory"))?;
            sizes.tiles.padding += padding(len);
        }
        if prefix.checked_add(offset) != Some(total) {
            return Err(Error::corrupt("the tiles' lengths do not add up to the chunk's"));
        }
        let kept = check_selection(&header, version, &carried, limits)?;
        let payload = &bytes[prefix..total];
        Ok(Self { header, len: total, carried, entries, payload, layout, exact, sizes, kept })
    }

    /// Its exact length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.header.geometry
    }

    /// The stages.
    pub fn pipeline(&self) -> &[StageSpec] {
        &self.header.pipeline
    }

    /// Hash of the profile it needs.
    pub fn profile(&self) -> Option<&str> {
        self.header.profile.as_deref()
    }

    /// Its tokens, counted in its container, dropped ones too.
    pub fn tokens(&self) -> Range<usize> {
        let TokensHeader { first, count, .. } = self.header.tokens;
        first as usize..(first + count) as usize
    }

    /// Rows that it decodes to: its tokens, or those that every head has kept.
    pub fn rows(&self) -> usize {
        self.layout.tokens + self.exact.first + self.exact.last
    }

    /// Whether each head has dropped some of the tokens; what it kept is then the first of what the chunk carries.
    pub fn selects(&self) -> bool {
        self.kept.is_some()
    }

    /// What every head has kept, of this chunk alone; `None` if nothing was dropped.
    pub fn kept(&self) -> Option<Kept> {
        let bitmaps = self.kept.as_ref()?;
        let mut kept = Kept::empty(bitmaps.heads().to_vec(), self.position());
        kept.extend(self.tokens().len(), Some(bitmaps));
        Some(kept)
    }

    pub(crate) fn bitmaps(&self) -> Option<&Bitmaps<'a>> {
        self.kept.as_ref()
    }

    /// Position of its first token in the model's sequence.
    pub fn position(&self) -> u64 {
        self.header.tokens.position
    }

    /// How its bytes divide outside of the tiles; of these only the padding is known.
    pub fn sizes(&self) -> &ChunkBytes {
        &self.sizes
    }

    /// How the rows that are coded are cut into tiles: all but those that are stored exactly.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A tile's bytes, checked.
    fn tile_bytes(&self, index: usize) -> Result<&'a [u8]> {
        let Entry { offset, len, hash } = self.entries[index];
        let bytes = &self.payload[offset..offset + len + padding(len)];
        if xxh3_64(bytes) != hash {
            return Err(Error::corrupt(format!("checksum of tile {index}")));
        }
        Ok(&bytes[..len])
    }

    /// Binds the chunk's pipeline: by a profile or by what the chunk carries.
    ///
    /// # Errors
    /// If stages are not linked, if the profile is missing or another one, if the carried data is corrupt.
    pub fn bind(&self, registry: &Registry, profile: Option<&Profile>) -> Result<Arc<Plan>> {
        let pipeline = Pipeline::new(registry, &self.header.pipeline)?;
        if pipeline.specs() != self.header.pipeline {
            return Err(Error::corrupt("the chunk's pipeline is not written out in full"));
        }
        if pipeline.selects() != self.kept.is_some() {
            return Err(Error::corrupt("a select stage without kept tokens, or kept tokens without one"));
        }
        // A selection is the first stage.
        let beside = pipeline.exact().map_or(0, |(stage, _)| stage);
        // Of the quantizer a chunk may carry grades.
        let graded = pipeline.quantizer().graded().then(|| pipeline.specs().len() - 2);
        let others =
            |(stage, bytes): (usize, &&[u8])| stage != beside && Some(stage) != graded && !bytes.is_empty();
        if self.header.profile.is_some() && self.carried.iter().enumerate().any(others) {
            return Err(Error::corrupt("carried data beside a profile's"));
        }
        match (&self.header.profile, profile) {
            (None, _) => {
                let mut supply = |stage: usize, wanted: &Wanted<'_>, cx: &BindCx<'_>, _: &Front| {
                    let bytes =
                        self.carried.get(stage).ok_or_else(|| Error::corrupt("the chunk carries no data"))?;
                    wanted.unpack(cx, bytes)
                };
                let bound = Plan::bind_with(&pipeline, self.geometry(), Source::Chunk, &mut supply)?;
                Ok(Arc::new(bound))
            }
            (Some(wanted), Some(profile)) if profile.hash() == wanted => {
                Plan::bind(&pipeline, self.geometry(), Some(profile))
            }
            (Some(wanted), Some(profile)) => Err(Error::profile(format!(
                "the chunk was encoded with profile {wanted}, given is {}",
                profile.hash()
            ))),
            (Some(wanted), None) => Err(Error::profile(format!(
                "the chunk was encoded with profile {wanted} (the SHA-256 of the .cgprof file); give it"
            ))),
        }
    }

    /// Decodes into the rows of `out` from `row`. `plan` must come from [`bind`](Self::bind) of this chunk or
    /// of one that [is coded alike](Self::coded_like). Values done are counted on `progress`.
    ///
    /// # Errors
    /// Corrupt tiles; `out` then holds rubbish.
    ///
    /// # Panics
    /// If `out` is of another geometry or the rows are outside of it.
    pub fn decode(
        &self,
        plan: &Plan,
        out: &mut KvViewMut<'_>,
        row: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        assert!(out.planes_mut().len() == plan.planes().len(), "the output is of another geometry");
        assert!(row + self.rows() <= out.tokens(), "the chunk is outside the output");
        self.decode_exact(plan, out, row)?;
        progress((self.exact.first + self.exact.last) as u64 * self.geometry().values_per_token());
        let groups = 0..self.layout.groups();
        self.decode_groups(plan, groups, out.planes_mut(), row, progress)
    }

    /// Decodes what is coded of some groups of planes, as the [layout](Self::layout) counts them, for backends that
    /// decode others elsewhere meanwhile. `planes` are those of the groups; `row` is that of the chunk's first token.
    ///
    /// # Errors
    /// Corrupt tiles; `planes` then hold rubbish.
    ///
    /// # Panics
    /// If there are no such groups, or the rows are outside of the planes.
    pub fn decode_groups(
        &self,
        plan: &Plan,
        groups: Range<usize>,
        planes: &mut [PlaneViewMut<'_>],
        row: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let begin = groups.start;
        let (row, grades) = (row + self.exact.first, self.grades(plan)?);
        let rows = self.coded_rows(&grades);
        if plan.front.predicts() {
            let bytes = |index| self.tile_bytes(index);
            return plan.decode_predicted(&self.layout, bytes, rows, planes, row, progress);
        }
        let elements = plan.elements(self.layout.tokens);
        // Threads own whole planes: enough of them that their tiles make up whole batches.
        let bytes = self.layout.tokens as u64 * self.geometry().bytes_per_token();
        let store = if bytes >= LARGE { Store::Streaming } else { Store::Cached };
        let batch = plan.batch();
        let (end, tiles) = (groups.end, self.layout.tiles_of_groups(0..1).len().max(1));
        let groups = groups.len();
        let several = (1..=batch).find(|groups| groups * tiles % batch == 0).unwrap_or(1);
        let several = fair(several, groups);
        let planes = planes.par_chunks_mut(self.layout.planes * several);
        planes.enumerate().try_for_each(|(index, planes)| {
            let first = begin + index * several;
            let mut indices = self.layout.tiles_of_groups(first..end.min(first + several));
            let mut out = TileOut { planes, first_plane: first * self.layout.planes, row, store };
            plan.with_scratch(&self.layout, |scratch| {
                let mut tiles = Vec::with_capacity(batch);
                while !indices.is_empty() {
                    tiles.clear();
                    for index in indices.by_ref().take(batch) {
                        tiles.push((self.layout.tile(index), self.tile_bytes(index)?));
                    }
                    plan.decode_tiles(elements, &tiles, rows, &mut out, scratch)?;
                    progress(tiles.iter().map(|(tile, _)| values(plan, tile)).sum());
                }
                Ok(())
            })
        })
    }

    /// A tile by its place in the [layout](Self::layout): all blocks of tokens of the first group of planes, then of the
    /// next. Its checksum is verified.
    ///
    /// # Errors
    /// If the tile is corrupt.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn open_tile(&self, plan: &Plan, index: usize) -> Result<OpenTile<'a>> {
        self.open(plan)?.tile(index)
    }

    /// Opens the chunk, for those who want several tiles: what all of them need is read once.
    ///
    /// # Errors
    /// If the grades that it carries are corrupt.
    pub fn open<'o>(&'o self, plan: &'o Plan) -> Result<OpenChunk<'o, 'a>> {
        Ok(OpenChunk { chunk: self, plan, grades: self.grades(plan)? })
    }

    /// The grades of the rows that are coded.
    fn grades(&self, plan: &Plan) -> Result<Grades> {
        let Some(grader) = plan.front.grader() else { return Ok(Grades::default()) };
        let bytes = self.carried.get(plan.quantizer_stage());
        let bytes = bytes.ok_or_else(|| Error::corrupt("the chunk does not carry its tokens' grades"))?;
        Grades::unpack(grader, self.geometry(), self.layout.tokens, bytes)
    }

    fn coded_rows<'g>(&self, grades: &'g Grades) -> CodedRows<'g> {
        CodedRows { position: self.position() + self.exact.first as u64, grades }
    }

    /// How many rows at its front and at its end are not coded but [stored](Self::decode_exact) as they are.
    pub fn exact_rows(&self) -> [usize; 2] {
        [self.exact.first, self.exact.last]
    }

    /// Writes the exact tokens to their rows, the chunk's first token being `row`.
    ///
    /// # Errors
    /// If the chunk does not carry them.
    pub fn decode_exact(&self, plan: &Plan, out: &mut KvViewMut<'_>, row: usize) -> Result<()> {
        if self.exact.is_empty() {
            return Ok(());
        }
        let ExactRows { first, last } = self.exact;
        let wanted = |tokens: &ExactTokens| first <= tokens.first as usize && last <= tokens.last as usize;
        let stage = plan.exact.filter(|(_, tokens)| wanted(tokens)).map(|(stage, _)| stage);
        match stage.and_then(|stage| self.carried.get(stage)) {
            Some(bytes) if bytes.len() == self.exact.len(self.geometry()) => {
                self.exact.unpack(bytes, out, row, self.rows())
            }
            _ => Err(Error::corrupt("the chunk does not carry the exact tokens that it names")),
        }
    }

    /// Whether a plan bound to `other` decodes this chunk too.
    pub fn coded_like(&self, other: &Self) -> bool {
        let selects = usize::from(self.kept.is_some());
        let shared = |chunk: &Self| {
            chunk.header.profile.is_some() || chunk.carried.iter().skip(selects).all(|bytes| bytes.is_empty())
        };
        self.kept.is_some() == other.kept.is_some()
            && shared(self)
            && shared(other)
            && self.header.profile == other.header.profile
            && self.header.pipeline == other.header.pipeline
            && self.header.geometry == other.header.geometry
    }

    /// Accounts for every byte; decodes all symbols to do so. Also the bits that an ideal coder would need
    /// for the streams under the same tables, if the coder can tell.
    ///
    /// # Errors
    /// Corrupt tiles.
    pub fn account(&self, plan: &Plan) -> Result<(ChunkBytes, Option<f64>)> {
        let mut sizes = self.sizes.clone();
        let mut ideal = Some(0.0);
        let grades = self.grades(plan)?;
        let rows = self.coded_rows(&grades);
        let one = |index: usize| {
            let (bytes, tile) = (self.tile_bytes(index)?, self.layout.tile(index));
            plan.with_scratch(&self.layout, |scratch| plan.account(bytes, &tile, rows, scratch))
        };
        for (tile, bits) in (0..self.layout.tiles()).into_par_iter().map(one).collect::<Result<Vec<_>>>()? {
            sizes.tiles.side += tile.side;
            sizes.tiles.escapes += tile.escapes;
            sizes.tiles.stream += tile.stream;
            sizes.tiles.padding += tile.padding;
            ideal = ideal.zip(bits).map(|(sum, bits)| sum + bits);
        }
        Ok((sizes, ideal))
    }
}

/// A chunk whose tiles are opened; see [`Chunk::open`].
#[derive(Debug)]
pub struct OpenChunk<'o, 'a> {
    chunk: &'o Chunk<'a>,
    plan: &'o Plan,
    grades: Grades,
}

impl<'o, 'a> OpenChunk<'o, 'a> {
    /// The chunk.
    pub fn chunk(&self) -> &'o Chunk<'a> {
        self.chunk
    }

    /// A tile by its place in the [layout](Chunk::layout), as [`Chunk::open_tile`].
    ///
    /// # Errors
    /// If the tile is corrupt.
    ///
    /// # Panics
    /// If there is no such tile.
    pub fn tile(&self, index: usize) -> Result<OpenTile<'a>> {
        let tile = self.chunk.layout.tile(index);
        let bytes = self.chunk.tile_bytes(index)?;
        let opened = self.plan.open_tile(&tile, bytes, self.chunk.coded_rows(&self.grades));
        opened.map_err(|error| error.at(tile))
    }
}

/// For messages: a chunk with the profile it needs.
impl std::fmt::Display for Chunk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.tokens();
        write!(f, "tokens {}..{}", tokens.start, tokens.end)?;
        if self.kept.is_some() {
            write!(f, ", {} kept", self.rows())?;
        }
        self.profile().map_or(Ok(()), |hash| write!(f, ", profile {}", short(hash)))
    }
}

/// As many things at a time as are wanted, or fewer, so that no thread goes without.
fn fair(wanted: usize, things: usize) -> usize {
    wanted.min(things.div_ceil(rayon::current_num_threads())).max(1)
}

/// Number of a tile's values.
fn values(plan: &Plan, tile: &Tile) -> u64 {
    plan.planes()[tile.planes.clone()].iter().map(|plane| (plane.channels() * tile.rows) as u64).sum()
}

pub(crate) fn check_version(what: &str, version: [u8; 2], known: &[[u8; 2]]) -> Result<[u8; 2]> {
    // Before 1.0 a minor version may change anything.
    if known.contains(&version) {
        return Ok(version);
    }
    let text = |[major, minor]: [u8; 2]| format!("{major}.{minor}");
    let known = known.iter().map(|version| text(*version)).collect::<Vec<_>>().join(" and ");
    Err(Error::unsupported(format!("{what} version {}; this reader knows {known}", text(version))))
}

/// Checks all that a selection promises.
fn check_selection<'a>(
    header: &Header,
    version: [u8; 2],
    carried: &[&'a [u8]],
    limits: &Limits,
) -> Result<Option<Bitmaps<'a>>> {
    let TokensHeader { count, kept, exact, .. } = header.tokens;
    // One or none of them, and the version says whether there is one.
    let (selected, exact) = (kept.is_some(), exact.is_some());
    if (selected && exact) || (selected || exact) != (version == NOT_ALL_CODED) {
        return Err(Error::corrupt("which tokens are coded and the chunk's version do not fit together"));
    }
    let Some(kept) = kept else { return Ok(None) };
    if count > limits.max_tokens || count > u64::from(u32::MAX) {
        return Err(Error::limit(format!("{count} tokens")));
    }
    if kept > count || (kept == 0 && count > 0) {
        return Err(Error::corrupt(format!("{kept} kept of {count} tokens")));
    }
    let Some(bitmaps) = carried.first() else {
        return Err(Error::corrupt("the chunk does not carry which tokens were kept"));
    };
    // Both are at most `max_tokens`, and `kept` was checked against memory.
    Bitmaps::new(&header.geometry, count as usize, kept as usize, bitmaps).map(Some)
}

/// Checks how much memory the decoded tokens would take.
pub(crate) fn check_tokens(count: u64, geometry: &Geometry, limits: &Limits) -> Result<usize> {
    let bytes = count.saturating_mul(geometry.bytes_per_token());
    if count > limits.max_tokens || bytes > limits.max_output {
        return Err(Error::limit(format!("{count} tokens, {bytes} bytes when decoded")));
    }
    usize::try_from(count).map_err(|_| Error::limit(format!("{count} tokens")))
}
