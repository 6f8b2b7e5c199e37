//! `acme.pair`: two channels become their mean and their difference.
//!
//! Channels that resemble each other leave small differences, which cost few bits. The inverse is exact but
//! for rounding: an error of at most 2⁻²² of the tile's largest value.
//!
//! ```
//! # use cacheg_core::{Build, spec};
//! let stages = spec::parse("acme.pair(pairs=halves)").unwrap();
//! let Build::Transform(build) = acme_codec::PAIR.build else { unreachable!() };
//! assert!(build(&stages[0].config).is_ok());
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Error, Kernel, Plane, Plugin, Result, Stage, TileCx, Transform,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The plug-in.
pub const PAIR: Plugin = Plugin {
    name: "acme.pair",
    version: 1,
    origin: env!("CARGO_PKG_NAME"),
    summary: "mean and difference of channel pairs",
    usage: "acme.pair(pairs=neighbours)",
    build: Build::Transform(|config| Ok(Arc::new(cacheg_core::settings::<Pair>(PAIR.name, config)?))),
};

cacheg_core::register_stage!(PAIR);

/// Which channels form a pair; the last of an odd number is left alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pairs {
    /// Channel `2c` with `2c + 1`.
    #[default]
    Neighbours,
    /// Channel `c` with `c + channels/2`.
    Halves,
}

/// The settings are the stage, and, as nothing depends on the model, the bound stage too.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    #[serde(default)]
    pairs: Pairs,
}

impl Stage for Pair {
    fn name(&self) -> &'static str {
        PAIR.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Transform for Pair {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        Ok(Box::new(*self))
    }
}

impl Pair {
    /// Columns of the `pair`-th pair of `cols` columns.
    fn columns(self, pair: usize, cols: usize) -> (usize, usize) {
        match self.pairs {
            Pairs::Neighbours => (2 * pair, 2 * pair + 1),
            Pairs::Halves => (pair, pair + cols / 2),
        }
    }

    /// Turns all pairs `(a, b)` of `x` into `map(a, b)`.
    fn apply(
        self,
        x: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        map: impl Fn(f32, f32) -> (f32, f32),
    ) {
        let cols = x.ncols();
        for (x, mut out) in x.rows().into_iter().zip(out.rows_mut()) {
            for pair in 0..cols / 2 {
                let (first, second) = self.columns(pair, cols);
                (out[first], out[second]) = map(x[first], x[second]);
            }
        }
        if cols % 2 == 1 {
            out.column_mut(cols - 1).assign(&x.column(cols - 1));
        }
    }
}

impl BoundTransform for Pair {
    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        let halves = matches!(self.pairs, Pairs::Halves);
        Some(Kernel::new(include_str!("pair.wgsl"), vec![halves.into()]))
    }

    fn forward(
        &self,
        _: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        // Halves first: the sum of two large values could be infinite.
        self.apply(x, out.view_mut(), |a, b| (0.5 * a + 0.5 * b, a - b));
        // The difference still can, and the quantizer must not be given infinities that were not there.
        let overflow = |(x, out): (&f32, &f32)| x.is_finite() && !out.is_finite();
        if x.iter().zip(out.iter()).any(overflow) {
            return Err(Error::data("two values are too far apart for their difference"));
        }
        Ok(())
    }

    fn inverse(
        &self,
        _: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let [part] = parts else { return Err(Error::data(format!("{} parts, not one", parts.len()))) };
        self.apply(*part, out, |mean, difference| (mean + 0.5 * difference, mean - 0.5 * difference));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn pairs_are_means_and_differences() {
        let x = array![[1.0, 3.0, 10.0, 4.0, 7.0]];
        let mut out = x.clone();
        let keep = |a, b| (0.5 * a + 0.5 * b, a - b);
        Pair { pairs: Pairs::Neighbours }.apply(x.view(), out.view_mut(), keep);
        assert_eq!(out, array![[2.0, -2.0, 7.0, 6.0, 7.0]]);
        Pair { pairs: Pairs::Halves }.apply(x.view(), out.view_mut(), keep);
        assert_eq!(out, array![[5.5, 3.5, -9.0, -1.0, 7.0]]);
    }
}
