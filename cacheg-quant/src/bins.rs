//! `bins(k=32,16,16;v=32,16;anchor=256;scale=bf16)`: CacheGen's layer-wise quantiser.
//!
//! Paper: CacheGen, arXiv 2310.07240, sections 5.1.2 (layer-wise sensitivity) and 5.2 (layer-wise quantisation):
//! coarser in deeper layers, anchors at 8 bits, vector-wise scaling. Two arithmetics:
//!
//! * **Bins by absmax**, what the public code (UChi-JCL/CacheGen, LMCache) does: each token of a part has one
//!   scale, its largest magnitude `max` over all channels. With `C = bins / 2 − 1` (integer division):
//!   `symbol = round((x · C) / max) + C`, reconstruction `((symbol − C) · max) / C`. Alphabet `bins`.
//! * **Steps by σ**, how we read the paper's bin sizes 0.5, 1 and 1.5 of the deltas: set `step=0.5,1,1.5`. The
//!   step of a part is `step × level × σ`, σ the standard deviation of that part of that plane, calibrated.
//!   `q = round(x / step)`; `|q| ≤ reach` is symbol `q + reach`, others escape; reconstruction `q · step`.
//!
//! Parts with [`Role::Anchor`] always take absmax with `anchor` bins. Without `step`, all others take absmax with
//! `k` (keys) or `v` (values and latents) bins; with `step`, they take steps. `k`, `v` and `step` have one value
//! for all layers, or one for each of as many equal runs of layers; `k-at=10,20` and `v-at=2` give the first
//! layers of the second and later runs instead. The public code is
//! `identity | bins(k=32,16,16;k-at=10,20;v=32,16;v-at=2;scale=f16)`.
//!
//! **Arithmetic**, bit-exact, all in `f32`, each operation rounded once; `round` is to nearest, ties to even.
//! `max` is rounded up to the 16-bit format `scale` before use, so that nothing clips; a `max` of 0 makes all
//! symbols `C`. For f16 inputs and `scale=f16` symbols are those of the exact quotient.
//! `step × level × σ` is computed in `f64` in the order `(σ × step) × level`, rounded to `f32`, then to 8
//! significant bits (bfloat16), at least 2⁻¹²⁶; if σ is 0 (only zeros were seen) the step is 1.
//!
//! Side information: absmax parts, `max` per row, 2 bytes, little-endian; step parts, none.
//! Data (only with `step`): tensor `sigma`, u16, bfloat16 bits, one per plane and part in their order; 0 for
//! anchors. A part that does not vary, but is not zero, has its magnitude for σ.
//!
//! With `unit=sensitivity`, `sigma` comes from the statistics of a model (`FORMAT.md`, section 8; `cacheg profile
//! --statistics`) instead: it is proportional to `1 / √s`, so that equal `step`s do equal damage, `s` being the plane's
//! mean sensitivity (attention sinks counted in, unless parts are anchors: the first token is one). It is scaled so that
//! the geometric mean over channels is that of the standard deviations: a `step` needs about as many bits as with σ.
//!
//! ```
//! let stages = cacheg_core::spec::parse("bins(k=32,16,16;k-at=10,20;v=32,16;v-at=2;scale=f16)")?;
//! let cacheg_core::Build::Quantizer(build) = cacheg_quant::bins::PLUGIN.build else { unreachable!() };
//! let config = build(&stages[0].config)?.config();
//! assert_eq!(config["v-at"], serde_json::json!([2]));
//! assert_eq!(config["anchor"], 256);
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod absmax;
mod sigma;
mod step;
mod unit;

use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundQuantizer, Build, Calibrator, EscapeReader, EscapeWriter, Kernel, Kind, List,
    Part, PartCx, Plane, Plugin, Quantizer, Result, Role, Segment, Stage, TileCx, config, settings,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ScaleFormat;
use crate::rows::{Matrix, MatrixMut, Values, ValuesMut, check_len};
use crate::settings::refuse;
use absmax::Absmax;
use sigma::SigmaCalibrator;
use step::Step;
pub use unit::Unit;
pub(crate) use unit::needs_statistics;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "bins",
    version: 1,
    origin: "cacheg-quant",
    summary: "CacheGen's quantizer: bins per token's absmax by layer group, or (step=0.5,1,1.5) steps of sigma; \
              k-at=, v-at= place the groups; unit=sensitivity takes steps from a model's statistics",
    usage: "bins(k=32,16,16;v=32,16;anchor=256;scale=bf16;level=1;reach=127)",
    build: Build::Quantizer(build),
};

