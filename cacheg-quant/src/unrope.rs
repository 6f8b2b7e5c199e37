//! `unrope`: undoes the rotary position embedding of keys.
//!
//! RoPE (Su et al., arXiv 2104.09864, section 3.2.2) rotates pairs of channels by an angle proportional to the
//! token's position, which makes every channel of cached keys oscillate. Quantising keys before RoPE is the
//! idea of KVQuant (arXiv 2401.18079, section 3.2). Planes with a [`Rope`] are rotated back, others pass through.
//!
//! Not behind a stage that drops tokens: rows then are not at consecutive positions.
//!
//! One part, no settings, no data. For pair `i` with frequency `f`, at position `p`, `a` and `b` its channels:
//! `a' = a·cos(p·f) + b·sin(p·f)`, `b' = b·cos(p·f) − a·sin(p·f)`; the inverse takes the opposite sine. Channel
//! `start + i` pairs with `start + i + dims/2` ([`Pairing::Half`]), or `start + 2i` with `start + 2i + 1`
//! ([`Pairing::Interleaved`]). Row `r` of a tile has position `tile.position + r`.
//!
//! **Exactness**: this is a matrix-like stage. Angles, sines and cosines are computed in `f64`, and the latter
//! rounded to `f32` once. With `n` the norm of a pair, each of its outputs is within `4·2⁻²⁴·n` of an exact
//! rotation by an angle that is off by at most `2⁻⁵³·|p·f|`. The same tile on machines whose `sin` and `cos`
//! differ in the last bit of `f64` comes out within `2⁻²³·n`, and on GPUs within `8·2⁻²⁴·n` if `p·f` is below 2²⁸.
//!
//! ```
//! let stages = cacheg_core::spec::parse("unrope")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::unrope::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.name(), "unrope");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

mod kernel;

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Error, Kernel, Pairing, Plane, Plugin, Result, ResultExt, Rope, Stage,
    TileCx, Transform, config, settings,
};
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2, s};
use serde_json::Value;

use crate::rows::check;
use crate::settings::NoSettings;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "unrope",
    version: 1,
    origin: "cacheg-quant",
    summary: "undoes RoPE on keys",
    usage: "unrope",
    build: Build::Transform(build),
};

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    settings::<NoSettings>(PLUGIN.name, value)?;
    Ok(Arc::new(Unrope))
}

#[derive(Debug)]
pub(crate) struct Unrope;

impl Stage for Unrope {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&NoSettings {})
    }
}

impl Transform for Unrope {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        if !cx.consecutive {
            return Err(Error::setting(
                "rotations are undone by position, and behind a stage that drops tokens every head's rows have positions \
                 of their own; leave it out",
            ));
        }
        // Most models have one rotation for all layers.
        let mut rotations: Vec<(Rope, Arc<Rotation>)> = Vec::new();
        let mut by_plane = Vec::with_capacity(cx.planes.len());
        for plane in cx.planes {
            let Some(rope) = plane.rope else {
                by_plane.push(None);
                continue;
            };
            let head_dim = plane.shape.head_dim as usize;
            let known = rotations.iter().find(|(other, made)| *other == rope && made.head_dim == head_dim);
            let rotation = match known {
                Some((_, rotation)) => rotation.clone(),
                None => {
                    let rotation = Arc::new(Rotation::new(&rope, head_dim).at(|| plane.name())?);
                    rotations.push((rope, rotation.clone()));
                    rotation
                }
            };
            by_plane.push(Some(rotation));
        }
        Ok(Box::new(Bound { by_plane }))
    }
}

/// Pairs whose angles are held on the stack at a time.
const BLOCK: usize = 64;
/// Angles are computed anew at positions that are multiples of this; between, each row's come from the position before by the
/// addition theorem, whose error stays below 32 · 2⁻⁵². So a row's are the same whatever rows it is done with.
const FRESH: u64 = 32;

/// One pair of channels.
#[derive(Debug)]
struct Pair {
    /// Radians per token.
    frequency: f64,
    cos: f64,
    sin: f64,
}

/// The rotation of one layer's heads.
#[derive(Debug)]
struct Rotation {
    head_dim: usize,
    start: usize,
    pairing: Pairing,
    pairs: Vec<Pair>,
}

impl Rotation {
    fn new(rope: &Rope, head_dim: usize) -> Result<Self> {
        let (start, dims) = (rope.start as usize, rope.dims as usize);
        if dims % 2 != 0 || start.checked_add(dims).is_none_or(|end| end > head_dim) {
            return Err(Error::data(format!(
                "RoPE of {dims} channels from {start}, of a head of {head_dim}"
            )));
        }
        let pairs = rope.frequencies().into_iter().map(|frequency| {
            // Keeps every angle finite, at any position.
            if !frequency.is_finite() || frequency.abs() > 1e6 {
                return Err(Error::unsupported(format!("RoPE with {frequency} radians per token")));
            }
            let (sin, cos) = frequency.sin_cos();
            Ok(Pair { frequency, cos, sin })
        });
        Ok(Self { head_dim, start, pairing: rope.pairing, pairs: pairs.collect::<Result<_>>()? })
    }

