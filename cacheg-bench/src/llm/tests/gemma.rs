//! What Gemma 3 has and Llama-type models have not: windows, norms of heads, SentencePiece's byte pairs.

use std::path::Path;

use cacheg::core::{Dtype, Kept};
use cacheg::{KvCache, KvView};

use super::{bits, tiny, with_dtype};
use crate::llm::{Block, KvState, Model, Step, Tokenizer, resolve};

/// Tokens that a token of `gemma3.gguf` sees in local layers.
const WINDOW: usize = 20;

fn model() -> Model {
    Model::open(&tiny("gemma3.gguf"), &|_, _| ()).unwrap()
}

fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 7 + i * 11 + 3) % 285).collect()
}

fn prefilled(model: &Model, tokens: &[u32]) -> KvCache {
    let mut kv = KvState::new(model.geometry());
    model.prefill(tokens, &mut kv, None, &|_, _| ()).unwrap();
    kv.to_cache().unwrap()
}

/// The cache with other values in some rows of one plane.
fn changed(cache: &KvCache, plane: usize, rows: std::ops::Range<usize>) -> KvCache {
    let mut cache = KvCache::copy_of(&cache.view(), 0, cache.tokens());
    let channels = cache.view().planes()[plane].channels();
    let mut values = vec![0.0; rows.len() * channels];
    cache.view().load(plane, rows.start, rows.len(), &mut values);
    values.iter_mut().for_each(|x| *x = 3.0 - *x);
    cache.view_mut().planes_mut()[plane].store(rows.start, rows.len(), &values);
    cache
}

fn read(model: &Model, view: &KvView<'_>, tokens: &[u32]) -> Vec<u32> {
    bits(&model.forward(tokens, &mut model.state_of(view).unwrap()).unwrap())
}

#[test]
fn the_file_says_which_layers_are_local() {
    let model = model();
    let hyper = model.hyper();
    assert_eq!((hyper.block, hyper.head_dim, hyper.group()), (Block::Gemma3, 16, 2));
    let windows: Vec<Option<usize>> = (0..4).map(|layer| hyper.window_of(layer)).collect();
    assert_eq!(windows, [Some(WINDOW), Some(WINDOW), None, Some(WINDOW)]);
    let theta = |layer| hyper.rope_of(layer).theta;
    assert_eq!([0, 1, 2, 3].map(theta), [1e4, 1e4, 2e5, 1e4]);
    let groups = model.geometry().groups();
    assert_eq!(groups.iter().map(|group| group.repeat).collect::<Vec<_>>(), [2, 1, 1]);
    let rows = hyper.rows();
    assert!(rows.contains(&("local_window", WINDOW.into())) && rows.contains(&("local_layers", 3.into())));
}

/// In blocks of attention before and behind the window, near and far.
#[test]
fn what_is_outside_of_the_window_changes_nothing() {
    let model = model();
    for context in [50, 300, 530] {
        let cache = prefilled(&model, &tokens(context));
        let n = cache.tokens();
        let more = &tokens(context + 3)[n..];
        let first = |rows: Vec<u32>| rows[..model.hyper().hidden].to_vec();
        let own = read(&model, &cache.view(), more);
        for plane in 0..8 {
            let read = |rows| read(&model, &changed(&cache, plane, rows).view(), more);
            let old = read(0..n - WINDOW + 1);
            if model.hyper().window_of(plane / 2).is_some() {
                assert_eq!(old, own, "plane {plane} of {n} tokens");
                // The oldest token that the first of three sees, and the others do not.
                let edge = read(n - WINDOW + 1..n - WINDOW + 2);
                assert_ne!(first(edge), first(own.clone()), "plane {plane} of {n} tokens");
            } else {
                assert_ne!(first(old), first(own.clone()), "plane {plane} of {n} tokens");
            }
        }
    }
}

/// A cache without the rows that nobody sees gives the same, if it says which rows it has.
#[test]
fn windows_are_of_positions_when_tokens_were_dropped() {
    let model = model();
    let all = tokens(103);
    let cache = prefilled(&model, &all[..100]);
    // Every second token of the beginning is gone, and of the end everything is there.
    let keep: Vec<u32> = (0..60).step_by(2).chain(60..100).collect();
    let mut rest = KvCache::zeros(model.geometry(), keep.len(), 0);
    for (plane, out) in rest.view_mut().planes_mut().iter_mut().enumerate() {
        let mut row = vec![0.0; out.plane().channels()];
        for (at, token) in keep.iter().enumerate() {
            cache.view().load(plane, *token as usize, 1, &mut row);
            out.store(at, 1, &row);
        }
    }
    let kept = Kept::new(model.geometry(), 0, 100, vec![keep; 8]).unwrap();
    let view = rest.view();
    let view = view.with_kept(&kept).unwrap();
    let own = read(&model, &view, &all[100..]);
    for (plane, same) in [(0, true), (1, true), (5, false), (7, true)] {
        // Of positions 80 and less no local layer sees any: rows up to 50.
        let other = changed(&rest, plane, 0..51);
        let view = other.view();
        assert_eq!(read(&model, &view.with_kept(&kept).unwrap(), &all[100..]) == own, same, "plane {plane}");
    }
}

