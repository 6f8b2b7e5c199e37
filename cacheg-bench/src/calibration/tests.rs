//! Statistics of tiny models against their definitions.

use std::path::PathBuf;
use std::sync::Mutex;

use cacheg::KvCache;

use super::*;
use crate::llm::{AttentionBlock, Observer};

const SINKS: usize = 2;
/// With the continuation, longer than the windows of `gemma3.gguf`.
const CONTEXT: usize = 17;
const CONTINUATION: usize = 7;

fn model(name: &str) -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name);
    Model::open(&path, &|_, _| ()).unwrap()
}

fn tokens(seed: u32) -> Vec<u32> {
    (0..(CONTEXT + CONTINUATION) as u32).map(|i| (i * 37 + seed * 101) % 50).collect()
}

/// A cache in which errors that are small enough for a derivative are not lost.
fn state(model: &Model) -> KvState {
    KvState::exact(model.geometry()).unwrap()
}

fn statistics(model: &Model, seeds: &[u32]) -> Statistics {
    let mut calibration = Calibration::new(model, SINKS as u32, 1).unwrap();
    for seed in seeds {
        let ids = tokens(*seed);
        let (context, rest) = ids.split_at(CONTEXT);
        calibration.add_from(&format!("text {seed}"), context, rest, &mut state(model), &|_, _| ()).unwrap();
    }
    calibration.into_statistics()
}

/// What one layer's attention gave to one KV head's queries, and its weights of the context.
struct Captured {
    layer: usize,
    kv_head: usize,
    seen: Mutex<(Vec<f32>, Vec<Vec<f32>>)>,
    scales: Mutex<Vec<f32>>,
}

impl Observer for Captured {
    fn attention(&self, block: &AttentionBlock<'_>) {
        if (block.layer, block.kv_head) == (self.layer, self.kv_head) {
            let mut seen = self.seen.lock().unwrap();
            seen.0.extend(block.outputs);
            seen.1.extend(block.weights.chunks_exact(block.stride).map(|row| row[..CONTEXT].to_vec()));
        }
    }

    fn normed(&self, layer: usize, scales: &[f32]) {
        if layer == self.layer {
            self.scales.lock().unwrap().extend(scales);
        }
    }
}

fn captured(model: &Model, cache: &KvCache, layer: usize, kv_head: usize) -> Captured {
    let captured = Captured { layer, kv_head, seen: Mutex::default(), scales: Mutex::default() };
    let mut kv = KvState::of(&cache.view());
    model.prefill(&tokens(1)[CONTEXT..], &mut kv, Some(&captured), &|_, _| ()).unwrap();
    captured
}

fn attend(model: &Model, cache: &KvCache, layer: usize, kv_head: usize) -> (Vec<f32>, Vec<Vec<f32>>) {
    captured(model, cache, layer, kv_head).seen.into_inner().unwrap()
}

/// Mean square of what the norm behind a layer's attention multiplies rows by; 1 if there is none.
fn norm_scale(model: &Model, cache: &KvCache, layer: usize) -> f64 {
    let scales = captured(model, cache, layer, 0).scales.into_inner().unwrap();
    let squares: f64 = scales.iter().map(|scale| f64::from(*scale).powi(2)).sum();
    if scales.is_empty() { 1.0 } else { squares / scales.len() as f64 }
}

fn context(model: &Model) -> KvCache {
    let mut kv = state(model);
    model.prefill(&tokens(1)[..CONTEXT], &mut kv, None, &|_, _| ()).unwrap();
    kv.to_cache().unwrap()
}

/// The cache with an error added to one row of one head.
fn with_error(cache: &KvCache, plane: usize, token: usize, head: usize, error: &[f32]) -> KvCache {
    let mut cache = KvCache::copy_of(&cache.view(), 0, cache.tokens());
    let channels = cache.view().planes()[plane].channels();
    let mut rows = vec![0.0; cache.tokens() * channels];
    cache.view().load(plane, 0, cache.tokens(), &mut rows);
    rows[token * channels + head * error.len()..].iter_mut().zip(error).for_each(|(x, e)| *x += e);
    let tokens = cache.tokens();
    cache.view_mut().planes_mut()[plane].store(0, tokens, &rows);
    cache
}

