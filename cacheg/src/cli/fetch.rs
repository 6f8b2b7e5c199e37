//! `cacheg fetch`

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cacheg::core::{KvView, KvViewMut};
use cacheg::net::fetch::{FetchOptions, FileReceiver, Got, Receiver, fetch};
use cacheg::net::store::{ContextId, Manifest, Store};
use cacheg::output::OutputFile;
use cacheg::{Error, Result};
use serde_json::json;

use super::stores::{self, StoreArgs};
use cacheg::Device;
use cacheg::report::{Report, progress};
use indicatif::ProgressBar;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg fetch http://host:8080/ -o kv.safetensors\n  cacheg fetch http://host:8080/ my-context -o kv.safetensors --slo 500ms --timeline timeline.svg\n  cacheg fetch 'shaped+http://host:8080/#rate=20Mbps' -o kv.safetensors --slo 2s --policy 'cachegen'\n  cacheg fetch ./store -o kv.safetensors --policy 'fixed(level=2)'\n\nChunks are written as they come; a request that was killed goes on where it was when it is made again. With --recompute\nchunks may be left to the model: their rows are zero, and the report says which tokens to recompute.\nExit code 1 if chunks are missing when the deadline and the grace are over: the parts that came are kept."
)]
pub(crate) struct Args {
    /// The store: a folder or a URL
    url: String,
    /// The context [default: the only one]
    context: Option<String>,
    /// The KV cache to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// When all chunks must be there [default: no deadline, best quality]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    slo: Option<Duration>,
    /// How long after the deadline to give up
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How to choose levels: plan, cachegen, artifact, fixed(level=N), … [default: plan; without a deadline fixed(level=0),
    /// the best]
    #[arg(long, value_name = "SPEC")]
    policy: Option<String>,
    /// How to expect throughput: last, harmonic, ewma, holt, quantile
    #[arg(long, value_name = "SPEC", default_value = "last")]
    estimator: String,
    /// Transfers at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Chunks may be left to the model, which takes so long for 1,000 tokens
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    recompute: Option<Duration>,
    /// Be done as soon as all chunks are there, instead of using the time until the deadline for better ones
    #[arg(long)]
    asap: bool,
    /// Where to decode: auto, cpu, gpu, hybrid (both), or gpu:NAME, hybrid:NAME
    #[arg(long, default_value = "auto")]
    device: Device,
    /// A picture (SVG) of what was done when
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Shows how much has come.
struct Shown {
    file: FileReceiver,
    bar: ProgressBar,
    /// Tokens of each chunk that has not come yet.
    missing: Vec<u64>,
}

impl Receiver for Shown {
    fn begin(&mut self, manifest: &Manifest, tokens: Option<&[u32]>) -> Result<Vec<usize>> {
        let held = self.file.begin(manifest, tokens)?;
        self.bar.set_length(manifest.tokens);
        self.missing = manifest.chunks.iter().map(|chunk| chunk.tokens).collect();
        held.iter().for_each(|chunk| self.bar.inc(std::mem::take(&mut self.missing[*chunk])));
        Ok(held)
    }

    fn view(&mut self) -> Result<KvViewMut<'_>> {
        self.file.view()
    }

    fn read(&self) -> Result<KvView<'_>> {
        self.file.read()
    }

    fn arrived(&mut self, chunk: usize, level: Option<&str>) -> Result<()> {
        self.file.arrived(chunk, level)?;
        // An upgrade comes a second time.
        self.bar.inc(self.missing.get_mut(chunk).map(std::mem::take).unwrap_or_default());
        Ok(())
    }
}

