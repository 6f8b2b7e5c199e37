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
    Alphabet, BindCx, BoundQuantizer, Build, Error, EscapeReader, EscapeWriter, Kind, List, Part, PartCx,
    Plane, Plugin, Quantizer, Result, Stage, TileCx, config, settings,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ScaleFormat;
use crate::rounding::Range;
use crate::rows::{check_len, flat, flat_mut};
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
        Ok(Box::new(Bound { layouts, row_multiple }))
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
    fn group_of(&self, rows: usize, cols: usize) -> usize {
        match (self.group, self.axis) {
            (0, Axis::Token) => cols.max(1),
            (0, Axis::Channel) => rows.max(1),
            (group, _) => group,
        }
    }

    /// Groups of a part.
    fn groups(&self, rows: usize, cols: usize) -> usize {
        let group = self.group_of(rows, cols);
        match self.axis {
            Axis::Token => rows * cols.div_ceil(group),
            Axis::Channel => rows.div_ceil(group) * cols,
        }
    }
}

/// Channels whose grids are held on the stack at a time.
const BLOCK: usize = 64;

#[derive(Debug)]
struct Bound {
    /// For keys, values, latents.
    layouts: [Layout; 3],
    row_multiple: usize,
}

impl BoundQuantizer for Bound {
    fn alphabets(&self, plane: &Plane, _: &Part, _: usize) -> Vec<Alphabet> {
        vec![Alphabet { size: layout_of(&self.layouts, plane).rule.alphabet(), escape: false }]
    }

    fn side_len(&self, plane: &Plane, part: &PartCx) -> usize {
        let layout = layout_of(&self.layouts, plane);
        layout.groups(part.rows, part.cols) * layout.rule.side_len()
    }

    fn row_multiple(&self) -> usize {
        self.row_multiple
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
        let (rows, cols) = (part.rows, part.cols);
        let layout = layout_of(&self.layouts, tile.plane);
        let x = flat(&x, rows, cols)?;
        check_len("symbols", symbols.len(), x.len())?;
        check_len("bytes of side information", side.len(), self.side_len(tile.plane, part))?;
        let group = layout.group_of(rows, cols);
        match layout.axis {
            Axis::Token => quantize_by_token(&layout.rule, group, cols, x, symbols, side),
            Axis::Channel => quantize_by_channel(&layout.rule, group, cols, x, symbols, side),
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
        let (rows, cols) = (part.rows, part.cols);
        let layout = layout_of(&self.layouts, tile.plane);
        let out = flat_mut(out, rows, cols)?;
        check_len("symbols", symbols.len(), out.len())?;
        if side.len() != self.side_len(tile.plane, part) {
            return Err(Error::corrupt("side information of a wrong length"));
        }
        let group = layout.group_of(rows, cols);
        match layout.axis {
            Axis::Token => dequantize_by_token(&layout.rule, group, cols, symbols, side, out),
            Axis::Channel => dequantize_by_channel(&layout.rule, group, cols, symbols, side, out),
        }
    }
}

fn quantize_by_token(
    rule: &Rule,
    group: usize,
    cols: usize,
    x: &[f32],
    symbols: &mut [u8],
    side: &mut [u8],
) -> Result<()> {
    let mut side = side.chunks_exact_mut(rule.side_len());
    for (x, symbols) in x.chunks_exact(cols).zip(symbols.chunks_exact_mut(cols)) {
        for ((x, symbols), side) in x.chunks(group).zip(symbols.chunks_mut(group)).zip(&mut side) {
            let grid = rule.encode(Range::of(x), side)?;
            symbols.iter_mut().zip(x).for_each(|(symbol, x)| *symbol = grid.symbol(*x, rule.centre()));
        }
    }
    Ok(())
}

fn dequantize_by_token(
    rule: &Rule,
    group: usize,
    cols: usize,
    symbols: &[u8],
    side: &[u8],
    out: &mut [f32],
) -> Result<()> {
    let mut side = side.chunks_exact(rule.side_len());
    for (symbols, out) in symbols.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
        for ((symbols, out), side) in symbols.chunks(group).zip(out.chunks_mut(group)).zip(&mut side) {
            let grid = rule.decode(side)?;
            out.iter_mut().zip(symbols).for_each(|(out, symbol)| *out = grid.value(*symbol, rule.centre()));
        }
    }
    Ok(())
}

fn quantize_by_channel(
    rule: &Rule,
    group: usize,
    cols: usize,
    x: &[f32],
    symbols: &mut [u8],
    side: &mut [u8],
) -> Result<()> {
    let unit = rule.side_len();
    let groups = x.chunks(group * cols).zip(symbols.chunks_mut(group * cols));
    for ((x, symbols), side) in groups.zip(side.chunks_exact_mut(cols * unit)) {
        for first in (0..cols).step_by(BLOCK) {
            let block = first..cols.min(first + BLOCK);
            let mut ranges = [Range::EMPTY; BLOCK];
            for x in x.chunks_exact(cols) {
                for (range, x) in ranges.iter_mut().zip(&x[block.clone()]) {
                    *range = range.with(*x);
                }
            }
            let mut grids = [Grid::ZERO; BLOCK];
            let side = side[block.start * unit..block.end * unit].chunks_exact_mut(unit);
            for ((grid, range), side) in grids.iter_mut().zip(ranges).zip(side) {
                *grid = rule.encode(range, side)?;
            }
            for (x, symbols) in x.chunks_exact(cols).zip(symbols.chunks_exact_mut(cols)) {
                let (x, symbols) = (&x[block.clone()], &mut symbols[block.clone()]);
                for ((symbol, x), grid) in symbols.iter_mut().zip(x).zip(&grids) {
                    *symbol = grid.symbol(*x, rule.centre());
                }
            }
        }
    }
    Ok(())
}

fn dequantize_by_channel(
    rule: &Rule,
    group: usize,
    cols: usize,
    symbols: &[u8],
    side: &[u8],
    out: &mut [f32],
) -> Result<()> {
    let unit = rule.side_len();
    let groups = symbols.chunks(group * cols).zip(out.chunks_mut(group * cols));
    for ((symbols, out), side) in groups.zip(side.chunks_exact(cols * unit)) {
        for first in (0..cols).step_by(BLOCK) {
            let block = first..cols.min(first + BLOCK);
            let mut grids = [Grid::ZERO; BLOCK];
            let side = side[block.start * unit..block.end * unit].chunks_exact(unit);
            for (grid, side) in grids.iter_mut().zip(side) {
                *grid = rule.decode(side)?;
            }
            for (symbols, out) in symbols.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                let (symbols, out) = (&symbols[block.clone()], &mut out[block.clone()]);
                for ((out, symbol), grid) in out.iter_mut().zip(symbols).zip(&grids) {
                    *out = grid.value(*symbol, rule.centre());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
