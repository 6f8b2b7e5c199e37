//! Stages of cacheg as entrants.

use std::sync::Arc;

use cacheg::core::{
    BindCx, BoundCoder, Build, Coder, CoderScratch, DecodeJob, EncodeJob, PartCx, ResultExt, Seen, Segment,
    Source, StageData, TileCx,
};
use cacheg::{Error, Registry, Result, spec};
use cacheg_entropy::rans::{Level, Rans};

use super::race::{Codec, Entrant, Family, Work};
use super::symbols::{Order, Stream, Symbols};

/// The coders that are measured when none are named. `class` tables are what chunks carry and what profiles
/// hold by default; a table per channel is the nearest to the entropy that order 0 can get, without its tables; with
/// contexts, tables are chosen by the symbol before.
pub(crate) const CODERS: [&str; 4] =
    ["rans(tables=class)", "rans(tables=channel)", "rans(tables=class;contexts=3)", "range(tables=channel)"];

/// The ways in which a coder can compute on this machine, the slowest first; only `rans` has several.
fn levels(spec: &str) -> Vec<Option<Level>> {
    if spec.starts_with("rans") {
        Level::ALL.into_iter().filter(|level| level.is_available()).map(Some).collect()
    } else {
        vec![None]
    }
}

const fn level_name(level: Option<Level>) -> &'static str {
    match level {
        Some(Level::Scalar) => "scalar",
        Some(Level::Avx2) => "avx2",
        Some(Level::Avx512) => "avx512",
        _ => "",
    }
}

/// A coder of one stage, at one level.
#[derive(Debug)]
pub(crate) struct Leveled {
    coder: Arc<dyn Coder>,
    rans: Option<(Rans, Level)>,
}

impl Leveled {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        match &self.rans {
            Some((rans, level)) => rans.bind_at(cx, *level),
            None => self.coder.bind(cx),
        }
    }
}

impl std::ops::Deref for Leveled {
    type Target = dyn Coder;

    fn deref(&self) -> &Self::Target {
        &*self.coder
    }
}

/// A coder bound to the tables of every distinct context.
pub(crate) struct Ours {
    bound: Vec<Bound>,
    streams: Vec<Stream>,
    /// How many times each context is there.
    repeats: usize,
}

struct Bound {
    coder: Box<dyn BoundCoder>,
    scratch: CoderScratch,
    /// Bytes of the tables, as a chunk would carry them.
    tables_len: usize,
}

/// A coder for each spec and level.
pub(crate) fn entrants(registry: &Registry, specs: &[String], symbols: &Symbols) -> Result<Vec<Entrant>> {
    let mut entrants = Vec::new();
    for spec in specs {
        for level in levels(spec) {
            let coder = build_at(registry, spec, level)?;
            let codec = Ours::with_own_tables(&coder, symbols).at(|| spec)?;
            let name = format!("{spec} {}", level_name(level)).trim_end().to_owned();
            let work = Work::Codec(Order::Token, Box::new(codec));
            entrants.push(Entrant { name, family: Family::Ours, work });
        }
    }
    Ok(entrants)
}

/// Builds a coder of one stage.
pub(crate) fn build(registry: &Registry, spec: &str) -> Result<Leveled> {
    build_at(registry, spec, None)
}

fn build_at(registry: &Registry, spec: &str, level: Option<Level>) -> Result<Leveled> {
    let stages = spec::parse(spec)?;
    let [stage] = stages.as_slice() else {
        return Err(Error::setting(format!("`{spec}`: one stage is expected, a coder")));
    };
    let coder = match registry.get(&stage.name)?.build {
        Build::Coder(build) => build(&stage.config)?,
        _ => return Err(Error::setting(format!("`{}` is no coder", stage.name))),
    };
    let rans = match level {
        Some(level) => Some((Rans::new(cacheg::core::settings("rans", &stage.config)?)?, level)),
        None => None,
    };
    Ok(Leveled { coder, rans })
}

