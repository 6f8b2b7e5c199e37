//! The commands of the feature `llm`, on a tiny model.
#![cfg(feature = "llm")]
#![expect(clippy::unwrap_used, reason = "a panic in a test's helper fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cacheg::{KvFile, Limits};
use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg-bench"))
        .args(args)
        .current_dir(folder)
        .env("CACHEG_CACHE", folder.join("cache"))
        .output()
        .unwrap()
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let output = run(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn model() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/tiny.gguf");
    path.to_str().unwrap().to_owned()
}

#[test]
fn text_becomes_a_kv_cache() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), "hello hello 12 ".repeat(20)).unwrap();
    std::fs::write(folder.join("b.txt"), "What else?").unwrap();
    let out = ["prefill", "a.txt", "b.txt", "--model", &model, "-o", "kv.safetensors"];
    let report = json(folder, &[&out[..], &["--continuation", "5", "--statistics", "--json"]].concat());
    let tokens = report["rows"][0]["tokens"].as_u64().unwrap() as usize;
    let file = KvFile::open(&folder.join("kv.safetensors"), &Limits::default()).unwrap();
    assert_eq!((file.tokens(), file.first_position()), (tokens, 0));
    let numbers = |key: &str| serde_json::from_str::<Vec<u32>>(&file.metadata()[key]).unwrap().len();
    assert_eq!((numbers("token_ids"), numbers("continuation_ids")), (tokens, 5));
    assert!(file.geometry().groups()[0].rope.is_some_and(|rope| rope.scaling.is_some()));

    // Nothing is replaced unless asked to; texts must be long enough.
    assert!(error(folder, &out).contains("--force"));
    let wanted = error(folder, &[&out[..], &["--force", "--tokens", "9999"]].concat());
    assert!(wanted.contains("9999 of context"), "{wanted}");
    let again = [&out[..], &["--force", "--tokens", "9", "--skip", "1", "--json"]].concat();
    assert_eq!(json(folder, &again)["rows"][0]["tokens"], 9);
}

#[test]
fn models_are_shown_and_read_texts() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    let report = json(folder, &["model", "show", "--model", &model, "--json"]);
    let rows = report["rows"].as_array().unwrap();
    let value = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap()["value"].clone();
    assert_eq!(
        (value("heads"), value("kv_heads"), value("kv_bytes_per_token")),
        (4.into(), 2.into(), 256.into())
    );
    std::fs::write(folder.join("a.txt"), "hello world").unwrap();
    let row = json(folder, &["model", "read", "a.txt", "--model", &model, "--greedy", "3", "--json"])["rows"]
        [0]
    .clone();
    assert!(row["perplexity"].as_f64().unwrap() > 1.0);
    assert_eq!(row["greedy_ids"].as_array().unwrap().len(), 3);
    // Without a model: what to do.
    assert!(error(folder, &["model", "show"]).contains("model get smollm2"));
    assert!(error(folder, &["model", "get", "gpt5"]).contains("there are: smollm2"));
}
