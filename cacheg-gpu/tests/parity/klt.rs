//! Pipelines with `klt`, which works on whole rows of heads, in integers.

use cacheg_core::testkit::models;
use cacheg_core::{Chunk, Cpu, Dtype, Geometry, LayerGroup, Limits, Shape};

use super::{GPU, REGISTRY, cache, decode, encode};

const PIPELINES: &[&str] =
    &["mean|klt|bins(step=0.3;reach=31)|rans", "klt|uniform(bits=8)|raw", "mean|klt|anchor-delta|bins|range"];

fn compare(geometry: &Geometry, tokens: usize, spec: &str) {
    let bytes = encode(&cache(geometry, tokens, 7).view(), spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&REGISTRY, None).unwrap();
    let [cpu, gpu] = [decode(&Cpu, &chunk, &plan), decode(&*GPU, &chunk, &plan)].map(Result::unwrap);
    assert!(cpu == gpu, "{spec}, {tokens} tokens");
}

#[test]
fn every_model_and_pipeline() {
    for model in models().unwrap() {
        for spec in PIPELINES {
            for tokens in [0, 1, 33, 70] {
                compare(&model.geometry, tokens, spec);
            }
        }
    }
    let shape = Some(Shape { heads: 2, head_dim: 128, dtype: Dtype::F32 });
    let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    for spec in PIPELINES {
        compare(&geometry, 1_000, spec);
    }
}
