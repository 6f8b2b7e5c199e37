//! The inverse on GPUs, which have no `f64` and no cosines that are good for large angles.
//!
//! Frequencies become turns per token, in units of 2⁻⁶⁴: times a position, modulo 2⁶⁴, that is the angle, off by at most
//! 2⁻⁶⁰·`p`. The cosine and sine of its upper 32 bits come from a table of 256 and a rest of at most π/256 by the addition
//! theorem; they are within 1.7·2⁻²⁴ of the circle's point. With the rotation in `f32`, each output of a pair of norm `n` is
//! within `4·2⁻²⁴·n` of an exact rotation by that angle, and within `8·2⁻²⁴·n` of the CPU's output if `p·f` is below 2²⁸.

use std::f64::consts::{FRAC_1_PI, TAU};

use cacheg_core::{Kernel, Pairing, Rows};

use super::Bound;

/// Angles of the table.
const STEPS: u16 = 256;

/// What 1/2π has beyond the bits of an `f64`.
const REST: f64 = -9.839_338_337_591_243e-18;

impl Bound {
    pub(super) fn wgsl(&self) -> Kernel {
        let mut data = circle();
        let planes = data.len();
        data.resize(planes + self.by_plane.len(), 0);
        let mut known = Vec::new();
        for (plane, rotation) in self.by_plane.iter().enumerate() {
            let Some(rotation) = rotation else { continue };
            let address = std::sync::Arc::as_ptr(rotation);
            let at = known.iter().find(|(other, _)| *other == address).map(|(_, at)| *at);
            data[planes + plane] = at.unwrap_or_else(|| {
                let at = data.len() as u32;
                known.push((address, at));
                let neighbours = u32::from(rotation.pairing == Pairing::Interleaved);
                let [dim, start, pairs] =
                    [rotation.head_dim, rotation.start, rotation.pairs.len()].map(|n| n as u32);
                data.extend([dim, start, pairs, neighbours]);
                data.extend(rotation.pairs.iter().flat_map(|pair| {
                    let turns = turns(pair.frequency);
                    [turns as u32, (turns >> 32) as u32]
                }));
                at
            });
        }
        Kernel::new(include_str!("../unrope.wgsl"), data).with_rows(Rows::Head)
    }
}

/// Cosine and sine of all steps around the circle.
fn circle() -> Vec<u32> {
    let step = |step: u16| {
        let (sin, cos) = (f64::from(step) * TAU / f64::from(STEPS)).sin_cos();
        [cos, sin].map(|x| (x as f32).to_bits())
    };
    (0..STEPS).flat_map(step).collect()
}

/// Turns per token, without whole ones, in units of 2⁻⁶⁴.
fn turns(frequency: f64) -> u64 {
    // The product in two numbers.
    let first = frequency * (FRAC_1_PI / 2.0);
    let second = frequency.mul_add(FRAC_1_PI / 2.0, -first) + frequency * REST;
    let unit = 2f64.powi(64);
    // Of the first, whole turns are left out; conversions wrap around.
    (((first - first.trunc()) * unit) as i128 + (second * unit) as i128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text's arithmetic.
    fn rotation(data: &[u32], position: u64, turns: u64) -> [f32; 2] {
        let turns = (position.wrapping_mul(turns) >> 32) as u32;
        let nearest = turns.wrapping_add(0x80_0000) >> 24;
        let rest = turns.wrapping_sub(nearest << 24).cast_signed() as f32 * 1.462_918_1e-9;
        let square = rest * rest;
        let (fall, rise) = (0.5 * square, rest - rest * square * 0.166_666_67);
        let [c, s] = [0, 1].map(|i| f32::from_bits(data[2 * (nearest & 255) as usize + i]));
        [c - (c * fall + s * rise), s + (c * rise - s * fall)]
    }

    #[test]
    fn rotations_are_near_the_circle() {
        let data = circle();
        let mut worst = 0f64;
        for i in 0..64 {
            let frequency = 1e6f64.powf(-f64::from(i) / 64.0);
            for position in (0..1_000_000u64).step_by(997).chain(1_000_000..1_000_100) {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let [c, s] = rotation(&data, position, turns(frequency));
                worst = worst.max((f64::from(c) - cos).hypot(f64::from(s) - sin));
            }
        }
        assert!(worst < 1.7 / 16_777_216.0, "{}", worst * 16_777_216.0);
        assert!(worst > 0.5 / 16_777_216.0, "{}", worst * 16_777_216.0);
    }

    #[test]
    fn turns_have_all_bits() {
        // 2⁶⁴ / 2π.
        assert!(turns(1.0).abs_diff(0x28be_60db_9391_054a) < 2);
        assert!(turns(0.5).abs_diff(0x145f_306d_c9c8_82a5) < 2);
        assert!(turns(100.0).abs_diff(0x28be_60db_9391_054au64.wrapping_mul(100)) < 100);
        assert_eq!(turns(0.0), 0);
        assert!(turns(-1.0).abs_diff(0u64.wrapping_sub(turns(1.0))) < 2);
        assert!(turns(1e6) > 0);
    }
}
