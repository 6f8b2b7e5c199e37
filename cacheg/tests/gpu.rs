//! The command on a GPU, or on Mesa's llvmpipe.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![cfg(all(feature = "cli", feature = "gpu"))]

use std::path::Path;
use std::process::{Command, Output};

fn run(at: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg")).current_dir(at).args(args).output().unwrap()
}

fn ok(at: &Path, args: &[&str]) -> String {
    let out = run(at, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The first adapter that passes its self-test, as `--device` takes it.
fn device(at: &Path) -> String {
    let json: serde_json::Value = serde_json::from_str(&ok(at, &["devices", "--json"])).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert!(!rows.is_empty(), "no adapter; `cargo xtask test-deps` installs a driver that needs no GPU");
    assert_eq!(rows[0]["self_test"], "passed", "{json}");
    format!("gpu:{}", rows[0]["name"].as_str().unwrap())
}

#[test]
fn decoded_files_are_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/smollm2-135m-novel.safetensors");
    let device = device(at);
    for preset in [
        "fast",
        "cachegen-paper",
        "cachegen-release",
        "q8",
        "q4",
        "kivi2",
        "hadamard4",
        "turboquant3",
        "lossless",
    ] {
        // Chunks of several lengths, all in one file.
        ok(at, &["encode", sample, "-o", "x.cgkv", "--preset", preset, "--chunk-tokens", "50", "--force"]);
        ok(at, &["decode", "x.cgkv", "-o", "cpu.safetensors", "--device", "cpu", "--force"]);
        let report =
            ok(at, &["decode", "x.cgkv", "-o", "gpu.safetensors", "--device", &device, "--force", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["rows"][0]["device"], device.as_str());
        let hybrid = device.replace("gpu:", "hybrid:");
        ok(at, &["decode", "x.cgkv", "-o", "both.safetensors", "--device", &hybrid, "--force"]);
        let read = |name| std::fs::read(at.join(name)).unwrap();
        assert!(read("cpu.safetensors") == read("gpu.safetensors"), "{preset}");
        assert!(read("cpu.safetensors") == read("both.safetensors"), "{preset}");
    }
    // What has no WGSL is refused by name, and `auto` takes the CPU for it.
    ok(at, &["encode", sample, "-o", "x.cgkv", "--pipeline", "mean|uniform(bits=4)|zstd", "--force"]);
    let out = run(at, &["decode", "x.cgkv", "-o", "y.safetensors", "--device", &device]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("stage `zstd` has no WGSL"));
    ok(at, &["decode", "x.cgkv", "-o", "y.safetensors"]);
}

#[test]
fn fetched_contexts_are_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/sample/smollm2-135m-novel.safetensors");
    ok(at, &["publish", sample, "--to", "store", "--chunk-tokens", "48"]);
    for (device, out) in [("cpu", "cpu.safetensors"), (&*device(at), "gpu.safetensors")] {
        ok(at, &["fetch", "store", "-o", out, "--device", device]);
    }
    let read = |name| std::fs::read(at.join(name)).unwrap();
    assert!(read("cpu.safetensors") == read("gpu.safetensors"));
}

#[test]
fn devices_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("x.cgkv"), "").unwrap();
    let out = run(at, &["decode", "x.cgkv", "-o", "y", "--device", "cuda"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("gpu:NAME"));
}