/// `Σ |W δo|²` over queries and tokens for small errors in one row at a time is `eᵀ S e`: by central differences.
#[test]
fn sensitivity_is_what_errors_do_to_the_residual_stream() {
    const SMALL: f32 = 0.02;
    for name in ["tiny.gguf", "hf", "gemma3.gguf"] {
        let model = model(name);
        let hyper = model.hyper().clone();
        let (dim, group) = (hyper.head_dim, hyper.group());
        let statistics = statistics(&model, &[1]);
        let cache = context(&model);
        for (layer, head) in [(0, 0), (1, hyper.kv_heads - 1), (hyper.layers - 2, 0)] {
            let rotation = Rotation::new(hyper.rope_of(layer), 0, CONTEXT);
            let scale = norm_scale(&model, &cache, layer);
            let weights = model.attention_output(layer).unwrap().to_vec2::<f32>().unwrap();
            for (kind, plane) in [("key", 2 * layer), ("value", 2 * layer + 1)] {
                let error: Vec<f32> = (0..dim).map(|c| ((c * c + 3 * layer + 1) as f32).sin()).collect();
                let mut measured = [0.0f64; 2];
                for token in 0..CONTEXT {
                    let mut small: Vec<f32> = error.iter().map(|e| e * SMALL).collect();
                    if kind == "key" {
                        rotation.rotate(token, &mut small, dim);
                    }
                    let plus = attend(&model, &with_error(&cache, plane, token, head, &small), layer, head).0;
                    small.iter_mut().for_each(|e| *e = -*e);
                    let minus =
                        attend(&model, &with_error(&cache, plane, token, head, &small), layer, head).0;
                    for (row, (plus, minus)) in plus.chunks(dim).zip(minus.chunks(dim)).enumerate() {
                        let query = head * group + row % group;
                        for weights in &weights {
                            let part = &weights[query * dim..][..dim];
                            let moved: f32 = (0..dim).map(|c| part[c] * (plus[c] - minus[c])).sum();
                            measured[usize::from(token >= SINKS)] +=
                                scale * f64::from(moved / (2.0 * SMALL)).powi(2);
                        }
                    }
                }
                for (name, measured) in ["sink_sensitivity", "sensitivity"].into_iter().zip(measured) {
                    let sums = statistics.layer(layer).unwrap().get(&format!("{kind}.{name}"));
                    let matrix = &sums[head * dim * dim..][..dim * dim];
                    let predicted: f64 = (0..dim * dim)
                        .map(|at| matrix[at] * f64::from(error[at / dim]) * f64::from(error[at % dim]))
                        .sum();
                    println!(
                        "layer {layer} {kind} {name}: {measured:.6e} measured, {predicted:.6e} predicted"
                    );
                    assert!((measured / predicted - 1.0).abs() < 0.01, "{measured} {predicted}");
                }
            }
        }
    }
}