/// Settings of `bins`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bins of keys by run of layers, 4 to 256 each.
    pub k: List<u16>,
    /// Bins of values and latents by run of layers, 4 to 256 each.
    pub v: List<u16>,
    /// First layers of the second and later runs of `k`; equal runs if absent.
    #[serde(rename = "k-at", skip_serializing_if = "Option::is_none")]
    pub k_at: Option<List<u32>>,
    /// First layers of the second and later runs of `v`; equal runs if absent.
    #[serde(rename = "v-at", skip_serializing_if = "Option::is_none")]
    pub v_at: Option<List<u32>>,
    /// Bins of anchors, 4 to 256.
    pub anchor: u16,
    /// Format of the scales of absmax parts.
    pub scale: ScaleFormat,
    /// Steps in units of σ by run of layers, for all parts but anchors; absmax bins if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<List<f64>>,
    /// What steps are in units of; the data tell a decoder.
    #[serde(skip_serializing_if = "Unit::is_sigma")]
    pub unit: Unit,
    /// Multiplies all steps.
    pub level: f64,
    /// Largest `|q|` that has a symbol of its own, 1 to 127.
    pub reach: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            k: [32, 16, 16].as_slice().into(),
            v: [32, 16].as_slice().into(),
            k_at: None,
            v_at: None,
            anchor: 256,
            scale: ScaleFormat::Bf16,
            step: None,
            unit: Unit::Sigma,
            level: 1.0,
            reach: 127,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let name = PLUGIN.name;
        let bins = [("k", self.k.values()), ("v", self.v.values()), ("anchor", &[self.anchor][..])];
        for (setting, values) in bins {
            if values.iter().any(|bins| !(4..=256).contains(bins)) {
                return Err(refuse(name, setting, "must be 4 to 256 bins"));
            }
        }
        for (setting, at, bins) in [("k-at", &self.k_at, &self.k), ("v-at", &self.v_at, &self.v)] {
            let Some(at) = at else { continue };
            let (at, runs) = (at.values(), bins.values().len());
            if at.len() + 1 != runs || !at.is_sorted_by(|a, b| a < b) || at[0] == 0 {
                let why = format!("must be {} increasing layers, the first of each later run", runs - 1);
                return Err(refuse(name, setting, why));
            }
        }
        let positive = |x: &f64| x.is_finite() && *x > 0.0;
        if !self.step.iter().flat_map(List::values).all(positive) {
            return Err(refuse(name, "step", "must be positive"));
        }
        if !positive(&self.level) {
            return Err(refuse(name, "level", "must be positive"));
        }
        if self.step.is_none() && self.level != 1.0 {
            return Err(refuse(name, "level", "multiplies `step`, which is not set"));
        }
        if self.step.is_none() && !self.unit.is_sigma() {
            return Err(refuse(name, "unit", "is of `step`, which is not set"));
        }
        if !(1..=127).contains(&self.reach) {
            return Err(refuse(name, "reach", "must be 1 to 127"));
        }
        Ok(())
    }

    /// How many bins a part takes by absmax.
    fn bins(&self, plane: &Plane, role: Role) -> u16 {
        if role == Role::Anchor {
            return self.anchor;
        }
        let (bins, at) = match plane.kind {
            Kind::Key => (&self.k, &self.k_at),
            Kind::Value | Kind::Latent => (&self.v, &self.v_at),
        };
        match at {
            None => by_layer(bins, plane),
            Some(at) => bins.values()[at.values().iter().take_while(|first| **first <= plane.layer).count()],
        }
    }
}

/// The value for a plane's layer, of equal runs of layers.
fn by_layer<T: Copy>(list: &List<T>, plane: &Plane) -> T {
    list.spread(plane.layer as usize, plane.layers as usize)
}

fn build(value: &Value) -> Result<Arc<dyn Quantizer>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    settings.check()?;
    Ok(Arc::new(Bins(settings)))
}

#[derive(Debug)]
struct Bins(Settings);

