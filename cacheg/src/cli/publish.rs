//! `cacheg publish`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cacheg::core::ResultExt;
use cacheg::net::store::{ContextId, KvSource, Publication, WithImportance, publish};
use cacheg::{Result, levels};
use serde_json::json;

use super::args;
use super::stores::{self, StoreArgs};
use cacheg::report::{Report, progress};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg publish kv.safetensors --to ./store\n  cacheg publish kv.safetensors --to http://host:8080/ --levels fast,lossless --chunk-tokens 256\n  cacheg publish kv.safetensors --to s3://bucket/prefix --levels cachegen-paper@1,cachegen-paper@2 --profile model.cgprof\n  cacheg publish kv.safetensors --to ./store --level 'mine=mean|uniform(bits=4)|rans'\n\nChunks are written first and the manifest last: an interrupted publication leaves nothing visible, and doing it again\ntakes up what is there. Contexts that begin with the same tokens share chunks."
)]
pub(crate) struct Args {
    /// The KV cache: tensors `layers.{i}.key` and `layers.{i}.value`, or one stacked `kv`; the metadata `token_ids`, a JSON
    /// list, makes text fallback and sharing by prefix possible
    input: PathBuf,
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
    /// The model's name [default: what the file's metadata say under `model`]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The context's name [default: made from what is in it]
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Replace another context of that name
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = Arc::new(cacheg::builtins()?);
    let levels = levels::parse(&registry, &args.levels, &args.level)?;
    let profile = args::profile(args.profile.as_ref())?.map(Arc::new);
    let file = args::kv(&args.input)?;
    let model = args.model.clone().or_else(|| file.metadata().get("model").cloned()).unwrap_or_default();
    let store = args.store.store(&args.to)?;
    let (tokens, raw) = (file.tokens() as u64, file.geometry().bytes_per_token() * file.tokens() as u64);
    let bar = progress(tokens * levels.len() as u64, "publishing");
    let wanted = levels.iter().any(|level| level.pipeline.wants_importance());
    let metadata = file.metadata().clone();
    let source: Arc<dyn KvSource> = match args::importance(&file, &args.input, wanted)? {
        Some(known) => Arc::new(WithImportance::new(file, known)?),
        None => Arc::new(file),
    };
    let publication = Publication {
        metadata,
        source,
        model,
        levels,
        profile,
        chunk_tokens: args.chunk_tokens as usize,
        id: args.id.as_ref().map(ContextId::new).transpose()?,
        replace: args.replace,
    };
    let start = Instant::now();
    let published = stores::runtime()?
        .block_on(publish(&store, &registry, &publication, &|n| bar.inc(n)))
        .at(|| args.input.display())?;
    let seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let manifest = &published.manifest;
    let mut report = Report::new("cacheg");
    report.field("context", manifest.id.as_str());
    report.field("model", manifest.model.name.as_str());
    report.field("written_bytes", published.written_bytes);
    report.field("shared_bytes", published.shared_bytes);
    report.field("publish_mb_s", raw as f64 / 1e6 / seconds);
    let values = (manifest.geometry.values_per_token() * manifest.tokens) as f64;
    for level in &manifest.levels {
        let objects: Vec<_> =
            manifest.chunks.iter().filter_map(|chunk| chunk.levels.get(&level.name)).collect();
        let bytes: u64 = objects.iter().map(|object| object.bytes).sum();
        let weight: f64 = manifest
            .chunks
            .iter()
            .filter_map(|chunk| Some(chunk.levels.get(&level.name)?.distortion * chunk.tokens as f64))
            .sum();
        report.row(json!({
            "name": level.name,
            "level": level.name,
            "chunks": objects.len(),
            "bytes": bytes,
            "bits_per_value": bytes as f64 * 8.0 / values,
            "ratio": raw as f64 / bytes as f64,
            manifest.distortion.as_str(): weight / manifest.tokens as f64,
        }));
    }
    let summary = format!(
        "context {}: {} tokens in {} chunks; {} objects written ({:.1} MB), {} shared ({:.1} MB), {:.1} s",
        manifest.id,
        manifest.tokens,
        manifest.chunks.len(),
        published.written,
        published.written_bytes as f64 / 1e6,
        published.shared,
        published.shared_bytes as f64 / 1e6,
        seconds
    );
    report.print(args.json, |report| {
        let columns = [
            ("name", "level", 0),
            ("bytes", "bytes", 0),
            ("bits_per_value", "bits/value", 3),
            ("ratio", "ratio", 2),
            ("nmse", "nmse", 5),
        ];
        format!("{summary}\n\n{}", report.table(&columns))
    })
}
