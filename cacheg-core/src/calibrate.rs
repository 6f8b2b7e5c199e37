//! Calibration: lets each stage see its input over any number of contexts and keeps what it makes of it.

use std::ops::Range;

use rayon::prelude::*;

use crate::front::{Front, FrontScratch, PREDICTED_ROWS};
use crate::grade::{CodedRows, Grades};
use crate::kept::Kept;
use crate::plan::Wanted;
use crate::select::Selector;
use crate::spec::StageSpec;
use crate::tile::{Layout, SymbolScratch};
use crate::{
    Accumulator, BindCx, Calibrator, Error, ExactTokens, Geometry, KvCache, KvView, Pipeline, Plan, Plane,
    Profile, Progress, Result, ResultExt, Seen, Source, StageData, Statistics, TileCx,
};

/// A run of tokens, as it would be encoded.
#[derive(Clone)]
struct ToSee<'a, 'v> {
    view: &'a KvView<'v>,
    range: Range<usize>,
    /// Which of them, if the pipeline drops some.
    kept: Option<Kept>,
    /// What planes are predicted from: the same tokens as a decoder would have them, or the view again.
    decoded: &'a KvView<'v>,
}

/// Calibrates one profile for several pipelines, on contexts that are cut into chunks of `chunk_tokens`.
///
/// Each stage that needs data is shown all contexts once, without tokens that are dropped or stored exactly. Where planes are
/// predicted from others, stages from the predictor on see reconstructions of these, of a pipeline that was calibrated on a part
/// of the contexts before. Memory does not grow with the contexts' number, but for 4 bytes for each token and head where some are
/// dropped, and for all reconstructions of a pipeline. Tokens are counted on `progress`, once for each pass.
///
/// # Errors
/// If the contexts are of different models or empty, if a stage cannot use what it sees, if tokens are to be dropped and
/// nothing is known of their [`Importance`](crate::Importance).
pub fn calibrate(
    pipelines: &[Pipeline],
    contexts: &[KvView<'_>],
    chunk_tokens: usize,
    progress: Progress<'_>,
) -> Result<Profile> {
    calibrate_with(pipelines, contexts, chunk_tokens, None, progress)
}

/// As [`calibrate`], for stages that make use of statistics, too; the profile names them.
///
/// # Errors
/// As [`calibrate`]; if the statistics are of another model.
pub fn calibrate_with(
    pipelines: &[Pipeline],
    contexts: &[KvView<'_>],
    chunk_tokens: usize,
    statistics: Option<&Statistics>,
    progress: Progress<'_>,
) -> Result<Profile> {
    let first = contexts.first().ok_or_else(|| Error::data("no KV cache to calibrate on"))?;
    let geometry = first.geometry();
    if let Some(statistics) = statistics {
        statistics.check_model(geometry)?;
    }
    let mut chunks = Vec::new();
    for (index, context) in contexts.iter().enumerate() {
        if context.geometry() != geometry {
            return Err(Error::data(format!("KV cache {} is of another model than the first", index + 1)));
        }
        context.check_consecutive().at(|| format!("KV cache {}", index + 1))?;
        let ranges = crate::chunk::ranges(context.tokens(), chunk_tokens);
        chunks.extend(ranges.map(|range| (context, range)));
    }
    let tokens: u64 = chunks.iter().map(|(_, range)| range.len() as u64).sum();
    if tokens == 0 {
        return Err(Error::data("the KV caches to calibrate on have no tokens"));
    }
    let mut calibration =
        Calibration { geometry, statistics, progress, sections: Vec::new(), reconstructions: Vec::new() };
    for pipeline in pipelines {
        let selector = pipeline.select().map(|select| Selector::new(select, geometry)).transpose()?;
        let exact = pipeline.exact().map_or_else(ExactTokens::default, |(_, exact)| exact);
        let mut seen = Vec::with_capacity(chunks.len());
        for (view, range) in &chunks {
            let number = || contexts.iter().position(|context| std::ptr::eq(context, *view)).unwrap_or(0) + 1;
            let kept = selector.as_ref().map(|selector| selector.choose(view, range));
            let kept = kept.transpose().at(|| format!("KV cache {}", number()))?;
            seen.push(ToSee { view, range: exact.rows(view, range).inner(range), kept, decoded: view });
        }
        calibration.pipeline(pipeline, &seen)?;
    }
    let hash = statistics.and_then(Statistics::hash);
    Profile::new(geometry.clone(), calibration.sections, contexts.len() as u64, tokens, hash)
}

/// Tokens that are enough for what will be calibrated again on all of them.
const SOME_TOKENS: usize = 8_192;

/// What pipelines share.
struct Calibration<'c> {
    geometry: &'c Geometry,
    statistics: Option<&'c Statistics>,
    progress: Progress<'c>,
    /// What is done.
    sections: Vec<(Vec<StageSpec>, StageData)>,
    /// What the last pipeline that predicts made of some chunks: the next one, a level further, will make nearly the same of them.
    /// And which rows these have.
    reconstructions: Vec<(Range<usize>, KvCache)>,
}

impl Calibration<'_> {
    /// Calibrates the stages of a pipeline that are not known yet.
    ///
    /// What planes are predicted from are reconstructions, of a codec that is not there yet. So a part of the chunks is enough at
    /// first: once with references of the pipeline before, or as they were, once more with the outcome if the predictor is new; at
    /// last come all chunks.
    fn pipeline(&mut self, pipeline: &Pipeline, seen: &[ToSee<'_, '_>]) -> Result<()> {
        let tokens: usize = seen.iter().map(|chunk| chunk.range.len()).sum();
        let step = (tokens / SOME_TOKENS).max(1);
        let some: Vec<ToSee<'_, '_>> = seen.iter().step_by(step).cloned().collect();
        let before = std::mem::take(&mut self.reconstructions);
        let views: Vec<KvView<'_>> = before.iter().map(|(_, cache)| cache.view()).collect();
        let same = some.iter().map(|chunk| &chunk.range).eq(before.iter().map(|(range, _)| range));
        let start = if same { with_references(&some, &views) } else { some.clone() };
        let mut plan = self.round(pipeline, seen, &start, false)?;
        let Some(stage) = plan.predictor_stage() else {
            self.reconstructions = before;
            return Ok(());
        };
        if !self.sections.iter().any(|(known, _)| *known == pipeline.specs()[..=stage]) {
            let decoded = reconstruct(&plan, &some)?;
            let views: Vec<KvView<'_>> = decoded.iter().map(KvCache::view).collect();
            plan = self.round(pipeline, seen, &with_references(&some, &views), false)?;
        }
        drop(start);
        let decoded = reconstruct(&plan, seen)?;
        let views: Vec<KvView<'_>> = decoded.iter().map(KvCache::view).collect();
        self.round(pipeline, seen, &with_references(seen, &views), true)?;
        drop(views);
        let ranges = seen.iter().map(|chunk| chunk.range.clone());
        self.reconstructions = ranges.zip(decoded).step_by(step).collect();
        Ok(())
    }

    /// Calibrates what is not known: stages that predict, and those behind them, on the chunks of `closed`, the others on all. Of the
    /// former, what a round makes that is not the `last` is not kept.
    fn round(
        &mut self,
        pipeline: &Pipeline,
        seen: &[ToSee<'_, '_>],
        closed: &[ToSee<'_, '_>],
        last: bool,
    ) -> Result<Plan> {
        let Self { geometry, statistics, progress, ref mut sections, .. } = *self;
        let mut passing = Vec::new();
        let mut supply = |stage: usize, wanted: &Wanted<'_>, cx: &BindCx<'_>, front: &Front| {
            let stages = &pipeline.specs()[..=stage];
            if let Some((_, data)) = sections.iter().chain(&passing).find(|(known, _)| known == stages) {
                return Ok(StageData::clone(data));
            }
            let cx = cx.with_statistics(statistics);
            let references = |calibrator: Box<dyn Calibrator>| {
                front.planes().iter().any(|plane| !calibrator.references(plane).is_empty())
            };
            let predicts = front.predicts() || wanted.calibrator(&cx).is_some_and(references);
            // Grades depend on no stage: transforms are shown them, too.
            let quantizer = pipeline.quantizer().calibrator(&cx);
            let chunks = if predicts { closed } else { seen };
            let data = gather(wanted, &cx, front, quantizer.as_deref(), chunks, progress)?;
            let to = if predicts && !last { &mut passing } else { &mut *sections };
            to.push((stages.to_vec(), data.clone()));
            Ok(data)
        };
        Plan::bind_with(pipeline, geometry, Source::Profile, &mut supply)
    }
}