impl Ours {
    /// Each context with tables of its own, which its chunk has to carry.
    pub(crate) fn with_own_tables(coder: &Leveled, symbols: &Symbols) -> Result<Self> {
        let bind = |index: usize| {
            let cx = bind_cx(symbols, index, None, Source::Chunk);
            let Some(data) = calibrate(coder, symbols, &[index], Source::Chunk)? else {
                return bound(coder, &cx, 0);
            };
            // What a decoder will read, not what was gathered: packing may round.
            let packed = coder.pack(&cx, &data)?;
            let data = coder.unpack(&cx, &packed)?;
            bound(coder, &bind_cx(symbols, index, Some(&data), Source::Chunk), packed.len())
        };
        Self::new(symbols, bind)
    }

    /// Each context with tables from a profile that was calibrated on the others; `None` if there are no others
    /// of the same model, or if the coder has no tables.
    pub(crate) fn with_tables_of_others(coder: &Leveled, symbols: &Symbols) -> Result<Option<Self>> {
        let first = &symbols.contexts[0].planes;
        if symbols.contexts.len() < 2 || symbols.contexts.iter().any(|context| context.planes != *first) {
            return Ok(None);
        }
        if coder.calibrator(&bind_cx(symbols, 0, None, Source::Profile)).is_none() {
            return Ok(None);
        }
        let bind = |index: usize| {
            let others: Vec<usize> = (0..symbols.contexts.len()).filter(|other| *other != index).collect();
            let data = calibrate(coder, symbols, &others, Source::Profile)?;
            bound(coder, &bind_cx(symbols, index, data.as_ref(), Source::Profile), 0)
        };
        Self::new(symbols, bind).map(Some)
    }

    fn new(symbols: &Symbols, bind: impl Fn(usize) -> Result<Bound>) -> Result<Self> {
        let bound = (0..symbols.distinct).map(bind).collect::<Result<_>>()?;
        Ok(Self { bound, streams: symbols.streams.clone(), repeats: symbols.repeats() })
    }

    /// Bytes of all streams, without tables.
    pub(crate) fn stream_len(&mut self, symbols: &Symbols) -> Result<usize> {
        let (mut out, mut ends) = (vec![0; self.max_len()], Vec::new());
        self.encode(symbols.all(Order::Token), &mut out, &mut ends)?;
        Ok(ends.last().copied().unwrap_or(0))
    }
}

fn bind_cx<'a>(
    symbols: &'a Symbols,
    context: usize,
    data: Option<&'a StageData>,
    source: Source,
) -> BindCx<'a> {
    let context = &symbols.contexts[context];
    BindCx::new(&context.planes, &context.parts, data, source)
}

fn bound(coder: &Leveled, cx: &BindCx<'_>, tables_len: usize) -> Result<Bound> {
    let coder = coder.bind(cx)?;
    let scratch = coder.scratch();
    Ok(Bound { coder, scratch, tables_len })
}

/// What the coder gathers from the symbols of some contexts of one model.
fn calibrate(
    coder: &Leveled,
    symbols: &Symbols,
    contexts: &[usize],
    source: Source,
) -> Result<Option<StageData>> {
    let Some(first) = contexts.first() else { return Ok(None) };
    let Some(calibrator) = coder.calibrator(&bind_cx(symbols, *first, None, source)) else {
        return Ok(None);
    };
    let planes = &symbols.contexts[*first].planes;
    let mut accumulators: Vec<_> = planes.iter().map(|plane| calibrator.accumulator(plane)).collect();
    let streams =
        contexts.iter().flat_map(|index| &symbols.streams[symbols.contexts[*index].streams.clone()]);
    for tile in streams.flat_map(|stream| &stream.tiles) {
        let segment = tile.segment;
        let plane = &planes[segment.plane];
        let cx = TileCx::new(plane, tile.first, segment.rows, tile.first as u64);
        let part = PartCx::new(0, cacheg::core::Role::Whole, segment.rows, segment.cols);
        let own = &symbols.all(Order::Token)[tile.range.clone()];
        accumulators[segment.plane].observe(&cx, &part, Seen::Symbols(0, own))?;
    }
    let data = accumulators.into_iter().map(cacheg::core::Accumulator::finish).collect::<Result<_>>()?;
    calibrator.finish(data).map(Some)
}

