//! The commands of the feature `llm`, on a tiny model.
#![cfg(feature = "llm")]
#![expect(clippy::unwrap_used, reason = "a panic in a test's helper fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cacheg::{KvFile, Limits};
use serde_json::Value;

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cacheg-bench"))
        .args(args)
        .current_dir(folder)
        .env("CACHEG_CACHE", folder.join("cache"))
        .output()
        .unwrap()
}

fn error(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(folder: &Path, args: &[&str]) -> Value {
    let output = run(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn model() -> String {
    tiny("tiny.gguf")
}

fn tiny(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn text_becomes_a_kv_cache() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), "hello hello 12 ".repeat(20)).unwrap();
    std::fs::write(folder.join("b.txt"), "What else?").unwrap();
    let out = ["prefill", "a.txt", "b.txt", "--model", &model, "-o", "kv.safetensors"];
    let report = json(folder, &[&out[..], &["--continuation", "5", "--statistics", "--json"]].concat());
    let tokens = report["rows"][0]["tokens"].as_u64().unwrap() as usize;
    let file = KvFile::open(&folder.join("kv.safetensors"), &Limits::default()).unwrap();
    assert_eq!((file.tokens(), file.first_position()), (tokens, 0));
    let numbers = |key: &str| serde_json::from_str::<Vec<u32>>(&file.metadata()[key]).unwrap().len();
    assert_eq!((numbers("token_ids"), numbers("continuation_ids")), (tokens, 5));
    assert!(file.geometry().groups()[0].rope.is_some_and(|rope| rope.scaling.is_some()));

    // Nothing is replaced unless asked to; texts must be long enough.
    assert!(error(folder, &out).contains("--force"));
    let wanted = error(folder, &[&out[..], &["--force", "--tokens", "9999"]].concat());
    assert!(wanted.contains("9999 of context"), "{wanted}");
    let again = [&out[..], &["--force", "--tokens", "9", "--skip", "1", "--json"]].concat();
    assert_eq!(json(folder, &again)["rows"][0]["tokens"], 9);
}

#[test]
fn models_are_shown_and_read_texts() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    let report = json(folder, &["model", "show", "--model", &model, "--json"]);
    let rows = report["rows"].as_array().unwrap();
    let value = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap()["value"].clone();
    assert_eq!(
        (value("heads"), value("kv_heads"), value("kv_bytes_per_token")),
        (4.into(), 2.into(), 256.into())
    );
    std::fs::write(folder.join("a.txt"), "hello world").unwrap();
    let row = json(folder, &["model", "read", "a.txt", "--model", &model, "--greedy", "3", "--json"])["rows"]
        [0]
    .clone();
    assert!(row["perplexity"].as_f64().unwrap() > 1.0);
    assert_eq!(row["greedy_ids"].as_array().unwrap().len(), 3);
    // Without a model: what to do.
    assert!(error(folder, &["model", "show"]).contains("model get smollm2"));
    assert!(error(folder, &["model", "get", "gpt5"]).contains("there are: smollm2"));
}

