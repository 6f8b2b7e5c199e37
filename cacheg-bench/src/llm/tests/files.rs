//! Files that are cut off, damaged, or of what is not supported.

use std::path::Path;

use super::tiny;
use crate::llm::{Model, Tokenizer};

fn message(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let opened = Model::open(&path, &|_, _| ()).map(|_| ()).and_then(|()| Tokenizer::open(&path).map(|_| ()));
    opened.err().map(|e| e.to_string())
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn truncated_gguf_files_are_refused() {
    let whole = std::fs::read(tiny("tiny.gguf")).unwrap();
    assert_eq!(message(&whole), None);
    // Padding behind the last tensor may be missing; anything else may not.
    let gemma = std::fs::read(tiny("gemma3.gguf")).unwrap();
    assert_eq!(message(&gemma), None);
    for length in (0..gemma.len() - 32).step_by(997) {
        message(&gemma[..length]).unwrap_or_else(|| panic!("{length} bytes were taken"));
    }
    for length in (0..whole.len() - 32).step_by(997).chain([3, 8, whole.len() - 40]) {
        let message = message(&whole[..length]).unwrap_or_else(|| panic!("{length} bytes were taken"));
        assert!(!message.contains("panic"), "{message}");
    }
    let cut = message(&whole[..whole.len() - 40]).unwrap();
    assert!(cut.contains("is the download complete?"), "{cut}");
}

#[test]
fn damaged_gguf_files_do_not_panic() {
    for file in ["tiny.gguf", "gemma3.gguf"] {
        let whole = std::fs::read(tiny(file)).unwrap();
        for at in (0..whole.len().min(9_000)).step_by(13) {
            for value in [0, 0xff, whole[at] ^ 1] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                message(&bytes);
            }
        }
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let whole = std::fs::read(tiny("tiny.gguf")).unwrap();
    let error =
        message(&replace(&whole, b"\x05\0\0\0\0\0\0\0llama\x14", b"\x05\0\0\0\0\0\0\0bloom\x14")).unwrap();
    assert!(error.contains("architecture `bloom`"), "{error}");
    // blk.0.attn_v.weight, two axes, Q4_1 to IQ4_NL.
    let entry = |kind: u8| {
        let mut bytes = b"blk.0.attn_v.weight\x02\0\0\0".to_vec();
        bytes.extend([64, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, kind, 0, 0, 0]);
        bytes
    };
    let error = message(&replace(&whole, &entry(3), &entry(20))).unwrap();
    assert!(error.contains("quantisation IQ4_NL"), "{error}");
    let error = message(&replace(&whole, b"blk.0.attn_v.weight", b"blk.0.attn_x.weight")).unwrap();
    assert!(error.contains("blk.0.attn_v.weight: ") && error.contains("missing"), "{error}");
    let error = message(&replace(&whole, b"gpt2", b"bert")).unwrap();
    assert!(error.contains("tokenizer `bert`"), "{error}");
    let error = message(&replace(&whole, b"smollm", b"chamel")).unwrap();
    assert!(error.contains("pre-tokenizer `chamel`"), "{error}");
    let gemma = std::fs::read(tiny("gemma3.gguf")).unwrap();
    let error = message(&replace(&gemma, b"blk.3.attn_q_norm.weight", b"blk.3.attn_x_norm.weight")).unwrap();
    assert!(error.contains("blk.3.attn_q_norm.weight: ") && error.contains("missing"), "{error}");
    let error = message(&replace(&gemma, b"attention.sliding_window", b"attention.sliding_doorxx")).unwrap();
    assert!(error.contains("no `gemma3.attention.sliding_window`"), "{error}");
    let error = message(&replace(&gemma, b"add_space_prefix", b"add_space_suffix")).unwrap();
    assert!(error.contains("a blank before every text"), "{error}");
    let error = message(b"PK\x03\x04 not a model at all, but long enough").unwrap();
    assert!(error.contains("not a GGUF file"), "{error}");
    let error = Model::open(Path::new("/no/such/model.gguf"), &|_, _| ()).err().unwrap().to_string();
    assert!(error.contains("/no/such/model.gguf"), "{error}");
}

#[test]
fn folders_need_a_llama_type_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Model::open(folder.path(), &|_, _| ()).err().unwrap().to_string();
    assert!(open().contains("config.json"));
    let config = std::fs::read_to_string(tiny("hf/config.json")).unwrap();
    let write = |from: &str, to: &str| {
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
    };
    write("qwen2", "mamba");
    assert!(open().contains("architecture `mamba`"));
    write("linear", "yarn");
    assert!(open().contains("RoPE scaling `yarn`"));
    write("", "");
    assert!(open().contains("no safetensors files"));
    let weights = std::fs::read(tiny("hf/model.safetensors")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), &weights[..weights.len() - 100]).unwrap();
    open();
    write("\"intermediate_size\": 40", "\"intermediate_size\": 41");
    std::fs::write(folder.path().join("model.safetensors"), &weights).unwrap();
    assert!(open().contains("hyper-parameters say"), "{}", open());
}
