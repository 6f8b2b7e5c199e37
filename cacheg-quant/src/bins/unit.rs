//! Units of steps: σ, or what an error costs.

use cacheg_core::{BindCx, Error, Part, Plane, Result, Role, Source};
use serde::{Deserialize, Serialize};

use crate::carried;

/// What steps are in units of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The deviation of the values that share a step.
    #[default]
    Sigma,
    /// One over the root of their sensitivity, from the statistics that a profile is calibrated with.
    Sensitivity,
}

impl Unit {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn is_sigma(&self) -> bool {
        *self == Self::Sigma
    }
}

/// The error of units that are made from statistics where there are none.
pub(crate) fn needs_statistics(source: Source) -> Error {
    Error::profile(match source {
        Source::Profile => {
            "`unit=sensitivity` needs statistics; give them to calibration with `--statistics`"
        }
        Source::Chunk => "`unit=sensitivity` needs a profile that was made with statistics",
    })
}

/// A plane's sensitivity counts as at least this share of the largest: a step 1,000 times the finest is coarse enough.
const LEAST: f64 = 1e-6;

/// What an error costs, by plane.
#[derive(Debug)]
pub(super) struct Costs {
    /// Sensitivity and channels; `None` without statistics.
    planes: Option<Vec<(f64, usize)>>,
    source: Source,
}

impl Costs {
    pub(super) fn new(cx: &BindCx<'_>) -> Self {
        let planes = cx.statistics.map(|statistics| {
            let cost = |plane: &Plane, parts: &Vec<Part>| {
                // The first token is an anchor, or nothing spares attention sinks.
                let spared = parts.iter().any(|part| part.role == Role::Anchor);
                let all = || statistics.mean_sensitivity_of_all(plane);
                if spared { statistics.mean_sensitivity(plane) } else { all() }
            };
            let planes = cx.planes.iter().zip(cx.parts);
            planes.map(|(plane, parts)| (cost(plane, parts), plane.channels())).collect()
        });
        Self { planes, source: cx.source }
    }

    /// What takes the place of `sigmas` (bfloat16 bits by plane and part), which set the scale.
    ///
    /// # Errors
    /// Without statistics; if all sensitivities are 0.
    pub(super) fn units(&self, roles: &[Vec<Role>], sigmas: &[u16]) -> Result<Vec<u16>> {
        let planes = self.planes.as_ref().ok_or_else(|| needs_statistics(self.source))?;
        let most = planes.iter().map(|(cost, _)| *cost).fold(0.0, f64::max);
        if most <= 0.0 {
            return Err(Error::data("the statistics say that no error costs anything"));
        }
        let parts = || {
            let planes = planes.iter().zip(roles);
            let parts = planes.flat_map(|((cost, channels), roles)| {
                let unit = 1.0 / cost.max(LEAST * most).sqrt();
                roles.iter().map(move |role| (*role, unit, *channels as f64))
            });
            parts.zip(sigmas.iter().map(|bits| f64::from(carried::widen(*bits))))
        };
        // Of the logarithms of σ / unit.
        let (mut sum, mut weight) = (0.0, 0.0);
        for ((role, unit, channels), sigma) in parts() {
            if role != Role::Anchor && sigma > 0.0 {
                sum += channels * (sigma / unit).ln();
                weight += channels;
            }
        }
        let scale = if weight > 0.0 { (sum / weight).exp() } else { 1.0 };
        let scaled =
            |((role, unit, _), _)| if role == Role::Anchor { 0 } else { carried::bf16(scale * unit) };
        Ok(parts().map(scaled).collect())
    }
}
