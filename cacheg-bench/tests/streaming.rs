//! `cacheg-bench stream`: real processes, real sockets; with the feature `llm` a tiny model, and network namespaces.
#![expect(clippy::unwrap_used, reason = "a panic in a test's helper fails the test")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg-bench")).args(args).current_dir(folder).output().unwrap()
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let output = run(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn overhead_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["--tokens", "200", "--chunk-tokens", "64", "--repeat", "1", "--levels", "fast@1", "--json"];
    let report = json(folder.path(), &[&["stream", "--overhead"][..], &small].concat());
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["f16", "fast@1"], "the best first");
    for row in rows {
        for key in ["download_s", "decode_s", "fetch_s", "overhead", "megabytes"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
        }
    }
}

#[test]
fn publishing_is_measured_in_processes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["stream", "--publish", "--tokens", "100,200", "--chunk-tokens", "64", "--json"];
    let report = json(folder.path(), &args);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| row["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [100, 200]);
    assert!(rows.iter().all(|row| row["stored_bytes"].as_u64().unwrap() > 0));
    assert!(!run(folder.path(), &["stream", "--publish", "--tokens", "0"]).status.success());
}

#[cfg(feature = "llm")]
mod llm {
    use super::*;

    /// Skips the test of network namespaces, for machines on which nobody may make any.
    const WITHOUT: &str = "CACHEG_TEST_WITHOUT_NAMESPACES";

    fn model() -> String {
        format!("{}/tests/data/tiny/tiny.gguf", env!("CARGO_MANIFEST_DIR"))
    }

    /// All methods at two rates, on a context of a few chunks.
    fn stream(folder: &Path, more: &[&str]) -> Value {
        let model = model();
        let text: String = (0..80u32).map(|i| format!("{} ", i.wrapping_mul(2_654_435_761) >> 17)).collect();
        std::fs::write(folder.join("a.txt"), text).unwrap();
        let args = ["stream", "--real", "a.txt", "--model", &model, "--json", "--repeat", "1", "--svg", "."];
        let lengths = ["--tokens", "70", "--continuation", "12", "--chunk-tokens", "16"];
        let sweep = ["--rates", "2,20", "--slos", "0.5"];
        json(folder, &[&args[..], &lengths, &sweep, more].concat())
    }

    fn check(folder: &Path, report: &Value) {
        let rows = report["rows"].as_array().unwrap();
        let of = |name: &str, rate: f64| {
            let row = rows.iter().find(|row| row["name"] == name && row["rate_mbps"] == rate);
            row.unwrap_or_else(|| panic!("no {name} at {rate}"))
        };
        for rate in [2.0, 20.0] {
            for name in ["text", "f16"] {
                // Not nearly: what arrives is the model's own KV cache.
                assert_eq!(of(name, rate)["kl"].as_f64(), Some(0.0), "{name}");
            }
            for name in [
                "q8",
                "q4",
                "cachegen-release@1",
                "cachegen-paper@1",
                "fast@1",
                "plan fast",
                "plan paper, 1/3",
            ] {
                let row = of(name, rate);
                assert!(row["ttft_s"].as_f64().unwrap() > 0.0 && row["faults"] == 0, "{row}");
            }
            assert_eq!(of("plan fast", rate)["slo_s"].as_f64(), Some(0.5));
        }
        // 70 tokens of 256 bytes at 2 Mbit/s take 72 ms, the burst that may come at once apart.
        let f16 = |rate: f64| of("f16", rate)["fetch_s"].as_f64().unwrap();
        assert!(of("f16", 2.0)["bytes"].as_f64().unwrap() > 70.0 * 256.0 && f16(2.0) > 0.0);
        for name in ["ttft.svg", "slo.svg", "timeline.svg"] {
            let svg = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(svg.contains("</svg>"), "{name}");
        }
    }

    #[test]
    fn text_is_published_by_one_command() {
        let (folder, model) = (tempfile::tempdir().unwrap(), model());
        let folder = folder.path();
        std::fs::write(folder.join("a.txt"), "hello hello 12 ".repeat(20)).unwrap();
        let args =
            ["publish", "a.txt", "--to", "store", "--model", &model, "--levels", "fast@1,q8", "--json"];
        let report = json(folder, &[&args[..], &["--chunk-tokens", "16", "--tokens", "60"]].concat());
        assert_eq!((report["tokens"].as_u64(), report["chunks"].as_u64()), (Some(60), Some(4)));
        let names: Vec<&str> =
            report["rows"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["q8@0", "fast@1"], "the best first");
        // A longer text that begins alike shares what it can.
        let longer = json(folder, &[&args[..], &["--chunk-tokens", "16", "--tokens", "70"]].concat());
        assert!(longer["shared_bytes"].as_u64().unwrap() > 0);
        let output = run(folder, &[&args[..], &["--tokens", "9999"]].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("9999 were asked for"));
    }

    #[test]
    fn all_methods_run_on_loopback() {
        let folder = tempfile::tempdir().unwrap();
        let report = stream(folder.path(), &["--loopback"]);
        assert!(report["link"].as_str().unwrap().contains("loopback"));
        check(folder.path(), &report);
    }

    /// Whether there are namespaces of this process: others may have some of their own.
    fn namespaces_of(process: u32) -> bool {
        let out = Command::new("ip")
            .args(["netns", "list"])
            .output()
            .unwrap_or_else(|e| panic!("`ip` cannot be run ({e}): install iproute2, or set {WITHOUT}=1"));
        String::from_utf8_lossy(&out.stdout).contains(&format!("cacheg-bench-{process}-"))
    }

    #[test]
    fn all_methods_run_between_namespaces() {
        if std::env::var_os(WITHOUT).is_some() {
            return eprintln!("SKIPPED: {WITHOUT} is set");
        }
        let folder = tempfile::tempdir().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let root = status.lines().any(|line| line.starts_with("Uid:\t0"));
        assert!(root, "network namespaces need root; set {WITHOUT}=1 where there is none");
        assert!(!namespaces_of(std::process::id()));
        let report = stream(folder.path(), &[]);
        assert!(report["link"].as_str().unwrap().contains("namespaces"));
        check(folder.path(), &report);

        // Interrupted: nothing is left.
        let mut child = Command::new(env!("CARGO_BIN_EXE_cacheg-bench"))
            .args([
                "stream",
                "--real",
                "a.txt",
                "--model",
                &model(),
                "--tokens",
                "70",
                "--continuation",
                "12",
            ])
            .args(["--chunk-tokens", "16", "--rates", "0.05", "--slos", "9", "--repeat", "9"])
            .current_dir(folder.path())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let there = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            namespaces_of(child.id())
        });
        assert!(there, "the bench never made its namespaces");
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert!(!child.wait().unwrap().success());
        assert!(!namespaces_of(child.id()), "a namespace was left behind");
    }
}
