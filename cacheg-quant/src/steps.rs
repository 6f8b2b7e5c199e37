//! `steps(step=1;unit=sigma;reach=15)`: equal steps for coefficients of a transform, in classes that coders can share
//! tables by.
//!
//! At a given rate, equal steps with an entropy coder are within a quarter of a bit of the best there is (Gish and Pierce
//! 1968, "Asymptotically efficient quantizing"), and the same step is best for all coefficients of an orthogonal transform,
//! however different their variances (Goyal 2001, "Theoretical foundations of transform coding"). So every head has one
//! step: `step` times a unit. A [unit](Unit) of `sigma` is the deviation of all the head's columns together. With
//! `sensitivity` it is `1 / √s`, with `s` what an error costs on average in one channel of the head (the statistics that a
//! profile is calibrated with), so that equal `step`s do equal damage in all heads of all layers; its size is chosen so that
//! `step` needs about as many bits. Tokens at a context's beginning are not in `s`: put `sinks` in front.
//!
//! All sizes are whole *quarter-octaves*, powers of 2^¼. How a column's symbols are distributed depends on little more than
//! its deviation in steps, which so is an integer, too: its *class*, 0 to 95, 40 being one step. `rans(tables=scale)` has
//! one table for each of them, which columns of all layers share. (Deviations are from 0: put `mean` in front.)
//!
//! `q = round(x / step)`; `|q| ≤ reach` is symbol `q + reach`, others escape. Values are not evenly spread over a step, so
//! what a symbol gives back is a little nearer to 0 than `q · step`: `sign(q) · (256·|q| − d) · step / 256`, with `d` by kind
//! of plane, class and `|q|` (1, 2, 3 and more), the mean of what calibration saw (Sullivan 1996, "Efficient scalar
//! quantization of exponential and Laplacian random variables"). Escapes are `q · step`.
//!
//! Any number of parts of any role, all coded alike. Bit-exact; `FORMAT.md`, 6.14, has the arithmetic. No side information.
//! Data: tensors `unit`, `scale`, `centroid`, u8: a byte for each head and for each column, and 576. `klt` belongs in front.
//!
//! ```
//! let stages = cacheg_core::spec::parse("steps(step=0.5;unit=sensitivity)")?;
//! let cacheg_core::Build::Quantizer(build) = cacheg_quant::steps::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["reach"], 15);
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod calibrate;
mod centroids;
mod codebook;
mod columns;
mod grading;
mod magnitudes;
mod octaves;
mod units;

use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundQuantizer, Build, CLASSES, Calibrator, Error, EscapeReader, EscapeWriter, GRADES,
    Grader, Kernel, Kind, Part, PartCx, Plane, Plugin, Quantizer, Result, Segment, Source, Stage, StageData,
    TileCx, config, settings,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::bins::Unit;
use crate::escaping;
use crate::rows::{Matrix, MatrixMut, check_len};
use crate::settings::refuse;
use centroids::{CELLS, MOST};
use codebook::Codebook;
use columns::{Columns, Graded};
pub use grading::Importance;
use grading::{Grading, MIDDLE};
use octaves::{Steps, meant};

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "steps",
    version: 1,
    origin: "cacheg-quant",
    summary: "one step for each head, columns in classes that `rans(tables=scale)` shares tables by; \
              unit=sensitivity takes steps from a model's statistics",
    usage: "steps(step=1;unit=sigma;reach=15;importance=none;power=1)",
    build: Build::Quantizer(build),
};

const UNIT: &str = "unit";
const SCALE: &str = "scale";
const CENTROID: &str = "centroid";
const WEIGHT: &str = "weight";
const GRADE: &str = "grade";

/// Settings of `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Multiplies all steps.
    pub step: f64,
    /// What steps are in units of; the data tell a decoder.
    pub unit: Unit,
    /// Largest `|q|` that has a symbol of its own, 1 to 127.
    pub reach: u8,
    /// What makes single tokens' steps finer or coarser.
    #[serde(skip_serializing_if = "Importance::is_none")]
    pub importance: Importance,
    /// To which power importances are taken.
    #[serde(skip_serializing_if = "is_one")]
    pub power: f64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    clippy::float_cmp,
    reason = "serde passes references; written as 1"
)]
fn is_one(power: &f64) -> bool {
    *power == 1.0
}

impl Default for Settings {
    fn default() -> Self {
        Self { step: 1.0, unit: Unit::Sigma, reach: 15, importance: Importance::None, power: 1.0 }
    }
}

fn build(value: &Value) -> Result<Arc<dyn Quantizer>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    if !(settings.step.is_finite() && settings.step > 0.0) {
        return Err(refuse(PLUGIN.name, "step", "must be positive"));
    }
    if !(1..=127).contains(&settings.reach) {
        return Err(refuse(PLUGIN.name, "reach", "must be 1 to 127"));
    }
    if !(0.0..=4.0).contains(&settings.power) {
        return Err(refuse(PLUGIN.name, "power", "must be 0 to 4"));
    }
    Ok(Arc::new(Quarters(settings)))
}

