//! `hadamard(seed=0)`: a randomised Walsh–Hadamard rotation of every head.
//!
//! Spreads outliers over all channels of a head, which makes values nearly Gaussian and lets one scale serve
//! them all. QuaRot (arXiv 2404.00456, sections 3 and 4) and TurboQuant (arXiv 2504.19874, section 3) quantise KV
//! caches after such rotations.
//!
//! One part, no data. A head's channels form blocks of `n`, the largest power of two that divides `head_dim`.
//! Each block is multiplied by random signs, then by the orthonormal Walsh–Hadamard matrix in natural order,
//! `H[i][j] = (−1)^popcount(i & j) / √n`. The signs are one per channel of a head, the same for all heads and
//! planes: channel `c` is negated if bit `c mod 64` of output number `c / 64` (from 0) of SplitMix64, started at
//! `seed`, is set. That holds for `seed=0` too.
//!
//! **Arithmetic**, bit-exact: each input is multiplied by `fl(1/√n)` (exact if `n` is a power of 4) and given
//! its sign; then for `h = 1, 2, 4 … n/2` each pair `(a, b)` at distance `h` becomes `(a + b, a − b)`, all in
//! `f32`. The inverse multiplies by `fl(1/√n)`, does the same steps in the same order, and gives the signs last.
//! Forward and inverse together err by less than `2·(log₂ n + 2)·2⁻²⁴` of the block's norm. GPUs do the same: no
//! product is added to anything, so that nothing can be contracted.
//!
//! ```
//! let stages = cacheg_core::spec::parse("hadamard(seed=7)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::hadamard::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["seed"], 7);
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Kernel, Plane, Plugin, Result, Rows, Stage, TileCx, Transform, config,
    settings,
};
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rows::check;
use crate::settings::refuse;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "hadamard",
    version: 1,
    origin: "cacheg-quant",
    summary: "rotates every head by random signs and a Walsh-Hadamard matrix, against outliers",
    usage: "hadamard(seed=0)",
    build: Build::Transform(build),
};

/// Settings of `hadamard`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the random signs start; below 2⁶³.
    pub seed: u64,
}

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    if settings.seed > i64::MAX.cast_unsigned() {
        return Err(refuse(PLUGIN.name, "seed", "must be below 2^63, as spec strings have signed integers"));
    }
    Ok(Arc::new(Hadamard(settings)))
}

#[derive(Debug)]
struct Hadamard(Settings);

impl Stage for Hadamard {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Transform for Hadamard {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        let widest = cx.planes.iter().map(|plane| plane.shape.head_dim).max().unwrap_or(0);
        let mut state = self.0.seed;
        let mut signs = Vec::with_capacity(widest as usize);
        while signs.len() < widest as usize {
            let bits = splitmix64(&mut state);
            signs.extend((0..64).map(|bit| if bits >> bit & 1 == 1 { -1.0 } else { 1.0 }));
        }
        Ok(Box::new(Bound { signs }))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 14).
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug)]
struct Bound {
    /// ±1 per channel of a head, at least as many as the widest head has.
    signs: Vec<f32>,
}

impl Bound {
    /// Signs of a head's channels, block width and `1/√n` for a tile's plane.
    fn shape(&self, tile: &TileCx<'_>) -> Result<(&[f32], usize, f32)> {
        let head_dim = tile.plane.shape.head_dim as usize;
        let signs = self.signs.get(..head_dim).filter(|signs| !signs.is_empty());
        let signs = signs.ok_or_else(crate::unknown_plane)?;
        let (block, norm) = block_of(head_dim);
        Ok((signs, block, norm))
    }
}

/// Block width and `1/√n` of heads that are not empty.
fn block_of(head_dim: usize) -> (usize, f32) {
    let block = 1 << head_dim.trailing_zeros();
    (block, 1.0 / (block as f32).sqrt())
}

impl BoundTransform for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        let mut data = vec![0];
        let bit = |(at, sign): (usize, &f32)| u32::from(*sign < 0.0) << at;
        data.extend(self.signs.chunks(32).map(|signs| signs.iter().enumerate().map(bit).sum::<u32>()));
        data[0] = data.len() as u32;
        data.extend(planes.iter().flat_map(|plane| {
            let (block, norm) = block_of(plane.shape.head_dim as usize);
            [block as u32, norm.to_bits()]
        }));
        Some(Kernel::new(include_str!("hadamard.wgsl"), data).with_rows(Rows::Matrix))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let (signs, block, norm) = self.shape(tile)?;
        check(x.dim(), tile.rows, tile.plane.channels())?;
        check(out.dim(), tile.rows, tile.plane.channels())?;
        for (mut out, x) in out.outer_iter_mut().zip(x.outer_iter()) {
            with_signs(out.view_mut(), x, signs, |out, x, sign| *out = x * norm * sign);
            transform(out, block);
        }
        Ok(())
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let (signs, block, norm) = self.shape(tile)?;
        let y = crate::only(parts)?;
        check(y.dim(), tile.rows, tile.plane.channels())?;
        check(out.dim(), tile.rows, tile.plane.channels())?;
        for (mut out, y) in out.outer_iter_mut().zip(y.outer_iter()) {
            with_signs(out.view_mut(), y, signs, |out, y, _| *out = y * norm);
            transform(out.view_mut(), block);
            with_signs(out, y, signs, |out, _, sign| *out *= sign);
        }
        Ok(())
    }
}

