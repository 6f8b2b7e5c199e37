//! `lloyd-max(bits=4;group=0;scale=f16)`: the codebook that suits normally distributed values best, and a scale.
//!
//! A head that a random rotation has gone over (`hadamard`) has nearly normal channels, whatever it was before;
//! TurboQuant (arXiv 2504.19874, algorithm 1) therefore keeps its norm and takes for each channel the nearest entry
//! of one fixed codebook: that of Lloyd (1982) and Max (1960), which has the least mean squared error.
//! `hadamard|lloyd-max(bits=4)|raw` is TurboQuant with a Walsh–Hadamard matrix for the random one, and with 16 bits
//! for the norm; its second variant, which spends one of the bits on an unbiased inner product, is not built.
//!
//! `bits` (1 to 8) and `group` take one value, or two: for keys, and for values and latents. Every token has a scale
//! for each `group` consecutive channels; the last group of a row may be short. `group=0`: as many as a head has.
//!
//! **Arithmetic**, bit-exact. `scale` is the root of the mean square, rounded up to the format `scale`. `y = x / scale`
//! in `f32` (`x` if the scale is 0); the symbol counts, from the middle of the codebook outwards, the thresholds that
//! `|y|` reaches; a threshold is the middle between neighbouring entries. Reconstruction: `entry · scale`, exact, as
//! entries have at most 13 significant bits and scales 11. Nothing is clipped: what is far out gets the last entry.
//!
//! Side information per group: `scale`, 16 bits, little-endian, row after row. No data. All parts are treated alike.
//!
//! ```
//! let stages = cacheg_core::spec::parse("lloyd-max(bits=3,4)")?;
//! let cacheg_core::Build::Quantizer(build) = cacheg_quant::lloyd_max::PLUGIN.build else { unreachable!() };
//! let config = build(&stages[0].config)?.config();
//! assert_eq!(config["bits"], serde_json::json!([3, 4]));
//! assert_eq!(config["group"], serde_json::json!([0]));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod codebook;

use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundQuantizer, Build, Error, EscapeReader, EscapeWriter, Kernel, Kind, List, Part,
    PartCx, Plane, Plugin, Quantizer, Result, Stage, TileCx, config, settings,
};
use multiversion::multiversion;
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ScaleFormat;
use crate::rounding::not_finite;
use crate::rows::{Matrix, MatrixMut, Values, ValuesMut, check_len};
use crate::scale::impossible;
use crate::settings::{at_most_two, refuse};
use codebook::Codebook;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "lloyd-max",
    version: 1,
    origin: "cacheg-quant",
    summary: "1 to 8 bits by the best codebook for normal values and a scale per head, after `hadamard` (TurboQuant)",
    usage: "lloyd-max(bits=4;group=0;scale=f16)",
    build: Build::Quantizer(build),
};

/// Settings of `lloyd-max`; lists are for keys, then for values and latents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of a symbol, 1 to 8.
    pub bits: List<u8>,
    /// Channels of a group, at most 65,536; 0 for those of a head.
    pub group: List<u32>,
    /// Format of scales.
    pub scale: ScaleFormat,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bits: 4.into(), group: 0.into(), scale: ScaleFormat::F16 }
    }
}

fn build(value: &Value) -> Result<Arc<dyn Quantizer>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    at_most_two(PLUGIN.name, "bits", &settings.bits)?;
    at_most_two(PLUGIN.name, "group", &settings.group)?;
    if settings.bits.values().iter().any(|bits| !(1..=8).contains(bits)) {
        return Err(refuse(PLUGIN.name, "bits", "must be 1 to 8"));
    }
    if settings.group.values().iter().any(|group| *group > 1 << 16) {
        return Err(refuse(PLUGIN.name, "group", "must be at most 65536"));
    }
    Ok(Arc::new(LloydMax(settings)))
}

#[derive(Debug)]
struct LloydMax(Settings);

impl Stage for LloydMax {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Quantizer for LloydMax {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        Ok(Box::new(Bound(Kind::ALL.map(|kind| Layout {
            group: self.0.group.of_kind(kind) as usize,
            book: Codebook::new(self.0.bits.of_kind(kind)),
            format: self.0.scale,
        }))))
    }
}

/// For keys, values, latents.
#[derive(Debug)]
struct Bound([Layout; 3]);

/// How one kind of plane is quantised.
#[derive(Debug)]
struct Layout {
    /// 0 for a head.
    group: usize,
    book: Codebook,
    format: ScaleFormat,
}

impl Bound {
    fn layout(&self, plane: &Plane) -> &Layout {
        &self.0[number(plane.kind)]
    }
}

/// Where a kind is in `Kind::ALL`.
fn number(kind: Kind) -> usize {
    match kind {
        Kind::Key => 0,
        Kind::Value => 1,
        Kind::Latent => 2,
    }
}

/// Bytes of a scale.
const SCALE: usize = 2;

