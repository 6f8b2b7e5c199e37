//! The `cacheg` command as people use it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/smollm2-135m-novel.safetensors")
}

fn cacheg(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg")).current_dir(folder).args(args).output().unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let out = cacheg(folder, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn fails(folder: &Path, args: &[&str], code: i32, says: &str) {
    let out = cacheg(folder, args);
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {message}");
    assert!(message.contains(says), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn every_preset_goes_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (at, kv) = (folder.path(), sample());
    let kv = kv.to_str().unwrap();
    for preset in cacheg::PRESETS.iter().filter(|preset| !preset.statistics) {
        ok(at, &["encode", kv, "--preset", preset.name, "-o", "x.cgkv", "--force"]);
        let json: serde_json::Value =
            serde_json::from_str(&ok(at, &["inspect", "x.cgkv", "--json"])).unwrap();
        let rows = json["rows"].as_array().unwrap();
        let bytes = |row: &serde_json::Value| row["bytes"].as_u64().unwrap();
        let (file, parts) = rows.split_last().unwrap();
        assert_eq!(bytes(file), std::fs::metadata(at.join("x.cgkv")).unwrap().len());
        assert_eq!(parts.iter().map(bytes).sum::<u64>(), bytes(file), "{}", preset.name);
        ok(at, &["decode", "x.cgkv", "-o", "y.safetensors", "--force"]);
        let json: serde_json::Value =
            serde_json::from_str(&ok(at, &["compare", kv, "y.safetensors", "--json"])).unwrap();
        let all = json["rows"].as_array().unwrap().last().unwrap();
        assert!(all["rmse"].as_f64().unwrap() < 0.6, "{}: {all}", preset.name);
    }
}

#[test]
fn profiles_and_free_pipelines() {
    let folder = tempfile::tempdir().unwrap();
    let (at, kv) = (folder.path(), sample());
    let kv = kv.to_str().unwrap();
    let spec = "anchor-delta(group=10)|bins(k=32,16,16;v=32,16)|rans(tables=channel)";
    let text = ok(at, &["profile", kv, "-o", "m.cgprof", "--pipeline", spec]);
    assert!(text.contains("anchor-delta"), "{text}");
    ok(at, &["encode", kv, "-o", "x.cgkv", "--pipeline", spec, "--profile", "m.cgprof"]);
    fails(at, &["decode", "x.cgkv", "-o", "y.safetensors"], 1, "was encoded with profile");
    assert!(!at.join("y.safetensors").exists());
    assert!(ok(at, &["inspect", "x.cgkv"]).contains("give --profile"));
    assert!(ok(at, &["inspect", "x.cgkv", "--profile", "m.cgprof"]).contains("coder's streams"));
    ok(at, &["decode", "x.cgkv", "-o", "y.safetensors", "--profile", "m.cgprof"]);
    ok(at, &["compare", kv, "y.safetensors", "--max-rmse", "0.5"]);
    fails(at, &["compare", kv, "y.safetensors", "--max-rmse", "0.0001"], 1, "root mean squared error");
}

/// The sample with attention sums, as `cacheg-bench prefill --statistics` would write them.
fn sample_with_statistics(path: &Path) {
    let file = cacheg::sample().unwrap();
    let view = file.view();
    let (heads, tokens) = (9, view.tokens());
    let sums: Vec<f32> = (0..heads * tokens)
        .map(|at| if at.is_multiple_of(7) { 20.0 } else { (at % 13) as f32 * 0.25 })
        .collect();
    let names: Vec<String> = (0..30)
        .flat_map(|layer| ["sum", "recent"].map(|what| format!("layers.{layer}.attention_{what}")))
        .collect();
    let shape = [heads, tokens];
    let extra: Vec<_> =
        names.iter().map(|name| cacheg::core::ExtraTensor { name, shape: &shape, values: &sums }).collect();
    let out = std::fs::File::create(path).unwrap();
    cacheg::core::write_kv_with(out, &view, file.metadata(), &extra).unwrap();
}

#[test]
fn tokens_are_dropped_and_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sample_with_statistics(&at.join("kv.safetensors"));
    let spec = "h2o(keep=0.25)|mean|bins(step=0.5;reach=15)|rans(tables=class)";
    for profile in [false, true] {
        let own = ["--profile", "m.cgprof"];
        let own = if profile { &own[..] } else { &[] };
        let with = |args: &[&'static str]| [args, own].concat();
        if profile {
            ok(
                at,
                &["profile", "kv.safetensors", "-o", "m.cgprof", "--pipeline", spec, "--chunk-tokens", "100"],
            );
        }
        let encode = [
            "encode",
            "kv.safetensors",
            "-o",
            "x.cgkv",
            "--pipeline",
            spec,
            "--force",
            "--chunk-tokens",
            "100",
        ];
        ok(at, &with(&encode));
        let text = ok(at, &with(&["inspect", "x.cgkv"]));
        assert!(text.contains("42 tokens, by chunk 25 of 100, 17 of 68"), "{text}");
        assert!(text.contains("which tokens were kept"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&ok(at, &with(&["inspect", "x.cgkv", "--json"]))).unwrap();
        assert_eq!((json["tokens"].as_u64(), json["kept_tokens"].as_u64()), (Some(168), Some(42)));
        let bytes = |row: &serde_json::Value| row["bytes"].as_u64().unwrap();
        let (file, parts) = json["rows"].as_array().unwrap().split_last().unwrap();
        assert_eq!(parts.iter().map(bytes).sum::<u64>(), bytes(file));
        // A bit for each token of 90 heads in two chunks, and the lengths.
        let sets = parts.iter().find(|row| row["name"] == "which tokens were kept").unwrap();
        assert_eq!(bytes(sets), 90 * (13 + 9) + 8);
        let text = ok(at, &with(&["decode", "x.cgkv", "-o", "y.safetensors", "--force"]));
        assert!(text.contains("42") && text.contains("168"), "{text}");
    }
    let file = cacheg::KvFile::open(&at.join("y.safetensors"), &cacheg::Limits::default()).unwrap();
    let kept = file.view().kept().unwrap().clone();
    assert_eq!((file.tokens(), kept.context_tokens(), kept.next_position()), (42, 168, 168));
    assert!(kept.positions(29, 2).last() == Some(167));
    fails(
        at,
        &["compare", "kv.safetensors", "y.safetensors"],
        1,
        "168 and 42 of 168 tokens: where tokens were dropped",
    );
    ok(at, &["compare", "y.safetensors", "y.safetensors"]);
    fails(at, &["encode", "y.safetensors", "-o", "z"], 1, "42 of 168 are left");
    fails(at, &["profile", "y.safetensors", "-o", "z"], 1, "42 of 168 are left");
    let sample = sample();
    let sample = sample.to_str().unwrap();
    fails(at, &["encode", sample, "-o", "z", "--pipeline", spec], 1, "prefill --statistics");
    fails(at, &["profile", sample, "-o", "z", "--pipeline", spec], 1, "prefill --statistics");
    fails(at, &["encode", sample, "-o", "z", "--pipeline", "h2o|unrope|uniform|raw"], 2, "drops tokens");
    assert!(ok(at, &["stages"]).contains("h2o(keep=0.5;recent=0.5)"));
}

#[test]
fn profiles_with_statistics_name_them() {
    use cacheg::core::{Counts, Origin};
    let folder = tempfile::tempdir().unwrap();
    let (at, kv) = (folder.path(), sample());
    let kv = kv.to_str().unwrap();
    let geometry = cacheg::sample().unwrap().geometry().clone();
    let write = |name: &str, geometry: &cacheg::Geometry| {
        let mut statistics = cacheg::Statistics::new(geometry, 0, 0).unwrap();
        let counts = Counts { contexts: 1, tokens: 1, continuation_tokens: 1, pairs: 1 };
        statistics.note(Origin { name: "none".into(), sha256: String::new() }, counts).unwrap();
        for (layer, sums) in statistics.layers_mut().iter_mut().enumerate() {
            sums.residual = 1.0;
            for name in ["key.sensitivity", "value.sensitivity"] {
                for head in sums.get_mut(name).chunks_exact_mut(64 * 64) {
                    head.iter_mut().step_by(65).for_each(|x| *x = 1.0 + layer as f64);
                }
            }
            let features = 4 + 64;
            sums.get_mut("importance.xx").iter_mut().step_by(features * features).for_each(|x| *x = 1.0);
        }
        statistics.write(&mut std::fs::File::create(at.join(name)).unwrap()).unwrap().1
    };
    let hash = write("m.cgstat", &geometry);
    let spec = "mean|bins(step=0.5;unit=sensitivity)|rans";
    let profile = ["profile", kv, "-o", "m.cgprof", "--pipeline", spec];
    fails(at, &profile, 1, "give them to calibration with `--statistics`");
    let json: serde_json::Value =
        serde_json::from_str(&ok(at, &[&profile[..], &["--statistics", "m.cgstat", "--json"]].concat()))
            .unwrap();
    assert_eq!(json["statistics"], hash.as_str());
    let bytes = std::fs::read(at.join("m.cgprof")).unwrap();
    assert_eq!(cacheg::Profile::from_bytes(bytes).unwrap().statistics(), Some(hash.as_str()));
    ok(at, &["encode", kv, "-o", "x.cgkv", "--pipeline", spec, "--profile", "m.cgprof"]);
    ok(at, &["decode", "x.cgkv", "-o", "y.safetensors", "--profile", "m.cgprof"]);
    fails(at, &["encode", kv, "-o", "z.cgkv", "--pipeline", spec], 1, "needs a profile");

    let mut layer = geometry.groups()[0];
    layer.repeat -= 1;
    write("other.cgstat", &cacheg::Geometry::new([layer]).unwrap());
    let with = |file| [&profile[..], &["--force", "--statistics", file]].concat();
    fails(at, &with("other.cgstat"), 1, "statistics of another model");
    fails(at, &with(kv), 1, "is this a .cgstat file?");
    fails(at, &with("nowhere"), 1, "nowhere");
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let (at, kv) = (folder.path(), sample());
    let kv = kv.to_str().unwrap();
    std::fs::write(at.join("there"), "something").unwrap();
    fails(at, &["encode", kv, "-o", "there"], 1, "--force");
    assert_eq!(std::fs::read(at.join("there")).unwrap(), b"something");
    fails(at, &["encode", "nowhere", "-o", "x"], 1, "nowhere");
    fails(at, &["encode", "there", "-o", "x"], 1, "there");
    fails(at, &["decode", "there", "-o", "x"], 1, "not a cacheg container");
    fails(at, &["inspect", kv], 1, "not a cacheg container");
    fails(at, &["encode", kv, "-o", "x", "--preset", "nothing"], 2, "cachegen-paper");
    fails(at, &["encode", kv, "-o", "x", "--preset", "q8", "--level", "7"], 2, "level");
    fails(at, &["encode", kv, "-o", "x", "--pipeline", "mean|rnas"], 2, "did you mean `rans`");
    fails(at, &["encode", kv, "-o", "x", "--chunk-tokens", "0"], 2, "chunk-tokens");
    fails(at, &["encode", kv, "-o", "no/such/folder/x"], 1, "no/such/folder");
    fails(at, &["encode", kv, "-o", "x", "--profile", "there"], 1, ".cgprof");
    fails(at, &["profile", "-o", "x"], 2, "INPUTS");
    fails(at, &["nonsense"], 2, "nonsense");
    fails(at, &["decode", ".", "-o", "x"], 1, "not a regular file");
    fails(at, &["demo", "--threads", "0"], 2, "threads");
    fails(at, &["compare", kv, kv, "--max-rmse", "nan"], 2, "max-rmse");
    fails(
        at,
        &["encode", kv, "-o", "x", "--pipeline", "anchor-delta|mean|uniform|raw"],
        2,
        "no transform can follow",
    );
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 1, "failures leave nothing behind");
}

/// Names are bytes on Unix.
#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let name = std::ffi::OsStr::from_bytes(b"x\xff.cgkv");
    let run = |args: &[&std::ffi::OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_cacheg")).current_dir(folder.path()).args(args).output().unwrap()
    };
    let out = run(&[
        "encode".as_ref(),
        sample().as_os_str(),
        "--preset".as_ref(),
        "q4".as_ref(),
        "-o".as_ref(),
        name,
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(run(&["inspect".as_ref(), name]).status.success());
}

/// A file-size limit stands for a full disk: writes fail in the same place.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let line = format!(
        "trap '' XFSZ; ulimit -f 200; '{}' encode '{}' --preset q8 -o x.cgkv",
        env!("CARGO_BIN_EXE_cacheg"),
        sample().display()
    );
    let out = Command::new("sh").current_dir(at).args(["-c", &line]).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("cannot write"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);
}

