//! Pipelines with `klt`, whose sums may be taken in any order.

use cacheg_core::testkit::models;
use cacheg_core::{Chunk, Cpu, Dtype, Geometry, LayerGroup, Limits, Shape};

use super::{GPU, REGISTRY, cache, decode, encode};

const PIPELINES: &[&str] =
    &["mean|klt|bins(step=0.3;reach=31)|rans", "klt|uniform(bits=8)|raw", "mean|klt|anchor-delta|bins|range"];

/// The largest difference of a head's elements, in units of 2⁻²⁴ of the head's norm and width.
fn worst(geometry: &Geometry, tokens: usize, spec: &str) -> f64 {
    let bytes = encode(&cache(geometry, tokens, 7).view(), spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&REGISTRY, None).unwrap();
    let [cpu, gpu] = [decode(&Cpu, &chunk, &plan), decode(&*GPU, &chunk, &plan)].map(Result::unwrap);
    let mut worst = 0f64;
    for plane in geometry.planes() {
        let dim = plane.shape.head_dim as usize;
        let load = |cache: &cacheg_core::KvCache| {
            let mut values = vec![0f32; plane.channels() * cache.tokens()];
            cache.view().load(plane.index, 0, cache.tokens(), &mut values);
            values
        };
        let (cpu, gpu) = (load(&cpu), load(&gpu));
        for (cpu, gpu) in cpu.chunks(dim).zip(gpu.chunks(dim)) {
            let norm = cpu.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            for (cpu, gpu) in cpu.iter().zip(gpu) {
                let (cpu, error) = (f64::from(*cpu), f64::from((cpu - gpu).abs()));
                // A step of the element type, if rounding goes another way.
                let step = match plane.shape.dtype {
                    Dtype::F32 => 0.0,
                    Dtype::F16 => cpu.abs().max(6.2e-5) / 1024.0,
                    Dtype::Bf16 => cpu.abs() / 128.0,
                    Dtype::F8E4m3 => cpu.abs().max(0.016) / 8.0,
                    _ => cpu.abs().max(6.2e-5) / 4.0,
                };
                worst = worst.max((error - step).max(0.0) / (norm * dim as f64 * 2f64.powi(-24)).max(1e-30));
            }
        }
    }
    worst
}

#[test]
fn every_model_and_pipeline() {
    for model in models().unwrap() {
        for spec in PIPELINES {
            for tokens in [0, 1, 33, 70] {
                let worst = worst(&model.geometry, tokens, spec);
                assert!(worst <= 2.0, "{spec}, {tokens} tokens, {}: {worst}", model.name);
            }
        }
    }
    let shape = Some(Shape { heads: 2, head_dim: 128, dtype: Dtype::F32 });
    let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    for spec in PIPELINES {
        let worst = worst(&geometry, 1_000, spec);
        assert!(worst <= 2.0, "{spec}: {worst}");
    }
}
