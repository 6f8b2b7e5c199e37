//! What networks and servers do to a fetch.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use super::processes::{Server, command, fails, kv_bytes, ok, report, run, sample};
use super::proxy::{Fault, Proxy};

/// A context of one lossless level, so that what comes is what was sent.
fn exact(at: &std::path::Path) {
    ok(at, &["publish", sample(), "--to", "store", "--chunk-tokens", "48", "--levels", "lossless"]);
}

fn check(at: &std::path::Path, name: &str) {
    assert_eq!(kv_bytes(&at.join(name)), kv_bytes(sample().as_ref()));
}

#[test]
fn a_server_that_is_killed_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    exact(at);
    let mut server = Server::start(at, &[]);
    let address = server.address().to_owned();
    // About three megabytes at 1.5 MB/s.
    let url = format!("shaped+{}#rate=12Mbps", server.url());
    let args = ["fetch", &url, "-o", "x.safetensors", "--patience", "2s", "--slo", "20s", "--asap", "--json"];
    let child = command(at, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(700));
    server.kill();
    thread::sleep(Duration::from_millis(300));
    let _again = Server::listen(at, &address, &[]);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    check(at, "x.safetensors");
}

#[test]
fn connections_that_break_off_go_on_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    exact(at);
    let server = Server::start(at, &[]);
    let proxy = Proxy::start(server.address(), Fault::Close, 300_000, 6);
    let json = report(at, &["fetch", &proxy.url(), "-o", "x.safetensors"]);
    check(at, "x.safetensors");
    // Nothing came twice: the bytes of the objects and no more.
    let stored: u64 = json["rows"].as_array().unwrap().iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"].as_u64().unwrap(), stored);
}

#[test]
fn a_connection_that_stalls_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    exact(at);
    let server = Server::start(at, &[]);
    let proxy = Proxy::start(server.address(), Fault::Stall, 400_000, 2);
    ok(at, &["fetch", &proxy.url(), "-o", "x.safetensors", "--patience", "500ms"]);
    check(at, "x.safetensors");
}

#[test]
fn no_fetch_hangs_past_its_deadline_and_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    exact(at);
    let server = Server::start(at, &[]);
    // The manifest comes through, the chunks never do.
    let proxy = Proxy::start(server.address(), Fault::Stall, 100_000, u64::MAX);
    let start = Instant::now();
    let out = run(at, &["fetch", &proxy.url(), "-o", "x.safetensors", "--slo", "500ms", "--json"]);
    let took = start.elapsed();
    assert_eq!(out.status.code(), Some(1));
    // And the time that a process takes to begin and to end, on a busy machine.
    assert!(took < Duration::from_millis(1_500 + 700), "{took:?}");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&json["missed"], &json["ttft_s"]), (&true.into(), &serde_json::Value::Null));
    assert!(String::from_utf8_lossy(&out.stderr).contains("the same command goes on"));
    assert!(!at.join("x.safetensors").exists());
    // Text makes up for all of it: whoever can recompute is told what.
    let json = report(
        at,
        &[
            "fetch",
            &proxy.url(),
            "-o",
            "y.safetensors",
            "--slo",
            "3s",
            "--recompute",
            "500ms",
            "--patience",
            "1s",
        ],
    );
    assert_eq!(json["recompute"][0][0], 0, "{json}");
    assert_eq!(json["missed"], false, "{json}");
    // Nothing at all comes: as soon.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let start = Instant::now();
    fails(at, &["fetch", &url, "x", "-o", "z", "--slo", "300ms"], 1, "no answer in time");
    assert!(start.elapsed() < Duration::from_millis(1_300 + 700), "{:?}", start.elapsed());
}

#[test]
fn damage_on_the_way_and_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    ok(at, &["publish", sample(), "--to", "store", "--chunk-tokens", "48", "--levels", "lossless,fast@1"]);
    let server = Server::start(at, &[]);
    let proxy = Proxy::start(server.address(), Fault::Damage, 400_000, 1);
    let json = report(at, &["fetch", &proxy.url(), "-o", "x.safetensors"]);
    let faults = json["faults"].as_array().unwrap();
    assert!(faults.len() <= 1, "{json}");
    // Another level of that chunk, the best of the others.
    let levels: Vec<&str> =
        json["rows"].as_array().unwrap().iter().map(|row| row["level"].as_str().unwrap()).collect();
    assert_eq!(levels.iter().filter(|level| **level == "fast@1").count(), faults.len(), "{json}");
}

#[test]
fn tokens_that_expire() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    exact(at);
    std::fs::write(at.join("tokens"), "good\nold 2020-01-01T00:00:00Z\n").unwrap();
    for (file, token) in [("good", "good"), ("old", "old"), ("wrong", "wrong")] {
        std::fs::write(at.join(file), token).unwrap();
    }
    let server = Server::start(at, &["--token-file", "tokens"]);
    let url = server.url();
    ok(at, &["fetch", &url, "-o", "x.safetensors", "--token-file", "good"]);
    for file in ["old", "wrong"] {
        let start = Instant::now();
        let out = fails(at, &["fetch", &url, "-o", "y", "--token-file", file], 1, "denied");
        assert!(
            !String::from_utf8_lossy(&out.stderr).contains(&format!("`{file}`")),
            "tokens are never shown"
        );
        assert!(start.elapsed() < Duration::from_secs(3), "refusals are not tried again");
    }
    fails(at, &["fetch", &url, "-o", "y"], 1, "denied");
    fails(at, &["publish", sample(), "--to", &url, "--token-file", "good"], 1, "");
}