#[test]
fn a_decoded_cache_goes_on_like_the_models_own() {
    let model = model();
    let all = tokens(150);
    let mut straight = KvState::new(&with_dtype(model.geometry(), Dtype::F16));
    let want = bits(&model.forward(&all, &mut straight).unwrap());
    let cache = prefilled(&model, &all[..120]);
    let registry = cacheg::builtins().unwrap();
    let pipeline = cacheg::Pipeline::parse(&registry, "bytes|raw").unwrap();
    let encoder = cacheg::Encoder::new(pipeline, model.geometry(), None).unwrap();
    let mut container = Vec::new();
    let none = std::collections::BTreeMap::new();
    cacheg::flow::encode(&cache.view(), &none, &encoder, 32, &mut container, &|_| ()).unwrap();
    let decode = cacheg::flow::Decode { registry: &registry, profile: None, backend: &cacheg::core::Cpu };
    let decoded = decode.run(&container, &cacheg::Limits::default(), &|_| ()).unwrap();
    let got = read(&model, &decoded.view().unwrap(), &all[120..]);
    assert_eq!(got, want[120 * model.hyper().hidden..]);
}

/// Pieces of the vocabulary: 0 to 4 special ones, 5 to 9 chosen texts, then bytes, `he`, `▁w`, `ll`, `hell`, `▁he`,
/// `or`, `hello`, `▁wor`, `ld`, `▁world`, `ow` from 266 on, letters from 277 on.
#[test]
fn tokens_are_those_of_sentencepiece() {
    let tokenizer = Tokenizer::open(&tiny("gemma3.gguf")).unwrap();
    let text = "hello world  he<b>\n\n\n\u{e9}";
    let ids = tokenizer.encode(text).unwrap();
    // By score: `he` and `▁w` first; `hell` before `▁he`; `▁wor`, `ld`, `▁world`; two blanks; `é` by bytes.
    assert_eq!(ids, [2, 272, 275, 7, 266, 9, 6, 5, 10 + 0xc3, 10 + 0xa9]);
    assert_eq!(tokenizer.decode(&ids[1..]).unwrap(), text);
    assert_eq!(tokenizer.encode_more("<start_of_turn>").unwrap(), [4]);
    assert_eq!(tokenizer.encode_more(" hell").unwrap().len(), 2);
    // Four blanks: the longest run first.
    let blank = tokenizer.encode_more(" ").unwrap();
    assert_eq!(tokenizer.encode_more("    ").unwrap(), [8, blank[0]]);
}

/// Where `cacheg-bench model get gemma3` has been.
fn real() -> Option<std::path::PathBuf> {
    resolve(Some(Path::new("gemma3"))).map_err(|e| eprintln!("SKIPPED: {e}")).ok()
}

/// On the model itself, across windows of 512 tokens.
#[test]
fn chunks_and_batches_change_no_bit() {
    let Some(path) = real() else { return };
    let model = Model::open(&path, &|_, _| ()).unwrap();
    let text = include_str!("../../../texts/test/novel-1.txt");
    let tokens = Tokenizer::open(&path).unwrap().encode(text).unwrap();
    let (mut whole, mut kv) = (KvState::new(model.geometry()), KvState::new(model.geometry()));
    let want = bits(&model.forward(&tokens[..800], &mut whole).unwrap());
    let (mut got, mut rest) = (Vec::new(), &tokens[..800]);
    for len in [1, 300, 255, 1, 2, 200, 41] {
        let (chunk, after) = rest.split_at(len);
        got.extend(bits(&model.forward(chunk, &mut kv).unwrap()));
        kv = model.state_of(&kv.to_cache().unwrap().view()).unwrap();
        rest = after;
    }
    assert!(rest.is_empty() && kv == whole && got == want);
    let [mut a, mut b] = [KvState::new(model.geometry()), KvState::new(model.geometry())];
    let mut steps =
        [Step { tokens: &tokens[7..20], kv: &mut a }, Step { tokens: &tokens[..800], kv: &mut b }];
    assert!(bits(&model.forward_steps(&mut steps, None).unwrap()[1]) == want && b == whole);
}

/// Gemma's own vocabulary.
#[test]
fn runs_of_blanks_newlines_and_tabs_are_tokens() {
    let Some(path) = real() else { return };
    let tokenizer = Tokenizer::open(&path).unwrap();
    let ids = |text: &str| tokenizer.encode_more(text).unwrap();
    assert_eq!((ids(" "), ids("\n"), ids("\t")), (vec![236_743], vec![107], vec![255_968]));
    for n in 2..=31 {
        let id = n as u32;
        assert_eq!(ids(&" ".repeat(n)), [136 + id]);
        assert_eq!(ids(&"\n".repeat(n)), [106 + id]);
        assert_eq!(ids(&"\t".repeat(n)), [255_967 + id]);
        // In a text, too; the last blank does not go to the word.
        let [open, close] = [ids("x"), ids("y")].map(|ids| ids[0]);
        assert_eq!(ids(&format!("x{}y", " ".repeat(n))), [open, 136 + id, close]);
    }
    assert_eq!(ids(&" ".repeat(40)), [136 + 31, 136 + 9]);
    assert_eq!(ids("<start_of_turn>user\n"), [105, 2364, 107]);
    assert_eq!(ids("\r"), [238 + 13]);
    let text = "fn main() {\n    println!(\"\u{1f980} na\u{ef}ve\");\n}\r\n\u{10ffff}";
    let all = tokenizer.encode(text).unwrap();
    assert_eq!(all[0], 2);
    assert_eq!(tokenizer.decode(&all[1..]).unwrap(), text);
}