/// Chunks whose planes are predicted from others than their own.
fn with_references<'a, 'v>(chunks: &[ToSee<'a, 'v>], decoded: &'a [KvView<'v>]) -> Vec<ToSee<'a, 'v>> {
    chunks.iter().zip(decoded).map(|(chunk, decoded)| ToSee { decoded, ..chunk.clone() }).collect()
}

fn reconstruct(plan: &Plan, chunks: &[ToSee<'_, '_>]) -> Result<Vec<KvCache>> {
    chunks.iter().map(|chunk| decoded(plan, chunk)).collect()
}

/// What a decoder would make of a chunk: all tokens up to its end, those before it being zeros.
fn decoded(plan: &Plan, chunk: &ToSee<'_, '_>) -> Result<KvCache> {
    let ToSee { view, range, .. } = chunk;
    let mut cache = KvCache::zeros(plan.geometry(), range.end, view.first_position());
    let layout = plan.layout(range.len());
    let grades = Grades::choose(plan.front.grader(), plan.planes(), view, range, 0.0)?;
    let tiles = crate::chunk::all_tiles(plan, view, range, &grades, &layout, &|_| ())?;
    let bytes = |index: usize| Ok(&tiles[index].1[..tiles[index].0 as usize]);
    let position = view.first_position() + range.start as u64;
    let rows = CodedRows { position, grades: &grades };
    plan.decode_predicted(&layout, bytes, rows, cache.view_mut().planes_mut(), range.start, &|_| ())?;
    Ok(cache)
}