impl BoundQuantizer for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn alphabets(&self, plane: &Plane, _: &Part, _: usize) -> Vec<Alphabet> {
        vec![Alphabet { size: self.layout(plane).book.alphabet(), escape: false }]
    }

    fn side_len(&self, plane: &Plane, part: &PartCx) -> usize {
        part.rows * part.cols.div_ceil(self.layout(plane).group_of(plane)) * SCALE
    }

    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        // Planes of one kind share a codebook.
        let mut firsts = [0; Kind::ALL.len()];
        let mut entries = Vec::new();
        for (first, layout) in firsts.iter_mut().zip(&self.0) {
            *first = (4 * planes.len() + entries.len()) as u32;
            entries.extend(layout.book.halves().iter().map(|entry| u32::from(*entry)));
        }
        let of = |plane: &Plane| {
            let layout = self.layout(plane);
            let format = u32::from(layout.format == ScaleFormat::Bf16);
            [layout.group_of(plane) as u32, layout.book.half() as u32, firsts[number(plane.kind)], format]
        };
        let data = planes.iter().flat_map(of).chain(entries).collect();
        Some(Kernel::new(include_str!("lloyd_max.wgsl"), data))
    }

    fn quantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        x: ArrayView2<'_, f32>,
        symbols: &mut [u8],
        side: &mut [u8],
        _: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        check_len("symbols", symbols.len(), x.len())?;
        check_len("bytes of side information", side.len(), self.side_len(tile.plane, part))?;
        let layout = self.layout(tile.plane);
        let group = layout.group_of(tile.plane);
        match Matrix::new(x, part.rows, part.cols)? {
            Matrix::Flat(x) => layout.quantize(part.cols, group, &x, symbols, side),
            Matrix::Strided(x) => layout.quantize(part.cols, group, &x, symbols, side),
        }
    }

    fn dequantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        _: &mut EscapeReader<'_>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        check_len("symbols", symbols.len(), out.len())?;
        if side.len() != self.side_len(tile.plane, part) {
            return Err(Error::corrupt("side information of a wrong length"));
        }
        let layout = self.layout(tile.plane);
        let group = layout.group_of(tile.plane);
        match MatrixMut::new(out, part.rows, part.cols)? {
            MatrixMut::Flat(mut out) => layout.dequantize(part.cols, group, symbols, side, &mut out),
            MatrixMut::Strided(mut out) => layout.dequantize(part.cols, group, symbols, side, &mut out),
        }
    }
}

/// Values whose symbols are found together, on the stack.
const BLOCK: usize = 64;

impl Layout {
    /// Channels of a group.
    fn group_of(&self, plane: &Plane) -> usize {
        if self.group == 0 { (plane.shape.head_dim as usize).max(1) } else { self.group }
    }

    fn quantize(
        &self,
        cols: usize,
        group: usize,
        x: &impl Values,
        symbols: &mut [u8],
        side: &mut [u8],
    ) -> Result<()> {
        let mut side = side.as_chunks_mut::<SCALE>().0.iter_mut();
        let mut values = [0.0; BLOCK];
        for (row, symbols) in symbols.chunks_exact_mut(cols).enumerate() {
            for ((index, symbols), side) in symbols.chunks_mut(group).enumerate().zip(&mut side) {
                let first = index * group;
                let code = self.scale_of(x.values(row, first..first + symbols.len()), symbols.len())?;
                *side = code.to_le_bytes();
                let scale = self.format.value(code);
                let divisor = if scale > 0.0 { scale } else { 1.0 };
                for (block, symbols) in symbols.chunks_mut(BLOCK).enumerate() {
                    let first = first + block * BLOCK;
                    let from = x.values(row, first..first + symbols.len());
                    values.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    nearest(&self.book, &values, divisor, symbols);
                }
            }
        }
        Ok(())
    }

    fn dequantize(
        &self,
        cols: usize,
        group: usize,
        symbols: &[u8],
        side: &[u8],
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let entries = self.book.entries();
        let mut side = side.as_chunks::<SCALE>().0.iter();
        for (row, symbols) in symbols.chunks_exact(cols).enumerate() {
            for ((index, symbols), side) in symbols.chunks(group).enumerate().zip(&mut side) {
                let first = index * group;
                let scale = self.format.read_scale(u16::from_le_bytes(*side))?;
                if !(self.book.largest() * scale).is_finite() {
                    return Err(impossible());
                }
                let out = out.values_mut(row, first..first + symbols.len());
                out.zip(symbols).for_each(|(out, symbol)| *out = entries[usize::from(*symbol)] * scale);
            }
        }
        Ok(())
    }

    /// The root of the mean square, rounded up to the format.
    fn scale_of<'v>(&self, values: impl Iterator<Item = &'v f32>, len: usize) -> Result<u16> {
        // Squares of `f32` are exact in `f64`. Lanes, as SIMD likes them, in a fixed order.
        let mut lanes = [0.0f64; 8];
        for (at, x) in values.enumerate() {
            lanes[at % 8] += f64::from(*x) * f64::from(*x);
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        let sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
        if !sum.is_finite() {
            return Err(not_finite());
        }
        let rms = (sum / len as f64).sqrt() as f32;
        let code = self.format.up(rms)?;
        if !(self.book.largest() * self.format.value(code)).is_finite() {
            return Err(Error::data(format!("values of {rms:e} are too large to be quantised")));
        }
        Ok(code)
    }
}

/// Symbols of as many values as there are symbols, at most [`BLOCK`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn nearest(book: &Codebook, values: &[f32; BLOCK], divisor: f32, symbols: &mut [u8]) {
    let mut scaled = [0.0; BLOCK];
    scaled.iter_mut().zip(values).for_each(|(y, x)| *y = x / divisor);
    let mut reached = [0u32; BLOCK];
    for threshold in book.thresholds() {
        for (reached, y) in reached.iter_mut().zip(&scaled) {
            *reached += u32::from(y.abs() >= *threshold);
        }
    }
    let half = book.half() as u32;
    for ((symbol, reached), y) in symbols.iter_mut().zip(reached).zip(scaled) {
        *symbol = if y < 0.0 { half - 1 - reached } else { half + reached } as u8;
    }
}

#[cfg(test)]
mod tests;
