//! Speed of every stage on one core: `cargo run --release -p cacheg-quant --example stage_speed`.
//!
//! GB/s count the `f32` values that go in (or come out), on a tile that fits the L2 cache, as in the engine.

use std::hint::black_box;
use std::time::Instant;

use cacheg_core::{
    BindCx, Build, Dtype, Error, Escapes, Geometry, LayerGroup, Pairing, Part, PartCx, Plane, Result, Role,
    Rope, Shape, Source, StageData, TileCx, spec,
};
use ndarray::Array2;

const ROWS: usize = 120;

fn main() -> Result<()> {
    let shape = Some(Shape { heads: 8, head_dim: 128, dtype: Dtype::F16 });
    let rope = Some(Rope { theta: 5e5, dims: 128, start: 0, pairing: Pairing::Half, scaling: None });
    let layer = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope };
    let planes = Geometry::new([layer])?.planes();
    let plane = &planes[0];
    let mut state = 1u64;
    let x = Array2::from_shape_simple_fn((ROWS, plane.channels()), || {
        // The sum of four uniform numbers is nearly normal.
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        uniform() + uniform() + uniform() + uniform()
    });
    println!("{:60} {:>8} {:>8}   GB/s of f32", "stage", "there", "back");
    for text in [
        "identity",
        "anchor-delta",
        "mean",
        "unrope",
        "hadamard",
        "bins(k=32)",
        "bins(k=32;scale=f16)",
        "bins(step=0.5)",
        "bins(step=0.5;reach=4)",
        "uniform",
        "uniform(bits=4;zero=true)",
        "uniform(axis=channel;zero=true)",
        "lloyd-max",
        "lloyd-max(bits=8)",
        "bytes",
    ] {
        let stage = spec::parse(text)?.remove(0);
        let build = cacheg_quant::PLUGINS.iter().find(|plugin| plugin.name == stage.name);
        let (there, back) = match build.map(|plugin| plugin.build) {
            Some(Build::Transform(build)) => transform(&*build(&stage.config)?, &planes, plane, &x)?,
            Some(Build::Quantizer(build)) => quantizer(&*build(&stage.config)?, &planes, plane, &x)?,
            _ => return Err(Error::setting(format!("no stage `{text}`"))),
        };
        println!("{text:60} {there:8.2} {back:8.2}");
    }
    Ok(())
}

/// Best of several runs, in GB/s of `values` values.
fn speed(values: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..300 {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(values as f64 * 4e-9 / best)
}

fn transform(
    stage: &dyn cacheg_core::Transform,
    planes: &[Plane],
    plane: &Plane,
    x: &Array2<f32>,
) -> Result<(f64, f64)> {
    let mut data = StageData::new();
    let channels = planes.iter().map(Plane::channels).sum();
    data.put_u16("mean", &[channels], &vec![0x3e80; channels]);
    let bound = stage.bind(&BindCx::new(planes, &[], Some(&data), Source::Profile))?;
    let tile = TileCx::new(plane, 0, ROWS, 5000);
    let mut parts: Vec<Array2<f32>> = bound
        .parts(plane)
        .iter()
        .enumerate()
        .map(|(index, part)| Array2::zeros((bound.part_rows(index, ROWS), part.cols)))
        .collect();
    let there = speed(x.len(), || {
        for index in 0..parts.len() {
            let (done, rest) = parts.split_at_mut(index);
            let done: Vec<_> = done.iter().map(|part| part.view()).collect();
            bound.forward(&tile, index, black_box(x.view()), &done, rest[0].view_mut())?;
        }
        Ok(())
    })?;
    let mut out = Array2::zeros(x.raw_dim());
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let back = speed(x.len(), || bound.inverse(&tile, black_box(&views), out.view_mut()))?;
    Ok((there, back))
}

fn quantizer(
    stage: &dyn cacheg_core::Quantizer,
    planes: &[Plane],
    plane: &Plane,
    x: &Array2<f32>,
) -> Result<(f64, f64)> {
    let parts: Vec<_> = planes.iter().map(|plane| vec![Part::new(Role::Whole, plane.channels())]).collect();
    let mut data = StageData::new();
    data.put_u16("sigma", &[planes.len()], &vec![0x3f80; planes.len()]);
    let bound = stage.bind(&BindCx::new(planes, &parts, Some(&data), Source::Profile))?;
    let tile = TileCx::new(plane, 0, ROWS, 0);
    let part = PartCx::new(0, Role::Whole, ROWS, plane.channels());
    let mut symbols = vec![0; x.len() * bound.alphabets(plane, &parts[0][0], 0).len()];
    let mut side = vec![0; bound.side_len(plane, &part)];
    let mut escapes = Escapes::default();
    let there = speed(x.len(), || {
        escapes.clear();
        bound.quantize(&tile, &part, black_box(x.view()), &mut symbols, &mut side, &mut escapes.writer(0))
    })?;
    let mut out = Array2::zeros(x.raw_dim());
    let len = symbols.len() as u32;
    let back = speed(x.len(), || {
        let mut reader = escapes.reader(0, len);
        bound.dequantize(&tile, &part, black_box(&symbols), &side, &mut reader, out.view_mut())
    })?;
    Ok((there, back))
}