#[test]
fn codecs_are_judged_by_what_the_model_makes_of_them() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), words(1, 60)).unwrap();
    std::fs::write(folder.join("b.txt"), words(1_000, 60)).unwrap();
    std::fs::write(folder.join("c.txt"), words(2_000, 60)).unwrap();
    let lengths = ["--tokens", "70", "--continuation", "20", "--greedy", "5", "--model", &model];
    let spec = "uniform(bits=3;axis=channel,token;group=32)|raw";
    let codecs = format!("f16,lossless,{spec},fast@3");
    let args = ["quality", "--contexts", "a.txt", "b.txt", "--calibration", "c.txt", "--codecs", &codecs];
    let report = json(folder, &[&args[..], &lengths, &["--csv", "out.csv", "--json"]].concat());
    let rows = report["rows"].as_array().unwrap();
    // Two tasks, four codecs, over all contexts and on each of two.
    assert_eq!(rows.len(), 2 * 4 * 3);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        let codec = row["codec"].as_str().unwrap();
        if ["f16", "lossless"].contains(&codec) {
            // Not nearly: bit for bit.
            assert_eq!(
                (number("kl"), number("delta_ppl_percent"), number("top1_percent")),
                (0.0, 0.0, 100.0)
            );
        } else {
            assert!(number("kl") > 0.0, "{row}");
        }
        assert_eq!(row.get("greedy_percent").is_some(), row["task"] == "continuation");
        if codec == "f16" && row["task"] == "continuation" {
            assert_eq!((number("greedy_percent"), number("greedy_first")), (100.0, 5.0));
        }
        assert_eq!(row["level"].as_u64(), (codec == "fast").then_some(3));
        assert_eq!(number("profile_bytes") > 0.0, ["fast", "lossless"].contains(&codec));
        if row["context"] == "all" {
            assert!(number("kl_low") <= number("kl") && number("kl") <= number("kl_high"));
        }
    }
    let table = std::fs::read_to_string(folder.join("out.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 2 * 4 * 2);
    assert!(table.contains(&format!("\"{spec}\"")));

    // The same again, the seconds apart.
    let again = json(folder, &[&args[..], &lengths, &["--json"]].concat());
    let kept = |report: &Value| -> Vec<Value> {
        let mut rows = report["rows"].as_array().unwrap().clone();
        for row in rows.iter_mut().filter_map(Value::as_object_mut) {
            row.retain(|key, _| !key.starts_with("encode_s") && !key.starts_with("decode_s"));
        }
        rows
    };
    assert_eq!(kept(&report), kept(&again));
    let output = run(folder, &[&args[..], &lengths].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("fast@3") && text.contains("read once more"), "{text}");

    // Too short, seen in calibration, no such codec, files that are there.
    let with = |more: &[&str]| error(folder, &[&args[..], &lengths, more].concat());
    assert!(error(folder, &[&args[..], &lengths[2..]].concat()).contains("1044 of context"));
    let shared = with(&["--calibration", "b.txt"]);
    assert!(shared.contains("test text `b`: ") && shared.contains("most in `b`"), "{shared}");
    assert!(with(&["--codecs", "q9"]).contains("unknown preset `q9`"));
    assert!(with(&["--csv", "out.csv"]).contains("--force"));
    assert!(with(&["--contexts", "longchat:a.txt"]).contains("a.txt, line 1: invalid data: not a JSON"));
}

/// Of three local layers out of four, 19 tokens of 48 can still be seen.
#[test]
fn what_local_layers_see_is_counted_apart() {
    let (folder, model) = (tempfile::tempdir().unwrap(), tiny("gemma3.gguf"));
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), words(1, 60)).unwrap();
    let out = ["prefill", "a.txt", "--model", &model, "-o", "kv.safetensors", "--json"];
    json(folder, &out);
    let file = KvFile::open(&folder.join("kv.safetensors"), &Limits::default()).unwrap();
    assert_eq!(file.metadata()["sliding_window"], "[20,20,null,20]");
    let thetas: Vec<f64> = file.geometry().groups().iter().map(|group| group.rope.unwrap().theta).collect();
    assert_eq!(thetas, [1e4, 2e5, 1e4]);
    let args = ["quality", "--contexts", "a.txt", "--codecs", "f16,q8,text", "--tokens", "48"];
    let args = [&args[..], &["--continuation", "8", "--greedy", "1", "--model", &model, "--json"]].concat();
    let report = json(folder, &args);
    let percent = report["visible_values_percent"].as_f64().unwrap();
    assert!((percent - 100.0 * f64::from(3 * 19 + 48) / 192.0).abs() < 1e-9, "{percent}");
    let rows = report["rows"].as_array().unwrap();
    for (row, bits) in rows.iter().zip([16.0, 9.0]) {
        let visible = row["visible_bits_per_value"].as_f64().unwrap();
        // Headers count as a whole.
        assert!(visible > row["bits_per_value"].as_f64().unwrap() && visible > bits, "{row}");
    }
    // No model is called so, nor has it been fetched.
    let error = error(folder, &["model", "show", "--model", "gemma3"]);
    assert!(error.contains("model get gemma3"), "{error}");
}