#[derive(Debug)]
struct Quarters(Settings);

impl Quarters {
    fn steps(&self) -> Steps {
        Steps::new(self.0.step, self.0.reach)
    }

    /// What grades tokens, by the stage's data.
    fn grading(&self, cx: &BindCx<'_>, data: &StageData) -> Result<Option<Grading>> {
        if self.0.importance == Importance::None {
            return Ok(None);
        }
        if cx.source == Source::Chunk {
            return Err(Error::profile("`importance` needs a profile"));
        }
        let codebook = Codebook::new(&data.get_u16(GRADE).map_err(|e| fault(e.to_string(), cx.source))?.1)?;
        Ok(Some(if self.0.importance == Importance::Attention {
            Grading::by_attention(self.0.power, codebook)
        } else {
            let weights = data.get_f32(WEIGHT).map_err(|e| fault(e.to_string(), cx.source))?.1;
            if weights.len() != grading::weights_len(cx.planes)? || weights.iter().any(|x| !x.is_finite()) {
                return Err(Error::profile(format!("`{WEIGHT}` is another model's, or not finite")));
            }
            Grading::by_key(cx, &weights, codebook)?
        }))
    }
}

impl Stage for Quarters {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

/// How the columns of a part belong to heads.
#[derive(Debug, Clone, Copy)]
struct Shape {
    heads: usize,
    /// Columns of a head.
    width: usize,
}

impl Shape {
    fn new(plane: &Plane, part: &Part) -> Self {
        let heads = if part.cols == plane.channels() { plane.shape.heads as usize } else { 1 };
        Self { heads, width: part.cols / heads.max(1) }
    }

