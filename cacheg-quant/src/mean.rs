//! `mean`: subtracts each channel's mean.
//!
//! Keys and values have strong constant offsets per channel; without them plain quantisation needs about half
//! a bit less per value than differences to anchors do. The centring step of every transform coder; in KV
//! caches for instance KVTC (arXiv 2511.01815, calibration: the mean goes before the principal components).
//!
//! One part. No settings. Data: tensor `mean`, u16, bfloat16 bits, one per channel, planes one after the other.
//! `y = x − mean` and `x' = y + mean` in `f32`; both round. The means need no precision, since encoder and
//! decoder read the same ones, so a chunk that carries them pays 2 bytes per channel.
//!
//! ```
//! let stages = cacheg_core::spec::parse("mean")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::mean::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.name(), "mean");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{
    Accumulator, BindCx, BoundTransform, Build, Calibrator, Error, Kernel, PartCx, Plane, Plugin, Result,
    Rows, Seen, Source, Stage, StageData, TileCx, Transform, config, settings,
};
use multiversion::multiversion;
use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::Value;

use crate::carried;
use crate::rounding::not_finite;
use crate::rows::check;
use crate::settings::NoSettings;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "mean",
    version: 1,
    origin: "cacheg-quant",
    summary: "subtracts each channel's mean, from the profile or the chunk",
    usage: "mean",
    build: Build::Transform(build),
};

const TENSOR: &str = "mean";

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    settings::<NoSettings>(PLUGIN.name, value)?;
    Ok(Arc::new(Mean))
}

#[derive(Debug)]
struct Mean;

impl Stage for Mean {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&NoSettings {})
    }
}

impl Transform for Mean {
    fn bind(&self, cx: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        let total = cx.planes.iter().map(Plane::channels).sum();
        let all = carried::get(cx.require_data()?, TENSOR, total, cx.source)?;
        let mut rest = all.as_slice();
        let means = cx.planes.iter().map(|plane| {
            let (own, others) = rest.split_at(plane.channels());
            rest = others;
            own.into()
        });
        Ok(Box::new(Bound { means: means.collect() }))
    }

    fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        Some(Box::new(MeanCalibrator { source: cx.source }))
    }
}

#[derive(Debug)]
struct Bound {
    /// By plane, then channel.
    means: Vec<Box<[f32]>>,
}

impl Bound {
    fn apply(
        &self,
        tile: &TileCx<'_>,
        x: &ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        flat: fn(&[f32], &[f32], &mut [f32]),
    ) -> Result<()> {
        let mean = self.means.get(tile.plane.index).ok_or_else(crate::unknown_plane)?;
        check(x.dim(), tile.rows, mean.len())?;
        check(out.dim(), tile.rows, mean.len())?;
        if let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) {
            flat(x, mean, out);
            return Ok(());
        }
        out.assign(x);
        for mut row in out.outer_iter_mut() {
            for (out, mean) in row.iter_mut().zip(mean) {
                let mut one = [0.0];
                flat(&[*out], &[*mean], &mut one);
                [*out] = one;
            }
        }
        Ok(())
    }
}

/// `out = x − mean`, row by row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn remove(x: &[f32], mean: &[f32], out: &mut [f32]) {
    for (out, x) in out.chunks_exact_mut(mean.len()).zip(x.chunks_exact(mean.len())) {
        out.iter_mut().zip(x).zip(mean).for_each(|((out, x), mean)| *out = x - mean);
    }
}

/// `out = y + mean`, row by row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn add(y: &[f32], mean: &[f32], out: &mut [f32]) {
    for (out, y) in out.chunks_exact_mut(mean.len()).zip(y.chunks_exact(mean.len())) {
        out.iter_mut().zip(y).zip(mean).for_each(|((out, y), mean)| *out = y + mean);
    }
}

impl BoundTransform for Bound {
    fn pointwise(&self) -> bool {
        true
    }

    fn independent_rows(&self) -> bool {
        true
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        let mut data = Vec::new();
        let mut next = self.means.len();
        for means in &self.means {
            data.push(next as u32);
            next += means.len();
        }
        data.extend(self.means.iter().flatten().map(|mean| mean.to_bits()));
        Some(Kernel::new(include_str!("mean.wgsl"), data).with_rows(Rows::Same))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        _: usize,
        x: ArrayView2<'_, f32>,
        _: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, &x, out, remove)
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.apply(tile, crate::only(parts)?, out, add)
    }
}

#[derive(Debug)]
struct MeanCalibrator {
    source: Source,
}