/// Runs `op` on each element of a row of `out`, of `x`, and the sign of its channel.
#[inline(always)]
fn with_signs(
    mut out: ArrayViewMut1<'_, f32>,
    x: ArrayView1<'_, f32>,
    signs: &[f32],
    op: impl Fn(&mut f32, f32, f32),
) {
    if let (Some(out), Some(x)) = (out.as_slice_mut(), x.as_slice()) {
        for (out, x) in out.chunks_exact_mut(signs.len()).zip(x.chunks_exact(signs.len())) {
            out.iter_mut().zip(x).zip(signs).for_each(|((out, x), sign)| op(out, *x, *sign));
        }
    } else {
        out.iter_mut().zip(x).zip(signs.iter().cycle()).for_each(|((out, x), sign)| op(out, *x, *sign));
    }
}

/// Transforms all blocks of a row.
fn transform(mut row: ArrayViewMut1<'_, f32>, block: usize) {
    match row.as_slice_mut() {
        Some(row) => row.chunks_exact_mut(block).for_each(butterflies),
        None => {
            for first in (0..row.len()).step_by(block) {
                butterflies_strided(row.slice_mut(s![first..first + block]));
            }
        }
    }
}

/// The Walsh–Hadamard transform without its norm; the length is a power of two. Two distances are done at a
/// time, which halves the trips through memory and changes no bit.
fn butterflies(block: &mut [f32]) {
    let mut distance = 1;
    if block.len() >= 4 {
        for quad in block.as_chunks_mut::<4>().0 {
            let [a, b, c, d] = *quad;
            *quad = twice(a, b, c, d);
        }
        distance = 4;
    }
    while 2 * distance < block.len() {
        for quad in block.chunks_exact_mut(4 * distance) {
            let (low, high) = quad.split_at_mut(2 * distance);
            let ((a, b), (c, d)) = (low.split_at_mut(distance), high.split_at_mut(distance));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                [*a, *b, *c, *d] = twice(*a, *b, *c, *d);
            }
        }
        distance *= 4;
    }
    if distance < block.len() {
        let (low, high) = block.split_at_mut(distance);
        for (a, b) in low.iter_mut().zip(high) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

/// Butterflies of neighbours, then of neighbours' neighbours.
#[inline(always)]
fn twice(a: f32, b: f32, c: f32, d: f32) -> [f32; 4] {
    let (e, f, g, h) = (a + b, a - b, c + d, c - d);
    [e + g, f + h, e - g, f - h]
}

/// As [`butterflies`], of a view that is no slice.
fn butterflies_strided(mut block: ArrayViewMut1<'_, f32>) {
    let mut distance = 1;
    while distance < block.len() {
        for at in (0..block.len()).filter(|at| at & distance == 0) {
            let (a, b) = (block[at], block[at + distance]);
            (block[at], block[at + distance]) = (a + b, a - b);
        }
        distance *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use ndarray::Array2;

    #[test]
    fn splitmix64_is_the_published_one() {
        let mut state = 0;
        assert_eq!(splitmix64(&mut state), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(&mut state), 0x6e78_9e6a_a1b9_65f4);
    }

    /// Every unit vector becomes a row of signs of the matrix, and rows are orthonormal.
    #[test]
    fn matrix_is_walsh_hadamard_with_signs() {
        let planes = planes(1, 1, 16);
        let bound = bind_transform("hadamard(seed=3)", &planes, None);
        let mut bits = 3;
        let bits = splitmix64(&mut bits);
        let unit = Array2::from_diag_elem(16, 1.0f32);
        round_trip_transform(&*bound, &planes[0], 0, &unit, |_, y| {
            for ((row, col), y) in y.indexed_iter() {
                let negative = ((row & col).count_ones() as u64 + (bits >> row & 1)) % 2 == 1;
                assert_eq!(*y, if negative { -0.25 } else { 0.25 });
            }
            assert_eq!(y.dot(&y.t()), unit);
        });
    }

    #[test]
    fn blocks_and_odd_sizes_come_back() {
        for head_dim in [1, 2, 3, 8, 12, 64, 80, 96, 128, 192, 576] {
            let planes = planes(1, 2, head_dim);
            let bound = bind_transform("hadamard", &planes, None);
            for rows in [0, 1, 5] {
                let x = random(rows, 2 * head_dim as usize, 2.0);
                let norm = |x: &Array2<f32>| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                let before = norm(&x);
                let y = round_trip_transform(&*bound, &planes[0], 0, &x, |_, y| {
                    assert!((norm(y) - before).abs() <= 1e-6 * before, "{head_dim}");
                });
                let worst = (&x - &y).iter().fold(0f32, |m, e| m.max(e.abs()));
                assert!(worst < 1e-5, "{head_dim}: {worst}");
            }
        }
    }

    /// Small integers have exact sums, so powers of 4 must come back exactly.
    #[test]
    fn powers_of_four_scale_exactly() {
        let planes = planes(1, 1, 64);
        let bound = bind_transform("hadamard(seed=9)", &planes, None);
        let x = Array2::from_shape_fn((3, 64), |(r, c)| ((r * 64 + c) * 37 % 255) as f32 - 127.0);
        assert_eq!(round_trip_transform(&*bound, &planes[1], 0, &x, |_, _| {}), x);
    }

    #[test]
    fn outliers_are_spread() {
        let planes = planes(1, 1, 64);
        let bound = bind_transform("hadamard", &planes, None);
        let mut x = Array2::zeros((1, 64));
        x[[0, 5]] = 8.0;
        round_trip_transform(&*bound, &planes[0], 0, &x, |_, y| assert!(y.iter().all(|y| y.abs() == 1.0)));
    }
}
