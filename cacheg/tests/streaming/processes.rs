//! The command and its server as processes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use cacheg::{KvFile, Limits};
use serde_json::Value;

pub(crate) fn sample() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/sample/smollm2-135m-novel.safetensors")
}

pub(crate) fn command(at: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cacheg"));
    command.current_dir(at).args(args).env_remove("CACHEG_TOKEN");
    command
}

pub(crate) fn run(at: &Path, args: &[&str]) -> Output {
    command(at, args).output().unwrap()
}

pub(crate) fn ok(at: &Path, args: &[&str]) -> String {
    let out = run(at, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub(crate) fn report(at: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&ok(at, &[args, &["--json"]].concat())).unwrap()
}

/// Fails with this exit code and says this; a report may stand before it.
pub(crate) fn fails(at: &Path, args: &[&str], code: i32, says: &str) -> Output {
    let out = run(at, args);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    out
}

/// All planes of a KV cache file.
pub(crate) fn kv_bytes(path: &Path) -> Vec<Vec<u8>> {
    let file = KvFile::open(path, &Limits::default()).unwrap();
    let view = file.view();
    (0..view.planes().len()).map(|plane| view.plane_bytes(plane).to_vec()).collect()
}

/// `cacheg serve store`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    address: String,
}

impl Server {
    pub(crate) fn start(at: &Path, args: &[&str]) -> Self {
        Self::listen(at, "127.0.0.1:0", args)
    }

    pub(crate) fn listen(at: &Path, address: &str, args: &[&str]) -> Self {
        Self::by(|_| (), at, address, args)
    }

    /// With more in its command.
    pub(crate) fn by(more: impl Fn(&mut Command), at: &Path, address: &str, args: &[&str]) -> Self {
        let all = [&["serve", "store", "--json", "--listen", address], args].concat();
        let mut command = command(at, &all);
        more(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let json: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        let url = json["url"].as_str().unwrap_or_else(|| panic!("{json}"));
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Self { child, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// As by `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
