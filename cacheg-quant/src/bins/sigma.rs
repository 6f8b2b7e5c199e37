//! Calibration of σ: the standard deviation of each part of each plane.

use cacheg_core::{
    Accumulator, BindCx, Calibrator, Error, PartCx, Plane, Result, Role, Seen, Source, StageData, TileCx,
};

use crate::carried;
use crate::rounding::not_finite;
use crate::rows::check;

use super::unit::{Costs, Unit};

const TENSOR: &str = "sigma";

/// σ of every part, in the order of planes and parts.
///
/// # Errors
/// If there is no data, or it is not of these parts.
pub(super) fn get(cx: &BindCx<'_>) -> Result<Vec<f32>> {
    let parts = cx.parts.iter().map(Vec::len).sum();
    let sigmas = carried::get(cx.require_data()?, TENSOR, parts, cx.source)?;
    if sigmas.iter().any(|sigma| *sigma < 0.0) {
        let why = "a standard deviation is negative";
        return Err(match cx.source {
            Source::Profile => Error::profile(why),
            Source::Chunk => Error::corrupt(why),
        });
    }
    Ok(sigmas)
}

#[derive(Debug)]
pub(super) struct SigmaCalibrator {
    /// By plane, then part.
    roles: Vec<Vec<Role>>,
    source: Source,
    /// What σ is replaced by, if it is.
    costs: Option<Costs>,
}

impl SigmaCalibrator {
    pub(super) fn new(cx: &BindCx<'_>, unit: Unit) -> Self {
        let roles = cx.parts.iter().map(|parts| parts.iter().map(|part| part.role).collect());
        let costs = (unit == Unit::Sensitivity).then(|| Costs::new(cx));
        Self { roles: roles.collect(), source: cx.source, costs }
    }
}

impl Calibrator for SigmaCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        let roles = self.roles.get(plane.index).cloned().unwrap_or_default();
        let moments = roles.into_iter().map(|role| (role, Moments::default())).collect();
        Box::new(Parts { moments, source: self.source })
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        let data = carried::join(TENSOR, &planes)?;
        let Some(costs) = &self.costs else { return Ok(data) };
        let units = costs.units(&self.roles, &data.get_u16(TENSOR)?.1)?;
        let mut data = StageData::new();
        data.put_u16(TENSOR, &[units.len()], &units);
        Ok(data)
    }
}

#[derive(Debug, Default)]
struct Moments {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Moments {
    /// σ; for values that do not vary, their magnitude, so that the step suits them.
    fn sigma(&self) -> u16 {
        let count = self.count.max(1) as f64;
        let mean = self.sum / count;
        let sigma = carried::bf16((self.squares / count - mean * mean).max(0.0).sqrt());
        if sigma == 0 { carried::bf16(mean.abs()) } else { sigma }
    }
}

/// Sums of one plane's parts.
#[derive(Debug)]
struct Parts {
    moments: Vec<(Role, Moments)>,
    source: Source,
}

impl Accumulator for Parts {
    fn observe(&mut self, _: &TileCx<'_>, part: &PartCx, seen: Seen<'_>) -> Result<()> {
        let (Seen::Values(x), Some((role, moments))) = (seen, self.moments.get_mut(part.index)) else {
            return Err(Error::data("`bins` takes sigma from the values of the parts it was bound to"));
        };
        if *role == Role::Anchor {
            return Ok(());
        }
        check(x.dim(), part.rows, part.cols)?;
        for x in x {
            let x = f64::from(*x);
            moments.sum += x;
            moments.squares += x * x;
        }
        moments.count += (part.rows * part.cols) as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        let mut sigmas = Vec::with_capacity(self.moments.len());
        for (role, moments) in &self.moments {
            // A short chunk may have no deltas and then needs no σ; a profile without would be a mistake.
            if moments.count == 0 && *role != Role::Anchor && self.source == Source::Profile {
                return Err(Error::data("no values to take a standard deviation of"));
            }
            if !moments.squares.is_finite() {
                return Err(not_finite());
            }
            sigmas.push(moments.sigma());
        }
        let mut data = StageData::new();
        data.put_u16(TENSOR, &[sigmas.len()], &sigmas);
        Ok(data)
    }
}
