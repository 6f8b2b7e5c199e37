//! `uniform(bits=8;axis=token;group=32;zero=false;scale=f16)`: 1 to 8 bits per value and a scale per group.
//!
//! The plain quantisers that KV caches are compared with:
//! * ggml's `q8_0` and `q4_0`, blocks of 32 channels with an f16 scale: `uniform(bits=8)`, `uniform(bits=4)`
//!   (8.5 and 4.5 bits per value before entropy coding; ours have 255 and 15 levels, symmetric around 0);
//! * KIVI (arXiv 2402.02750, section 3.2), keys per channel in groups of 32 tokens, values per token in groups
//!   of 32 channels, both with a zero point: `uniform(bits=4;axis=channel,token;group=32;zero=true)`.
//!
//! `bits`, `axis`, `group` and `zero` take one value, or two: for keys, and for values and latents.
//! `axis=token`: every token has a scale for each `group` consecutive channels; `axis=channel`: every channel
//! has one for each `group` consecutive tokens (tiles then begin at multiples of `group`). The last group may be
//! short. `group=0`: one group takes all channels of a row, or all rows of a tile.
//!
//! **Arithmetic**, bit-exact, all in `f32`, with `C = 2^(bits−1) − 1` and `L = 2^bits − 1`:
//! * symmetric (`zero=false`, bits ≥ 2): `scale = up(absmax / C)`, `q = round(x / scale)`, symbol `q + C` of an
//!   alphabet of `2C + 1`, reconstruction `q · scale`;
//! * asymmetric (`zero=true`): `min = down(minimum)`, `scale = up((maximum − min) / L)`,
//!   `q = round((x − min) / scale)`, symbol `q` of an alphabet of `L + 1`, reconstruction `min + q · scale`.
//!
//! `round` is to nearest, ties to even; `up` and `down` round to the next larger (smaller) number of the format
//! `scale`, so that the grid covers the group and nothing clips. `q · scale` has at most 19 significant bits and
//! is exact. A scale of 0 (a constant group) makes every `q` 0.
//!
//! Side information per group, rows (or groups of rows) first: `scale`, or `min` then `scale`; 16 bits each,
//! little-endian. No data. All parts are treated alike.
//!
//! ```
//! let stages = cacheg_core::spec::parse("uniform(bits=4;axis=channel,token;zero=true)")?;
//! let cacheg_core::Build::Quantizer(build) = cacheg_quant::uniform::PLUGIN.build else { unreachable!() };
//! let config = build(&stages[0].config)?.config();
//! assert_eq!(config["axis"], serde_json::json!(["channel", "token"]));
//! assert_eq!(config["group"], serde_json::json!([32]));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod grid;

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
use crate::rounding::Extremes;
use crate::rows::{Matrix, MatrixMut, Values, ValuesMut, check_len};
use crate::settings::{at_most_two, refuse};
use grid::{Grid, Rule};

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "uniform",
    version: 1,
    origin: "cacheg-quant",
    summary: "1 to 8 bits and a scale per group, by token or channel (q8_0, q4_0, KIVI)",
    usage: "uniform(bits=8;axis=token;group=32;zero=false;scale=f16)",
    build: Build::Quantizer(build),
};

/// Along what a group runs that shares a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Consecutive channels of one token.
    Token,
    /// Consecutive tokens of one channel.
    Channel,
}

/// Settings of `uniform`; lists are for keys, then for values and latents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Bits of a symbol, 1 to 8; 1 only with a zero point.
    pub bits: List<u8>,
    /// What shares a scale.
    pub axis: List<Axis>,
    /// Channels (tokens) of a group, at most 65,536; 0 for all.
    pub group: List<u32>,
    /// Whether groups have a zero point (their minimum) beside the scale.
    pub zero: List<bool>,
    /// Format of scales and minima.
    pub scale: ScaleFormat,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bits: 8.into(),
            axis: Axis::Token.into(),
            group: 32.into(),
            zero: false.into(),
            scale: ScaleFormat::F16,
        }
    }
}

