//! `cacheg encode`

use std::path::PathBuf;
use std::time::Instant;

use cacheg::core::ResultExt;
use cacheg::output::OutputFile;
use cacheg::{Encoder, ErrorKind, Geometry, Pipeline, Profile, Registry, Result, flow, rate};
use serde_json::json;

use super::args::{self, PipelineArgs};
use cacheg::report::{Report, per_value, progress};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg encode kv.safetensors -o kv.cgkv\n  cacheg encode kv.safetensors -o kv.cgkv --preset cachegen-paper --level 0 --profile model.cgprof\n  cacheg encode kv.safetensors -o kv.cgkv --pipeline 'anchor-delta(group=10)|bins(k=32,16,16;v=32,16)|rans(tables=channel)'\n  cacheg encode kv.safetensors -o kv.cgkv --pipeline 'h2o(keep=0.5)|mean|bins(step=0.5)|rans'\n\nWithout --profile each chunk is calibrated by itself and carries its tables.\nA select stage (h2o) drops tokens. The input must say how much attention they got: `cacheg-bench prefill --statistics`\nwrites such files."
)]
pub(crate) struct Args {
    /// The KV cache: tensors `layers.{i}.key` and `layers.{i}.value`, or one stacked `kv`
    input: PathBuf,
    /// The container to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// A calibrated profile (`cacheg profile`)
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Choose the level and move its steps so that the file takes so many bits per value, within 5 %; levels that the profile
    /// lacks are left out. Encodes some ten times
    #[arg(long, value_name = "BITS", conflicts_with_all = ["level", "pipeline"])]
    target_bits: Option<f64>,
    /// Tokens per chunk [default: the preset's own, mostly 1500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: Option<u32>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Those levels of the preset that can be used.
fn levels(
    args: &Args,
    registry: &Registry,
    geometry: &Geometry,
    profile: Option<&Profile>,
) -> Result<Vec<(usize, Encoder)>> {
    let mut levels = Vec::new();
    let mut missing = None;
    for (level, spec) in cacheg::preset(&args.pipeline.preset)?.levels.iter().enumerate() {
        match Encoder::new(Pipeline::parse(registry, spec)?, geometry, profile) {
            Ok(encoder) => levels.push((level, encoder)),
            Err(error) if error.kind() == ErrorKind::Profile => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    match missing {
        Some(error) if levels.is_empty() => Err(error),
        _ => Ok(levels),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let (pipeline, name, chunk_tokens) = args.pipeline.build(&registry)?;
    let chunk_tokens = args.chunk_tokens.map_or(chunk_tokens, |tokens| tokens as usize);
    let profile = args::profile(args.profile.as_ref())?;
    let file = args::kv(&args.input)?;
    let importance = args::importance(&file, &args.input, pipeline.wants_importance())?;
    let view = file.view().with_importance(importance.as_ref())?;
    let mut out = OutputFile::create(&args.output, args.force)?;
    let (encoder, rate) = match args.target_bits {
        None => (Encoder::new(pipeline, file.geometry(), profile.as_ref())?, None),
        Some(wanted) => {
            let levels = levels(args, &registry, file.geometry(), profile.as_ref())?;
            let found = rate::of_bits(&view, &levels, chunk_tokens, wanted).at(|| args.input.display())?;
            (found.encoder, Some((found.level, found.shift)))
        }
    };
    let values = file.geometry().values_per_token() * file.tokens() as u64;
    let bar = progress(values, "encoding");
    let start = Instant::now();
    let bytes = flow::encode(&view, file.metadata(), &encoder, chunk_tokens, &mut out, &|n| bar.inc(n))
        .at(|| args.input.display())?;
    let seconds = start.elapsed().as_secs_f64();
    out.commit()?;
    bar.finish_and_clear();
    let raw = file.geometry().bytes_per_token() * file.tokens() as u64;
    let mut report = Report::new("cacheg");
    report.row(json!({
        "name": args.output.display().to_string(),
        "codec": name,
        "level": rate.map(|(level, _)| level).or(args.pipeline.level),
        "shift": rate.map(|(_, shift)| shift),
        "tokens": file.tokens(),
        "bytes": bytes,
        "bits_per_value": per_value(bytes, values),
        "ratio": (values > 0).then_some(raw as f64 / bytes as f64),
        "encode_mb_s": raw as f64 / 1e6 / seconds,
    }));
    let mut columns = vec![("name", "file", 0), ("codec", "codec", 0)];
    if rate.is_some() {
        columns.extend([("level", "level", 0), ("shift", "steps moved", 2)]);
    }
    columns.extend([
        ("tokens", "tokens", 0),
        ("bytes", "bytes", 0),
        ("bits_per_value", "bits/value", 3),
        ("ratio", "ratio", 2),
        ("encode_mb_s", "MB/s", 0),
    ]);
    report.print(args.json, |report| report.table(&columns))
}
