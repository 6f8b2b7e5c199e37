//! Calibrators: what they gather, and what becomes of data that does not fit.

use super::bind::{Setup, Unbound, bind_cx, each};
use super::models::{Model, models, part_rows};
use super::suite::{Within, ensure, survive};
use super::transform::references;
use super::{Check, Failure, Suite, kv_like};
use crate::{Part, PartCx, Seen, Source, StageData, TileCx};

/// Tokens of the chunks that calibrators are shown.
const CHUNKS: [usize; 3] = [64, 64, 7];

/// What the stage's calibrator makes of some chunks; `None` if it has none.
pub(crate) fn calibrate<S: Unbound + ?Sized>(
    stage: &S,
    model: &Model,
    parts: &[Vec<Part>],
    source: Source,
) -> Result<Option<StageData>, Failure> {
    survive("calibration", || gather(stage, model, parts, source, &CHUNKS))?
}

fn gather<S: Unbound + ?Sized>(
    stage: &S,
    model: &Model,
    parts: &[Vec<Part>],
    source: Source,
    chunks: &[usize],
) -> Result<Option<StageData>, Failure> {
    let Some(calibrator) = stage.calibrator_for(&bind_cx::<S>(model, parts, None, source)) else {
        return Ok(None);
    };
    let mut planes = Vec::new();
    for (plane, parts) in model.planes.iter().zip(parts) {
        let mut accumulator = calibrator.accumulator(plane);
        let wanted = calibrator.references(plane);
        for (chunk, &rows) in chunks.iter().enumerate() {
            let tile = TileCx::new(plane, 0, rows, 0);
            for (index, part) in parts.iter().enumerate() {
                let cx = PartCx::new(index, part.role, part_rows(part.role, rows), part.cols);
                let seed = (plane.index * 64 + index * 8 + chunk) as u64;
                if !wanted.is_empty() {
                    let references = references(&model.planes, &wanted, &tile);
                    let views: Vec<_> = references.iter().map(|rows| rows.view()).collect();
                    let values = kv_like(plane.shape.dtype, cx.role, cx.rows, cx.cols, seed);
                    let seen = Seen::Predicted(values.view(), &views);
                    accumulator.observe(&tile, &cx, seen).within(|| "observe".to_owned())?;
                    continue;
                }
                S::show(&mut *accumulator, &tile, &cx, part, seed).within(|| "observe".to_owned())?;
            }
        }
        planes.push(accumulator.finish().within(|| "finish of a plane".to_owned())?);
    }
    let data = calibrator.finish(planes).within(|| "finish of the planes".to_owned())?;
    match source {
        Source::Profile => Ok(Some(data)),
        Source::Chunk => {
            let cx = bind_cx::<S>(model, parts, None, source);
            Ok(Some(stage.carried(&cx, data).within(|| "pack and unpack".to_owned())?))
        }
    }
}

/// Checks of all kinds of stages; those without a calibrator must bind without data, which `each` does.
pub(crate) fn check<S: Unbound + ?Sized>(suite: &Suite) -> Check {
    let models = models()?;
    each::<S>(suite, |setup| {
        check_foreign(setup, &StageData::new()).within(|| "with empty data".to_owned())?;
        let stage = &*setup.stage;
        let Some(data) = &setup.data else { return Ok(()) };
        let again = calibrate(stage, setup.model, &setup.parts, setup.source)?;
        ensure(again.as_ref() == Some(data), || "calibration gives other data on the second run".to_owned())?;
        let bytes = data.to_bytes()?;
        ensure(StageData::from_bytes(&bytes)? == *data, || "the data do not survive a file".to_owned())?;

        let nothing = survive("calibration on no tokens", || {
            gather(stage, setup.model, &setup.parts, setup.source, &[])
        })?;
        if let Ok(Some(data)) = nothing {
            check_foreign(setup, &data).within(|| "with data of no tokens".to_owned())?;
        }
        for model in &models {
            let layout = S::LAYOUTS[0];
            let parts: Vec<_> = model.planes.iter().map(layout.parts).collect();
            if suite.refuses_to_bind(model.name, &layout) {
                continue;
            }
            if let Some(data) = calibrate(stage, model, &parts, setup.source)? {
                check_foreign(setup, &data).within(|| format!("with data of `{}`", model.name))?;
            }
        }
        Ok(())
    })
}

/// Data that may not suit: either binding refuses them or the bound stage works on them without a panic.
pub(crate) fn check_foreign<S: Unbound + ?Sized>(setup: &Setup<'_, S>, data: &StageData) -> Check {
    let bound = survive("bind", || setup.stage.bind_to(&setup.cx(Some(data))))?;
    bound.map_or(Ok(()), |bound| S::exercise(&*bound, setup.model, &setup.parts))
}