/// Binds a pipeline to one chunk, with data gathered from the chunk itself, which is going to carry it.
pub(crate) fn bind_to_chunk(
    pipeline: &Pipeline,
    geometry: &Geometry,
    view: &KvView<'_>,
    range: Range<usize>,
) -> Result<Plan> {
    let chunks = [ToSee { view, range, kept: None, decoded: view }];
    let mut carried = vec![Vec::new(); pipeline.specs().len()];
    let mut supply = |stage: usize, wanted: &Wanted<'_>, cx: &BindCx<'_>, front: &Front| {
        let data = gather(wanted, cx, front, None, &chunks, &|_| ())?;
        carried[stage] = wanted.pack(cx, &data)?;
        // What the decoder will read, not what was gathered: packing may round.
        wanted.unpack(cx, &carried[stage])
    };
    let mut plan = Plan::bind_with(pipeline, geometry, Source::Chunk, &mut supply)?;
    plan.carried = carried;
    Ok(plan)
}

/// Shows one stage its input in all chunks, planes in parallel.
fn gather(
    wanted: &Wanted<'_>,
    cx: &BindCx<'_>,
    front: &Front,
    quantizer: Option<&dyn Calibrator>,
    chunks: &[ToSee<'_, '_>],
    progress: Progress<'_>,
) -> Result<StageData> {
    let Some(calibrator) = wanted.calibrator(cx) else { return Ok(StageData::new()) };
    let symbols = matches!(wanted, Wanted::Coder(_));
    let planes = front.planes();
    let grader = if symbols { front.grader() } else { quantizer.and_then(Calibrator::grader) };
    if grader.is_some() {
        front.check_grades()?;
    }
    let graded = chunks.iter().map(|chunk| Grades::choose(grader, planes, chunk.view, &chunk.range, 0.0));
    let graded = graded.collect::<Result<Vec<_>>>()?;
    let total: u64 = chunks.iter().map(|chunk| chunk.range.len() as u64).sum();
    let one = |scratch: &mut SymbolScratch, plane: &Plane| -> Result<StageData> {
        let data = observe_plane(&*calibrator, plane, front, chunks, &graded, symbols, scratch)
            .at(|| format!("tensor `{}`", plane.name()))?;
        // Each plane's share, so that all planes add up to the number of tokens.
        progress(
            total * (plane.index as u64 + 1) / planes.len() as u64
                - total * plane.index as u64 / planes.len() as u64,
        );
        Ok(data)
    };
    let of_planes = planes.par_iter().map_init(SymbolScratch::default, one).collect::<Result<Vec<_>>>()?;
    calibrator.finish(of_planes)
}

