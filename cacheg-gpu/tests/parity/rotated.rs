//! Pipelines with `unrope`, whose results are near the CPU's.

use cacheg_core::testkit::models;
use cacheg_core::{
    Chunk, Cpu, Dtype, Encoder, Geometry, KvView, LayerGroup, Limits, Order, Pairing, Pipeline, Rope,
    RopeScaling, Shape,
};

use super::close::{BOUND, worst};
use super::{GPU, REGISTRY, cache, decode};

const PIPELINES: &[&str] = &[
    "unrope|anchor-delta(group=10)|bins(step=0.5)|range",
    "sinks(first=4)|unrope|mean|bins(step=0.2;reach=15)|rans",
    "mean|unrope|uniform(bits=8)|raw",
    "unrope|hadamard|uniform(bits=4)|raw",
    "unrope|mean|hadamard|lloyd-max(bits=4)|rans",
];

/// The worst error of some tokens from a position on, in units of 2⁻²⁴ of the norms of pairs.
fn error(geometry: &Geometry, tokens: usize, position: u64, spec: &str) -> f64 {
    let cache = cache(geometry, tokens, 7);
    let bytes = (0..geometry.planes().len()).map(|plane| cache.plane_bytes(plane)).collect();
    let view = KvView::new(geometry.clone(), tokens, position, Order::HeadMajor, bytes).unwrap();
    let encoder = Encoder::new(Pipeline::parse(&REGISTRY, spec).unwrap(), geometry, None).unwrap();
    let bytes = encoder.encode(&view, 0..tokens, &|_| ()).unwrap().to_vec();
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&REGISTRY, None).unwrap();
    let gpu = decode(&*GPU, &chunk, &plan).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let worst = worst(&plan, &decode(&Cpu, &chunk, &plan).unwrap(), &gpu);
    assert!(worst <= BOUND, "{spec}, {tokens} tokens from {position}, {geometry:?}: {worst}");
    worst
}

#[test]
fn every_model_and_pipeline() {
    for model in models().unwrap() {
        for spec in PIPELINES {
            // From position 2, `sinks` keeps two tokens.
            for (tokens, position) in [(0, 0), (1, 0), (33, 2), (70, 999_990)] {
                error(&model.geometry, tokens, position, spec);
            }
        }
    }
}

/// Elements that are not rounded, tiles of thousands of rows, positions that take two words.
#[test]
fn far_positions() {
    let shape = Some(Shape { heads: 2, head_dim: 128, dtype: Dtype::F32 });
    let mut all = 0f64;
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let rope = Some(Rope { theta: 5e5, dims: 120, start: 8, pairing, scaling: None });
        let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope };
        let geometry = Geometry::new([layers]).unwrap();
        for position in [0, 65_000, 1_000_000, (1 << 28) - 1_000] {
            for spec in ["unrope|uniform(bits=8)|raw", "unrope|hadamard|lloyd-max|raw"] {
                all = all.max(error(&geometry, 1_000, position, spec));
            }
        }
        // Of angles above 2²⁸ even an `f64` has too few bits: the CPU's are off by more than the bound.
        let slow = rope.map(|rope| Rope { scaling: Some(RopeScaling::Linear { factor: 1e4 }), ..rope });
        let geometry = Geometry::new([LayerGroup { rope: slow, ..layers }]).unwrap();
        for position in [(1 << 32) - 50, 1 << 34] {
            all = all.max(error(&geometry, 100, position, "unrope|uniform(bits=8)|raw"));
        }
    }
    println!("worst error: {all:.2} units");
    assert!(all > 0.5, "{all}");
}
