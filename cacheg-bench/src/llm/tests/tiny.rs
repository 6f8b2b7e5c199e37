//! On tiny random models, whose logits a script in numpy computed.

use std::collections::HashMap;

use cacheg::core::{Dtype, RopeScaling};
use candle_core::{Device, Tensor};

use super::{bits, floats, tiny, with_dtype};
use crate::llm::{AttentionSums, KvState, Model, Step, Tokenizer};

struct Expected {
    tokens: Vec<u32>,
    rows: Vec<usize>,
    tensors: HashMap<String, Tensor>,
}

fn expected(name: &str) -> Expected {
    let tensors = candle_core::safetensors::load(tiny("expected.safetensors"), &Device::Cpu).unwrap();
    let integers = |key: &str| tensors[&format!("{name}.{key}")].to_vec1::<i32>().unwrap();
    let tokens = integers("tokens").into_iter().map(|n| n as u32).collect();
    let rows = integers("rows").into_iter().map(|n| n as usize).collect();
    Expected { tokens, rows, tensors }
}

fn compare(name: &str, file: &str) {
    let model = Model::open(&tiny(file), &|_, _| ()).unwrap();
    let expected = expected(name);
    // Values that lie between two of f16 may be rounded differently: the tolerance is what one of them makes.
    for (key, dtype, tolerance) in [("logits", Dtype::F32, 2e-4), ("logits_f16", Dtype::F16, 1e-2)] {
        let mut kv = KvState::new(&with_dtype(model.geometry(), dtype));
        let hidden = model.forward(&expected.tokens, &mut kv).unwrap();
        let want = expected.tensors[&format!("{name}.{key}")].to_vec2::<f32>().unwrap();
        let mut worst = 0.0f32;
        for (row, want) in expected.rows.iter().zip(&want) {
            let logits = floats(&model.logits(&hidden.narrow(0, *row, 1).unwrap()).unwrap());
            assert_eq!(logits.len(), want.len());
            worst = logits.iter().zip(want).fold(worst, |worst, (a, b)| worst.max((a - b).abs()));
        }
        println!("{name}.{key}: largest difference {worst:.2e}");
        assert!(worst < tolerance, "{name}.{key}: {worst}");
    }
}

#[test]
fn gguf_logits_are_those_of_numpy() {
    compare("gguf", "tiny.gguf");
}

#[test]
fn safetensors_logits_are_those_of_numpy() {
    compare("hf", "hf");
}

#[test]
fn gemma_logits_are_those_of_numpy() {
    compare("gemma3", "gemma3.gguf");
}