#[test]
fn moments_and_importance_are_those_of_the_cached_rows() {
    let model = model("tiny.gguf");
    let (dim, heads) = (model.hyper().head_dim, model.hyper().kv_heads);
    let statistics = statistics(&model, &[1]);
    statistics.validate().unwrap();
    assert_eq!((statistics.counts().tokens, statistics.counts().pairs), (15, 105));
    let cache = context(&model);
    let rotation = Rotation::new(model.hyper().rope, 0, CONTEXT).inverse();
    let width = heads * dim;
    let rows = |plane: usize| -> Vec<Vec<f64>> {
        let mut rows = vec![0.0; CONTEXT * width];
        cache.view().load(plane, 0, CONTEXT, &mut rows);
        let undo = |(token, row): (usize, &mut [f32])| {
            if plane.is_multiple_of(2) {
                rotation.rotate(token, row, dim);
            }
            row.iter().map(|x| f64::from(*x)).collect()
        };
        rows.chunks_mut(width).enumerate().map(undo).collect()
    };
    let rows: Vec<_> = (0..4).map(rows).collect();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
    let cross = |a: usize, i: usize, b: usize, j: usize| -> f64 {
        (SINKS..CONTEXT).map(|t| rows[a][t][i] * rows[b][t][j]).sum()
    };
    let sums = statistics.layer(1).unwrap();
    for (i, j) in [(0, 0), (3, 20), (31, 7)] {
        near(sums.get("key.moment")[i * width + j], cross(2, i, 2, j));
        near(sums.get("value.moment")[i * width + j], cross(3, i, 3, j));
        near(sums.get("value_key")[i * width + j], cross(3, i, 2, j));
        near(sums.get("back.1")[(width + i) * 2 * width + j], cross(3, i, 0, j));
        near(sums.get("back.1")[i * 2 * width + width + j], cross(2, i, 1, j));
        near(sums.get("key.sum")[i], (SINKS..CONTEXT).map(|t| rows[2][t][i]).sum());
    }
    assert!(sums.get("back.2").is_empty());

    let head = 1;
    let importance = statistics.importance(1, head).unwrap();
    let weights = attend(&model, &cache, 1, head).1;
    let (mut xy, mut yy) = (vec![0.0; dim + 4], 0.0);
    for token in SINKS..CONTEXT {
        let mean =
            weights.iter().map(|row| f64::from(row[token]).powi(2)).sum::<f64>() / weights.len() as f64;
        let y = (mean + 1e-12).ln();
        let (key, value) = (&rows[2][token][head * dim..][..dim], &rows[3][token][head * dim..][..dim]);
        let norm = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() + 1e-12).ln();
        let distance = ((CONTEXT - token) as f64).ln();
        let x: Vec<f64> =
            [1.0, norm(key), norm(value), distance].into_iter().chain(key.iter().copied()).collect();
        xy.iter_mut().zip(&x).for_each(|(sum, x)| *sum += x * y);
        yy += y * y;
    }
    xy.iter().zip(importance.xy).for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} {b}"));
    assert!((yy - importance.yy).abs() < 1e-3, "{yy} {}", importance.yy);
}

#[test]
fn runs_add_up_and_are_the_same_every_time() {
    let model = model("hf");
    let both = statistics(&model, &[1, 2]);
    assert_eq!(both, statistics(&model, &[1, 2]));
    let mut merged = statistics(&model, &[1]);
    merged.merge(&statistics(&model, &[2])).unwrap();
    assert_eq!((merged.counts(), merged.origins()), (both.counts(), both.origins()));
    for layer in 0..2 {
        for name in [
            "key.sum",
            "value.moment",
            "value_key",
            "back.1",
            "key.sensitivity",
            "value.sink_sensitivity",
            "importance.xx",
        ] {
            let (a, b) = (merged.layer(layer).unwrap().get(name), both.layer(layer).unwrap().get(name));
            assert!(!a.is_empty() || name == "back.1");
            let largest = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-14 * largest), "layer {layer}, {name}");
        }
    }
}

#[test]
fn contexts_that_will_not_do_are_refused() {
    let model = model("hf");
    let mut calibration = Calibration::new(&model, 4, 1).unwrap();
    let mut add = |context: &[u32], continuation: &[u32]| {
        calibration.add("a text", context, continuation, &|_, _| ()).map_err(|e| e.to_string())
    };
    assert!(add(&[1, 2, 3, 4], &[5]).unwrap_err().contains("a text: invalid data: 4 tokens of context"));
    assert!(add(&[1, 2, 3, 4, 5], &[]).is_err());
    add(&[1, 2, 3, 4, 5], &[6]).unwrap();
    assert!(add(&[1, 2, 3, 4, 5], &[6]).unwrap_err().contains("already"));
    assert!(add(&[1, 2, 3, 4, 99_999], &[6]).unwrap_err().contains("vocabulary"));
}
