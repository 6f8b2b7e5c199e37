//! `cacheg-bench stream --publish`: memory and time of publishing against the length of the context.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cacheg::net::store::{Publication, publish};
use cacheg::report::{Report, progress};
use cacheg::{Error, KvFile, Limits, Result, levels};
use serde_json::{Value, json};

use super::child::Child;
use super::{overhead, repeated};

/// Contexts that repeat the embedded KV cache, a little different each time, are published to a folder, each by a process
/// of its own. own_peak_bytes is that process's memory without the file that it maps, which is the system's cache.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Lengths of the contexts
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "4096,16384,65536")]
    tokens: Vec<u32>,
    /// Levels: presets with all of their levels, or one of them
    #[arg(long, value_name = "PRESET", value_delimiter = ',', default_value = "fast")]
    levels: Vec<String>,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ChildArgs {
    file: PathBuf,
    store: String,
    levels: String,
    chunk_tokens: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.tokens.is_empty() || args.tokens.contains(&0) {
        return Err(Error::setting("lengths are at least 1"));
    }
    let mut report = Report::new("cacheg-bench");
    report.field("version", env!("CARGO_PKG_VERSION"));
    report.field("levels", args.levels.clone());
    report.field("chunk_tokens", args.chunk_tokens);
    let per_token = cacheg::sample()?.geometry().bytes_per_token();
    let bar = progress(args.tokens.iter().map(|tokens| u64::from(*tokens)).sum(), "publishing");
    let runtime = crate::runtime()?;
    let mut first = None;
    for tokens in &args.tokens {
        let folder = super::temporary()?;
        let file = folder.path().join("kv.safetensors");
        repeated::write(&file, *tokens as usize)?;
        let (store, levels) = (folder.path().join("store"), args.levels.join(","));
        let chunk = args.chunk_tokens.to_string();
        let words =
            ["stream-publish".as_ref(), file.as_os_str(), store.as_os_str(), levels.as_ref(), chunk.as_ref()];
        let said: Value =
            runtime.block_on(async { Child::start("the publisher", None, &words)?.hear().await })?;
        let seconds = said["seconds"].as_f64().unwrap_or(f64::NAN);
        let each = seconds / f64::from(*tokens);
        let base = *first.get_or_insert(each);
        report.row(json!({
            "name": format!("{tokens} tokens"),
            "tokens": tokens,
            "kv_bytes": per_token * u64::from(*tokens),
            "publish_s": seconds,
            "ms_per_1000_tokens": each * 1e6,
            "time_over_linear": each / base,
            "own_peak_bytes": said["own_peak_bytes"],
            "own_peak_mb": said["own_peak_bytes"].as_f64().map(|bytes| bytes / 1e6),
            "peak_bytes": said["peak_bytes"],
            "stored_bytes": said["stored_bytes"],
        }));
        bar.inc(u64::from(*tokens));
    }
    bar.finish_and_clear();
    report.print(args.json, |report| {
        report.table(&[
            ("tokens", "tokens", 0),
            ("kv_bytes", "bytes of KV", 0),
            ("publish_s", "publish s", 2),
            ("ms_per_1000_tokens", "ms per 1,000 tokens", 1),
            ("time_over_linear", "× linear", 3),
            ("own_peak_mb", "own memory, MB at most", 1),
            ("stored_bytes", "bytes stored", 0),
        ])
    })
}

/// Publishes in this process, as `cacheg publish` does, and says what that took.
pub(crate) fn run_child(args: &ChildArgs) -> Result<()> {
    let registry = Arc::new(cacheg::builtins()?);
    let names: Vec<String> = args.levels.split(',').map(str::to_owned).collect();
    let file = KvFile::open(&args.file, &Limits::default())?;
    let publication = Publication {
        metadata: file.metadata().clone(),
        source: Arc::new(file),
        model: "repeated".into(),
        levels: levels::parse(&registry, &names, &[])?,
        profile: None,
        chunk_tokens: args.chunk_tokens as usize,
        id: None,
        replace: false,
    };
    let (own, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (own, over) = (own.clone(), over.clone());
        std::thread::spawn(move || {
            // The system keeps a peak only of everything, mapped files included.
            while !over.load(Ordering::Relaxed) {
                own.fetch_max(status("RssAnon:"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let start = Instant::now();
    let store = overhead::open(&args.store)?;
    let published = crate::runtime()?.block_on(publish(&store, &registry, &publication, &|_| ()))?;
    let seconds = start.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    if watch.join().is_err() {
        return Err(Error::data("the thread that watches memory has failed"));
    }
    let said = json!({
        "seconds": seconds,
        "own_peak_bytes": own.load(Ordering::Relaxed),
        "peak_bytes": status("VmHWM:"),
        "stored_bytes": published.written_bytes,
    });
    cacheg::report::print(&said.to_string())
}

/// Bytes that the system says of this process; 0 where it does not.
fn status(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