fn build(value: &Value) -> Result<Arc<dyn Quantizer>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    at_most_two(PLUGIN.name, "bits", &settings.bits)?;
    at_most_two(PLUGIN.name, "axis", &settings.axis)?;
    at_most_two(PLUGIN.name, "group", &settings.group)?;
    at_most_two(PLUGIN.name, "zero", &settings.zero)?;
    if settings.bits.values().iter().any(|bits| !(1..=8).contains(bits)) {
        return Err(refuse(PLUGIN.name, "bits", "must be 1 to 8"));
    }
    if settings.group.values().iter().any(|group| *group > 1 << 16) {
        return Err(refuse(PLUGIN.name, "group", "must be at most 65536"));
    }
    if Kind::ALL.iter().any(|kind| settings.bits.of_kind(*kind) == 1 && !settings.zero.of_kind(*kind)) {
        return Err(refuse(PLUGIN.name, "bits", "of 1 needs `zero=true`: symmetric grids contain 0"));
    }
    Ok(Arc::new(Uniform(settings)))
}

#[derive(Debug)]
struct Uniform(Settings);

impl Stage for Uniform {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Quantizer for Uniform {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        let layouts = Kind::ALL.map(|kind| Layout::new(&self.0, kind));
        let used = |layout: &&Layout| cx.planes.iter().any(|plane| layout_of(&layouts, plane) == *layout);
        let multiples = layouts.iter().filter(used).map(|layout| match layout.axis {
            Axis::Token => 1,
            Axis::Channel => layout.group.max(1),
        });
        let row_multiple = multiples.fold(1, lcm);
        let all_rows = |layout: &Layout| layout.axis == Axis::Channel && layout.group == 0;
        let independent_rows = !layouts.iter().filter(used).any(all_rows);
        Ok(Box::new(Bound { layouts, row_multiple, independent_rows }))
    }
}

fn layout_of<'a>(layouts: &'a [Layout; 3], plane: &Plane) -> &'a Layout {
    match plane.kind {
        Kind::Key => &layouts[0],
        Kind::Value => &layouts[1],
        Kind::Latent => &layouts[2],
    }
}

/// At most 2³², as groups have at most 2¹⁶ rows.
fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// How one kind of plane is quantised.
#[derive(Debug, Clone, PartialEq)]
struct Layout {
    axis: Axis,
    /// 0 for all.
    group: usize,
    rule: Rule,
}

impl Layout {
    fn new(settings: &Settings, kind: Kind) -> Self {
        Self {
            axis: settings.axis.of_kind(kind),
            group: settings.group.of_kind(kind) as usize,
            rule: Rule::new(settings.bits.of_kind(kind), settings.zero.of_kind(kind), settings.scale),
        }
    }

    /// Channels (or rows) of a group in a part.
    fn group_of(&self, part: &PartCx) -> usize {
        match (self.group, self.axis) {
            (0, Axis::Token) => part.cols.max(1),
            (0, Axis::Channel) => part.rows.max(1),
            (group, _) => group,
        }
    }

    /// Groups of a part.
    fn groups(&self, part: &PartCx) -> usize {
        let group = self.group_of(part);
        match self.axis {
            Axis::Token => part.rows * part.cols.div_ceil(group),
            Axis::Channel => part.rows.div_ceil(group) * part.cols,
        }
    }
}

/// The usual size of groups.
const USUAL: usize = 32;

/// Channels whose grids are held on the stack at a time.
const BLOCK: usize = 64;

/// The grids of up to [`BLOCK`] channels, apart, as SIMD likes them.
struct Grids {
    offsets: [f32; BLOCK],
    scales: [f32; BLOCK],
}

impl Grids {
    const ZERO: Self = Self { offsets: [0.0; BLOCK], scales: [0.0; BLOCK] };

    fn set(&mut self, channel: usize, grid: Grid) {
        (self.offsets[channel], self.scales[channel]) = (grid.offset, grid.scale);
    }

    fn iter(&self) -> impl Iterator<Item = Grid> {
        self.offsets.iter().zip(&self.scales).map(|(offset, scale)| Grid { offset: *offset, scale: *scale })
    }
}

