//! What is recomputed on top of a reconstruction.

use std::path::Path;
use std::sync::Arc;

use cacheg::KvCache;
use cacheg_net::fetch::Recompute;

use super::tiny;
use crate::llm::{KvState, Model, Prefill, resolve};

/// On an exact prefix, recomputed chunks are what they were, bit for bit: the last one, and all of them.
fn exact(path: &Path, tokens: &[u32], chunk: usize) {
    let model = Arc::new(Model::open(path, &|_, _| ()).unwrap());
    let mut kv = KvState::new(model.geometry());
    model.prefill(tokens, &mut kv, None, &|_, _| ()).unwrap();
    let whole = kv.to_cache().unwrap();
    let rows = |first: usize, count: usize| KvCache::copy_of(&whole.view(), first, count);

    let last = (tokens.len() - 1) / chunk * chunk;
    let mut prefill = Prefill::new(model.clone(), 0);
    // As a client hands it over: in pieces, as chunks are there.
    prefill.prefix(&whole.view(), 0..chunk).unwrap();
    prefill.prefix(&whole.view(), chunk..last).unwrap();
    assert_eq!(prefill.compute(&tokens[last..]).unwrap(), rows(last, tokens.len() - last));

    let mut prefill = Prefill::new(model.clone(), 0);
    for first in (0..tokens.len()).step_by(chunk) {
        let piece = &tokens[first..(first + chunk).min(tokens.len())];
        if first == 2 * chunk {
            // One in the middle came from the store.
            prefill.prefix(&whole.view(), first..first + chunk).unwrap();
        } else {
            assert_eq!(prefill.compute(piece).unwrap(), rows(first, piece.len()));
        }
    }
    let error = prefill.prefix(&whole.view(), 0..1).unwrap_err().to_string();
    assert!(error.contains("rows from 0"), "{error}");
}

#[test]
fn recomputed_rows_are_exact_on_an_exact_prefix() {
    let tokens: Vec<u32> = (0..100).map(|i| (i * 7 + 3) % 50).collect();
    exact(&tiny("tiny.gguf"), &tokens, 32);
    exact(&tiny("hf"), &tokens, 32);
    exact(&tiny("gemma3.gguf"), &tokens, 32);
    match resolve(None) {
        Ok(path) => exact(&path, &tokens, 32),
        Err(_) => println!("not on the real model: `cacheg-bench model get smollm2` has not been run"),
    }
}

#[test]
fn other_contexts_are_refused() {
    let model = Arc::new(Model::open(&tiny("tiny.gguf"), &|_, _| ()).unwrap());
    let sample = cacheg::sample().unwrap();
    assert!(Prefill::new(model.clone(), 0).prefix(&sample.view(), 0..8).is_err());
    let cache = KvCache::zeros(model.geometry(), 8, 5);
    let error = Prefill::new(model.clone(), 0).prefix(&cache.view(), 0..8).unwrap_err().to_string();
    assert!(error.contains("position 5"), "{error}");
    let mut prefill = Prefill::new(model, 5);
    prefill.prefix(&cache.view(), 0..8).unwrap();
    assert!(prefill.compute(&[u32::MAX]).is_err());
}