    fn cols(self) -> usize {
        self.heads * self.width
    }
}

/// By plane, then part.
fn shapes(cx: &BindCx<'_>) -> Vec<Vec<Shape>> {
    let of =
        |(plane, parts): (&Plane, &Vec<Part>)| parts.iter().map(|part| Shape::new(plane, part)).collect();
    cx.planes.iter().zip(cx.parts).map(of).collect()
}

/// Which centroids are a plane's.
fn kind(kind: Kind) -> usize {
    match kind {
        Kind::Key => 0,
        Kind::Value | Kind::Latent => 1,
    }
}

/// A tensor of that many bytes.
fn bytes(data: &StageData, name: &str, len: usize, source: Source) -> Result<Vec<u8>> {
    let bytes = data.get_u8(name).map_err(|e| fault(e.to_string(), source))?.1;
    if bytes.len() != len {
        let why = format!("`{name}` has {} numbers, this model needs {len}", bytes.len());
        return Err(fault(why, source));
    }
    Ok(bytes)
}

fn fault(why: String, source: Source) -> Error {
    match source {
        Source::Profile => Error::profile(why),
        Source::Chunk => Error::corrupt(why),
    }
}

impl Quantizer for Quarters {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        check_len("lists of parts", cx.parts.len(), cx.planes.len())?;
        let (data, shapes, steps) = (cx.require_data()?, shapes(cx), self.steps());
        let all = || shapes.iter().flatten();
        let units = bytes(data, UNIT, all().map(|shape| shape.heads).sum(), cx.source)?;
        let scales = bytes(data, SCALE, all().map(|shape| shape.cols()).sum(), cx.source)?;
        let centroids = bytes(data, CENTROID, 2 * CLASSES * CELLS, cx.source)?;
        if centroids.iter().any(|shift| *shift > MOST) {
            return Err(fault(format!("`{CENTROID}` has numbers above {MOST}"), cx.source));
        }
        let centroids = centroids.as_chunks::<CELLS>().0;
        let (mut units, mut scales) = (units.into_iter(), scales.into_iter());
        let grading = self.grading(cx, data)?;
        let grades = if grading.is_some() { 0..GRADES } else { MIDDLE as usize..MIDDLE as usize + 1 };
        let mut planes = Vec::with_capacity(cx.planes.len());
        for (plane, shapes) in cx.planes.iter().zip(&shapes) {
            let mut parts = Vec::with_capacity(shapes.len());
            for shape in shapes {
                let units: Vec<u8> = units.by_ref().take(shape.heads).collect();
                let scales: Vec<u8> = scales.by_ref().take(shape.cols()).collect();
                let of_grade = |grade: usize| {
                    let mut columns = Columns::new(self.0.reach, shape.cols());
                    for (unit, scales) in units.iter().zip(scales.chunks(shape.width.max(1))) {
                        let unit = Steps::graded(meant(*unit), grade);
                        let step = steps.step(unit)?;
                        for scale in scales {
                            let class = steps.class(meant(*scale), unit);
                            let centroid = centroids[kind(plane.kind) * CLASSES + usize::from(class)];
                            columns.push(class, step, centroid);
                        }
                    }
                    Ok(columns)
                };
                parts.push(grades.clone().map(of_grade).collect::<Result<Vec<_>>>()?);
            }
            planes.push(parts);
        }
        Ok(Box::new(Bound { planes, grading }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        Some(Box::new(calibrate::StepsCalibrator::new(cx, self.steps(), &self.0)))
    }

    fn graded(&self) -> bool {
        self.0.importance != Importance::None
    }

    fn wants_importance(&self) -> bool {
        self.0.importance == Importance::Attention
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane, part and grade; one if nothing is graded.
    planes: Vec<Vec<Vec<Columns>>>,
    grading: Option<Grading>,
}

impl Bound {
    fn of_part(&self, plane: &Plane, part: usize) -> Option<&[Columns]> {
        self.planes.get(plane.index)?.get(part).map(Vec::as_slice)
    }

    /// Those of tokens that get the step of their head.
    fn columns(&self, plane: &Plane, part: usize) -> Option<&Columns> {
        let all = self.of_part(plane, part)?;
        all.get(MIDDLE as usize).or(all.first())
    }
}

impl BoundQuantizer for Bound {
    fn pointwise(&self) -> bool {
        self.grading.is_none()
    }

    fn grader(&self) -> Option<&dyn Grader> {
        self.grading.as_ref().map(|grading| grading as &dyn Grader)
    }

    fn grades(&self) -> Vec<i8> {
        let shift = |grade: usize| 2 * (grade as i8 - MIDDLE as i8);
        if self.grading.is_some() { (0..GRADES).map(shift).collect() } else { Vec::new() }
    }

    fn independent_rows(&self) -> bool {
        true
    }

    fn escapes(&self) -> bool {
        true
    }

    fn alphabets(&self, plane: &Plane, _: &Part, index: usize) -> Vec<Alphabet> {
        self.columns(plane, index).map(|columns| escaping::alphabet(columns.reach)).into_iter().collect()
    }

    fn classes(&self, plane: &Plane, _: &Part, index: usize) -> Vec<u8> {
        self.columns(plane, index).map(|columns| columns.classes.clone()).unwrap_or_default()
    }

    fn side_len(&self, _: &Plane, _: &PartCx) -> usize {
        0
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        let reach = self.planes.iter().flatten().flatten().map(|columns| columns.reach).next().unwrap_or(1);
        let grades = if self.grading.is_some() { GRADES } else { 1 };
        // Where each part's columns begin, four parts to a plane; then two words for each grade of each column.
        let mut data = vec![u32::from(reach)];
        let mut columns = Vec::new();
        let first = 1 + 4 * self.planes.len();
        for parts in &self.planes {
            for part in 0..4 {
                data.push((first + columns.len()) as u32);
                let Some(part) = parts.get(part) else { continue };
                for col in 0..part.first().map_or(0, |columns| columns.steps.len()) {
                    columns.extend(part.iter().flat_map(|of| [of.fractions[col].to_bits(), of.shifts[col]]));
                }
            }
        }
        data.extend(columns);
        let source = include_str!("steps.wgsl").replace("$GRADES", &format!("{grades}u"));
        Some(Kernel::new(source, data))
    }

    fn escaped(&self, plane: &Plane, segment: &Segment, col: usize, value: i32) -> Result<f32> {
        let grades = self.of_part(plane, segment.part).ok_or_else(crate::unknown_plane)?;
        let columns = grades.get(usize::from(segment.grade));
        columns.ok_or_else(|| Error::data("a grade that is not there"))?.escaped(col, value)
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
        check_len("bytes of side information", side.len(), 0)?;
        let columns = self.of_part(tile.plane, part.index).ok_or_else(crate::unknown_plane)?;
        if self.grading.is_some() {
            let graded = Graded::new(columns, tile.grades, part.rows, part.cols)?;
            return match Matrix::new(x, part.rows, part.cols)? {
                Matrix::Flat(x) => graded.quantize(&x, symbols, escapes),
                Matrix::Strided(x) => graded.quantize(&x, symbols, escapes),
            };
        }
        let columns = columns.first().ok_or_else(crate::unknown_plane)?;
        match Matrix::new(x, part.rows, part.cols)? {
            Matrix::Flat(x) => columns.quantize(part.cols, &x, symbols, escapes),
            Matrix::Strided(x) => columns.quantize(part.cols, &x, symbols, escapes),
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
        if !side.is_empty() {
            return Err(Error::corrupt("side information of a wrong length"));
        }
        let columns = self.of_part(tile.plane, part.index).ok_or_else(crate::unknown_plane)?;
        if self.grading.is_some() {
            let graded = Graded::new(columns, tile.grades, part.rows, part.cols)?;
            return match MatrixMut::new(out, part.rows, part.cols)? {
                MatrixMut::Flat(mut out) => graded.dequantize(symbols, escapes, &mut out),
                MatrixMut::Strided(mut out) => graded.dequantize(symbols, escapes, &mut out),
            };
        }
        let columns = columns.first().ok_or_else(crate::unknown_plane)?;
        match MatrixMut::new(out, part.rows, part.cols)? {
            MatrixMut::Flat(mut out) => columns.dequantize(part.cols, symbols, escapes, &mut out),
            MatrixMut::Strided(mut out) => columns.dequantize(part.cols, symbols, escapes, &mut out),
        }
    }
}

#[cfg(test)]
mod tests;