    /// Rotates all heads of all rows in place, forwards as the model does, or back.
    fn apply(&self, back: bool, position: u64, mut rows: ArrayViewMut2<'_, f32>) {
        let mut cos = [0.0f64; BLOCK];
        let mut sin = [0.0f64; BLOCK];
        let mut cos32 = [0.0f32; BLOCK];
        let mut sin32 = [0.0f32; BLOCK];
        for (block, pairs) in self.pairs.chunks(BLOCK).enumerate() {
            let n = pairs.len();
            let turn = |position: u64, cos: &mut [f64], sin: &mut [f64]| {
                for ((pair, cos), sin) in pairs.iter().zip(cos).zip(sin) {
                    (*sin, *cos) = if position.is_multiple_of(FRESH) {
                        (position as f64 * pair.frequency).sin_cos()
                    } else {
                        (*sin * pair.cos + *cos * pair.sin, *cos * pair.cos - *sin * pair.sin)
                    };
                }
            };
            (position - position % FRESH..position).for_each(|before| turn(before, &mut cos, &mut sin));
            for (r, mut row) in rows.outer_iter_mut().enumerate() {
                // Wrapping, as a corrupt container may claim any position.
                turn(position.wrapping_add(r as u64), &mut cos, &mut sin);
                cos32.iter_mut().zip(&cos).for_each(|(to, from)| *to = *from as f32);
                let sign = if back { 1.0 } else { -1.0 };
                sin32.iter_mut().zip(&sin).for_each(|(to, from)| *to = (sign * *from) as f32);
                let (cos, sin) = (&cos32[..n], &sin32[..n]);
                let rotated = self.start..self.start + 2 * self.pairs.len();
                if let Some(row) = row.as_slice_mut() {
                    for head in row.chunks_exact_mut(self.head_dim) {
                        rotate(self.pairing, &mut head[rotated.clone()], block * BLOCK, cos, sin);
                    }
                } else {
                    for head in (0..row.len()).step_by(self.head_dim) {
                        let rotated = row.slice_mut(s![head + rotated.start..head + rotated.end]);
                        rotate_strided(self.pairing, rotated, block * BLOCK, cos, sin);
                    }
                }
            }
        }
    }
}

/// Rotates pairs `first ..` of one head by the angles whose cosines and sines are given.
#[inline]
fn rotate(pairing: Pairing, rotated: &mut [f32], first: usize, cos: &[f32], sin: &[f32]) {
    match pairing {
        Pairing::Half => {
            let (a, b) = rotated.split_at_mut(rotated.len() / 2);
            let (a, b) = (&mut a[first..first + cos.len()], &mut b[first..first + cos.len()]);
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos + *b * sin, *b * cos - *a * sin);
            }
        }
        Pairing::Interleaved => {
            let pairs = rotated.as_chunks_mut::<2>().0;
            for ((pair, cos), sin) in pairs[first..].iter_mut().zip(cos).zip(sin) {
                let [a, b] = *pair;
                *pair = [a * cos + b * sin, b * cos - a * sin];
            }
        }
    }
}

