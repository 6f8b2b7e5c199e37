//! `cacheg-bench model read`: perplexity and speed of a model on texts. What other engines are compared with.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_bench::llm::{KvState, Model, Tokenizer, resolve};
use serde_json::{Value, json};

use crate::prefill::with_bar;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Text files (UTF-8)
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Read so many tokens of each [default: all]
    #[arg(long)]
    tokens: Option<usize>,
    /// Then go on with so many of the likeliest tokens
    #[arg(long, default_value_t = 0)]
    greedy: usize,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Report as JSON, with token ids
    #[arg(long)]
    json: bool,
}

/// Rows whose predictions are in memory at a time.
const ROWS: usize = 128;

pub(super) fn run(args: &Args) -> Result<()> {
    let path = resolve(args.model.as_deref())?;
    let tokenizer = Tokenizer::open(&path)?;
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    let mut report = Report::new("cacheg-bench");
    report.field("model", path.display().to_string());
    let bar = progress(args.texts.len() as u64, "reading");
    for text in &args.texts {
        let row = one(&model, &tokenizer, text, args).map_err(|e| e.at(text.display()))?;
        report.row(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.print(args.json, |report| {
        report.table(&[
            ("name", "text", 0),
            ("tokens", "tokens", 0),
            ("perplexity", "perplexity", 4),
            ("prefill_tokens_s", "prefill tokens/s", 1),
            ("greedy_tokens_s", "greedy tokens/s", 1),
            ("greedy", "goes on", 0),
        ])
    })
}

fn one(model: &Model, tokenizer: &Tokenizer, path: &Path, args: &Args) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
    let mut ids = tokenizer.encode(&text)?;
    if let Some(tokens) = args.tokens {
        if ids.len() < tokens {
            return Err(Error::data(format!("the text has {} tokens, {tokens} were asked for", ids.len())));
        }
        ids.truncate(tokens);
    }
    let mut kv = KvState::new(model.geometry());
    let start = Instant::now();
    let last = model.prefill(&ids, &mut kv, None, &|_, _| ())?;
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let greedy = model.greedy(&[last], &mut [&mut kv], args.greedy)?.pop().unwrap_or_default();
    let going_on = start.elapsed().as_secs_f64();
    let mut row = json!({
        "name": path.display().to_string(),
        "tokens": ids.len(),
        "perplexity": perplexity(model, &ids)?,
        "prefill_tokens_s": ids.len() as f64 / prefill,
    });
    if args.greedy > 0 {
        row["greedy_tokens_s"] = json!(args.greedy as f64 / going_on);
        row["greedy"] = tokenizer.decode(&greedy)?.escape_debug().to_string().into();
    }
    if args.json {
        row["token_ids"] = json!(ids);
        row["greedy_ids"] = json!(greedy);
    }
    Ok(row)
}

/// Of all tokens but the first, each given all before it; nothing for a single token.
fn perplexity(model: &Model, ids: &[u32]) -> Result<Option<f64>> {
    let mut kv = KvState::new(model.geometry());
    let mut sum = 0.0;
    for (index, piece) in ids.chunks(ROWS).enumerate() {
        let hidden = model.forward(piece, &mut kv)?;
        let next = &ids[index * ROWS + 1..];
        sum += model.log_likelihoods(&hidden, next)?.iter().sum::<f64>();
    }
    Ok((ids.len() > 1).then(|| (-sum / (ids.len() - 1) as f64).exp()))
}
