//! Row-wise operations on candle's tensors, on all cores; candle's own elementwise ones use a single core.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::exp;

/// Each row of `x`, `[rows, channels]`, divided by its root mean square and times `weight`, `[channels]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { epsilon })
}

/// `act(gate) * up` of rows `[gate, up]`: `[rows, 2 n]` to `[rows, n]`.
pub(super) fn gated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Gated(activation))
}

/// What a feed-forward network does to its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    /// The approximation by tanh.
    Gelu,
}

/// Divides a row by its root mean square, times `weight`, as long.
pub(super) fn rms_norm_row(row: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = rms_scale(row, epsilon);
    row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * scale * weight);
}

struct RmsNorm {
    epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (dense(x, l)?, dense(w, wl)?);
        let channels = weight.len();
        if channels == 0 || l.dims().last() != Some(&channels) {
            bail!("rms-norm: {channels} weights for {:?}", l.dims());
        }
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(channels).zip(x.par_chunks(channels)).for_each(|(out, row)| {
            let scale = rms_scale(row, self.epsilon);
            for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = x * scale * weight;
            }
        });
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }
}

struct Gated(Activation);

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = l.shape().dims2()?;
        let x = dense(x, l)?;
        let mut out = vec![0.0; x.len() / 2];
        if width > 1 {
            let one = match self.0 {
                Activation::Silu => exp::swiglu,
                Activation::Gelu => exp::geglu,
            };
            out.par_chunks_mut(width / 2).zip(x.par_chunks(width)).for_each(|(out, x)| one(x, out));
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, width / 2))))
    }
}

fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((first, end))) => Ok(&values[first..end]),
        _ => bail!("a dense tensor of f32 expected"),
    }
}

/// One over the root mean square.
pub(super) fn rms_scale(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares(row) / row.len() as f32 + epsilon).sqrt()
}

/// In sixteen sums, which fit vector registers.
fn sum_of_squares(row: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += x * x);
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn by_hand() {
        let x = Tensor::new(&[[3.0f32, 4.0], [1.0, 0.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        let y = rms_norm(&x, &weight, 0.0).unwrap().to_vec2::<f32>().unwrap();
        let rms = 12.5f32.sqrt();
        assert!((y[0][0] - 3.0 / rms).abs() < 1e-6 && (y[0][1] - 8.0 / rms).abs() < 1e-6);
        let mut row = [3.0, 4.0];
        rms_norm_row(&mut row, &[1.0, 2.0], 0.0);
        assert_eq!(row, [y[0][0], y[0][1]]);
        let y = gated(&x, Activation::Silu).unwrap().to_vec2::<f32>().unwrap();
        assert!((y[0][0] - 12.0 / (1.0 + (-3.0f32).exp())).abs() < 1e-5);
        assert_eq!(y[1][0], 0.0);
    }
}