/// As [`rotate`], of a view that is no slice.
fn rotate_strided(
    pairing: Pairing,
    mut rotated: ArrayViewMut1<'_, f32>,
    first: usize,
    cos: &[f32],
    sin: &[f32],
) {
    let half = rotated.len() / 2;
    for (i, (cos, sin)) in (first..).zip(cos.iter().zip(sin)) {
        let (at_a, at_b) = match pairing {
            Pairing::Half => (i, half + i),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (rotated[at_a], rotated[at_b]);
        (rotated[at_a], rotated[at_b]) = (a * cos + b * sin, b * cos - a * sin);
    }
}

#[derive(Debug)]
struct Bound {
    by_plane: Vec<Option<Arc<Rotation>>>,
}

impl Bound {
    fn apply(
        &self,
        tile: &TileCx<'_>,
        back: bool,
        x: &ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let rotation = self.by_plane.get(tile.plane.index).ok_or_else(crate::unknown_plane)?;
        let cols = tile.plane.channels();
        check(x.dim(), tile.rows, cols)?;
        check(out.dim(), tile.rows, cols)?;
        out.assign(x);
        if let Some(rotation) = rotation {
            rotation.apply(back, tile.position, out);
        }
        Ok(())
    }
}

impl BoundTransform for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        Some(self.wgsl())
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, true, &x, out)
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, false, crate::only(parts)?, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use cacheg_core::{ErrorKind, RopeScaling, Source};
    use ndarray::Array2;

    fn rope_planes(heads: u32, head_dim: u32, rope: Rope) -> Vec<Plane> {
        let mut planes = planes(2, heads, head_dim);
        planes.iter_mut().step_by(2).for_each(|plane| plane.rope = Some(rope));
        planes
    }

    #[test]
    fn dropped_tokens_are_refused() {
        let planes = planes(1, 1, 4);
        let cx = BindCx::new(&planes, &[], None, Source::Chunk);
        assert!(Unrope.bind(&cx).is_ok());
        let error = Unrope.bind(&cx.behind_selection()).err().unwrap();
        assert!(
            error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("drops tokens"),
            "{error}"
        );
    }

    /// What models do, in f64.
    fn direct(rope: &Rope, heads: usize, head_dim: usize, position: u64, x: &Array2<f32>) -> Array2<f32> {
        let mut out = x.clone();
        let half = rope.dims as usize / 2;
        for (r, mut row) in out.outer_iter_mut().enumerate() {
            for head in 0..heads {
                for (i, f) in rope.frequencies().into_iter().enumerate() {
                    let (a, b) = match rope.pairing {
                        Pairing::Half => (i, i + half),
                        Pairing::Interleaved => (2 * i, 2 * i + 1),
                    };
                    let at = head * head_dim + rope.start as usize;
                    let (sin, cos) = ((position + r as u64) as f64 * f).sin_cos();
                    let (x, y) = (f64::from(row[at + a]), f64::from(row[at + b]));
                    row[at + a] = (x * cos - y * sin) as f32;
                    row[at + b] = (y * cos + x * sin) as f32;
                }
            }
        }
        out
    }

    fn check(rope: Rope, heads: u32, head_dim: u32, position: u64, rows: usize) {
        let planes = rope_planes(heads, head_dim, rope);
        let bound = bind_transform("unrope", &planes, None);
        let before = random(rows, (heads * head_dim) as usize, 3.0);
        let cached = direct(&rope, heads as usize, head_dim as usize, position, &before);
        let back = round_trip_transform(&*bound, &planes[2], position, &cached, |_, undone| {
            let worst = (&*undone - &before).iter().fold(0f32, |m, e| m.max(e.abs()));
            assert!(worst < 4e-6, "undone: {worst} {rope:?}");
        });
        let worst = (&back - &cached).iter().fold(0f32, |m, e| m.max(e.abs()));
        assert!(worst < 4e-6, "round trip: {worst} {rope:?}");
    }

    #[test]
    fn agrees_with_a_direct_rotation() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            for scaling in [None, Some(RopeScaling::Linear { factor: 4.0 }), Some(llama3)] {
                for position in [0, 7, 100_000] {
                    let rope = Rope { theta: 1e4, dims: 16, start: 0, pairing, scaling };
                    check(rope, 3, 16, position, 20);
                    // Partial rotation, as in multi-head latent attention and GPT-NeoX.
                    check(Rope { start: 6, ..rope }, 2, 24, position, 5);
                    check(Rope { dims: 4, ..rope }, 2, 24, position, 5);
                }
            }
            // More pairs than a block, more rows than the recurrence runs.
            let wide = Rope { theta: 5e5, dims: 2 * 150, start: 10, pairing, scaling: None };
            check(wide, 2, 320, 99_900, 2 * FRESH as usize + 3);
        }
    }

    #[test]
    fn values_pass_through_and_few_rows_work() {
        let rope = Rope { theta: 1e4, dims: 4, start: 0, pairing: Pairing::Half, scaling: None };
        let planes = rope_planes(1, 4, rope);
        let bound = bind_transform("unrope", &planes, None);
        let x = random(3, 4, 1.0);
        round_trip_transform(&*bound, &planes[1], 5, &x, |_, y| assert_eq!(*y, x));
        round_trip_transform(&*bound, &planes[0], 5, &random(0, 4, 1.0), |_, _| {});
        // No position may panic.
        round_trip_transform(&*bound, &planes[0], u64::MAX, &x, |_, y| {
            assert!(y.iter().all(|y| y.is_finite()));
        });
    }

    #[test]
    fn impossible_ropes_are_refused() {
        let good = Rope { theta: 1e4, dims: 4, start: 0, pairing: Pairing::Half, scaling: None };
        let tiny = Some(RopeScaling::Linear { factor: 1e-300 });
        for bad in [Rope { dims: 6, ..good }, Rope { start: 1, ..good }, Rope { scaling: tiny, ..good }] {
            let planes = rope_planes(1, 4, bad);
            let cx = BindCx::new(&planes, &[], None, Source::Chunk);
            assert!(Unrope.bind(&cx).is_err(), "{bad:?}");
        }
    }
}
