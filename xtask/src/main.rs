//! `cargo xtask test` runs all tests; `cargo xtask check` is what CI runs: the tests and all other gates.

mod dawn;
mod deps;
mod msrv;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const USAGE: &str = "\
cargo xtask test     all tests: workspace, doctests, the third-party example; installs what they need (test-deps)
cargo xtask check    what CI runs: fmt, clippy, docs, features one by one, MSRV, and all tests
cargo xtask test-deps
                     install what the tests need (Debian and its kin): redis-server, faketime, a Vulkan driver
cargo xtask dawn     GPU programs on Dawn, a second WebGPU (needs node and npm; on Debian 12 fetches a newer Mesa)
cargo xtask bench-deps
                     install what `cacheg-bench --features peers` links with (Debian and its kin)
cargo xtask fuzz [SECONDS] [TARGET ...]
                     fuzz each target in turn (600 seconds each; needs a nightly compiler)

Packages are installed by apt-get without asking, unless CACHEG_NO_INSTALL=1.";

/// What went wrong.
type Result<T = ()> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["test"] => test(),
        ["check"] => check(),
        ["dawn"] => dawn::dawn(&root()),
        ["test-deps"] => deps::tests(),
        ["bench-deps"] => deps::peers(),
        ["fuzz", rest @ ..] => fuzz(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Runs cargo in a folder of the workspace and says how long it took.
fn cargo(folder: &str, env: &[(&str, &str)], args: &[&str]) -> Result {
    run(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()), folder, env, args)
}

fn run(program: &str, folder: &str, env: &[(&str, &str)], args: &[&str]) -> Result {
    let name = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy());
    let line = format!("{name} {}", args.join(" "));
    let place = if folder.is_empty() { String::new() } else { format!(" (in {folder})") };
    eprintln!("\n== {line}{place}");
    let start = Instant::now();
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(root().join(folder))
        .status()
        .map_err(|e| format!("cannot run {line}: {e}"))?;
    eprintln!("== {line}{place}: {:.0} s", start.elapsed().as_secs_f64());
    if status.success() { Ok(()) } else { Err(format!("{line}{place} failed")) }
}

/// A crate outside of the workspace that uses the workspace's target folder, so that nothing is built twice.
const ACME: &str = "examples/acme-codec";

fn target_dir() -> String {
    std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| root().join("target").to_string_lossy().into_owned())
}

/// Features that no crate has by default, and that need nothing which `deps::tests` does not install.
const TESTED: &str = "cacheg-core/testkit,cacheg-net/redis,cacheg-net/s3,cacheg-net/serve";

/// The same, where there is an adapter.
const TESTED_ON_GPU: &str = "cacheg/gpu,cacheg-bench/gpu,cacheg-gpu/simulate";

fn test() -> Result {
    if let Err(message) = deps::tests() {
        // The tests that need it fail and say so; all others are still worth running.
        eprintln!("\nxtask: {message}");
    }
    if std::env::var("CACHEG_TEST_GPU").is_ok_and(|name| name == "none") {
        eprintln!("\n== SKIPPED: tests on a GPU, as CACHEG_TEST_GPU=none asks");
        cargo(
            "",
            &[],
            &["test", "--release", "--workspace", "--exclude", "cacheg-gpu", "--features", TESTED],
        )?;
    } else {
        let features = format!("{TESTED},{TESTED_ON_GPU}");
        cargo("", &[], &["test", "--release", "--workspace", "--features", &features])?;
    }
    let target = target_dir();
    let env = [("CARGO_TARGET_DIR", target.as_str())];
    cargo(ACME, &env, &["test", "--release"])?;
    cargo(ACME, &env, &["run", "--release", "--example", "app"])
}

const DENY: [(&str, &str); 1] = [("RUSTDOCFLAGS", "-D warnings")];

fn check() -> Result {
    cargo("", &[], &["fmt", "--all", "--check"])?;
    cargo(ACME, &[], &["fmt", "--check"])?;
    cargo("fuzz", &[], &["fmt", "--check"])?;
    msrv::check(&root())?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    cargo("", &[], &clippy)?;
    let target = target_dir();
    let env = [("CARGO_TARGET_DIR", target.as_str())];
    cargo(ACME, &env, &["clippy", "--all-targets", "--", "-D", "warnings"])?;
    each_feature()?;
    cargo("", &DENY, &["doc", "--workspace", "--no-deps", "--all-features"])?;
    cargo("fuzz", &env, &["check"])?;
    test()?;
    second_webgpu()?;
    language_model()?;
    peers()
}

/// What naga and wgpu accept may be refused, or be computed otherwise, by another implementation.
fn second_webgpu() -> Result {
    if !deps::works("node", &["--version"]) || !deps::works("npm", &["--version"]) {
        eprintln!("\n== SKIPPED: GPU programs on Dawn: there is no node or no npm");
        return Ok(());
    }
    dawn::dawn(&root())
}

/// What needs a language model: on tiny ones always, on a real one if it can be fetched.
fn language_model() -> Result {
    let get =
        ["run", "--release", "-p", "cacheg-bench", "--features", "llm", "--", "model", "get", "smollm2"];
    if let Err(message) = cargo("", &[], &get) {
        eprintln!("\n== SKIPPED: tests of cacheg-bench on a real language model: {message}");
    }
    cargo("", &[], &["test", "--release", "-p", "cacheg-bench", "--features", "llm"])
}

/// Everything above only compiles the feature `peers`; running it needs the library.
fn peers() -> Result {
    if let Err(message) = deps::peers() {
        eprintln!("\n== SKIPPED: tests of cacheg-bench with the feature `peers`: {message}");
        return Ok(());
    }
    cargo("", &[], &["test", "--release", "-p", "cacheg-bench", "--features", "peers"])
}

/// Each crate without features, then with each of its features alone: features are unified in a workspace
/// build, so that a missing one goes unnoticed there.
fn each_feature() -> Result {
    for package in msrv::packages(&root())? {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let features =
            package["features"].as_object().map(|f| f.keys().cloned().collect()).unwrap_or_default();
        let features: Vec<String> = features;
        cargo("", &[], &["check", "-p", &name, "--no-default-features"])?;
        for feature in features.iter().filter(|feature| *feature != "default") {
            cargo("", &[], &["check", "-p", &name, "--no-default-features", "--features", feature])?;
        }
    }
    Ok(())
}

fn fuzz(args: &[&str]) -> Result {
    let (seconds, targets) = match args.split_first() {
        Some((seconds, targets)) => (seconds.parse::<u32>().map_err(|e| format!("{seconds}: {e}"))?, targets),
        None => (600, args),
    };
    let mut targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    if targets.is_empty() {
        let folder = root().join("fuzz/fuzz_targets");
        let files = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        targets = files
            .filter_map(|file| Some(file.ok()?.path().file_stem()?.to_string_lossy().into_owned()))
            .collect();
        targets.sort();
    }
    if Command::new("cargo").args(["fuzz", "--version"]).output().is_ok_and(|out| !out.status.success()) {
        run("cargo", "", &[], &["install", "cargo-fuzz", "--locked"])?;
    }
    for target in &targets {
        let time = format!("-max_total_time={seconds}");
        // Found by rustup, not by the cargo that runs this: fuzzing needs the nightly compiler.
        run(
            "rustup",
            "",
            &[],
            &[
                "run",
                "nightly",
                "cargo",
                "fuzz",
                "run",
                target,
                "--",
                &time,
                "-rss_limit_mb=2048",
                "-timeout=20",
            ],
        )?;
    }
    Ok(())
}