#[test]
fn codecs_are_judged_by_the_topic_that_is_found() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    std::fs::write(folder.join("c.txt"), words(2_000, 60)).unwrap();
    let common = ["--calibration", "c.txt", "--continuation", "20", "--greedy", "5", "--model", &model];
    let codecs = ["--codecs", "f16,fast@3,h2o(keep=0.5)+q8,prune(keep=0.8)+q8,text"];
    let args = |contexts: &str, tokens: &str, more: &[&str]| -> Vec<String> {
        let given = ["quality", "--contexts", contexts, "--tokens", tokens];
        [&given, &common[..], &codecs, more].concat().into_iter().map(str::to_owned).collect()
    };
    let strs =
        |args: &[String]| -> Value { json(folder, &args.iter().map(String::as_str).collect::<Vec<_>>()) };
    // The program's own records: bytes to this model, so that a preamble is long. No other task.
    let more = ["--json", "--csv", "out.csv", "--report", "out.html"];
    let report = strs(&args("topics", "800", &more));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5 * (1 + 10));
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert_eq!(row["task"], "retrieval");
        // A random model finds nothing.
        assert_eq!((number("retrieval_percent"), number("reference_retrieval_percent")), (0.0, 0.0));
        assert!(number("label_nll") > 1.0 && row.get("kl").is_none() && row.get("encode_s").is_none());
        let delta = number("delta_label_nll");
        if ["f16", "text"].contains(&row["codec"].as_str().unwrap()) {
            assert_eq!((delta, number("answer_equal_percent")), (0.0, 100.0));
        } else {
            assert!(delta != 0.0 && delta.abs() < 3.0, "{row}");
        }
        if row["context"] == "all" {
            assert!(number("delta_label_nll_low") <= delta && delta <= number("delta_label_nll_high"));
            assert_eq!(row["contexts"], 10);
        }
    }
    assert_eq!(std::fs::read_to_string(folder.join("out.csv")).unwrap().lines().count(), 1 + 5 * 10);
    assert!(std::fs::read_to_string(folder.join("out.html")).unwrap().contains("Finding the first topic"));

    // A file of LongChat's is read on, and asked if it has labels.
    let record = |label: Value, seed: u32| {
        let body =
            format!("USER: the topic of art. ASSISTANT: {} USER: {}", words(seed, 30), words(seed + 30, 30));
        let prompt = format!("{body} Now the record ends. Which? ASSISTANT:");
        serde_json::json!({"prompt": prompt, "label": label}).to_string()
    };
    let (art, none) = (serde_json::json!(["Art", "Sports"]), Value::Null);
    let write = |first: &Value, second: &Value| {
        let lines = format!("{}\n{}\n", record(first.clone(), 10), record(second.clone(), 500));
        std::fs::write(folder.join("r.jsonl"), lines).unwrap();
    };
    write(&art, &art);
    let longchat = |more: &[&str]| args("longchat:r.jsonl", "250", more);
    let report = strs(&longchat(&["--json"]));
    let of = |report: &Value, task: &str, context: &str| {
        let rows = report["rows"].as_array().unwrap().iter();
        rows.filter(|row| row["task"] == task && row["context"] == context).count()
    };
    assert_eq!((of(&report, "reread", "longchat-1"), of(&report, "retrieval", "longchat-topics-1")), (5, 5));
    assert_eq!(report["rows"].as_array().unwrap().len(), 5 * 3 * 3);
    let output = run(folder, &longchat(&[]).iter().map(String::as_str).collect::<Vec<_>>());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the first topic asked for") && text.contains("NLL"), "{text}");
    write(&none, &none);
    assert_eq!(strs(&longchat(&["--json"]))["rows"].as_array().unwrap().len(), 5 * 2 * 3);

    let refused = |args: &[String]| error(folder, &args.iter().map(String::as_str).collect::<Vec<_>>());
    write(&art, &none);
    let slip = refused(&longchat(&[]));
    assert!(slip.contains("r.jsonl, line 2: ") && slip.contains("no `label`"), "{slip}");
    write(&serde_json::json!([]), &art);
    assert!(refused(&longchat(&[])).contains("r.jsonl, line 1: "));
    let lost = refused(&args("topics", "100", &[]));
    assert!(lost.contains("topics-0: ") && lost.contains("is lost") && lost.contains("--tokens"), "{lost}");
}