fn segments(stream: &Stream) -> Vec<Segment> {
    stream.tiles.iter().map(|tile| tile.segment).collect()
}

impl Codec for Ours {
    fn tables_len(&self) -> usize {
        self.bound.iter().map(|bound| bound.tables_len).sum::<usize>() * self.repeats
    }

    fn max_len(&self) -> usize {
        let count = self.bound.len();
        self.streams
            .iter()
            .map(|stream| self.bound[stream.context % count].coder.max_len(&segments(stream)))
            .sum()
    }

    fn encode(&mut self, symbols: &[u8], out: &mut [u8], ends: &mut Vec<usize>) -> Result<()> {
        let (count, mut end) = (self.bound.len(), 0);
        for streams in batches(&self.streams) {
            let Bound { coder, scratch, .. } = &mut self.bound[streams[0].context % count];
            let segments: Vec<Vec<Segment>> = streams.iter().map(segments).collect();
            // Each has room for whatever comes; then they close ranks.
            let mut rest = &mut out[end..];
            let mut jobs = Vec::with_capacity(streams.len());
            for (stream, segments) in streams.iter().zip(&segments) {
                let (own, more) = rest.split_at_mut(coder.max_len(segments));
                rest = more;
                jobs.push(EncodeJob::new(segments, &symbols[stream.range.clone()], own));
            }
            coder.encode_batch(&mut jobs, scratch);
            let lens = jobs.into_iter().map(|job| Ok((job.out.len(), job.result?)));
            let lens = lens.collect::<Result<Vec<(usize, usize)>>>()?;
            let mut from = end;
            for (room, len) in lens {
                out.copy_within(from..from + len, end);
                (from, end) = (from + room, end + len);
                ends.push(end);
            }
        }
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8], ends: &[usize], symbols: &mut [u8]) -> Result<()> {
        let (count, mut start) = (self.bound.len(), 0);
        let (mut ends, mut rest) = (ends.iter(), symbols);
        for streams in batches(&self.streams) {
            let Bound { coder, scratch, .. } = &mut self.bound[streams[0].context % count];
            let segments: Vec<Vec<Segment>> = streams.iter().map(segments).collect();
            let mut jobs = Vec::with_capacity(streams.len());
            for ((stream, segments), end) in streams.iter().zip(&segments).zip(&mut ends) {
                let (own, more) = rest.split_at_mut(stream.range.len());
                rest = more;
                jobs.push(DecodeJob::new(segments, &bytes[start..*end], own));
                start = *end;
            }
            coder.decode_batch(&mut jobs, scratch);
            jobs.into_iter().try_for_each(|job| job.result)?;
        }
        Ok(())
    }
}

/// Streams of one context that follow each other: what a chunk's decoder has at hand at a time, some of them in flight.
fn batches(streams: &[Stream]) -> impl Iterator<Item = &[Stream]> {
    streams.chunk_by(|a, b| a.context == b.context).flat_map(|streams| streams.chunks(16))
}

#[cfg(test)]
mod tests {
    use super::super::symbols::tests::small;
    use super::*;

    #[test]
    fn tables_of_others_cost_more_than_own_ones() {
        let registry = cacheg::builtins().unwrap();
        let symbols = small(70, 32);
        let coder = build(&registry, "rans(tables=class)").unwrap();
        let own = Ours::with_own_tables(&coder, &symbols).unwrap().stream_len(&symbols).unwrap();
        let mut others = Ours::with_tables_of_others(&coder, &symbols).unwrap().unwrap();
        let others_len = others.stream_len(&symbols).unwrap();
        assert!(own as f64 * 8.0 > 0.9 * symbols.entropy_bits && own < others_len && others_len < own * 2);
        assert_eq!(others.tables_len(), 0);
        let raw = build(&registry, "raw").unwrap();
        assert!(Ours::with_tables_of_others(&raw, &symbols).unwrap().is_none());
    }

    #[test]
    fn only_coders_can_take_part() {
        let registry = cacheg::builtins().unwrap();
        assert!(build(&registry, "mean").is_err());
        assert!(build(&registry, "uniform(bits=4)|raw").is_err());
        assert!(build(&registry, "nothing").is_err());
    }
}