#[derive(Debug)]
struct Bound {
    /// For keys, values, latents.
    layouts: [Layout; 3],
    row_multiple: usize,
    independent_rows: bool,
}

impl BoundQuantizer for Bound {
    fn independent_rows(&self) -> bool {
        self.independent_rows
    }

    fn alphabets(&self, plane: &Plane, _: &Part, _: usize) -> Vec<Alphabet> {
        vec![Alphabet { size: layout_of(&self.layouts, plane).rule.alphabet(), escape: false }]
    }

    fn side_len(&self, plane: &Plane, part: &PartCx) -> usize {
        let layout = layout_of(&self.layouts, plane);
        layout.groups(part) * layout.rule.side_len()
    }

    fn row_multiple(&self) -> usize {
        self.row_multiple
    }

    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        let of = |plane: &Plane| {
            let layout = layout_of(&self.layouts, plane);
            let [zero, steps, centre, format] = layout.rule.words();
            [u32::from(layout.axis == Axis::Channel), layout.group as u32, zero, steps, centre, format, 0, 0]
        };
        Some(Kernel::new(include_str!("uniform.wgsl"), planes.iter().flat_map(of).collect()))
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
        let layout = layout_of(&self.layouts, tile.plane);
        check_len("symbols", symbols.len(), x.len())?;
        check_len("bytes of side information", side.len(), self.side_len(tile.plane, part))?;
        match Matrix::new(x, part.rows, part.cols)? {
            Matrix::Flat(x) => layout.quantize(part, &x, symbols, side),
            Matrix::Strided(x) => layout.quantize(part, &x, symbols, side),
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
        let layout = layout_of(&self.layouts, tile.plane);
        check_len("symbols", symbols.len(), out.len())?;
        if side.len() != self.side_len(tile.plane, part) {
            return Err(Error::corrupt("side information of a wrong length"));
        }
        match MatrixMut::new(out, part.rows, part.cols)? {
            MatrixMut::Flat(mut out) => layout.dequantize(part, symbols, side, &mut out),
            MatrixMut::Strided(mut out) => layout.dequantize(part, symbols, side, &mut out),
        }
    }
}

impl Layout {
    fn quantize(&self, part: &PartCx, x: &impl Values, symbols: &mut [u8], side: &mut [u8]) -> Result<()> {
        match self.axis {
            Axis::Token => self.quantize_by_token(part, x, symbols, side),
            Axis::Channel => self.quantize_by_channel(part, x, symbols, side),
        }
    }

    fn dequantize(&self, part: &PartCx, symbols: &[u8], side: &[u8], out: &mut impl ValuesMut) -> Result<()> {
        match self.axis {
            Axis::Token => self.dequantize_by_token(part, symbols, side, out),
            Axis::Channel => self.dequantize_by_channel(part, symbols, side, out),
        }
    }

    fn quantize_by_token(
        &self,
        part: &PartCx,
        x: &impl Values,
        symbols: &mut [u8],
        side: &mut [u8],
    ) -> Result<()> {
        let (rule, group) = (&self.rule, self.group_of(part));
        if let Some(x) = x.flat().filter(|_| part.cols.is_multiple_of(group)) {
            return quantize_groups(rule, group, x, symbols, side);
        }
        let mut side = side.chunks_exact_mut(rule.side_len());
        for (row, symbols) in symbols.chunks_exact_mut(part.cols).enumerate() {
            for ((index, symbols), side) in symbols.chunks_mut(group).enumerate().zip(&mut side) {
                let first = index * group;
                let x = x.values(row, first..first + symbols.len());
                let grid = rule.encode(x.clone(), side)?;
                symbols.iter_mut().zip(x).for_each(|(symbol, x)| *symbol = grid.symbol(*x, rule.centre()));
            }
        }
        Ok(())
    }

