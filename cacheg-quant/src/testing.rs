//! What the tests of several stages share.

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundQuantizer, BoundTransform, Build, Dtype, Escapes, Geometry, Kind, LayerGroup, Part, PartCx,
    Plane, Quantizer, Result, Role, Shape, Source, StageData, TileCx, Transform, spec,
};
use ndarray::Array2;

/// Planes of a model of equal layers, key and value each.
pub(crate) fn planes(layers: u32, heads: u32, head_dim: u32) -> Vec<Plane> {
    planes_of(layers, heads, head_dim, Dtype::F16)
}

pub(crate) fn geometry_of(layers: u32, heads: u32, head_dim: u32, dtype: Dtype) -> Geometry {
    let shape = Some(Shape { heads, head_dim, dtype });
    let group = LayerGroup { repeat: layers, key: shape, value: shape, latent: None, rope: None };
    Geometry::new([group]).unwrap()
}

pub(crate) fn planes_of(layers: u32, heads: u32, head_dim: u32, dtype: Dtype) -> Vec<Plane> {
    let planes = geometry_of(layers, heads, head_dim, dtype).planes();
    assert_eq!(planes[0].kind, Kind::Key);
    planes
}

/// One part of the given role in every plane.
pub(crate) fn one_part(planes: &[Plane], role: Role) -> Vec<Vec<Part>> {
    planes.iter().map(|plane| vec![Part::new(role, plane.channels())]).collect()
}

fn build_of(text: &str) -> (Build, serde_json::Value) {
    let stage = spec::parse(text).unwrap().remove(0);
    (crate::PLUGINS.iter().find(|plugin| plugin.name == stage.name).unwrap().build, stage.config)
}

pub(crate) fn try_transform(text: &str) -> Result<Arc<dyn Transform>> {
    match build_of(text) {
        (Build::Transform(build), config) => build(&config),
        _ => panic!("`{text}` is no transform"),
    }
}

pub(crate) fn try_quantizer(text: &str) -> Result<Arc<dyn Quantizer>> {
    match build_of(text) {
        (Build::Quantizer(build), config) => build(&config),
        _ => panic!("`{text}` is no quantizer"),
    }
}

pub(crate) fn bind_transform(
    text: &str,
    planes: &[Plane],
    data: Option<&StageData>,
) -> Box<dyn BoundTransform> {
    try_transform(text).unwrap().bind(&BindCx::new(planes, &[], data, Source::Chunk)).unwrap()
}

/// Binds a quantizer to planes that have one part of the given role each.
pub(crate) fn bind_quantizer(
    text: &str,
    planes: &[Plane],
    role: Role,
    data: Option<&StageData>,
) -> Box<dyn BoundQuantizer> {
    let parts = one_part(planes, role);
    try_quantizer(text).unwrap().bind(&BindCx::new(planes, &parts, data, Source::Chunk)).unwrap()
}

/// Forward, a look at (and change of) each part, inverse; buffers start as rubbish.
pub(crate) fn round_trip_transform(
    bound: &dyn BoundTransform,
    plane: &Plane,
    position: u64,
    x: &Array2<f32>,
    mut lossy: impl FnMut(usize, &mut Array2<f32>),
) -> Array2<f32> {
    let tile = TileCx::new(plane, 0, x.nrows(), position);
    let mut parts: Vec<Array2<f32>> = Vec::new();
    for (index, part) in bound.parts(plane).iter().enumerate() {
        let mut out = Array2::from_elem((bound.part_rows(index, x.nrows()), part.cols), f32::NAN);
        let done: Vec<_> = parts.iter().map(|part| part.view()).collect();
        bound.forward(&tile, index, x.view(), &done, out.view_mut()).unwrap();
        lossy(index, &mut out);
        parts.push(out);
    }
    let mut out = Array2::from_elem(x.raw_dim(), f32::NAN);
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    bound.inverse(&tile, &views, out.view_mut()).unwrap();
    out
}

/// What a quantizer makes of one part of one plane.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Coded {
    pub(crate) symbols: Vec<u8>,
    pub(crate) side: Vec<u8>,
    pub(crate) escapes: Escapes,
}

pub(crate) fn quantize(
    bound: &dyn BoundQuantizer,
    plane: &Plane,
    role: Role,
    x: &Array2<f32>,
) -> Result<Coded> {
    let tile = TileCx::new(plane, 0, x.nrows(), 0);
    let part = PartCx::new(0, role, x.nrows(), x.ncols());
    let alphabets = bound.alphabets(plane, &Part::new(role, x.ncols()), 0);
    let mut coded = Coded {
        symbols: vec![0xaa; alphabets.len() * x.len()],
        side: vec![0xaa; bound.side_len(plane, &part)],
        escapes: Escapes::default(),
    };
    let mut writer = coded.escapes.writer(1000);
    bound.quantize(&tile, &part, x.view(), &mut coded.symbols, &mut coded.side, &mut writer)?;
    for (index, symbols) in coded.symbols.chunks(x.len().max(1)).enumerate() {
        assert!(symbols.iter().all(|symbol| u16::from(*symbol) < alphabets[index].size), "symbol too large");
    }
    Ok(coded)
}

pub(crate) fn dequantize(
    bound: &dyn BoundQuantizer,
    plane: &Plane,
    role: Role,
    (rows, cols): (usize, usize),
    coded: &Coded,
) -> Result<Array2<f32>> {
    let tile = TileCx::new(plane, 0, rows, 0);
    let part = PartCx::new(0, role, rows, cols);
    let mut out = Array2::from_elem((rows, cols), f32::NAN);
    let mut reader = coded.escapes.reader(1000, (rows * cols) as u32);
    bound.dequantize(&tile, &part, &coded.symbols, &coded.side, &mut reader, out.view_mut())?;
    Ok(out)
}

/// Quantises and reconstructs.
pub(crate) fn round_trip(
    bound: &dyn BoundQuantizer,
    plane: &Plane,
    role: Role,
    x: &Array2<f32>,
) -> Array2<f32> {
    let coded = quantize(bound, plane, role, x).unwrap();
    dequantize(bound, plane, role, x.dim(), &coded).unwrap()
}

/// A small generator, for tests that must be the same everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// Uniform in −1 .. 1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Values in ±`amplitude`.
pub(crate) fn random(rows: usize, cols: usize, amplitude: f32) -> Array2<f32> {
    let mut rng = Rng((rows * 1_000 + cols) as u64 + 1);
    Array2::from_shape_simple_fn((rows, cols), || rng.unit() * amplitude)
}

/// Rounded to f16.
pub(crate) fn f16(x: f32) -> f32 {
    let (mut bytes, mut wide) = ([0; 2], [0.0]);
    Dtype::F16.narrow(&[x], &mut bytes);
    Dtype::F16.widen(&bytes, &mut wide);
    wide[0]
}
