//! What profiles are made from, made up: for tests of pipelines that go by importance and statistics.

use super::Random;
use crate::{
    Counts, Dtype, Error, Geometry, Importance, LayerGroup, Origin, Pairing, Result, Rope, Shape, Statistics,
};

/// Layers that differ in widths and element types, but have as many heads in their keys as in their values; rows of heads that are
/// no whole words, and a layer without keys.
///
/// # Errors
/// Never.
pub fn even_heads() -> Result<Geometry> {
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
}

/// Attention of two query heads for each KV head: most of it to few tokens.
///
/// # Errors
/// If the model is none.
pub fn importance(geometry: &Geometry, tokens: usize, seed: u64) -> Result<Importance> {
    let mut random = Random::new(seed);
    let mut importance = Importance::new(tokens, Some(8));
    for group in geometry.groups() {
        let shape = group.key.or(group.latent).or(group.value);
        let heads = shape.ok_or_else(|| Error::data("a layer without tensors"))?.heads as usize;
        for _ in 0..group.repeat {
            let mut sums = || -> Vec<f32> {
                let mut sum =
                    |_| if random.below(8) == 0 { 8.0 } else { 0.5 } + random.below(64) as f32 / 64.0;
                (0..2 * heads * tokens).map(&mut sum).collect()
            };
            let (accumulated, recent) = (sums(), sums());
            importance.push_layer(heads, &accumulated, &recent)?;
        }
    }
    Ok(importance)
}

/// Statistics of a model whose importances follow from the first channel of its keys, and whose errors cost more in later channels.
///
/// # Errors
/// If the model is too large for statistics.
pub fn statistics(geometry: &Geometry, seed: u64) -> Result<Statistics> {
    const TOKENS: usize = 400;
    let mut random = Random::new(seed);
    let mut noise = move || f64::from(random.below(2_000) as u32) / 1_000.0 - 1.0;
    let mut all = Statistics::new(geometry, 2, 1)?;
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
    all.note(Origin { name: "made up".into(), sha256: "0".repeat(64) }, counts)?;
    Ok(all)
}
