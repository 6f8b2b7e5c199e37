//! Encoding chunks.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    ENTRY, Header, MAGIC, NOT_ALL_CODED, PREFIX, Progress, TileHeader, TokensHeader, VERSION, checksum, fair,
    values,
};
use crate::calibrate::bind_to_chunk;
use crate::exact::ExactRows;
use crate::grade::Grades;
use crate::json;
use crate::kept::Kept;
use crate::select::{Selector, compact};
use crate::tile::{Layout, Tile};
use crate::wire::padding;
use crate::{Error, Geometry, KvView, Limits, Pipeline, Plan, Profile, Result, ResultExt};

/// An encoded chunk, still in pieces so that a large one is never copied.
#[derive(Debug)]
pub struct EncodedChunk {
    prefix: Vec<u8>,
    tiles: Vec<Vec<u8>>,
}

impl EncodedChunk {
    /// Its exact length in bytes.
    pub fn len(&self) -> usize {
        self.prefix.len() + self.tiles.iter().map(Vec::len).sum::<usize>()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes it.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&self.prefix)?;
        self.tiles.iter().try_for_each(|tile| out.write_all(tile))
    }

    /// One run of bytes, to embed in somebody else's store.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend(&self.prefix);
        self.tiles.iter().for_each(|tile| bytes.extend(tile));
        bytes
    }
}

/// Encodes chunks of one model by one pipeline.
#[derive(Debug, Clone)]
pub struct Encoder {
    pipeline: Pipeline,
    geometry: Geometry,
    selector: Option<Arc<Selector>>,
    /// Bound once if no stage has to be calibrated on each chunk.
    plan: Option<Arc<Plan>>,
    /// Of grades, in half-octaves.
    shift: f64,
}

impl Encoder {
    /// With a profile, the stages' data is taken from there; without, each chunk is calibrated by itself and
    /// carries what the decoder needs.
    ///
    /// # Errors
    /// If the pipeline does not suit the model, or the profile does not suit either.
    pub fn new(pipeline: Pipeline, geometry: &Geometry, profile: Option<&Profile>) -> Result<Self> {
        let plan = match profile {
            Some(profile) => Some(Plan::bind(&pipeline, geometry, Some(profile))?),
            None => match Plan::bind(&pipeline, geometry, None) {
                Ok(plan) => Some(plan),
                Err(error) if error.kind() == crate::ErrorKind::Profile => None,
                Err(error) => return Err(error),
            },
        };
        let selector =
            pipeline.select().map(|select| Selector::new(select, geometry).map(Arc::new)).transpose()?;
        Ok(Self { pipeline, geometry: geometry.clone(), selector, plan, shift: 0.0 })
    }

    /// The same with all grades so many half-octaves of step above the usual, each rounded by itself, so that rates between any two
    /// can be had: finer steps and more bits above 0, coarser ones below. Decoders need not be told.
    ///
    /// `None` if the pipeline does not grade tokens, or is calibrated on each chunk.
    #[must_use]
    pub fn shifted(&self, half_octaves: f64) -> Option<Self> {
        let graded = self.plan.as_ref().is_some_and(|plan| plan.front.grader().is_some());
        (graded && half_octaves.is_finite()).then(|| Self { shift: half_octaves, ..self.clone() })
    }

    /// Encodes the tokens `range` of a view. Values done are counted on `progress`.
    ///
    /// # Errors
    /// If a value cannot be coded; the error names the tensor and the value's place.
    ///
    /// # Panics
    /// If the range is not within the view.
    pub fn encode(
        &self,
        view: &KvView<'_>,
        range: Range<usize>,
        progress: Progress<'_>,
    ) -> Result<EncodedChunk> {
        assert!(range.start <= range.end && range.end <= view.tokens(), "the chunk is outside the KV cache");
        if *view.geometry() != self.geometry {
            return Err(Error::data("the KV cache is of another model than the encoder"));
        }
        view.check_consecutive()?;
        let tokens = TokensHeader {
            count: range.len() as u64,
            first: range.start as u64,
            kept: None,
            exact: None,
            position: view.first_position() + range.start as u64,
        };
        let Some(selector) = &self.selector else {
            return self.encode_rows(view, range, tokens, None, progress);
        };
        let kept = selector.choose(view, &range)?;
        let rows = kept.tokens();
        let tokens = TokensHeader { kept: Some(rows as u64), ..tokens };
        let chunk = compact(view, &range, &kept)?;
        // Tokens in errors are numbered as the stages see them.
        let place = || format!("kept tokens of {}..{}", range.start, range.end);
        let encoded = self.encode_rows(&chunk.view(), 0..rows, tokens, Some(&kept), progress).at(place)?;
        progress((range.len() - rows) as u64 * self.geometry.values_per_token());
        Ok(encoded)
    }

