//! KV caches whose planes say something of each other, and profiles for pipelines that need one.

#![allow(dead_code, reason = "each test binary uses its own part")]

use cacheg_core::testkit::{Random, importance, statistics};
use cacheg_core::{
    Dtype, Encoder, Geometry, KvCache, LayerGroup, Pairing, Pipeline, Profile, Registry, Result, Rope, Shape,
    calibrate_with,
};

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

/// A pipeline's profile; an error for models that it is not for.
pub(crate) fn profile(registry: &Registry, geometry: &Geometry, spec: &str) -> Result<Profile> {
    let (kv, attention) = (related(geometry, 128, 2), importance(geometry, 128, 3)?);
    let pipeline = Pipeline::parse(registry, spec)?;
    let view = kv.view().with_importance(&attention)?;
    calibrate_with(&[pipeline], &[view], 64, Some(&statistics(geometry, 5)?), &|_| ())
}

/// A chunk of so many tokens.
pub(crate) fn chunk_of(
    registry: &Registry,
    geometry: &Geometry,
    profile: &Profile,
    spec: &str,
    tokens: usize,
) -> Vec<u8> {
    let (kv, attention) = (related(geometry, tokens, 1), importance(geometry, tokens, 4).unwrap());
    let encoder = Encoder::new(Pipeline::parse(registry, spec).unwrap(), geometry, Some(profile)).unwrap();
    let view = kv.view().with_importance(&attention).unwrap();
    encoder.encode(&view, 0..tokens, &|_| ()).unwrap().to_vec()
}