/// Killed in the middle: never a half file under the final name.
#[cfg(unix)]
#[test]
fn a_killed_encode_leaves_nothing_under_the_final_name() {
    let folder = tempfile::tempdir().unwrap();
    for wait in [1, 5, 20, 60] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cacheg"))
            .current_dir(folder.path())
            .args(["encode", sample().to_str().unwrap(), "--preset", "lossless", "-o", "x.cgkv", "--force"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait));
        let _ = child.kill();
        child.wait().unwrap();
        let path = folder.path().join("x.cgkv");
        if path.exists() {
            ok(folder.path(), &["inspect", "x.cgkv"]);
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn demo_and_lists() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), &["demo"]);
    for preset in cacheg::PRESETS {
        assert!(text.contains(preset.name), "{text}");
    }
    assert!(text.contains("Try next"));
    let json: serde_json::Value = serde_json::from_str(&ok(folder.path(), &["demo", "--json"])).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["bits_per_value"].as_f64().unwrap() > 0.5));
    assert!(rows.iter().any(|row| row["name"] == "lossless" && row["max_error"] == 0.0));
    assert!(json["machine"].is_string() && json["date"].is_string() && json["command"].is_string());
    assert!(ok(folder.path(), &["stages"]).contains("anchor-delta"));
    let json: serde_json::Value = serde_json::from_str(&ok(folder.path(), &["presets", "--json"])).unwrap();
    assert!(json["rows"].as_array().unwrap().len() > cacheg::PRESETS.len());
    for command in ["demo", "encode", "decode", "inspect", "compare", "profile"] {
        assert!(ok(folder.path(), &[command, "--help"]).contains("Examples:"), "{command}");
    }
}