    /// Encodes rows as a chunk of these tokens.
    fn encode_rows(
        &self,
        view: &KvView<'_>,
        range: Range<usize>,
        tokens: TokensHeader,
        kept: Option<&Kept>,
        progress: Progress<'_>,
    ) -> Result<EncodedChunk> {
        let exact =
            self.pipeline.exact().map_or_else(ExactRows::default, |(_, exact)| exact.rows(view, &range));
        let tokens = TokensHeader {
            exact: (!exact.is_empty()).then_some([exact.first as u64, exact.last as u64]),
            ..tokens
        };
        let inner = exact.inner(&range);
        let own;
        let plan = match &self.plan {
            Some(plan) => &**plan,
            None => {
                own = bind_to_chunk(&self.pipeline, &self.geometry, view, inner.clone())?;
                &own
            }
        };
        let layout = plan.layout(inner.len());
        let grades = Grades::choose(plan.front.grader(), plan.planes(), view, &inner, self.shift)?;
        let tiles = all_tiles(plan, view, &inner, &grades, &layout, progress)?;
        progress((exact.first + exact.last) as u64 * self.geometry.values_per_token());
        // What a stage that says which tokens are coded has to carry, whether or not others carry anything.
        let mut beside = Vec::new();
        match (kept, plan.exact) {
            (Some(kept), _) => beside.push((0, kept.to_bitmaps())),
            (None, Some((stage, _))) if !exact.is_empty() => beside.push((stage, exact.pack(view, &range))),
            _ => {}
        }
        if let Some(grader) = plan.front.grader() {
            beside.push((plan.quantizer_stage(), grades.pack(grader)));
        }
        assemble(plan, tokens, &beside, &layout, tiles)
    }
}

/// The tiles of some rows of a view: the length of each, and its bytes with padding. Values done are counted on `progress`.
pub(crate) fn all_tiles(
    plan: &Plan,
    view: &KvView<'_>,
    rows: &Range<usize>,
    grades: &Grades,
    layout: &Layout,
    progress: Progress<'_>,
) -> Result<Vec<(u32, Vec<u8>)>> {
    layout.check(plan.planes(), &Limits::default())?;
    let batch = fair(plan.batch(), layout.tiles());
    let blocks = plan.front.predicts().then(|| plan.quantize_predicted(view, rows.start, grades, layout));
    let blocks = blocks.transpose()?;
    let encode = |first: usize| {
        let tiles: Vec<Tile> =
            (first..layout.tiles().min(first + batch)).map(|index| layout.tile(index)).collect();
        plan.with_scratch(layout, |scratch| {
            let mut coded = Vec::with_capacity(tiles.len());
            let mut take = |tile: &Tile, [before, stream]: [&[u8]; 2]| {
                let len = before.len() + stream.len();
                let mut bytes = Vec::with_capacity(len + padding(len));
                bytes.extend(before);
                bytes.extend(stream);
                bytes.resize(len + padding(len), 0);
                coded.push((len as u32, bytes));
                progress(values(plan, tile));
            };
            plan.encode_tiles(view, rows.start, grades, &tiles, blocks.as_deref(), scratch, &mut take)?;
            Ok(coded)
        })
    };
    let batches: Vec<usize> = (0..layout.tiles()).step_by(batch).collect();
    let tiles = batches.into_par_iter().map(encode).collect::<Result<Vec<_>>>()?;
    Ok(tiles.into_iter().flatten().collect())
}

fn assemble(
    plan: &Plan,
    tokens: TokensHeader,
    beside: &[(usize, Vec<u8>)],
    layout: &Layout,
    tiles: Vec<(u32, Vec<u8>)>,
) -> Result<EncodedChunk> {
    let header = Header {
        geometry: plan.geometry().clone(),
        pipeline: plan.specs().to_vec(),
        profile: plan.profile().map(str::to_owned),
        tile: TileHeader { planes: layout.planes as u32, rows: layout.rows as u32 },
        tokens,
    };
    let text = json::canonical(&header)?;
    let limits = Limits::default();
    if text.len() > limits.max_header as usize {
        return Err(Error::limit(format!("a chunk header of {} bytes", text.len())));
    }
    let blocks: Vec<&[u8]> = if beside.is_empty() {
        plan.carried.iter().map(Vec::as_slice).collect()
    } else {
        let of_plan = |stage| plan.carried.get(stage).map_or(&[][..], |bytes: &Vec<u8>| bytes.as_slice());
        let of = |stage| beside.iter().find(|(at, _)| *at == stage).map(|(_, bytes)| bytes.as_slice());
        (0..plan.specs().len()).map(|stage| of(stage).unwrap_or_else(|| of_plan(stage))).collect()
    };
    let carried: usize = blocks.iter().map(|bytes| 4 + bytes.len() + padding(bytes.len())).sum();
    if carried > limits.max_carried as usize {
        return Err(Error::limit(format!(
            "{carried} bytes of tables in one chunk; calibrate a profile, or make chunks smaller"
        )));
    }
    let payload: usize = tiles.iter().map(|(_, bytes)| bytes.len()).sum();
    let too_long = || Error::limit("a chunk of more than 4 GiB of tables");
    let len = PREFIX + text.len() + padding(text.len()) + carried + tiles.len() * ENTRY;
    let mut out = Vec::with_capacity(len);
    out.extend(MAGIC);
    let all_coded = header.tokens.kept.is_none() && header.tokens.exact.is_none();
    out.extend(if all_coded { VERSION } else { NOT_ALL_CODED });
    out.extend([0, 0]);
    let total = len + payload;
    out.extend((total as u64).to_le_bytes());
    for length in [text.len(), carried, tiles.len(), 0] {
        out.extend(u32::try_from(length).map_err(|_| too_long())?.to_le_bytes());
    }
    out.extend([0; 8]);
    out.extend(&text);
    out.resize(out.len() + padding(text.len()), 0);
    for bytes in blocks {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
        out.resize(out.len() + padding(bytes.len()), 0);
    }
    for (len, bytes) in &tiles {
        out.extend(len.to_le_bytes());
        out.extend(xxh3_64(bytes).to_le_bytes());
    }
    let sum = checksum(&out);
    out[32..40].copy_from_slice(&sum.to_le_bytes());
    Ok(EncodedChunk { prefix: out, tiles: tiles.into_iter().map(|(_, bytes)| bytes).collect() })
}