impl Stage for Bins {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Quantizer for Bins {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        check_len("lists of parts", cx.parts.len(), cx.planes.len())?;
        let mut sigmas = match &self.0.step {
            None => Vec::new(),
            Some(_) => sigma::get(cx)?,
        }
        .into_iter();
        let modes = cx
            .planes
            .iter()
            .zip(cx.parts)
            .map(|(plane, parts)| {
                let modes = parts.iter().map(|part| {
                    let sigma = sigmas.next();
                    match (&self.0.step, sigma) {
                        (Some(step), Some(sigma)) if part.role != Role::Anchor => {
                            let factor = by_layer(step, plane);
                            Step::new(sigma, factor, self.0.level, self.0.reach).map(Mode::Step)
                        }
                        _ => Ok(Mode::Absmax(Absmax::new(self.0.bins(plane, part.role), self.0.scale))),
                    }
                });
                modes.collect::<Result<Vec<Mode>>>()
            })
            .collect::<Result<Vec<_>>>()?;
        let escapes = modes.iter().flatten().any(|mode| matches!(mode, Mode::Step(_)));
        Ok(Box::new(Bound { modes, escapes }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        self.0.step.as_ref().map(|_| Box::new(SigmaCalibrator::new(cx, self.0.unit)) as Box<dyn Calibrator>)
    }
}

/// The arithmetic of one part.
#[derive(Debug)]
enum Mode {
    Absmax(Absmax),
    Step(Step),
}

impl Mode {
    fn quantize(
        &self,
        cols: usize,
        x: &impl Values,
        symbols: &mut [u8],
        side: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        match self {
            Self::Absmax(absmax) => absmax.quantize(cols, x, symbols, side),
            Self::Step(step) => step.quantize(cols, x, symbols, escapes),
        }
    }

    fn dequantize(
        &self,
        cols: usize,
        symbols: &[u8],
        side: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        match self {
            Self::Absmax(absmax) => absmax.dequantize(cols, symbols, side, out),
            Self::Step(step) => step.dequantize(cols, symbols, escapes, out),
        }
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane, then part.
    modes: Vec<Vec<Mode>>,
    escapes: bool,
}

impl Bound {
    fn mode(&self, plane: &Plane, part: usize) -> Option<&Mode> {
        self.modes.get(plane.index)?.get(part)
    }
}

impl BoundQuantizer for Bound {
    fn pointwise(&self) -> bool {
        self.modes.iter().flatten().all(|mode| matches!(mode, Mode::Step(_)))
    }

    fn independent_rows(&self) -> bool {
        true
    }

    fn alphabets(&self, plane: &Plane, _: &Part, index: usize) -> Vec<Alphabet> {
        let alphabet = self.mode(plane, index).map(|mode| match mode {
            Mode::Absmax(absmax) => absmax.alphabet(),
            Mode::Step(step) => step.alphabet(),
        });
        alphabet.into_iter().collect()
    }

    fn side_len(&self, plane: &Plane, part: &PartCx) -> usize {
        match self.mode(plane, part.index) {
            Some(Mode::Absmax(_)) => part.rows * 2,
            _ => 0,
        }
    }

    fn escapes(&self) -> bool {
        self.escapes
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        let mut data = Vec::new();
        for modes in &self.modes {
            for part in 0..4 {
                data.extend(modes.get(part).map_or([0; 4], |mode| match mode {
                    Mode::Absmax(absmax) => absmax.words(),
                    Mode::Step(step) => step.words(),
                }));
            }
        }
        Some(Kernel::new(include_str!("bins.wgsl"), data))
    }

    fn escaped(&self, plane: &Plane, segment: &Segment, _: usize, value: i32) -> Result<f32> {
        match self.mode(plane, segment.part) {
            Some(Mode::Step(step)) => step.escaped(value),
            _ => Err(cacheg_core::Error::corrupt("an escaped value without its symbol")),
        }
    }

    fn quantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        x: ArrayView2<'_, f32>,
        symbols: &mut [u8],
        side: &mut [u8],
        escapes: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        check_len("symbols", symbols.len(), x.len())?;
        check_len("bytes of side information", side.len(), self.side_len(tile.plane, part))?;
        let mode = self.mode(tile.plane, part.index).ok_or_else(crate::unknown_plane)?;
        match Matrix::new(x, part.rows, part.cols)? {
            Matrix::Flat(x) => mode.quantize(part.cols, &x, symbols, side, escapes),
            Matrix::Strided(x) => mode.quantize(part.cols, &x, symbols, side, escapes),
        }
    }

    fn dequantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        escapes: &mut EscapeReader<'_>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        check_len("symbols", symbols.len(), out.len())?;
        if side.len() != self.side_len(tile.plane, part) {
            return Err(cacheg_core::Error::corrupt("side information of a wrong length"));
        }
        let mode = self.mode(tile.plane, part.index).ok_or_else(crate::unknown_plane)?;
        match MatrixMut::new(out, part.rows, part.cols)? {
            MatrixMut::Flat(mut out) => mode.dequantize(part.cols, symbols, side, escapes, &mut out),
            MatrixMut::Strided(mut out) => mode.dequantize(part.cols, symbols, side, escapes, &mut out),
        }
    }
}

#[cfg(test)]
mod tests;