fn observe_plane(
    calibrator: &dyn Calibrator,
    plane: &Plane,
    front: &Front,
    chunks: &[ToSee<'_, '_>],
    graded: &[Grades],
    symbols: bool,
    scratch: &mut SymbolScratch,
) -> Result<StageData> {
    let mut accumulator: Box<dyn Accumulator> = calibrator.accumulator(plane);
    let wanted = calibrator.references(plane);
    let mut gathered = Vec::new();
    for (ToSee { view, range, kept, decoded }, grades) in chunks.iter().zip(graded) {
        let Some(kept) = kept else {
            let views = [*view, *decoded];
            observe_rows(&mut *accumulator, plane, front, views, range, grades, symbols, &wanted, scratch)?;
            continue;
        };
        let row = plane.channels() * plane.shape.dtype.size();
        gathered.resize(kept.tokens() * row, 0);
        view.gather(plane.index, range.start, kept.of_layer(plane.layer as usize), &mut gathered);
        let rows = view.of_one_plane(plane.index, range.start, kept.tokens(), &gathered);
        let range = 0..kept.tokens();
        let rows = [&rows, &rows];
        observe_rows(&mut *accumulator, plane, front, rows, &range, grades, symbols, &wanted, scratch)?;
    }
    accumulator.finish()
}

/// Shows some rows of a plane, tile by tile.
#[expect(clippy::too_many_arguments, reason = "who sees what, where")]
fn observe_rows(
    accumulator: &mut dyn Accumulator,
    plane: &Plane,
    front: &Front,
    [view, decoded]: [&KvView<'_>; 2],
    range: &Range<usize>,
    grades: &Grades,
    symbols: bool,
    wanted: &[usize],
    scratch: &mut SymbolScratch,
) -> Result<()> {
    let layout = Layout::choose(front, range.len());
    let step = if front.predicts() { PREDICTED_ROWS } else { layout.rows };
    for first in (0..range.len()).step_by(step) {
        let rows = step.min(range.len() - first);
        let token = range.start + first;
        let cx = TileCx::new(plane, first, rows, view.first_position() + token as u64)
            .with_grades(grades.of(plane.layer as usize, first..first + rows));
        front.keep_references(decoded, &cx, token, wanted, &mut scratch.front)?;
        if symbols {
            Plan::observe_symbols(front, view, &cx, token, scratch, &mut |part, symbol_plane, symbols| {
                accumulator.observe(&cx, part, Seen::Symbols(symbol_plane, symbols))
            })?;
        } else {
            let scratch: &mut FrontScratch = &mut scratch.front;
            front.reserve_rows(plane, rows, scratch);
            front.observe_values(view, &cx, token, wanted, scratch, &mut |part, seen| {
                accumulator.observe(&cx, part, seen)
            })?;
        }
    }
    Ok(())
}
