//! Row-wise operations on candle's tensors, on all cores; candle's own elementwise ones use a single core.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::exp;

/// Each row of `x`, `[rows, channels]`, divided by its root mean square and times `weight`, `[channels]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm { epsilon })
}

/// `silu(gate) * up` of rows `[gate, up]`: `[rows, 2 n]` to `[rows, n]`.
pub(super) fn swiglu(x: &Tensor) -> Result<Tensor> {
    x.apply_op1_no_bwd(&SwiGlu)
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
            let scale = 1.0 / (sum_of_squares(row) / channels as f32 + self.epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = x * scale * weight;
            }
        });
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = l.shape().dims2()?;
        let x = dense(x, l)?;
        let mut out = vec![0.0; x.len() / 2];
        if width > 1 {
            out.par_chunks_mut(width / 2).zip(x.par_chunks(width)).for_each(|(out, x)| exp::swiglu(x, out));
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
        let y = swiglu(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!((y[0][0] - 12.0 / (1.0 + (-3.0f32).exp())).abs() < 1e-5);
        assert_eq!(y[1][0], 0.0);
    }
}