/// The context that is meant.
async fn context(store: &Store, name: Option<&str>) -> Result<ContextId> {
    if let Some(name) = name {
        return ContextId::new(name);
    }
    let all = store.contexts().await?;
    match all.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Error::not_found(format!("no context in {}", store.transport().url()))),
        _ => {
            let names: Vec<&str> = all.iter().take(8).map(ContextId::as_str).collect();
            let more = if all.len() > names.len() { ", …" } else { "" };
            Err(Error::setting(format!("which context? There are {}: {}{more}", all.len(), names.join(", "))))
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.output.exists() && !args.force {
        // Before anything is fetched.
        OutputFile::create(&args.output, false)?;
    }
    let registry = Arc::new(cacheg::builtins()?);
    let mut picture = args.timeline.as_ref().map(|path| OutputFile::create(path, true)).transpose()?;
    let store = args.store.store(&args.url)?;
    let mut options = FetchOptions::default();
    options.slo = args.slo;
    options.grace = args.grace;
    options.policy.clone_from(&args.policy);
    options.estimator.clone_from(&args.estimator);
    options.connections = usize::from(args.connections);
    options.recompute = args.recompute.map(|time| time / 1_000);
    options.asap = args.asap;
    options.backend = args.device.open()?.into();
    let shown =
        Shown { file: FileReceiver::new(&args.output), bar: progress(1, "fetching"), missing: Vec::new() };
    let receiver = Arc::new(Mutex::new(shown));
    let fetched = stores::runtime()?.block_on(async {
        let id = context(&store, args.context.as_deref()).await?;
        fetch(&store, &registry, &id, &options, receiver.clone(), None).await
    })?;
    let mut receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
    receiver.bar.finish_and_clear();
    if let (Some(mut out), Some(path)) = (picture.take(), &args.timeline) {
        let svg = cacheg::timeline::svg(&fetched, args.slo)?;
        out.write_all(svg.as_bytes()).map_err(|e| Error::io("cannot write", path, e))?;
        out.commit()?;
    }
    let missing = fetched.chunks.iter().filter(|got| **got == Got::Missing).count();
    if missing == 0 {
        receiver.file.finish(args.force)?;
    }

    let manifest = &fetched.manifest;
    let mut report = Report::new("cacheg");
    let late = args.slo.is_some_and(|slo| fetched.complete.is_none_or(|complete| complete > slo));
    let absent: Vec<[u64; 2]> = fetched.absent().into_iter().map(|run| [run.start, run.end]).collect();
    report.field("context", manifest.id.as_str());
    report.field("policy", options.policy());
    report.field("tokens", manifest.tokens);
    report.field("bytes", fetched.bytes);
    report.field("ttft_s", fetched.complete.map(|complete| complete.as_secs_f64()));
    report.field("slo_s", args.slo.map(|slo| slo.as_secs_f64()));
    report.field("missed", late);
    report.field(&format!("distortion_{}", manifest.distortion), fetched.distortion());
    report.field("recompute", json!(absent));
    report.field("faults", fetched.faults.clone());
    for (index, (chunk, got)) in manifest.chunks.iter().zip(&fetched.chunks).enumerate() {
        let (level, distortion) = match got {
            Got::Level { level, distortion } => (level.as_str(), Some(*distortion)),
            Got::Text => ("text", Some(0.0)),
            Got::Held => ("had it", None),
            Got::Left => ("left to the model", None),
            _ => ("missing", None),
        };
        let bytes =
            if let Got::Level { level, .. } = got { chunk.levels.get(level).map(|o| o.bytes) } else { None };
        report.row(json!({
            "name": format!("chunk {index}"),
            "tokens": chunk.tokens,
            "level": level,
            "bytes": bytes,
            "distortion": distortion,
        }));
    }
    let when = match fetched.complete {
        Some(complete) => format!("{:.3} s", complete.as_secs_f64()),
        None => "not complete".to_owned(),
    };
    let slo = match args.slo {
        Some(slo) => format!(
            " (deadline {}: {})",
            humantime::format_duration(slo),
            if late { "missed" } else { "met" }
        ),
        None => String::new(),
    };
    let mut summary = format!(
        "context {}: {} tokens, {:.2} MB in {when}{slo}, {} {:.5}",
        manifest.id,
        manifest.tokens,
        fetched.bytes as f64 / 1e6,
        manifest.distortion,
        fetched.distortion(),
    );
    for run in fetched.absent() {
        summary += &format!("\nrecompute tokens {}..{}", run.start, run.end);
    }
    for fault in &fetched.faults {
        summary += &format!("\ngot over: {fault}");
    }
    report.print(args.json, |report| {
        let columns = [
            ("name", "chunk", 0),
            ("tokens", "tokens", 0),
            ("level", "level", 0),
            ("bytes", "bytes", 0),
            ("distortion", "distortion", 5),
        ];
        format!("{summary}\n\n{}", report.table(&columns))
    })?;
    if missing > 0 {
        return Err(Error::unavailable(format!(
            "{missing} of {} chunks are missing; what came is in {}.part, and the same command goes on from there",
            manifest.chunks.len(),
            args.output.display()
        )));
    }
    Ok(())
}