#[test]
fn hyper_parameters_are_the_files() {
    let (hyper, types) = Model::describe(&tiny("tiny.gguf")).unwrap();
    assert_eq!((hyper.layers, hyper.heads, hyper.kv_heads, hyper.head_dim), (2, 4, 2, 16));
    let Some(RopeScaling::Llama3 { factor, high_freq_factor, original_context, .. }) = hyper.rope.scaling
    else {
        panic!("{:?}", hyper.rope.scaling)
    };
    assert_eq!((factor, high_freq_factor, original_context), (8.0, 4.0, 700));
    assert!(types.contains(&("Q4_1".to_owned(), 8)), "{types:?}");
    let (hyper, _) = Model::describe(&tiny("hf")).unwrap();
    assert_eq!(hyper.rope.scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    assert_eq!(hyper.geometry().unwrap().layers(), 2);
}

/// As on the real model, but wherever the tests run.
#[test]
fn chunks_and_batches_change_no_bit() {
    for (name, file) in [("gguf", "tiny.gguf"), ("hf", "hf"), ("gemma3", "gemma3.gguf")] {
        let model = Model::open(&tiny(file), &|_, _| ()).unwrap();
        let tokens = expected(name).tokens;
        let mut whole = KvState::new(model.geometry());
        let want = bits(&model.forward(&tokens, &mut whole).unwrap());
        let mut kv = KvState::new(model.geometry());
        let (mut got, mut rest) = (Vec::new(), &tokens[..]);
        for len in [1, 2, 1, 1, 40, 212, 1, 30, 12] {
            let (chunk, after) = rest.split_at(len);
            got.extend(bits(&model.forward(chunk, &mut kv).unwrap()));
            kv = model.state_of(&kv.to_cache().unwrap().view()).unwrap();
            rest = after;
        }
        assert!(rest.is_empty() && kv == whole && got == want, "{name}");
        let [mut a, mut b] = [KvState::new(model.geometry()), KvState::new(model.geometry())];
        let mut steps = [Step { tokens: &tokens[7..20], kv: &mut a }, Step { tokens: &tokens, kv: &mut b }];
        assert_eq!(bits(&model.forward_steps(&mut steps, None).unwrap()[1]), want, "{name}");
    }
}

#[test]
fn greedy_text_goes_on_where_the_cache_ends() {
    let model = Model::open(&tiny("tiny.gguf"), &|_, _| ()).unwrap();
    let tokens = expected("gguf").tokens;
    let prefill = |tokens: &[u32]| {
        let mut kv = KvState::new(model.geometry());
        let last = model.prefill(tokens, &mut kv, None, &|_, _| ()).unwrap();
        (last, kv)
    };
    let ((a, mut kv_a), (b, mut kv_b)) = (prefill(&tokens), prefill(&tokens[..50]));
    let texts = model.greedy(&[a.clone(), b], &mut [&mut kv_a, &mut kv_b], 5).unwrap();
    assert_eq!((kv_a.tokens(), kv_b.tokens()), (304, 54));
    assert!(model.greedy(&[a], &mut [], 1).is_err());
    // The same by hand: the likeliest token of everything so far, from scratch.
    for (mut all, text) in [(tokens.clone(), &texts[0]), (tokens[..50].to_vec(), &texts[1])] {
        for token in text {
            let logits = floats(&model.logits(&prefill(&all).0).unwrap());
            assert_eq!(crate::llm::argmax(&logits), *token);
            all.push(*token);
        }
    }
}

/// Statistics of the last queries, computed again from those queries and the cached keys.
#[test]
fn statistics_follow_from_queries_and_keys() {
    statistics_follow("gguf", "tiny.gguf");
    statistics_follow("gemma3", "gemma3.gguf");
}

fn statistics_follow(name: &str, file: &str) {
    const RECENT: usize = 7;
    let model = Model::open(&tiny(file), &|_, _| ()).unwrap();
    let (heads, dim, group) = (model.hyper().heads, model.hyper().head_dim, model.hyper().group());
    let tokens = expected(name).tokens;
    let n = tokens.len();
    let statistics = AttentionSums::new(model.hyper(), n, RECENT);
    let mut kv = KvState::new(model.geometry());
    // In two prefills, the second of which begins inside the last queries.
    model.prefill(&tokens[..n - 3], &mut kv, Some(&statistics), &|_, _| ()).unwrap();
    model.prefill(&tokens[n - 3..], &mut kv, Some(&statistics), &|_, _| ()).unwrap();
    let cache = kv.to_cache().unwrap();
    for (index, layer) in statistics.into_layers().iter().enumerate() {
        let mut keys = vec![0.0; n * heads / group * dim];
        cache.view().load(2 * index, 0, n, &mut keys);
        for head in 0..heads {
            let mut sums = vec![0.0f64; n];
            for late in 0..RECENT {
                let query = &layer.queries[(head * RECENT + late) * dim..][..dim];
                let seen = n - RECENT + late + 1;
                let oldest = seen - model.hyper().window_of(index).unwrap_or(seen);
                let score = |token: usize| {
                    let key = &keys[(token * heads / group + head / group) * dim..][..dim];
                    let product: f32 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    f64::from(product / (dim as f32).sqrt()).exp()
                };
                let all: f64 = (oldest..seen).map(score).sum();
                (oldest..seen).for_each(|token| sums[token] += score(token) / all);
            }
            for (token, sum) in sums.iter().enumerate() {
                let got = f64::from(layer.recent[head * n + token]);
                assert!((got - sum).abs() < 1e-4, "layer {index}, head {head}, token {token}: {got} {sum}");
            }
            let all: f32 = layer.accumulated[head * n..][..n].iter().sum();
            assert!((all - n as f32).abs() < 1e-2, "{all}");
        }
    }
}

#[test]
fn tokens_of_the_metadata() {
    let tokenizer = Tokenizer::open(&tiny("tiny.gguf")).unwrap();
    // 0..256 are bytes, then h·e, l·l, he·ll, hell·o, Ġ·w, 1·2 (never: digits stand alone), and two special ones.
    let text = "hello wé12<|end|>";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids, [259, 260, 0xc3, 0xa9, 0x31, 0x32, 262]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokenizer.encode("<|user|>").unwrap(), [263]);
    assert!(Tokenizer::open(&tiny("hf")).err().unwrap().to_string().contains("tokenizer.json"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = Model::open(&tiny("tiny.gguf"), &|_, _| ()).unwrap();
    let other = Model::open(&tiny("hf"), &|_, _| ()).unwrap();
    let mut kv = KvState::new(model.geometry());
    assert!(model.forward(&[264], &mut kv).unwrap_err().to_string().contains("vocabulary"));
    assert!(model.forward(&[], &mut kv).is_err());
    assert_eq!(kv.tokens(), 0);
    let mut foreign = KvState::new(other.geometry());
    assert!(model.forward(&[1], &mut foreign).unwrap_err().to_string().contains("another model"));
    other.forward(&[1, 2, 3], &mut foreign).unwrap();
    let cache = foreign.to_cache().unwrap();
    assert!(model.state_of(&cache.view()).unwrap_err().to_string().contains("another model"));
    let sample = cacheg::sample().unwrap();
    assert!(model.state_of(&sample.view()).unwrap_err().to_string().contains("another model"));
    // The same shapes, another RoPE.
    let plain = Model::describe(&tiny("tiny.gguf")).unwrap().0;
    let plain = crate::llm::Hyper { rope: cacheg::core::Rope { scaling: None, ..plain.rope }, ..plain };
    let cache = cacheg::KvCache::zeros(&plain.geometry().unwrap(), 3, 0);
    assert!(model.state_of(&cache.view()).unwrap_err().to_string().contains("RoPE"));
}
