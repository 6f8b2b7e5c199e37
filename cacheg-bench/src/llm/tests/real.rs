//! On SmolLM2-135M-Instruct.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cacheg::core::Dtype;
use cacheg::{KvFile, KvView, Limits};

use super::{bits, with_dtype};
use crate::llm::{AttentionSums, KvState, Model, Step, Tokenizer, resolve};

struct Real {
    model: Model,
    tokenizer: Tokenizer,
}

/// The model, loaded once; nothing, and a message, where it is not.
fn real() -> Option<&'static Real> {
    static REAL: OnceLock<Option<Real>> = OnceLock::new();
    let load = || {
        let given = std::env::var_os("CACHEG_MODEL").map(PathBuf::from);
        match resolve(given.as_deref()) {
            Ok(path) => {
                let model = Model::open(&path, &|_, _| ()).unwrap();
                Some(Real { model, tokenizer: Tokenizer::open(&path).unwrap() })
            }
            Err(e) => {
                eprintln!("SKIPPED: {e}");
                None
            }
        }
    };
    REAL.get_or_init(load).as_ref()
}

/// KV caches of the model by another implementation.
fn given(name: &str) -> Option<KvFile> {
    let folder = std::env::var_os("CACHEG_KV")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/kv"), PathBuf::from);
    let path = folder.join(format!("smollm2-135m-{name}.safetensors"));
    if !path.is_file() {
        eprintln!("SKIPPED: no {}", path.display());
        return None;
    }
    Some(KvFile::open(&path, &Limits::default()).unwrap())
}

fn ids(file: &KvFile, key: &str) -> Vec<u32> {
    serde_json::from_str(&file.metadata()[key]).unwrap()
}

/// All values of a plane.
fn plane(view: &KvView<'_>, index: usize) -> Vec<f32> {
    let mut rows = vec![0.0; view.tokens() * view.planes()[index].channels()];
    view.load(index, 0, view.tokens(), &mut rows);
    rows
}

/// Root of the mean square error, relative to that of `theirs`.
fn relative_error(ours: &[f32], theirs: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    (error / theirs.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// The other implementation kept keys and values in f32 while it ran and rounded them to f16 in the end. Done like
/// that, ours differ from its by as little as f32 does; done as engines do, with a cache of f16, by what f16 costs.
#[test]
fn keys_and_values_are_those_of_another_implementation() {
    for name in ["novel-a", "chat-a"] {
        let (Some(real), Some(file)) = (real(), given(name)) else { return };
        real.model.state_of(&file.view()).unwrap();
        let tokens = ids(&file, "token_ids");
        for (dtype, bound) in [(Dtype::F32, 3e-4), (Dtype::F16, 1e-3)] {
            let mut kv = KvState::new(&with_dtype(real.model.geometry(), dtype));
            real.model.prefill(&tokens, &mut kv, None, &|_, _| ()).unwrap();
            let ours = kv.to_cache().unwrap();
            let mut worst = (0.0, String::new());
            for at in ours.view().planes() {
                let mut values = plane(&ours.view(), at.index);
                let mut bytes = vec![0; 2 * values.len()];
                Dtype::F16.narrow(&values, &mut bytes);
                Dtype::F16.widen(&bytes, &mut values);
                let error = relative_error(&values, &plane(&file.view(), at.index));
                if error > worst.0 {
                    worst = (error, at.name());
                }
            }
            println!("{name}, cache of {dtype}: relative error at most {:.2e}, in {}", worst.0, worst.1);
            assert!(worst.0 < bound, "{}: {}", worst.1, worst.0);
        }
    }
}

#[test]
fn chunks_batches_and_replaced_caches_change_no_bit() {
    let (Some(real), Some(file)) = (real(), given("novel-a")) else { return };
    let model = &real.model;
    let tokens = &ids(&file, "token_ids")[..333];
    let mut whole = KvState::new(model.geometry());
    let hidden = model.forward(tokens, &mut whole).unwrap();
    let want = bits(&hidden);
    let width = model.hyper().hidden;

    // In chunks of all kinds of lengths, the cache out and in between them.
    let mut kv = KvState::new(model.geometry());
    let mut got = Vec::new();
    let mut rest = tokens;
    for len in [1, 2, 1, 40, 255, 3, 1, 30] {
        let (chunk, after) = rest.split_at(len);
        got.extend(bits(&model.forward(chunk, &mut kv).unwrap()));
        let cache = kv.to_cache().unwrap();
        kv = model.state_of(&cache.view()).unwrap();
        rest = after;
    }
    assert!(rest.is_empty());
    assert_eq!(got.len(), want.len());
    let differs = got.iter().zip(&want).position(|(a, b)| a != b);
    assert_eq!(differs.map(|at| at / width), None, "first token whose row differs");
    assert_eq!(kv, whole);

    // Together with other sequences.
    let other = ids(&file, "continuation_ids");
    let mut states = [KvState::new(model.geometry()), KvState::new(model.geometry())];
    let [a, b] = &mut states;
    let mut steps = [Step { tokens: &other[..100], kv: a }, Step { tokens, kv: b }];
    let rows = model.forward_steps(&mut steps, None).unwrap();
    assert_eq!(bits(&rows[1]), want);
    assert_eq!(states[1], whole);

    // Predictions do not depend on company either.
    let logits = model.logits(&hidden.narrow(0, 100, 64).unwrap()).unwrap();
    let one = model.logits(&hidden.narrow(0, 117, 1).unwrap()).unwrap();
    assert_eq!(bits(&logits.narrow(0, 17, 1).unwrap()), bits(&one));

    // An observer only looks on, and weights are shares.
    let statistics = AttentionSums::new(model.hyper(), tokens.len(), 64);
    let mut kv = KvState::new(model.geometry());
    model.prefill(tokens, &mut kv, Some(&statistics), &|_, _| ()).unwrap();
    assert_eq!(kv, whole);
    for layer in statistics.into_layers() {
        let sum: f32 = layer.accumulated.iter().sum();
        assert!((sum / (9 * tokens.len()) as f32 - 1.0).abs() < 1e-3, "{sum}");
        let sum: f32 = layer.recent.iter().sum();
        assert!((sum / (9 * 64) as f32 - 1.0).abs() < 1e-3, "{sum}");
        assert!(layer.accumulated.iter().zip(&layer.recent).all(|(all, some)| all >= some));
    }
}

#[test]
fn tokens_to_text_and_back() {
    for name in ["novel-a", "chat-a"] {
        let (Some(real), Some(file)) = (real(), given(name)) else { return };
        let mut tokens = ids(&file, "token_ids");
        tokens.extend(ids(&file, "continuation_ids"));
        let text = real.tokenizer.decode(&tokens).unwrap();
        println!("{}", &text[..80]);
        assert_eq!(real.tokenizer.encode(&text).unwrap(), tokens);
    }
    let Some(real) = real() else { return };
    // <|im_start|> is one token, digits stand alone.
    assert_eq!(real.tokenizer.encode("<|im_start|>2026").unwrap(), [1, 34, 32, 34, 38]);
}
