//! `cacheg decode`

use std::path::PathBuf;
use std::time::Instant;

use cacheg::core::{Container, ResultExt, kv_metadata, write_kv};
use cacheg::output::OutputFile;
use cacheg::{Device, Limits, Result, flow};
use serde_json::json;

use super::args;
use cacheg::report::{Report, progress};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg decode kv.cgkv -o kv.safetensors\n  cacheg decode kv.cgkv -o kv.safetensors --profile model.cgprof\n\nOf a container with dropped tokens every head has its own rows: tensors `layers.{i}.positions`, [kv_heads, tokens], say\nwhere each was in the model's sequence, the metadata `context_tokens` and `next_position` how long that was and where\nit goes on."
)]
pub(crate) struct Args {
    /// The container
    input: PathBuf,
    /// The KV cache to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The profile that the container was encoded with, if any
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Where to decode: auto, cpu, gpu, hybrid (both), or gpu:NAME, hybrid:NAME
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Refuse containers that decode to more than this
    #[arg(long, value_name = "GIB", default_value = "64")]
    max_output: u32,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let profile = args::profile(args.profile.as_ref())?;
    let bytes = args::container(&args.input)?;
    let mut limits = Limits::default();
    limits.max_output = u64::from(args.max_output) << 30;
    let container = Container::parse(&bytes, &limits).at(|| args.input.display())?;
    let (rows, header) = (container.rows() as u64, container.header);
    let mut out = OutputFile::create(&args.output, args.force)?;
    let bar = progress(header.geometry.values_per_token() * rows, "decoding");
    let backend = args.device.open()?;
    let decode = flow::Decode { registry: &registry, profile: profile.as_ref(), backend: &*backend };
    let start = Instant::now();
    let decoded = decode.run(&bytes, &limits, &|n| bar.inc(n)).at(|| args.input.display())?;
    let seconds = start.elapsed().as_secs_f64();
    // What the geometry says of RoPE and positions, and over it the source's own words.
    let view = decoded.view()?;
    let mut metadata = kv_metadata(&view);
    metadata.extend(decoded.metadata.clone());
    write_kv(&mut out, &view, &metadata).at(|| args.output.display())?;
    out.commit()?;
    bar.finish_and_clear();
    let raw = header.geometry.bytes_per_token() * rows;
    let mut report = Report::new("cacheg");
    report.row(json!({
        "name": args.output.display().to_string(),
        "tokens": rows,
        "context_tokens": header.tokens,
        "bytes": raw,
        "device": backend.name(),
        "decode_mb_s": raw as f64 / 1e6 / seconds,
    }));
    report.print(args.json, |report| {
        let mut columns = vec![("name", "file", 0), ("tokens", "tokens", 0)];
        if rows != header.tokens {
            columns.push(("context_tokens", "of", 0));
        }
        columns.extend([("bytes", "bytes", 0), ("device", "device", 0), ("decode_mb_s", "MB/s", 0)]);
        report.table(&columns)
    })
}
