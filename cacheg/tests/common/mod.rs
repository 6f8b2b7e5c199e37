//! Caches and pipelines for the tests.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;

use cacheg::core::{Cpu, Dtype, Importance, LayerGroup, Pairing, Rope, Shape, Statistics, testkit};
use cacheg::{Encoder, Geometry, KvCache, Limits, PRESETS, Pipeline, Profile, Registry, Result, flow};

/// Every level of every preset, and pipelines that use every other stage and setting of weight.
pub(crate) fn specs() -> Vec<&'static str> {
    let mut specs: Vec<&str> =
        PRESETS.iter().filter(|p| !p.statistics).flat_map(|preset| preset.levels).copied().collect();
    specs.extend([
        "anchor-delta(group=10)|bins(k=32,16,16;v=32,16)|rans(tables=channel)",
        "unrope|mean|hadamard|uniform(bits=3;zero=true)|zstd",
        "unrope|mean|klt|bins(step=0.25)|rans",
        "unrope|mean|klt|steps(step=0.5)|rans(tables=scale)",
        "unrope|mean|klt|steps(step=0.2;reach=127)|rans(tables=scale)",
        "anchor-delta|steps(step=0.1)|range(tables=scale;carried=class)",
        "mean|bins(step=0.25)|rans(tables=layer)",
        "anchor-delta(group=4)|uniform(bits=5;axis=channel,token;group=8)|rans(tables=one)",
        "bytes|range(tables=one)",
        "bytes|raw",
        "sinks(first=2;last=3)|mean|bins(step=0.25)|rans(tables=layer)",
        "mean|sinks(first=1)|uniform(bits=4)|raw",
        "mean|bins(step=0.5;level=1;reach=15)|rans(tables=channel;carried=class)",
    ]);
    specs
}

pub(crate) fn shape(heads: u32, head_dim: u32, dtype: Dtype) -> Option<Shape> {
    Some(Shape { heads, head_dim, dtype })
}

/// Layers that differ in everything.
pub(crate) fn mixed() -> Geometry {
    let rope = Rope { theta: 10_000.0, dims: 4, start: 2, pairing: Pairing::Interleaved, scaling: None };
    let none = LayerGroup { repeat: 1, key: None, value: None, latent: None, rope: None };
    Geometry::new([
        LayerGroup {
            repeat: 2,
            key: shape(2, 8, Dtype::F16),
            value: shape(2, 8, Dtype::F16),
            rope: Some(rope),
            ..none
        },
        LayerGroup { key: shape(1, 7, Dtype::Bf16), value: shape(3, 5, Dtype::F32), ..none },
        LayerGroup { latent: shape(1, 12, Dtype::F16), ..none },
        LayerGroup { key: shape(2, 4, Dtype::F8E4m3), value: shape(2, 4, Dtype::F8E5m2), ..none },
        LayerGroup { value: shape(1, 1, Dtype::F16), ..none },
    ])
    .unwrap()
}

/// Layers that differ, but have as many heads in their keys as in their values.
pub(crate) fn even() -> Geometry {
    testkit::even_heads().unwrap()
}

pub(crate) fn importance(geometry: &Geometry, tokens: usize, seed: u64) -> Importance {
    testkit::importance(geometry, tokens, seed).unwrap()
}

/// Encodes with an importance.
pub(crate) fn encode_with(
    registry: &Registry,
    spec: &str,
    kv: &KvCache,
    importance: &Importance,
    profile: Option<&Profile>,
    chunk: usize,
) -> Result<Vec<u8>> {
    let encoder = Encoder::new(Pipeline::parse(registry, spec)?, kv.geometry(), profile)?;
    let view = kv.view().with_importance(importance)?;
    let mut bytes = Vec::new();
    flow::encode(&view, &BTreeMap::new(), &encoder, chunk, &mut bytes, &|_| ())?;
    Ok(bytes)
}

/// Values with an offset and a spread per channel and a large first token.
pub(crate) fn cache(geometry: &Geometry, tokens: usize, seed: u64) -> KvCache {
    let mut random = testkit::Random::new(seed);
    KvCache::from_fn(geometry, tokens, |plane, token, channel| {
        let spread = 0.2 + ((channel * 7 + plane.index) % 5) as f32 * 0.3;
        let offset = ((channel * 3 + plane.index) % 7) as f32 * 0.5 - 1.5;
        offset + spread * random.normal() + if token == 0 { 8.0 } else { 0.0 }
    })
}

pub(crate) fn encode(
    registry: &Registry,
    spec: &str,
    kv: &KvCache,
    profile: Option<&Profile>,
    chunk: usize,
) -> Result<Vec<u8>> {
    let encoder = Encoder::new(Pipeline::parse(registry, spec)?, kv.geometry(), profile)?;
    let metadata = BTreeMap::from([("note".to_owned(), "a test".to_owned())]);
    let mut bytes = Vec::new();
    let len = flow::encode(&kv.view(), &metadata, &encoder, chunk, &mut bytes, &|_| ())?;
    assert_eq!(len, bytes.len() as u64);
    Ok(bytes)
}

pub(crate) fn decode(registry: &Registry, bytes: &[u8], profile: Option<&Profile>) -> Result<KvCache> {
    let decode = flow::Decode { registry, profile, backend: &Cpu };
    decode.run(bytes, &Limits::default(), &|_| ()).map(|decoded| decoded.cache)
}

/// Root mean squared error over everything.
pub(crate) fn rmse(a: &KvCache, b: &KvCache) -> f64 {
    let sums = cacheg::compare::planes(&a.view(), &b.view()).unwrap();
    sums.into_iter().fold(Default::default(), cacheg::compare::Sums::plus).difference().rmse
}

pub(crate) fn statistics(geometry: &Geometry, seed: u64) -> Statistics {
    testkit::statistics(geometry, seed).unwrap()
}
