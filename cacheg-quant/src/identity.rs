//! `identity`: no transform.
//!
//! What the public CacheGen code does (no prediction; paper: arXiv 2310.07240, section 5.2 has one), and what
//! lossless pipelines need. No settings, no data, one part; exact.
//!
//! ```
//! let stages = cacheg_core::spec::parse("identity")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::identity::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.name(), "identity");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Kernel, Plane, Plugin, Result, Rows, Stage, TileCx, Transform, config,
    settings,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::Value;

use crate::rows::check;
use crate::settings::NoSettings;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "identity",
    version: 1,
    origin: "cacheg-quant",
    summary: "no transform",
    usage: "identity",
    build: Build::Transform(build),
};

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    settings::<NoSettings>(PLUGIN.name, value)?;
    Ok(Arc::new(Identity))
}

#[derive(Debug)]
pub(crate) struct Identity;

impl Stage for Identity {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&NoSettings {})
    }
}

impl Transform for Identity {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        Ok(Box::new(Self))
    }
}

impl BoundTransform for Identity {
    fn pointwise(&self) -> bool {
        true
    }

    fn independent_rows(&self) -> bool {
        true
    }

    fn exact(&self) -> bool {
        true
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        Some(Kernel::new(include_str!("identity.wgsl"), Vec::new()).with_rows(Rows::Same))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        copy(tile, &x, out)
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        copy(tile, crate::only(parts)?, out)
    }
}

fn copy(tile: &TileCx<'_>, x: &ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
    check(x.dim(), tile.rows, tile.plane.channels())?;
    check(out.dim(), tile.rows, tile.plane.channels())?;
    out.assign(x);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::*;

    #[test]
    fn copies_every_bit() {
        let planes = planes(2, 2, 4);
        let bound = bind_transform("identity", &planes, None);
        let x =
            ndarray::Array2::from_shape_fn((3, 8), |(r, c)| f32::from_bits(0x7fc0_0000 + (8 * r + c) as u32));
        let y = round_trip_transform(&*bound, &planes[1], 0, &x, |_, _| {});
        assert!(x.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
