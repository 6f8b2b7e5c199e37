//! Clocks that are wrong, or jump while processes run: each process has its own, by libfaketime.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::processes::{Server, command, fails, kv_bytes, ok, report, sample};

/// A wall clock that can be set while processes go by it.
struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    fn new(at: &Path) -> Self {
        let mut faketime = Command::new("faketime");
        let out = faketime.args(["-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap_or_else(|e| {
            panic!("cannot run faketime ({e}); `cargo xtask test-deps` installs it");
        });
        let clock = Self {
            file: at.join("clock"),
            library: String::from_utf8(out.stdout).unwrap().trim().to_owned(),
        };
        clock.set("+0");
        // Without this the tests below could not fail.
        let year = |offset| {
            clock.set(offset);
            let mut date = Command::new("date");
            let out = clock.rule(date.arg("+%Y")).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        assert!(year("+800d") >= year("+0") + 2);
        clock
    }

    /// Off by so much from now on.
    fn set(&self, offset: &str) {
        // At once, so that nobody reads half of it.
        let new = self.file.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    /// Lets a process go by this clock. Files keep the times that the machine's gave them, as in a store elsewhere.
    fn rule<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    fn ok(&self, at: &Path, args: &[&str]) -> serde_json::Value {
        let out = self.rule(command(at, args).arg("--json")).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }
}

#[test]
fn fetches_do_not_mind() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    ok(at, &["publish", sample(), "--to", "store", "--chunk-tokens", "48", "--levels", "lossless"]);
    let clock = Clock::new(at);
    let server = Server::by(|command| _ = clock.rule(command), at, "127.0.0.1:0", &[]);
    // About three megabytes at 1.5 MB/s.
    let url = format!("shaped+{}#rate=12Mbps", server.url());
    let args = ["fetch", &url, "-o", "x.safetensors", "--slo", "10s", "--asap", "--json"];
    let start = Instant::now();
    let mut fetching = command(at, &args);
    let child = clock.rule(&mut fetching).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for offset in ["+2d", "-2d", "+1h", "-30", "+0"] {
        thread::sleep(Duration::from_millis(250));
        clock.set(offset);
    }
    let out = child.wait_with_output().unwrap();
    let took = start.elapsed().as_secs_f64();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(kv_bytes(&at.join("x.safetensors")), kv_bytes(sample().as_ref()));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["missed"], false, "{json}");
    // All times of its timeline are those of the clock that does not jump.
    let ttft = json["ttft_s"].as_f64().unwrap();
    assert!(ttft > 1.0 && ttft <= took, "{ttft} of {took} s");
}

#[test]
fn collections_by_wrong_clocks_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let clock = Clock::new(at);
    let stored = ["publish", sample(), "--to", "store", "--chunk-tokens", "48", "--levels", "fast"];
    clock.ok(at, &stored);
    // Another context, published slowly.
    let url = "shaped+file:store#rate=8Mbps";
    let args =
        ["publish", sample(), "--to", url, "--chunk-tokens", "40", "--levels", "lossless", "--id", "slow"];
    let spawn = || command(at, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let objects = || report(at, &["store", "gc", "store", "--dry-run"])["young"].as_u64().unwrap();
    let mut child = spawn();
    let start = Instant::now();
    while objects() == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "no object of the slow one appears");
        thread::sleep(Duration::from_millis(20));
    }
    // Behind: what is new is of the future, and stays.
    clock.set("-2d");
    let collected = clock.ok(at, &["store", "gc", "store"]);
    assert!(collected["rows"].as_array().unwrap().is_empty(), "{collected}");
    // Ahead: what is being published looks like leftovers.
    clock.set("+2d");
    let collected = clock.ok(at, &["store", "gc", "store"]);
    assert!(!collected["rows"].as_array().unwrap().is_empty(), "{collected}");
    assert!(child.try_wait().unwrap().is_none(), "the slow one was too fast for this test");
    let out = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{message}");
    assert!(message.contains("was removed before the context was complete"), "{message}");
    // The other context is whole, and nothing half visible.
    let listed = report(at, &["store", "ls", "store"]);
    assert_eq!(listed["rows"].as_array().unwrap().len(), 1, "{listed}");
    ok(at, &["store", "verify", "store"]);
    // Again, by a clock that jumps.
    child = clock.rule(&mut command(at, &args)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for offset in ["-2d", "+2d", "+0"] {
        thread::sleep(Duration::from_millis(200));
        clock.set(offset);
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    ok(at, &["store", "verify", "store"]);
    assert_eq!(report(at, &["store", "ls", "store"])["rows"].as_array().unwrap().len(), 2);
}

#[test]
fn tokens_expire_by_the_servers_clock() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    ok(at, &["publish", sample(), "--to", "store", "--levels", "fast"]);
    std::fs::write(at.join("tokens"), "secret 2500-01-01T00:00:00Z\n").unwrap();
    std::fs::write(at.join("token"), "secret").unwrap();
    let clock = Clock::new(at);
    let server =
        Server::by(|command| _ = clock.rule(command), at, "127.0.0.1:0", &["--token-file", "tokens"]);
    let url = server.url();
    ok(at, &["fetch", &url, "-o", "x.safetensors", "--token-file", "token"]);
    clock.set("+200000d");
    fails(at, &["fetch", &url, "-o", "y.safetensors", "--token-file", "token"], 1, "denied");
    clock.set("+0");
    ok(at, &["fetch", &url, "-o", "y.safetensors", "--token-file", "token"]);
}