    fn dequantize_by_token(
        &self,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let (rule, group) = (&self.rule, self.group_of(part));
        let mut side = side.chunks_exact(rule.side_len());
        for (row, symbols) in symbols.chunks_exact(part.cols).enumerate() {
            for ((index, symbols), side) in symbols.chunks(group).enumerate().zip(&mut side) {
                let first = index * group;
                let grid = rule.decode(side)?;
                let out = out.values_mut(row, first..first + symbols.len());
                out.zip(symbols).for_each(|(out, symbol)| *out = grid.value(*symbol, rule.centre()));
            }
        }
        Ok(())
    }

    fn quantize_by_channel(
        &self,
        part: &PartCx,
        x: &impl Values,
        symbols: &mut [u8],
        side: &mut [u8],
    ) -> Result<()> {
        let (rule, cols, unit) = (&self.rule, part.cols, self.rule.side_len());
        let group = self.group_of(part);
        let side = side.chunks_exact_mut(cols * unit);
        for ((index, symbols), side) in symbols.chunks_mut(group * cols).enumerate().zip(side) {
            for first in (0..cols).step_by(BLOCK) {
                let block = first..cols.min(first + BLOCK);
                let mut ends = Extremes::<BLOCK>::EMPTY;
                for row in index * group..index * group + symbols.len() / cols {
                    ends.add(x.values(row, block.clone()));
                }
                let mut grids = Grids::ZERO;
                let side = side[block.start * unit..block.end * unit].chunks_exact_mut(unit);
                for (column, (ends, side)) in ends.columns().zip(side).enumerate() {
                    let (low, high) = ends?;
                    grids.set(column, rule.encode_ends(low, high, side)?);
                }
                for (row, symbols) in (index * group..).zip(symbols.chunks_exact_mut(cols)) {
                    let values = symbols[block.clone()].iter_mut().zip(x.values(row, block.clone()));
                    for ((symbol, x), grid) in values.zip(grids.iter()) {
                        *symbol = grid.symbol(*x, rule.centre());
                    }
                }
            }
        }
        Ok(())
    }

    fn dequantize_by_channel(
        &self,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        out: &mut impl ValuesMut,
    ) -> Result<()> {
        let (rule, cols, unit) = (&self.rule, part.cols, self.rule.side_len());
        let group = self.group_of(part);
        let side = side.chunks_exact(cols * unit);
        for ((index, symbols), side) in symbols.chunks(group * cols).enumerate().zip(side) {
            for first in (0..cols).step_by(BLOCK) {
                let block = first..cols.min(first + BLOCK);
                let mut grids = Grids::ZERO;
                let side = side[block.start * unit..block.end * unit].chunks_exact(unit);
                for (column, side) in side.enumerate() {
                    grids.set(column, rule.decode(side)?);
                }
                for (row, symbols) in (index * group..).zip(symbols.chunks_exact(cols)) {
                    let values = out.values_mut(row, block.clone()).zip(&symbols[block.clone()]);
                    for ((out, symbol), grid) in values.zip(grids.iter()) {
                        *out = grid.value(*symbol, rule.centre());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Groups of neighbours that follow each other without rests.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn quantize_groups(rule: &Rule, group: usize, x: &[f32], symbols: &mut [u8], side: &mut [u8]) -> Result<()> {
    let side = side.chunks_exact_mut(rule.side_len());
    if group == USUAL {
        // Loops of known length.
        let groups = x.as_chunks::<USUAL>().0.iter().zip(symbols.as_chunks_mut::<USUAL>().0);
        groups.zip(side).try_for_each(|((x, symbols), side)| quantize_group(rule, x, symbols, side))
    } else {
        let groups = x.chunks_exact(group).zip(symbols.chunks_exact_mut(group));
        groups.zip(side).try_for_each(|((x, symbols), side)| quantize_group(rule, x, symbols, side))
    }
}

#[inline(always)]
fn quantize_group(rule: &Rule, x: &[f32], symbols: &mut [u8], side: &mut [u8]) -> Result<()> {
    let grid = rule.encode(x.iter(), side)?;
    symbols.iter_mut().zip(x).for_each(|(symbol, x)| *symbol = grid.symbol(*x, rule.centre()));
    Ok(())
}

#[cfg(test)]
mod tests;
