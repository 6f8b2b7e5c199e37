//! Golden files: written only on request, never again, and compared to the bit.

use std::path::{Path, PathBuf};
use std::process::Command;

use cacheg_core::testkit::{Suite, golden};
use cacheg_core::{Plugin, StageData};

use crate::{coder, transform};

/// Where the child processes of the tests below look for golden files, and for which version.
const DIR: &str = "CACHEG_TEST_GOLDEN_DIR";
const VERSION: &str = "CACHEG_TEST_GOLDEN_VERSION";
const FILE: &str = "toy.raw.v1.safetensors";

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testkit/golden")
}

#[test]
fn check_in_a_directory() {
    let version = std::env::var(VERSION).map_or(1, |version| version.parse().unwrap());
    let suite = Suite::new(Plugin { version, ..coder::PLUGIN }, &["toy.raw"]);
    golden::coder(&suite, &std::env::var_os(DIR).map_or_else(committed, PathBuf::from)).unwrap();
}

/// Runs the test above in a process of its own, because variables of this one are shared by all tests.
fn check_in_child(dir: &Path, version: &str, write: &str) -> Result<(), String> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "golden::check_in_a_directory"]);
    let output = child.env(DIR, dir).env(VERSION, version).env(golden::WRITE, write).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}

#[test]
fn missing_files_are_written_on_request_only_and_never_twice() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("new");
    let path = dir.join(FILE);
    let message = check_in_child(&dir, "1", "0").unwrap_err();
    assert!(message.contains("CACHEG_WRITE_GOLDEN=1") && message.contains(FILE), "{message}");
    assert!(!path.exists());
    check_in_child(&dir, "1", "1").unwrap();
    check_in_child(&dir, "1", "0").unwrap();
    let message = check_in_child(&dir, "2", "0").unwrap_err();
    assert!(message.contains("toy.raw.v2.safetensors"), "{message}");

    let mut data = StageData::from_bytes(&std::fs::read(&path).unwrap()).unwrap();
    let (_, mut bytes) = data.get_u8("stream.2.bytes").unwrap();
    bytes[3] ^= 1;
    data.put_u8("stream.2.bytes", &[bytes.len()], &bytes);
    let tampered = data.to_bytes().unwrap();
    std::fs::write(&path, &tampered).unwrap();
    let message = check_in_child(&dir, "1", "1").unwrap_err();
    assert!(message.contains("`stream.2.bytes` has changed, first at byte Some(3)"), "{message}");
    assert_eq!(std::fs::read(&path).unwrap(), tampered, "an existing file was written");
}

/// A directory in which a faulty stage finds the golden file of the good one.
fn as_if_good(plugin: Plugin, fault: &str) -> (tempfile::TempDir, Suite) {
    let dir = tempfile::tempdir().unwrap();
    let good = committed().join(format!("{}.v1.safetensors", plugin.name));
    let name = format!("{}_fault={fault}.v1.safetensors", plugin.name);
    std::fs::copy(good, dir.path().join(name)).unwrap();
    (dir, crate::faulty(plugin, fault))
}

#[test]
fn other_bytes_and_other_values_are_found() {
    let (dir, suite) = as_if_good(coder::PLUGIN, "ideal");
    golden::coder(&suite, dir.path()).unwrap();
    let (dir, suite) = as_if_good(coder::PLUGIN, "wrong");
    let message = golden::coder(&suite, dir.path()).unwrap_err().to_string();
    assert!(message.contains("has changed"), "{message}");

    let (dir, suite) = as_if_good(transform::PLUGIN, "inexact");
    let message = golden::transform(&suite, dir.path()).unwrap_err().to_string();
    assert!(message.contains(".inverse` has changed"), "{message}");
    golden::transform(&suite.clone().golden_bound(0.05), dir.path()).unwrap();
    golden::transform(&suite.golden_bound(1e-6), dir.path()).unwrap_err();
}
