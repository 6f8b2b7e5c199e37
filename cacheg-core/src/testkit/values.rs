//! Values like those of real KV caches.

use ndarray::Array2;

use super::Random;
use crate::{Dtype, Role};

/// `rows × cols` values with what makes KV caches hard to code: channels with offsets and very different
/// scales, tokens that resemble the one before, heavy tails, and a first token (the attention sink) far
/// outside everything. [`Role::Delta`] has neither offsets nor a sink. All are values of `dtype`.
pub fn kv_like(dtype: Dtype, role: Role, rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = Random::new(seed);
    let delta = role == Role::Delta;
    // Powers of two and short sums only: the values must not depend on the machine's libm.
    let channels: Vec<(f32, f32)> = (0..cols)
        .map(|_| {
            let scale = [0.125, 0.25, 0.5, 1.0, 1.0, 2.0, 8.0][random.below(7)];
            let offset = if delta { 0.0 } else { 2.0 * random.normal() * scale };
            (offset, scale)
        })
        .collect();
    let mut state = vec![0.0f32; cols];
    let mut values = Array2::zeros((rows, cols));
    for (token, mut row) in values.rows_mut().into_iter().enumerate() {
        let sink = if token == 0 && !delta { 16.0 } else { 1.0 };
        for ((value, state), (offset, scale)) in row.iter_mut().zip(&mut state).zip(&channels) {
            let tail = if random.below(64) == 0 { 8.0 } else { 1.0 };
            *state = 0.875 * *state + 0.5 * tail * random.normal();
            *value = (offset + scale * *state) * sink;
        }
    }
    round(dtype, &mut values);
    values
}

/// Values that only exact stages are given: NaN with payloads, infinities, zeros of both signs, and any other
/// bit pattern of `dtype`.
pub(crate) fn special(dtype: Dtype, rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = Random::new(seed);
    let mut values = kv_like(dtype, Role::Whole, rows, cols, seed);
    for value in &mut values {
        // Types without infinities make NaN or their largest value of them, which is as good.
        let named = [f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN];
        match random.below(16) {
            0..5 => *value = named[random.below(named.len())],
            5..8 => {
                let bits = (random.bits() as u32).to_le_bytes();
                dtype.widen(&bits[..dtype.size()], std::slice::from_mut(value));
            }
            8 => *value = f32::from_bits(0x7f80_0001 | (random.bits() as u32 & 0x80ff_ffff)),
            _ => {}
        }
    }
    round(dtype, &mut values);
    values
}

/// Rounds to values that `dtype` can hold.
pub(crate) fn round(dtype: Dtype, values: &mut Array2<f32>) {
    let mut bytes = [0; 4];
    let bytes = &mut bytes[..dtype.size()];
    for value in values {
        dtype.narrow(&[*value], bytes);
        dtype.widen(bytes, std::slice::from_mut(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_a_sink_offsets_and_correlated_tokens() {
        let values = kv_like(Dtype::F32, Role::Whole, 400, 16, 1);
        let energy = |row: usize| values.row(row).iter().map(|x| x * x).sum::<f32>();
        let usual = (1..400).map(energy).sum::<f32>() / 399.0;
        assert!(energy(0) > 20.0 * usual, "the first token does not stand out");
        let mean = |col: usize| values.column(col).iter().skip(1).sum::<f32>() / 399.0;
        let offset = (0..16).filter(|col| mean(*col).abs() > 0.5).count();
        assert!(offset >= 3, "{offset} channels with an offset");
        let step: f32 = (2..400).map(|t| (&values.row(t) - &values.row(t - 1)).mapv(|d| d * d).sum()).sum();
        let spread: f32 = (0..16)
            .map(|c| values.column(c).iter().skip(1).map(|x| (x - mean(c)).powi(2)).sum::<f32>())
            .sum();
        assert!(step < 0.5 * spread, "neighbouring tokens are not alike: {step} {spread}");
    }

    #[test]
    fn special_values_are_special() {
        for dtype in Dtype::ALL {
            let values = special(dtype, 40, 16, 2);
            let any = |what: &str, of: fn(&f32) -> bool| assert!(values.iter().any(of), "{dtype}: no {what}");
            any("NaN", |x| x.is_nan());
            any("zero", |x| x.to_bits() == 0);
            any("negative zero", |x| x.to_bits() == 1 << 31);
            if dtype != Dtype::F8E4m3 {
                any("infinity", |x| *x == f32::INFINITY);
                any("negative infinity", |x| *x == f32::NEG_INFINITY);
                any("NaN of another kind", |x| x.is_nan() && x.to_bits() != f32::NAN.to_bits());
            }
        }
    }
}
