//! exp(x) over slices, in vector registers: softmax is a tenth of a prefill otherwise.

use multiversion::multiversion;

/// Replaces scores by `exp(score - max)` and returns their sum. Masked scores are `-inf` and become 0.
///
/// A score's lane depends on its index alone, so that more masked scores behind do not change the sum.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn exp_minus_max(scores: &mut [f32]) -> f32 {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
    let mut sums = [0.0f32; 16];
    let mut chunks = scores.chunks_exact_mut(16);
    for chunk in &mut chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = exp(*x - max);
            *sum += *x;
        }
    }
    for (x, sum) in chunks.into_remainder().iter_mut().zip(&mut sums) {
        *x = exp(*x - max);
        *sum += *x;
    }
    sums.iter().sum()
}

/// `a * sigmoid(a) * b`, elementwise: `gate_up` is `[gate, up]`, each as long as `out`.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn swiglu(gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// `gelu(a) * b`, elementwise, the approximation by tanh: `gate_up` is `[gate, up]`, each as long as `out`.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn geglu(gate_up: &[f32], out: &mut [f32]) {
    // x (1 + tanh y) / 2 = x / (1 + exp(-2 y)), y = √(2/π) (x + 0.044715 x³).
    const TWICE: f32 = 1.595_769;
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, x), up) in out.iter_mut().zip(gate).zip(up) {
        let y = TWICE * (x + 0.044_715 * x * x * x);
        *out = x / (1.0 + exp(-y)) * up;
    }
}

/// Within 2 ulp; 0 below -87, huge above 88. Powers of two by bits, the rest by the polynomial of Cephes' `expf`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2^23 rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { y * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01 + 0.001;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 3e-7, "{x}: {got} {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn masked_scores_change_nothing() {
        let scores: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let (mut short, mut long) = (scores.clone(), scores);
        long.resize(300, f32::NEG_INFINITY);
        assert_eq!(exp_minus_max(&mut short).to_bits(), exp_minus_max(&mut long).to_bits());
        assert_eq!(short, long[..37]);
        assert!(long[37..].iter().all(|x| *x == 0.0));
    }

    #[test]
    fn geglu_is_that_of_tanh() {
        let gate: Vec<f32> = (-60..60).map(|i| i as f32 * 0.2).collect();
        let up: Vec<f32> = (0..120).map(|i| 2.0 - i as f32 * 0.05).collect();
        let mut out = vec![0.0; 120];
        geglu(&[&gate[..], &up].concat(), &mut out);
        for ((x, up), out) in gate.iter().zip(&up).zip(&out) {
            let x = f64::from(*x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let want = 0.5 * x * (1.0 + inner.tanh()) * f64::from(*up);
            assert!((f64::from(*out) - want).abs() < 2e-6 * (1.0 + want.abs()), "{x}: {out} {want}");
        }
    }

    #[test]
    fn swiglu_by_hand() {
        let mut out = [0.0; 2];
        swiglu(&[0.0, 1.0, 5.0, 2.0], &mut out);
        assert_eq!(out[0], 0.0);
        assert!((out[1] - 2.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
    }
}
