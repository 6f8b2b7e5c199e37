//! Contexts published, served and fetched by real processes over real sockets, and everything that can go wrong on the
//! way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![cfg(all(feature = "cli", feature = "net"))]

#[cfg(target_os = "linux")]
mod clocks;
mod faults;
mod processes;
mod proxy;
mod publishing;

use std::time::{Duration, Instant};

use processes::{Server, fails, kv_bytes, ok, report, run, sample};

/// 168 tokens in four chunks, at four levels.
fn published(at: &std::path::Path) {
    ok(at, &["publish", sample(), "--to", "store", "--chunk-tokens", "48"]);
}

#[test]
fn publish_serve_fetch() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let json = report(
        at,
        &["publish", sample(), "--to", "store", "--chunk-tokens", "48", "--levels", "fast,lossless"],
    );
    assert_eq!(json["rows"].as_array().unwrap().len(), 5);
    let server = Server::start(at, &[]);
    let url = server.url();
    let listed = report(at, &["store", "ls", &url]);
    assert_eq!(listed["rows"][0]["tokens"], 168);
    ok(at, &["store", "verify", &url]);
    ok(at, &["fetch", &url, "-o", "exact.safetensors"]);
    assert_eq!(kv_bytes(&at.join("exact.safetensors")), kv_bytes(sample().as_ref()));
    // The best level that four chunks have time for, and a picture of it.
    let json = report(
        at,
        &[
            "fetch",
            &format!("shaped+{url}#rate=20Mbps"),
            "-o",
            "x.safetensors",
            "--slo",
            "800ms",
            "--timeline",
            "t.svg",
        ],
    );
    assert_eq!(json["missed"], false, "{json}");
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["level"].as_str().unwrap().starts_with("fast@")), "{json}");
    let picture = std::fs::read_to_string(at.join("t.svg")).unwrap();
    for text in ["deadline 0.800 s", "decode", "transfer", "fast@"] {
        assert!(picture.contains(text), "{text}");
    }
    // It is there: not again without being told.
    fails(at, &["fetch", &url, "-o", "x.safetensors"], 1, "--force");
    ok(at, &["fetch", &url, "-o", "x.safetensors", "--force"]);
    // A prompt that begins like it.
    let tokens = std::fs::read(sample()).map(|bytes| {
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        header["__metadata__"]["token_ids"].as_str().unwrap().to_owned()
    });
    let mut ids: Vec<u32> = serde_json::from_str(&tokens.unwrap()).unwrap();
    ids.truncate(150);
    ids.extend([1, 2, 3]);
    std::fs::write(at.join("prompt.json"), serde_json::to_string(&ids).unwrap()).unwrap();
    let found = report(at, &["lookup", &url, "--tokens", "prompt.json", "--chunk-tokens", "48"]);
    assert_eq!((&found["rows"][0]["tokens"], &found["rows"][0]["chunks"]), (&144.into(), &3.into()));
}

#[test]
fn wrong_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    published(at);
    fails(at, &["publish", sample(), "--to", "store", "--levels", "nonsense"], 2, "cachegen-paper");
    fails(at, &["publish", sample(), "--to", "store", "--levels", "fast@9"], 2, "levels 0 to 3");
    fails(at, &["publish", sample(), "--to", "store", "--levels", "fast@x"], 2, "a number expected");
    fails(at, &["publish", sample(), "--to", "store", "--level", "a b=mean|bins|rans"], 2, "a b");
    fails(at, &["publish", sample(), "--to", "gopher://x/"], 2, "gopher");
    fails(at, &["publish", "nobody.safetensors", "--to", "store"], 1, "nobody.safetensors");
    fails(at, &["fetch", "store", "nobody", "-o", "x"], 1, "nobody");
    fails(at, &["fetch", "store", "../x", "-o", "x"], 2, "cannot name a context");
    fails(at, &["fetch", "empty", "-o", "x"], 1, "no context");
    fails(at, &["fetch", "store", "-o", "x", "--policy", "psychic"], 2, "psychic");
    fails(at, &["fetch", "store", "-o", "x", "--estimator", "tarot"], 2, "tarot");
    fails(at, &["fetch", "store", "-o", "no/such/folder/x"], 1, "no/such/folder");
    fails(at, &["lookup", "store", "--tokens", "nobody"], 1, "nobody");
    std::fs::write(at.join("bad"), "one two").unwrap();
    fails(at, &["lookup", "store", "--tokens", "bad"], 1, "no token id");
    fails(at, &["store", "rm", "store", "nobody"], 1, "nobody");
    // A closed port: soon, and with the address.
    let start = Instant::now();
    fails(at, &["fetch", "http://127.0.0.1:1/", "x", "-o", "x", "--slo", "500ms"], 1, "127.0.0.1:1");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(!at.join("x").exists());
    run(at, &["fetch", "--help"]);
}
