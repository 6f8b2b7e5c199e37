//! Matrix products with weights.
//!
//! Weights are dequantised once to f32 and kept `[in, out]`, so that the product reads them as they lie. A quantised
//! product (candle's `QMatMul`) would quantise the activations too and was not faster; see `docs/quality.md`.

use cacheg::Result;
use candle_core::{D, Tensor};

use super::candle::computing;

/// `y = x · W + b`.
pub(super) struct Linear {
    /// `[in, out]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// From one or several matrices `[out, in]` with the same input, whose outputs lie side by side, and their biases.
    pub(super) fn new(weights: &[Tensor], biases: &[Option<Tensor>]) -> Result<Self> {
        let build = || -> candle_core::Result<Self> {
            let weight = Tensor::cat(weights, 0)?.t()?.contiguous()?;
            let bias = if biases.iter().any(Option::is_some) {
                let whole = weights.iter().zip(biases).map(|(weight, bias)| match bias {
                    Some(bias) => Ok(bias.clone()),
                    None => Tensor::zeros(weight.dim(0)?, weight.dtype(), weight.device()),
                });
                Some(Tensor::cat(&whole.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
            } else {
                None
            };
            Ok(Self { weight, bias })
        };
        build().map_err(computing)
    }

    /// `[rows, in]` to `[rows, out]`.
    ///
    /// A row's result does not depend on the other rows: `gemm` adds up an element's products in an order that only
    /// the depth of the product decides. A single row, however, takes another path there, so it gets company.
    pub(super) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let rows = x.dim(0)?;
        let y = if rows == 1 {
            Tensor::cat(&[x, x], 0)?.matmul(&self.weight)?.narrow(0, 0, 1)?
        } else {
            x.matmul(&self.weight)?
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }

    /// The columns `first .. first + len` of the weights as `[len, in]`, as files have them.
    pub(super) fn weight(&self) -> candle_core::Result<Tensor> {
        self.weight.transpose(D::Minus1, D::Minus2)
    }
}
