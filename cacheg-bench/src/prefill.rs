//! `cacheg-bench prefill`: text to a KV cache in a safetensors file.

use std::path::PathBuf;
use std::time::Instant;

use cacheg::core::{ExtraTensor, kv_metadata, write_kv_with};
use cacheg::output::OutputFile;
use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_bench::llm::{AttentionSums, KvState, Model, Observer, Progress, Tokenizer, resolve};
use serde_json::json;

/// Queries at the end that statistics are kept of apart.
const RECENT: usize = 64;

/// The file holds `layers.{i}.key` and `layers.{i}.value`, `[kv_heads, tokens, head_dim]`, f16, keys after RoPE, and
/// as metadata RoPE's parameters, `token_ids` and `continuation_ids` (JSON lists), and of models with local layers
/// `sliding_window`, by layer the tokens that a token sees there, or null. With --statistics also, all f32:
///
/// `layers.{i}.queries`, `[query_heads, 64, head_dim]`: the last queries after RoPE;
/// `layers.{i}.attention_sum`, `[query_heads, tokens]`: attention weight that a token got, summed over all queries;
/// `layers.{i}.attention_recent`, `[query_heads, tokens]`: the same over the last 64 queries.
/// Query heads g·h to g·(h+1)−1 share KV head h, where g = query_heads / kv_heads.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Text files (UTF-8), one behind the other
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// Where the KV cache goes
    #[arg(short, long)]
    output: PathBuf,
    /// Length of the context [default: the whole text, less the continuation]
    #[arg(long)]
    tokens: Option<usize>,
    /// So many tokens behind the context are noted in the file, to test on
    #[arg(long, default_value_t = 0)]
    continuation: usize,
    /// Leave out so many tokens at the beginning of the text
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Last queries and attention statistics, too
    #[arg(long)]
    statistics: bool,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = OutputFile::create(&args.output, args.force)?;
    let path = resolve(args.model.as_deref())?;
    let tokenizer = Tokenizer::open(&path)?;
    let mut ids = Vec::new();
    for text in &args.texts {
        let content = std::fs::read_to_string(text).map_err(|e| Error::io("cannot read", text, e))?;
        ids.extend(tokenizer.encode(&content)?);
    }
    let (context, continuation) = cut(&ids, args)?;
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    let statistics = args.statistics.then(|| AttentionSums::new(model.hyper(), context.len(), RECENT));
    let observer = statistics.as_ref().map(|statistics| statistics as &dyn Observer);
    let mut kv = KvState::new(model.geometry());
    let start = Instant::now();
    with_bar("prefill", |progress| model.prefill(context, &mut kv, observer, progress))?;
    let seconds = start.elapsed().as_secs_f64();
    write(out, &kv, &model, statistics, context, continuation)?;
    let mut report = Report::new("cacheg-bench");
    report.field("model", path.display().to_string());
    report.row(json!({
        "name": args.output.display().to_string(),
        "tokens": context.len(),
        "continuation_tokens": continuation.len(),
        "kv_bytes": model.geometry().bytes_per_token() * context.len() as u64,
        "prefill_s": seconds,
        "prefill_tokens_s": context.len() as f64 / seconds,
    }));
    report.print(args.json, |report| {
        report.table(&[
            ("name", "KV cache", 0),
            ("tokens", "tokens", 0),
            ("continuation_tokens", "continuation", 0),
            ("kv_bytes", "bytes of KV", 0),
            ("prefill_s", "prefill s", 2),
            ("prefill_tokens_s", "tokens/s", 1),
        ])
    })
}

/// Context and continuation.
fn cut<'a>(ids: &'a [u32], args: &Args) -> Result<(&'a [u32], &'a [u32])> {
    let Args { skip, continuation, .. } = *args;
    let rest = ids.get(skip..).unwrap_or_default();
    let tokens = args.tokens.unwrap_or(rest.len().saturating_sub(continuation));
    match rest.split_at_checked(tokens).map(|(context, after)| (context, after.get(..continuation))) {
        Some((context, Some(after))) if !context.is_empty() => Ok((context, after)),
        _ => Err(Error::data(format!(
            "the text has {} tokens; {skip} to skip, {} of context and {continuation} of continuation were asked for",
            ids.len(),
            tokens.max(1),
        ))),
    }
}

/// Runs with a bar that a [`Progress`] moves.
pub(crate) fn with_bar<T>(what: &'static str, work: impl FnOnce(Progress<'_>) -> Result<T>) -> Result<T> {
    let bar = progress(1, what);
    let done = work(&|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    done
}

fn write(
    mut out: OutputFile,
    kv: &KvState,
    model: &Model,
    statistics: Option<AttentionSums>,
    context: &[u32],
    continuation: &[u32],
) -> Result<()> {
    let cache = kv.to_cache()?;
    let view = cache.view();
    let mut metadata = kv_metadata(&view);
    let hyper = model.hyper();
    metadata.insert("keys".into(), "post-RoPE".into());
    metadata.insert("n_layers".into(), hyper.layers.to_string());
    metadata.insert("kv_heads".into(), hyper.kv_heads.to_string());
    metadata.insert("head_dim".into(), hyper.head_dim.to_string());
    metadata.insert("query_heads".into(), hyper.heads.to_string());
    let windows: Vec<Option<usize>> = (0..hyper.layers).map(|layer| hyper.window_of(layer)).collect();
    if windows.iter().any(Option::is_some) {
        metadata.insert("sliding_window".into(), json!(windows).to_string());
    }
    metadata.insert("token_ids".into(), json!(context).to_string());
    metadata.insert("continuation_ids".into(), json!(continuation).to_string());
    let (heads, dim) = (hyper.heads, hyper.head_dim);
    let (tokens, recent) = statistics.as_ref().map_or((0, 0), |s| (s.tokens(), s.recent()));
    let layers = statistics.map(AttentionSums::into_layers).unwrap_or_default();
    let mut named = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        named.push((format!("layers.{index}.queries"), vec![heads, recent, dim], &layer.queries));
        named.push((format!("layers.{index}.attention_sum"), vec![heads, tokens], &layer.accumulated));
        named.push((format!("layers.{index}.attention_recent"), vec![heads, tokens], &layer.recent));
    }
    let extra: Vec<ExtraTensor<'_>> =
        named.iter().map(|(name, shape, values)| ExtraTensor { name, shape, values }).collect();
    write_kv_with(&mut out, &view, &metadata, &extra)?;
    out.commit()
}
