//! What scripts and people see.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;

use crate::process::{Served, command};

fn store() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("store/chunks")).unwrap();
    std::fs::write(folder.path().join("store/chunks/a"), "hello").unwrap();
    std::fs::write(folder.path().join("outside"), "secret").unwrap();
    folder
}

#[test]
fn serves_and_stops_at_signals() {
    let folder = store();
    for (signal, log) in [(Signal::INT, "text"), (Signal::TERM, "json")] {
        let served =
            Served::start(command(folder.path(), &["store", "--listen", "127.0.0.1:0", "--log", log]));
        assert_eq!(served.line, format!("listening on http://{}\n", served.address));
        let answer = served.ask("GET", "/chunks/a", "");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        assert!(served.ask("GET", "/../outside", "").starts_with("HTTP/1.1 400"));
        assert!(served.ask("PUT", "/b", "content-length: 0\r\n").starts_with("HTTP/1.1 405"));
        served.signal(signal);
        let (status, text) = served.end();
        assert!(status.success(), "{text}");
        let line = text.lines().find(|line| line.contains("chunks/a")).unwrap_or_else(|| panic!("{text}"));
        if log == "json" {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["method"], &line["key"]), (&"GET".into(), &"chunks/a".into()), "{line}");
            assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &5.into()), "{line}");
            assert!(line["ms"].is_number() && line["peer"].as_str().unwrap().starts_with("127."), "{line}");
        } else {
            for part in ["GET", "chunks/a", "status=200", "bytes=5", "ms=", "peer=127."] {
                assert!(line.contains(part), "{line}");
            }
        }
    }
}

#[test]
fn a_transfer_is_finished_before_the_end() {
    let folder = store();
    let large = vec![7; 32 << 20];
    std::fs::write(folder.path().join("store/chunks/large"), &large).unwrap();
    let served = Served::start(command(folder.path(), &["store", "--listen", "127.0.0.1:0"]));
    let mut stream = TcpStream::connect(&served.address).unwrap();
    stream.write_all(b"GET /chunks/large HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = vec![0; 100_000];
    stream.read_exact(&mut answer).unwrap();
    served.signal(Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(TcpStream::connect(&served.address).is_err());
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&large));
    assert!(served.end().0.success());
}

#[test]
fn writes_with_a_token_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(folder.path(), &["new", "--writable", "--listen", "127.0.0.1:0", "--json"]);
    let served = Served::start({
        command.env("CACHEG_TOKEN", "alpha");
        command
    });
    let line: serde_json::Value = serde_json::from_str(&served.line).unwrap();
    assert_eq!(line["url"], format!("http://{}", served.address));
    assert!(served.ask("PUT", "/a/b", "content-length: 0\r\n").starts_with("HTTP/1.1 401"));
    let token = "authorization: Bearer alpha\r\n";
    let answer = served.ask("PUT", "/a/b", &format!("{token}content-length: 0\r\nif-none-match: *\r\n"));
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(folder.path().join("new/a/b").is_file());
    let answer = served.ask("PUT", "/a/b", &format!("{token}content-length: 0\r\nif-none-match: *\r\n"));
    assert!(answer.starts_with("HTTP/1.1 412"), "{answer}");
    assert!(served.ask("PROPFIND", "/", token).contains("<D:href>/a/b</D:href>"));
}

#[test]
fn wrong_usage() {
    let folder = store();
    let at = folder.path();
    std::fs::write(at.join("empty"), "# nobody\n").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (args, code, says) in [
        (&["store", "--listen", "nonsense"][..], 2, "HOST:PORT"),
        (&["store", "--max-object", "much"], 2, "64MiB"),
        (&["store", "--grace", "soon"], 2, "--grace"),
        (&["store", "--tls-cert", "x"], 2, "--tls-key"),
        (&["store", "--max-connections", "0"], 2, "--max-connections"),
        (&["store", "--token-file", "empty"], 2, "no tokens"),
        (&["gopher://x"], 2, "gopher"),
        (&[], 2, "DIR|URL"),
        (&["store", "--token-file", "none"], 1, "none"),
        (&["store", "--tls-cert", "none", "--tls-key", "none"], 1, "none"),
        (&["missing"], 1, "missing is no folder"),
        (&["store", "--listen", &taken], 1, "cannot listen on"),
    ] {
        fails(at, args, code, says);
    }
}

fn fails(folder: &Path, args: &[&str], code: i32, says: &str) {
    let out = command(folder, args).output().unwrap();
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(says) && !message.contains("panicked"), "{args:?}: {message}");
}
