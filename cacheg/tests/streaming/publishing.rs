//! What goes wrong while a context is published.

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::processes::{Server, command, fails, ok, report, run, sample};

const ARGS: [&str; 6] = ["publish", "", "--to", "store", "--chunk-tokens", "12"];

fn args() -> Vec<&'static str> {
    let mut args = ARGS.to_vec();
    args[1] = sample();
    args
}

fn contexts(at: &Path) -> usize {
    report(at, &["store", "ls", "store"])["rows"].as_array().unwrap().len()
}

#[test]
fn killed_publishers_leave_nothing_half_visible() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut killed = 0;
    for milliseconds in [5, 10, 20, 30, 40, 60, 80, 120] {
        let mut child = command(at, &args()).stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        let finished = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        killed += usize::from(!finished);
        let found = contexts(at);
        assert!(found <= 1);
        if found == 1 {
            // Then all of it is there.
            ok(at, &["store", "verify", "store"]);
            break;
        }
    }
    assert!(killed > 0, "the first was ended after 5 ms");
    ok(at, &args());
    ok(at, &["store", "verify", "store"]);
    assert_eq!(contexts(at), 1);
    // Nothing is left of the interrupted ones but what the context uses.
    let collected = report(at, &["store", "gc", "store", "--grace", "0s"]);
    assert!(collected["rows"].as_array().unwrap().is_empty(), "{collected}");
    ok(at, &["store", "verify", "store"]);
}

#[test]
fn two_publishers_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let spawn = || command(at, &args()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert_eq!(contexts(at), 1);
    ok(at, &["store", "verify", "store"]);
}

/// A file system of a megabyte, mounted where only this test sees it: by root, or where users may have namespaces.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::create_dir(at.join("store")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m none store && \"{}\" publish \"{}\" --to store --chunk-tokens 12; code=$?; \
         \"{0}\" store ls store --json > ls.json; exit $code",
        env!("CARGO_BIN_EXE_cacheg"),
        sample()
    );
    let shell = |wrapped: &[&str], script: &str| {
        let (program, rest) = wrapped.split_first().unwrap();
        std::process::Command::new(program).args(rest).arg("-c").arg(script).current_dir(at).output().unwrap()
    };
    let mut out = shell(&["unshare", "--mount", "sh"], &script);
    if !at.join("ls.json").exists() {
        out = shell(&["unshare", "--mount", "--map-root-user", "sh"], &script);
    }
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(at.join("ls.json").exists(), "cannot mount a file system for this test: {message}");
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(message.contains("No space left"), "{message}");
    let listed: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at.join("ls.json")).unwrap()).unwrap();
    assert!(listed["rows"].as_array().unwrap().is_empty(), "{listed}");
}

#[test]
fn to_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::create_dir(at.join("store")).unwrap();
    let server = Server::start(at, &["--writable"]);
    let mut to_server = args();
    let url = server.url();
    to_server[3] = &url;
    ok(at, &to_server);
    ok(at, &["store", "verify", &url]);
    assert_eq!(contexts(at), 1);
    let read_only = Server::start(at, &[]);
    let url = read_only.url();
    let mut refused = args();
    refused[3] = &url;
    refused.extend(["--id", "another"]);
    fails(at, &refused, 1, "");
    assert_eq!(contexts(at), 1);
    assert!(run(at, &["store", "rm", &url, "nobody"]).status.code() == Some(1));
}
