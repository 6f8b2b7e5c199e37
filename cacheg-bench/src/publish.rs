//! `cacheg-bench publish`: text to a context in a store, by one command.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cacheg::core::{OpenOptions, kv_metadata};
use cacheg::net::store::{ContextId, LevelSpec, Publication, Published, Store, publish};
use cacheg::report::{Report, progress};
use cacheg::{Error, KvCache, Limits, Profile, Registry, Result, levels};
use cacheg_bench::llm::{KvState, Model, Tokenizer, resolve};
use serde_json::json;

use crate::prefill::with_bar;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cacheg-bench publish novel.txt --to ./store
  cacheg-bench publish system.txt question.txt --to http://host:8080/ --levels fast,cachegen-paper --chunk-tokens 256

The environment variable CACHEG_TOKEN is sent to HTTP stores as a bearer token.")]
pub(crate) struct Args {
    /// Text files (UTF-8), one behind the other
    #[arg(required = true)]
    texts: Vec<PathBuf>,
    /// The store: a folder or a URL
    #[arg(long, value_name = "URL")]
    to: String,
    /// Levels: presets with all of their levels, or one of them (`fast@2`)
    #[arg(long, value_name = "PRESET", value_delimiter = ',', default_value = "fast")]
    levels: Vec<String>,
    /// A further level by spec string; may be given several times
    #[arg(long, value_name = "NAME=SPEC")]
    level: Vec<String>,
    /// A calibrated profile (`cacheg profile`)
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    /// Length of the context [default: the whole text]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// The context's name [default: made from what is in it]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Replace another context of that name
    #[arg(long)]
    replace: bool,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// How a context is to be published.
pub(crate) struct How {
    pub(crate) levels: Vec<LevelSpec>,
    pub(crate) profile: Option<Arc<Profile>>,
    pub(crate) chunk_tokens: usize,
    pub(crate) id: Option<ContextId>,
    pub(crate) replace: bool,
}

/// Opens a store, with the token that the environment has.
pub(crate) fn open(url: &str) -> Result<Store> {
    let mut options = OpenOptions::default();
    options.token = std::env::var("CACHEG_TOKEN").ok().filter(|token| !token.is_empty());
    Ok(Store::new(cacheg::transports()?.open(url, &options)?, Limits::default()))
}

/// Prefills, chunk by chunk.
pub(crate) fn prefill(model: &Model, tokens: &[u32]) -> Result<KvCache> {
    let mut kv = KvState::new(model.geometry());
    with_bar("prefill", |progress| model.prefill(tokens, &mut kv, None, progress))?;
    kv.to_cache()
}

/// Publishes a prefilled text.
pub(crate) async fn put(
    store: &Store,
    registry: &Arc<Registry>,
    model: &str,
    (tokens, cache): (&[u32], &Arc<KvCache>),
    how: How,
) -> Result<Published> {
    let mut metadata = kv_metadata(&cache.view());
    metadata.insert("token_ids".into(), json!(tokens).to_string());
    let bar = progress(tokens.len() as u64 * how.levels.len() as u64, "publishing");
    let publication = Publication {
        source: cache.clone(),
        metadata,
        model: model.to_owned(),
        levels: how.levels,
        profile: how.profile,
        chunk_tokens: how.chunk_tokens,
        id: how.id,
        replace: how.replace,
    };
    let published = publish(store, registry, &publication, &|n| bar.inc(n)).await;
    bar.finish_and_clear();
    published
}

/// Whose KV cache it is: the model's file, as far as people name it.
pub(crate) fn name(path: &std::path::Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = Arc::new(cacheg::builtins()?);
    let profile = match &args.profile {
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
            Some(Arc::new(Profile::from_bytes(bytes)?))
        }
        None => None,
    };
    let how = How {
        levels: levels::parse(&registry, &args.levels, &args.level)?,
        profile,
        chunk_tokens: args.chunk_tokens as usize,
        id: args.id.as_ref().map(ContextId::new).transpose()?,
        replace: args.replace,
    };
    let store = open(&args.to)?;
    let path = resolve(args.model.as_deref())?;
    let tokenizer = Tokenizer::open(&path)?;
    let mut tokens = Vec::new();
    for text in &args.texts {
        let content = std::fs::read_to_string(text).map_err(|e| Error::io("cannot read", text, e))?;
        tokens.extend(tokenizer.encode(&content)?);
    }
    let wanted = args.tokens.unwrap_or(tokens.len());
    if wanted > tokens.len() || wanted == 0 {
        return Err(Error::data(format!("the text has {} tokens; {wanted} were asked for", tokens.len())));
    }
    tokens.truncate(wanted);
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    let start = Instant::now();
    let cache = Arc::new(prefill(&model, &tokens)?);
    let prefill_s = start.elapsed().as_secs_f64();
    drop(model);
    let start = Instant::now();
    let runtime = crate::runtime()?;
    let published = runtime.block_on(put(&store, &registry, &name(&path), (&tokens, &cache), how))?;
    let publish_s = start.elapsed().as_secs_f64();

    let manifest = &published.manifest;
    let raw = manifest.geometry.bytes_per_token() * manifest.tokens;
    let mut report = Report::new("cacheg-bench");
    report.field("context", manifest.id.as_str());
    report.field("model", manifest.model.name.as_str());
    report.field("tokens", manifest.tokens);
    report.field("chunks", manifest.chunks.len());
    report.field("prefill_s", prefill_s);
    report.field("publish_s", publish_s);
    report.field("written_bytes", published.written_bytes);
    report.field("shared_bytes", published.shared_bytes);
    for level in &manifest.levels {
        let objects = manifest.chunks.iter().filter_map(|chunk| chunk.levels.get(&level.name));
        let bytes: u64 = objects.map(|object| object.bytes).sum();
        report.row(json!({
            "name": level.name,
            "level": level.name,
            "bytes": bytes,
            "bits_per_value":
                bytes as f64 * 8.0 / (manifest.geometry.values_per_token() * manifest.tokens) as f64,
            "ratio": raw as f64 / bytes as f64,
        }));
    }
    let summary = format!(
        "context {}: {} tokens in {} chunks; prefill {prefill_s:.1} s, publish {publish_s:.1} s; {:.1} MB written, {:.1} MB shared",
        manifest.id,
        manifest.tokens,
        manifest.chunks.len(),
        published.written_bytes as f64 / 1e6,
        published.shared_bytes as f64 / 1e6,
    );
    report.print(args.json, |report| {
        let columns = [
            ("name", "level", 0),
            ("bytes", "bytes", 0),
            ("bits_per_value", "bits/value", 3),
            ("ratio", "ratio", 2),
        ];
        format!("{summary}\n\n{}", report.table(&columns))
    })
}