impl Calibrator for MeanCalibrator {
    fn accumulator(&self, plane: &Plane) -> Box<dyn Accumulator> {
        Box::new(Sums { rows: 0, sums: vec![0.0; plane.channels()], source: self.source })
    }

    fn finish(&self, planes: Vec<StageData>) -> Result<StageData> {
        carried::join(TENSOR, &planes)
    }
}

/// Sums of one plane's channels.
#[derive(Debug)]
struct Sums {
    rows: u64,
    sums: Vec<f64>,
    source: Source,
}

impl Accumulator for Sums {
    fn observe(&mut self, tile: &TileCx<'_>, _: &PartCx, seen: Seen<'_>) -> Result<()> {
        let Seen::Values(x) = seen else {
            return Err(Error::data("means are taken from values, not from symbols"));
        };
        check(x.dim(), tile.rows, self.sums.len())?;
        for row in x.outer_iter() {
            self.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        self.rows += tile.rows as u64;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StageData> {
        // An empty chunk has no means and needs none; an empty profile would be a mistake.
        if self.rows == 0 && self.source == Source::Profile {
            return Err(Error::data("no tokens to take the means of"));
        }
        if self.sums.iter().any(|sum| !sum.is_finite()) {
            return Err(not_finite());
        }
        let count = self.rows.max(1) as f64;
        let means: Vec<u16> = self.sums.iter().map(|sum| carried::bf16(sum / count)).collect();
        let mut data = StageData::new();
        data.put_u16(TENSOR, &[means.len()], &means);
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::*;
    use cacheg_core::{BindCx, ErrorKind, PartCx, Role, Seen, Source, StageData, TileCx};
    use ndarray::Array2;

    #[test]
    fn means_are_calibrated_and_removed() {
        let planes = planes(1, 1, 4);
        let stage = try_transform("mean").unwrap();
        let calibrator = stage.calibrator(&BindCx::new(&planes, &[], None, Source::Chunk)).unwrap();
        let x = Array2::from_shape_fn((6, 4), |(r, c)| c as f32 + if r % 2 == 0 { 0.25 } else { -0.25 });
        let finish = planes.iter().map(|plane| {
            let mut sums = calibrator.accumulator(plane);
            for first in [0, 2] {
                let rows = if first == 0 { 2 } else { 4 };
                let tile = TileCx::new(plane, first, rows, 0);
                let part = PartCx::new(0, Role::Whole, rows, 4);
                let x = x.slice(ndarray::s![first..first + rows, ..]);
                sums.observe(&tile, &part, Seen::Values(x)).unwrap();
            }
            sums.finish().unwrap()
        });
        let data = calibrator.finish(finish.collect()).unwrap();
        assert_eq!(data.get_u16("mean").unwrap().1, [0, 0x3f80, 0x4000, 0x4040].repeat(2));
        let bound = bind_transform("mean", &planes, Some(&data));
        let y = round_trip_transform(&*bound, &planes[1], 0, &x, |_, y| {
            assert!(y.iter().all(|y| y.abs() == 0.25));
        });
        assert_eq!(x, y);
    }

    #[test]
    fn nothing_seen() {
        let planes = planes(1, 1, 4);
        let stage = try_transform("mean").unwrap();
        let finish = |source| {
            let calibrator = stage.calibrator(&BindCx::new(&planes, &[], None, source)).unwrap();
            calibrator.accumulator(&planes[0]).finish()
        };
        assert!(finish(Source::Profile).is_err());
        assert_eq!(finish(Source::Chunk).unwrap().get_u16("mean").unwrap().1, [0; 4]);
    }

    #[test]
    fn bad_data_is_refused() {
        let planes = planes(1, 1, 4);
        let stage = try_transform("mean").unwrap();
        let kind = |data: Option<&StageData>, source| {
            stage.bind(&BindCx::new(&planes, &[], data, source)).err().unwrap().kind()
        };
        let mut data = StageData::new();
        assert_eq!(kind(None, Source::Profile), ErrorKind::Profile);
        assert_eq!(kind(Some(&data), Source::Chunk), ErrorKind::Corrupt);
        data.put_u16("mean", &[7], &[0; 7]);
        assert_eq!(kind(Some(&data), Source::Profile), ErrorKind::Profile);
        data.put_u16("mean", &[8], &[0, 0, 0, 0, 0, 0, 0, 0x7fc0]);
        assert_eq!(kind(Some(&data), Source::Chunk), ErrorKind::Corrupt);
    }
}
