//! KV caches whose planes say something of each other, and profiles for pipelines that need one.

#![allow(dead_code, reason = "each test binary uses its own part")]

use cacheg_core::testkit::Random;
use cacheg_core::{
    Counts, Dtype, Encoder, Geometry, Importance, KvCache, LayerGroup, Origin, Pairing, Pipeline, Profile,
    Registry, Result, Rope, Shape, Statistics, calibrate_with,
};

/// Layers that differ in widths and element types, but have as many heads in their keys as in their values; rows of heads that are no
/// whole words, and a plane that is not graded by a key.
pub(crate) fn uneven() -> Geometry {
    let shape = |heads, head_dim, dtype| Some(Shape { heads, head_dim, dtype });
    let none = LayerGroup { repeat: 1, key: None, value: None, latent: None, rope: None };
    let rope = Rope { theta: 10_000.0, dims: 8, start: 0, pairing: Pairing::Half, scaling: None };
    Geometry::new([
        LayerGroup {
            repeat: 2,
            key: shape(2, 8, Dtype::F16),
            value: shape(2, 8, Dtype::F16),
            rope: Some(rope),
            ..none
        },
        LayerGroup { key: shape(3, 7, Dtype::Bf16), value: shape(3, 5, Dtype::F32), ..none },
        LayerGroup { latent: shape(1, 12, Dtype::F16), ..none },
        LayerGroup { key: shape(2, 4, Dtype::F8E4m3), value: shape(2, 4, Dtype::F8E5m2), ..none },
    ])
    .unwrap()
}

/// Planes of more columns than a workgroup predicts at a time, and references of several times as many.
pub(crate) fn broad() -> Geometry {
    let shape = Some(Shape { heads: 3, head_dim: 96, dtype: Dtype::F16 });
    let rope = Some(Rope { theta: 1e4, dims: 96, start: 0, pairing: Pairing::Half, scaling: None });
    Geometry::new([LayerGroup { repeat: 2, key: shape, value: shape, latent: None, rope }]).unwrap()
}

/// Values that follow a few numbers of their token, with offsets by channel; some are far outside.
pub(crate) fn related(geometry: &Geometry, tokens: usize, seed: u64) -> KvCache {
    let mut random = Random::new(seed);
    let factors: Vec<f32> = (0..8 * tokens).map(|_| random.normal()).collect();
    KvCache::from_fn(geometry, tokens, |plane, token, channel| {
        let factor = factors[8 * token + (channel + plane.layer as usize) % 8];
        let far = if random.below(97) == 0 { 8.0 } else { 1.0 };
        (channel % 7) as f32 - 3.0 + 1.5 * factor + random.normal() * 0.3 * far
    })
}

/// Attention of two query heads for each KV head: most of it to few tokens.
pub(crate) fn importance(geometry: &Geometry, tokens: usize, seed: u64) -> Importance {
    let mut random = Random::new(seed);
    let mut importance = Importance::new(tokens, Some(8));
    for group in geometry.groups() {
        let heads = group.key.or(group.latent).or(group.value).unwrap().heads as usize;
        for _ in 0..group.repeat {
            let mut sums = || -> Vec<f32> {
                let mut sum =
                    |_| if random.below(8) == 0 { 8.0 } else { 0.5 } + random.below(64) as f32 / 64.0;
                (0..2 * heads * tokens).map(&mut sum).collect()
            };
            let (accumulated, recent) = (sums(), sums());
            importance.push_layer(heads, &accumulated, &recent).unwrap();
        }
    }
    importance
}

/// Errors that cost more in later channels, and importance that one of a key's features tells.
fn statistics(geometry: &Geometry) -> Statistics {
    const TOKENS: usize = 400;
    let mut random = Random::new(5);
    let mut noise = move || f64::from(random.below(2_000) as u32) / 1_000.0 - 1.0;
    let mut all = Statistics::new(geometry, 2, 1).unwrap();
    let planes = geometry.planes();
    for (layer, sums) in all.layers_mut().iter_mut().enumerate() {
        sums.residual = 1.0;
        for plane in planes.iter().filter(|plane| plane.layer as usize == layer) {
            let dim = plane.shape.head_dim as usize;
            let name = format!("{}.sensitivity", plane.kind.name());
            for head in sums.get_mut(&name).chunks_exact_mut(dim * dim) {
                (0..dim).for_each(|i| head[i * dim + i] = 1.0 + i as f64);
            }
        }
        let heads = sums.get("importance.yy").len();
        for head in 0..heads {
            let features = sums.get("importance.xy").len() / heads;
            for _ in 0..TOKENS {
                let mut x: Vec<f64> = (0..features).map(|_| noise()).collect();
                x[0] = 1.0;
                let y = -4.0 + 2.0 * x[4] + 0.1 * noise();
                let xx = &mut sums.get_mut("importance.xx")[head * features * features..];
                for (i, a) in x.iter().enumerate() {
                    x.iter().enumerate().for_each(|(j, b)| xx[i * features + j] += a * b);
                }
                let xy = &mut sums.get_mut("importance.xy")[head * features..];
                x.iter().zip(xy).for_each(|(x, xy)| *xy += x * y);
                sums.get_mut("importance.yy")[head] += y * y;
            }
        }
    }
    let counts = Counts { contexts: 1, tokens: TOKENS as u64, continuation_tokens: 1, pairs: TOKENS as u64 };
    all.note(Origin { name: "made up".into(), sha256: "0".repeat(64) }, counts).unwrap();
    all
}

/// A pipeline's profile; an error for models that it is not for.
pub(crate) fn profile(registry: &Registry, geometry: &Geometry, spec: &str) -> Result<Profile> {
    let (kv, attention) = (related(geometry, 128, 2), importance(geometry, 128, 3));
    let pipeline = Pipeline::parse(registry, spec)?;
    let view = kv.view().with_importance(&attention)?;
    calibrate_with(&[pipeline], &[view], 64, Some(&statistics(geometry)), &|_| ())
}

/// A chunk of so many tokens.
pub(crate) fn chunk_of(
    registry: &Registry,
    geometry: &Geometry,
    profile: &Profile,
    spec: &str,
    tokens: usize,
) -> Vec<u8> {
    let (kv, attention) = (related(geometry, tokens, 1), importance(geometry, tokens, 4));
    let encoder = Encoder::new(Pipeline::parse(registry, spec).unwrap(), geometry, Some(profile)).unwrap();
    let view = kv.view().with_importance(&attention).unwrap();
    encoder.encode(&view, 0..tokens, &|_| ()).unwrap().to_vec()
}
