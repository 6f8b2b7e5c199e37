//! `ablate`, and pages of it and of `quality`, on a tiny model; on the real one where it is.
#![cfg(feature = "llm")]
#![expect(clippy::unwrap_used, reason = "a panic in a test's helper fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg-bench")).args(args).current_dir(folder).output().unwrap()
}

fn fine(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn tiny() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/tiny.gguf");
    path.to_str().unwrap().to_owned()
}

fn texts(folder: &Path) {
    let words = |seed: u32| -> String {
        (0..60u32).map(|i| format!("{} ", (i + seed).wrapping_mul(2_654_435_761) >> 17)).collect()
    };
    std::fs::create_dir(folder.join("texts")).unwrap();
    for (name, seed) in [("novel-1", 1), ("novel-2", 1_000), ("code-1", 2_000), ("c", 3_000)] {
        std::fs::write(folder.join(format!("texts/{name}.txt")), words(seed)).unwrap();
    }
}

const GRID: &str = r#"
contexts = ["texts/novel-1.txt", "texts/novel-2.txt"]
calibration = ["texts/c.txt"]
tokens = 70
continuation = 20
greedy = 4
codecs = ["f16", "q8", "q4", "kivi4", "cachegen-release", "lossless"]

[[grid]]
spec = "mean|bins(step={step};reach=15)|rans(tables=class)"
name = "mean"
step = [0.5, 1, [0.5, 1, 1.5]]
"#;