/// On the real model, where it is: it knows of the topic, as a random one would not; a codec that changes nothing leaves
/// that, one that keeps little does not.
#[test]
fn a_real_model_finds_topics() {
    let given = std::env::var_os("CACHEG_MODEL").map(PathBuf::from);
    let model = match cacheg_bench::llm::resolve(given.as_deref()) {
        Ok(path) => path.to_str().unwrap().to_owned(),
        Err(e) => return eprintln!("SKIPPED: {e}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let calibration = format!("{}/texts/calibration/chat-1.txt", env!("CARGO_MANIFEST_DIR"));
    let args = ["quality", "--contexts", "topics", "--calibration", &calibration, "--tokens", "256"];
    let more = ["--codecs", "lossless,cachegen-paper@3", "--model", &model, "--json"];
    let report = json(folder.path(), &[&args[..], &more].concat());
    let number = |codec: usize, key: &str| report["rows"][codec][key].as_f64().unwrap();
    println!("{}\n{}", report["rows"][0], report["rows"][1]);
    assert!(number(0, "label_nll") < 3.0);
    assert_eq!((number(0, "answer_equal_percent"), number(0, "delta_label_nll")), (100.0, 0.0));
    assert!(number(1, "answer_equal_percent") < 100.0 && number(1, "delta_label_nll") > 0.1);
}

/// Numbers of tokens that do not repeat.
fn words(seed: u32, n: u32) -> String {
    (0..n).map(|i| format!("{} ", (i + seed).wrapping_mul(2_654_435_761) >> 17)).collect()
}

#[test]
fn statistics_are_gathered_extended_checked_and_used() {
    let (folder, model) = (tempfile::tempdir().unwrap(), model());
    let folder = folder.path();
    for (name, seed) in [("a", 1), ("b", 1_000), ("c", 2_000), ("d", 3_000)] {
        std::fs::write(folder.join(format!("{name}.txt")), words(seed, 60)).unwrap();
    }
    let common = ["--tokens", "70", "--continuation", "20", "--model", &model];
    let run_on = |texts: &[&str], more: &[&str]| {
        json(folder, &[&["calibrate"], texts, &common[..], more, &["--json"]].concat())
    };
    let both = run_on(&["a.txt", "b.txt"], &["-o", "both.cgstat"]);
    assert_eq!((both["contexts"].as_u64(), both["tokens"].as_u64()), (Some(2), Some(132)));
    let rows = both["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        for key in
            ["key_sensitivity", "value_sensitivity", "key_deviation", "value_deviation", "residual_rms"]
        {
            assert!(row[key].as_f64().unwrap() > 0.0, "{row}");
        }
    }
    let bytes = std::fs::read(folder.join("both.cgstat")).unwrap();
    assert_eq!(both["bytes"].as_u64(), Some(bytes.len() as u64));
    assert_eq!(run_on(&["a.txt", "b.txt"], &["-o", "again.cgstat"])["statistics"], both["statistics"]);

    // One run over both, or one after the other.
    run_on(&["a.txt"], &["-o", "a.cgstat"]);
    run_on(&["b.txt"], &["-o", "extended.cgstat", "--extend", "a.cgstat"]);
    let read =
        |name: &str| cacheg::Statistics::from_bytes(&std::fs::read(folder.join(name)).unwrap()).unwrap();
    let (one, two) = (read("both.cgstat"), read("extended.cgstat"));
    assert_eq!((one.counts(), one.origins()), (two.counts(), two.origins()));
    for plane in one.geometry().planes() {
        for (a, b) in one.sensitivity(&plane).iter().zip(two.sensitivity(&plane)) {
            assert!((a - b).abs() < 1e-12 * one.mean_sensitivity(&plane), "{a} {b}");
        }
    }
    let twice = [&["calibrate", "a.txt"], &common[..], &["-o", "x.cgstat", "--extend", "a.cgstat"]].concat();
    assert!(error(folder, &twice).contains("both statistics have the context"));
    let window =
        [&twice[..5], &common[3..], &["--window", "1", "-o", "x.cgstat", "--extend", "a.cgstat"]].concat();
    assert!(error(folder, &window).contains("`window`"), "{window:?}");
    let short = [&["calibrate", "a.txt", "-o", "x.cgstat"], &common[2..]].concat();
    assert!(error(folder, &short).contains("a: invalid data: the text has"));
    let there = [&["calibrate", "a.txt", "-o", "a.cgstat"], &common[..]].concat();
    assert!(error(folder, &there).contains("--force"));

    // What the metric predicts, on a text it has not seen.
    let check = run_on(&["c.txt", "d.txt"], &["--check", "both.cgstat", "--noise", "0.01"]);
    let rows = check["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "keys and values of two layers");
    for row in rows {
        let ratio = row["ratio"].as_f64().unwrap();
        // The random model amplifies what enters its first layer; how exact the metric itself is, is tested elsewhere.
        assert!((0.1..10.0).contains(&ratio), "{row}");
    }
    let whole = std::fs::read(folder.join("a.cgstat")).unwrap();
    std::fs::write(folder.join("cut.cgstat"), &whole[..whole.len() - 8]).unwrap();
    let cut = [&["calibrate", "c.txt", "--check", "cut.cgstat"], &common[..]].concat();
    assert!(error(folder, &cut).contains("cut.cgstat"));

    // In profiles of codecs.
    let spec = "mean|bins(step=0.5;unit=sensitivity)|rans";
    let quality =
        ["quality", "--contexts", "c.txt", "--calibration", "a.txt", "--greedy", "1", "--codecs", spec];
    assert!(error(folder, &[&quality[..], &common[..]].concat()).contains("--statistics"));
    let report = json(folder, &[&quality[..], &common[..], &["--statistics", "a.cgstat", "--json"]].concat());
    assert!(report["rows"][0]["kl"].as_f64().unwrap() > 0.0);
}

/// On the real model, where it is: KL of noise in a dozen units, over three orders of magnitude.
#[test]
fn statistics_of_a_real_model_predict_what_noise_does() {
    let given = std::env::var_os("CACHEG_MODEL").map(PathBuf::from);
    let model = match cacheg_bench::llm::resolve(given.as_deref()) {
        Ok(path) => path.to_str().unwrap().to_owned(),
        Err(e) => return eprintln!("SKIPPED: {e}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let text = |name: &str| format!("{}/texts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let seen = ["calibration/novel-1", "calibration/code-1", "calibration/chat-1"].map(text);
    let other = ["test/novel-1", "test/code-1", "test/chat-2"].map(text);
    let [seen, other] = [&seen, &other].map(|texts| texts.each_ref().map(String::as_str));
    let common = ["--tokens", "512", "--continuation", "128", "--model", &model, "--json"];
    json(folder, &[&["calibrate"], &seen[..], &["-o", "m.cgstat", "--window", "0"], &common[..]].concat());
    let layers = ["--check", "m.cgstat", "--layers", "3,8,14,20,23,29"];
    let report = json(folder, &[&["calibrate"], &other[..], &layers[..], &common[..]].concat());
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 12);
    for row in rows {
        println!("{row}");
        assert!((0.2..5.0).contains(&row["ratio"].as_f64().unwrap()), "{row}");
    }
    let kl: Vec<f64> = rows.iter().map(|row| row["kl"].as_f64().unwrap()).collect();
    let spread = kl.iter().copied().fold(0.0, f64::max) / kl.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(spread > 50.0, "{spread}");
}