/// Its rows without what differs between runs, in any order.
fn rows(table: &str) -> Vec<String> {
    let keys: Vec<&str> = table.lines().next().unwrap().split(',').collect();
    // Only numbers and words without commas stand before the seconds, but for specs.
    let timed = ["encode_s", "decode_s"].map(|key| keys.len() - keys.iter().position(|k| *k == key).unwrap());
    let mut rows: Vec<String> = table
        .lines()
        .skip(1)
        .map(|line| {
            let mut cells: Vec<&str> = line.rsplit(',').collect();
            timed.iter().for_each(|at| cells[at - 1] = "");
            cells.join(",")
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn a_grid_that_was_killed_goes_on_where_it_was() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let folder = folder.path();
    texts(folder);
    std::fs::write(folder.join("g.toml"), GRID).unwrap();
    let args = ["ablate", "g.toml", "--model", &model];
    let printed = fine(folder, &args);
    assert!(printed.contains("mean step=0.5,1,1.5") && printed.contains("cachegen-release@1"), "{printed}");
    let read = || std::fs::read_to_string(folder.join("g.csv")).unwrap();
    let whole = read();
    // Nine codecs, two contexts, two tasks.
    assert_eq!(whole.lines().count(), 1 + 9 * 2 * 2);
    assert!(
        whole
            .lines()
            .next()
            .unwrap()
            .starts_with("name,codec,level,spec,profile,chunk_tokens,task,context,set.step")
    );

    // Nothing is left to do, and nothing changes.
    fine(folder, &args);
    assert_eq!(read(), whole);

    // In the middle of a line; behind the first of a codec's two rows; in the header; in the settings' absence.
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    for len in [ends[21] + 30, ends[16], ends[17], ends[17] - 1, 5, 0] {
        std::fs::write(folder.join("g.csv"), &whole[..len]).unwrap();
        let kept = whole[..len].matches('\n').count().saturating_sub(1) / 2 * 2;
        fine(folder, &args);
        let now = read();
        assert_eq!(rows(&now), rows(&whole), "{len}");
        // What was whole has not been measured again.
        let lines = |text: &str| text.lines().take(1 + kept).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&now), lines(&whole));
    }

    // More of it is added; other settings are refused, unless told to begin anew.
    let more = GRID.replace("\"texts/novel-2.txt\"", "\"texts/novel-2.txt\", \"texts/code-1.txt\"");
    std::fs::write(folder.join("g.toml"), more.replace("step = [0.5,", "step = [0.25, 0.5,")).unwrap();
    let report: Value = serde_json::from_str(&fine(folder, &[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!(read().lines().count(), 1 + 10 * 3 * 2);
    assert_eq!(report["rows"].as_array().unwrap().len(), 10 * 2);
    assert!(report["rows"].as_array().unwrap().iter().all(|row| row["contexts"] == 3));
    std::fs::write(folder.join("g.toml"), GRID.replace("tokens = 70", "tokens = 60")).unwrap();
    let refused = error(folder, &args);
    assert!(refused.contains("`tokens`: 70, now it is 60") && refused.contains("--force"), "{refused}");
    assert_eq!(read().lines().count(), 1 + 10 * 3 * 2);
    fine(folder, &[&args[..], &["--force"]].concat());
    assert_eq!(read().lines().count(), 1 + 9 * 2 * 2);
    std::fs::remove_file(folder.join("g.csv.settings.json")).unwrap();
    assert!(error(folder, &args).contains("what is in it is unknown"));

    // Slips in the grid are told with the file's name.
    std::fs::write(folder.join("g.toml"), GRID.replace("step = [", "steps = [")).unwrap();
    let slip = error(folder, &args);
    assert!(slip.contains("g.toml: [[grid]] number 1 (mean): ") && slip.contains("`{step}`"), "{slip}");
}

#[test]
fn contexts_with_questions_are_gone_on_with() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let folder = folder.path();
    texts(folder);
    let text = |name: &str| std::fs::read_to_string(folder.join(format!("texts/{name}.txt"))).unwrap();
    let line = |name: &str| {
        let record = format!("USER: the topic of art. {} USER: {}", text(name), text("code-1"));
        let prompt = format!("{record} Now the record ends. Which? ASSISTANT:");
        serde_json::json!({"prompt": prompt, "label": ["Art"]}).to_string() + "\n"
    };
    std::fs::write(folder.join("r.jsonl"), line("novel-1") + &line("novel-2")).unwrap();
    let grid = GRID.replace(r#""texts/novel-1.txt", "texts/novel-2.txt""#, r#""longchat:r.jsonl""#);
    let grid = grid.replace("tokens = 70", "tokens = 450");
    std::fs::write(folder.join("g.toml"), grid).unwrap();
    let args = ["ablate", "g.toml", "--model", &model];
    let printed = fine(folder, &args);
    assert!(printed.contains("retrieval\n") && printed.contains("NLL of the topic"), "{printed}");
    let read = || std::fs::read_to_string(folder.join("g.csv")).unwrap();
    let whole = read();
    // Nine codecs on two contexts that are read, and on two that are asked.
    assert_eq!(whole.lines().count(), 1 + 9 * 2 * 2 + 9 * 2);
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    for len in [ends[7], ends[38], ends[40] + 9, whole.len()] {
        std::fs::write(folder.join("g.csv"), &whole[..len]).unwrap();
        fine(folder, &args);
        assert_eq!(rows(&read()), rows(&whole), "{len}");
    }
    // Another question is another context.
    std::fs::write(folder.join("r.jsonl"), (line("novel-1") + &line("novel-2")).replace("Which?", "What?"))
        .unwrap();
    assert!(error(folder, &args).contains("another text called `longchat-topics-0`"));
}

#[test]
fn pages_are_made_of_grids_and_of_quality() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny());
    let folder = folder.path();
    texts(folder);
    std::fs::write(folder.join("g.toml"), GRID).unwrap();
    fine(folder, &["ablate", "g.toml", "--model", &model, "-o", "t.csv", "--report", "g.html"]);
    let page = std::fs::read_to_string(folder.join("g.html")).unwrap();
    for text in
        ["mean step=0.5", "q8", "id=\"curves\"", "id=\"side\"", "SHA-256", "cacheg-bench ablate g.toml"]
    {
        assert!(page.contains(text), "{text}");
    }
    let codecs = "f16,q4,cachegen-paper@0,cachegen-paper@1,cachegen-paper@2";
    let lengths = ["--tokens", "70", "--continuation", "20", "--greedy", "4", "--model", &model];
    let quality =
        ["quality", "--contexts", "texts/novel-1.txt", "texts/code-1.txt", "--calibration", "texts/c.txt"];
    let args = [&quality[..], &["--codecs", codecs, "--report", "q.html", "--json"], &lengths].concat();
    let report = fine(folder, &args);
    let page = std::fs::read_to_string(folder.join("q.html")).unwrap();
    for id in ["curves", "paper", "all", "kinds", "side", "speed", "reproduce"] {
        assert!(page.contains(&format!("section id=\"{id}\"")), "{id}");
    }
    // Parts are all of it.
    let report: Value = serde_json::from_str(&report).unwrap();
    for row in report["rows"].as_array().unwrap().iter().filter(|row| row["task"] == "continuation") {
        let bits = |part: &str| row[format!("{part}bits_per_value")].as_f64().unwrap();
        let parts: f64 = ["header_", "carried_", "side_", "stream_"].map(bits).iter().sum();
        assert!((parts - bits("")).abs() < 1e-9, "{row}");
    }
    assert!(error(folder, &args).contains("--force"));

    // The same from files, together.
    std::fs::write(folder.join("q.json"), report.to_string()).unwrap();
    fine(folder, &["report", "q.json", "t.csv", "-o", "both.html", "--title", "A & B"]);
    let both = std::fs::read_to_string(folder.join("both.html")).unwrap();
    assert!(both.contains("A &amp; B") && both.contains("mean step=1") && both.contains("cachegen-paper@2"));
    assert!(error(folder, &["report", "q.json", "-o", "both.html"]).contains("--force"));
    assert!(error(folder, &["report", "g.toml", "-o", "x.html"]).contains("g.toml: "));
    std::fs::write(folder.join("empty.json"), r#"{"rows": []}"#).unwrap();
    assert!(error(folder, &["report", "empty.json", "-o", "x.html"]).contains("nothing to report"));
    assert!(error(folder, &["report", "no.json", "-o", "x.html"]).contains("cannot read no.json"));
    assert!(!folder.join("x.html").exists());
}

#[test]
fn the_real_model_by_a_grid() {
    if !run(Path::new("."), &["model", "show"]).status.success() {
        eprintln!("skipped: no model; `cacheg-bench model get smollm2` fetches it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let test = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("texts");
    let path = |name: &str| test.join(name).display().to_string();
    let grid = format!(
        "contexts = [{:?}]\ncalibration = [{:?}]\ntokens = 96\ncontinuation = 16\ngreedy = 2\ncodecs = [\"q4\"]\n[[grid]]\n\
         preset = \"cachegen-paper\"\nlevels = [1, 3]\n",
        path("test/novel-1.txt"),
        path("calibration/novel-1.txt"),
    );
    std::fs::write(folder.join("g.toml"), grid).unwrap();
    let report = fine(folder, &["ablate", "g.toml", "--report", "g.html", "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let kl = |name: &str| {
        let mut rows = report["rows"].as_array().unwrap().iter();
        rows.find(|row| row["name"] == name && row["task"] == "continuation").unwrap()["kl"].as_f64().unwrap()
    };
    assert!(kl("q4") > 0.0 && kl("cachegen-paper@1") < kl("cachegen-paper@3"));
    assert!(std::fs::read_to_string(folder.join("g.html")).unwrap().contains("cachegen-paper"));
}
