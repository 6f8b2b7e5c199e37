//! `cacheg-bench stream --overhead`: what the pipeline adds to the slower of its two halves.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cacheg::core::{Backend as _, Chunk, Cpu, KvOut, OpenOptions};
use cacheg::net::fetch::{FetchOptions, MemoryReceiver, fetch};
use cacheg::net::store::{ContextId, Manifest, Publication, Store, publish};
use cacheg::report::{Report, progress};
use cacheg::{Error, KvCache, KvFile, Limits, Registry, Result, levels};
use serde_json::json;

use super::{median, repeated, server};

/// A context over loopback HTTP, the server in a process of its own, at each level: only downloading its chunks, only
/// decoding them, and fetching it, in turn, so that what else the machine does hits all three alike. overhead is the
/// fetch's time over that of the slower of the other two; nothing can be below 1 but by chance, and where both halves need
/// the same cores, the cores are the limit: cpu_bound_s is the processor time of a fetch, server included, over the cores.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Length of the context, which repeats the embedded KV cache
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tokens: u32,
    /// Levels: presets with all of their levels, or one of them
    #[arg(
        long,
        value_name = "PRESET",
        value_delimiter = ',',
        default_value = "q8,q4,fast@1,cachegen-paper@1"
    )]
    levels: Vec<String>,
    /// Further levels by spec string
    #[arg(long, value_name = "NAME=SPEC", default_value = "f16=bytes|raw")]
    level: Vec<String>,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    /// Transfers at a time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Times that everything is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Times of one level, one for each round.
#[derive(Default)]
struct Times {
    download: Vec<f64>,
    decode: Vec<f64>,
    fetch: Vec<f64>,
    cpu: Vec<f64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = Arc::new(cacheg::builtins()?);
    let folder = super::temporary()?;
    let (file, store) = (folder.path().join("kv.safetensors"), folder.path().join("store"));
    repeated::write(&file, args.tokens as usize)?;
    let runtime = crate::runtime()?;
    let manifest = runtime.block_on(fill(args, &registry, &file, &store))?;
    let bar = progress(u64::from(args.repeat) * manifest.levels.len() as u64, "fetching");
    let times = runtime.block_on(async {
        let server = server::start(None, &store, "127.0.0.1:0").await?;
        let store = open(&server.url)?;
        let mut times: Vec<Times> = manifest.levels.iter().map(|_| Times::default()).collect();
        let race = Race { args, registry: &registry, store: &store, manifest: &manifest, server: &server };
        for _ in 0..args.repeat {
            for (level, times) in times.iter_mut().enumerate() {
                race.round(level, times).await?;
                bar.inc(1);
            }
        }
        Ok::<_, Error>(times)
    })?;
    bar.finish_and_clear();

    let raw = manifest.geometry.bytes_per_token() * manifest.tokens;
    let mut report = Report::new("cacheg-bench");
    report.field("version", env!("CARGO_PKG_VERSION"));
    report.field("tokens", args.tokens);
    report.field("kv_bytes", raw);
    report.field("chunk_tokens", args.chunk_tokens);
    report.field("connections", args.connections);
    report.field("load_average", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for (level, times) in manifest.levels.iter().zip(&times) {
        let objects = manifest.chunks.iter().filter_map(|chunk| chunk.levels.get(&level.name));
        let bytes: u64 = objects.map(|object| object.bytes).sum();
        let [download, decode, fetch, cpu] =
            [&times.download, &times.decode, &times.fetch, &times.cpu].map(|times| median(times));
        // Of each round, so that a burst of other work does not hit one of them alone.
        let ratios = (0..times.fetch.len()).map(|i| times.fetch[i] / times.download[i].max(times.decode[i]));
        report.row(json!({
            "name": level.name,
            "level": level.name,
            "megabytes": bytes as f64 / 1e6,
            "download_s": download,
            "decode_s": decode,
            "fetch_s": fetch,
            "overhead": fetch / download.max(decode),
            "overhead_by_round": median(&ratios.collect::<Vec<_>>()),
            "cpu_bound_s": cpu,
            "fetch_gb_s": raw as f64 / 1e9 / fetch,
        }));
    }
    report.print(args.json, |report| {
        format!(
            "{} tokens, {:.0} MB of KV cache, over loopback HTTP\n\n{}",
            args.tokens,
            raw as f64 / 1e6,
            report.table(&[
                ("name", "level", 0),
                ("megabytes", "MB", 1),
                ("download_s", "download s", 3),
                ("decode_s", "decode s", 3),
                ("fetch_s", "fetch s", 3),
                ("overhead", "× slower", 3),
                ("overhead_by_round", "by round", 3),
                ("cpu_bound_s", "CPU bound s", 3),
                ("fetch_gb_s", "GB/s of KV", 2),
            ])
        )
    })
}

pub(super) fn open(url: &str) -> Result<Store> {
    Ok(Store::new(cacheg::transports()?.open(url, &OpenOptions::default())?, Limits::default()))
}

async fn fill(args: &Args, registry: &Arc<Registry>, file: &Path, store: &Path) -> Result<Manifest> {
    let url = store.to_str().ok_or_else(|| Error::setting("the folder's name is not UTF-8"))?;
    let file = KvFile::open(file, &Limits::default())?;
    let levels = levels::parse(registry, &args.levels, &args.level)?;
    let bar = progress(u64::from(args.tokens) * levels.len() as u64, "publishing");
    let publication = Publication {
        metadata: file.metadata().clone(),
        source: Arc::new(file),
        model: "repeated".into(),
        levels,
        profile: None,
        chunk_tokens: args.chunk_tokens as usize,
        id: Some(ContextId::new("long")?),
        replace: false,
    };
    let published = publish(&open(url)?, registry, &publication, &|n| bar.inc(n)).await?;
    bar.finish_and_clear();
    Ok(published.manifest)
}

struct Race<'a> {
    args: &'a Args,
    registry: &'a Arc<Registry>,
    store: &'a Store,
    manifest: &'a Manifest,
    server: &'a server::Running,
}

impl Race<'_> {
    async fn round(&self, level: usize, times: &mut Times) -> Result<()> {
        // Not measured: keeping everything is no part of downloading.
        let chunks = self.download(level, true).await?;
        let start = Instant::now();
        self.download(level, false).await?;
        times.download.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let cache = self.decode(&chunks)?;
        times.decode.push(start.elapsed().as_secs_f64());
        drop(cache);
        let cpu = self.cpu_s();
        let start = Instant::now();
        let cache = self.fetch(level).await?;
        times.fetch.push(start.elapsed().as_secs_f64());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        times.cpu.push((self.cpu_s() - cpu) / cores as f64);
        drop(cache);
        Ok(())
    }

    /// All chunks, by as many requests at a time as the client makes.
    async fn download(&self, level: usize, keep: bool) -> Result<Vec<Vec<u8>>> {
        let name = &self.manifest.levels[level].name;
        let mut keys = Vec::new();
        for chunk in 0..self.manifest.chunks.len() {
            let object = self.manifest.object(chunk, name)?;
            keys.push(object.ok_or_else(|| Error::data("a chunk without that level"))?.0);
        }
        let connections = usize::from(self.args.connections);
        let mut running = tokio::task::JoinSet::new();
        let mut chunks = vec![Vec::new(); keys.len()];
        let mut keys = keys.into_iter().enumerate();
        loop {
            while running.len() < connections
                && let Some((index, key)) = keys.next()
            {
                let transport = self.store.transport().clone();
                running.spawn(async move {
                    let mut body = transport.get(&key, None).await?;
                    let mut bytes = Vec::new();
                    while let Some(piece) = body.pieces.next().await? {
                        if keep {
                            bytes.extend_from_slice(&piece);
                        }
                    }
                    Ok::<_, Error>((index, bytes))
                });
            }
            match running.join_next().await {
                None => return Ok(chunks),
                Some(Ok(done)) => {
                    let (index, bytes) = done?;
                    chunks[index] = bytes;
                }
                Some(Err(error)) => return Err(Error::data(error.to_string())),
            }
        }
    }

    fn decode(&self, chunks: &[Vec<u8>]) -> Result<KvCache> {
        let mut cache = KvCache::try_zeros(&self.manifest.geometry, self.args.tokens as usize, 0)?;
        let mut row = 0;
        for bytes in chunks {
            let chunk = Chunk::parse(bytes, self.store.limits())?;
            let mut decoder = Cpu.decoder(chunk.bind(self.registry, None)?)?;
            decoder.decode(&chunk, KvOut::Host(&mut cache.view_mut(), row), &|_| ())?;
            row += chunk.rows();
        }
        Ok(cache)
    }

    async fn fetch(&self, level: usize) -> Result<KvCache> {
        let mut options = FetchOptions::default();
        options.policy = Some(format!("fixed(level={level})"));
        options.connections = usize::from(self.args.connections);
        let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
        let id = &self.manifest.id;
        let fetched = fetch(self.store, self.registry, id, &options, receiver.clone(), None).await?;
        if fetched.complete.is_none() || !fetched.faults.is_empty() {
            return Err(Error::unavailable(format!("not all came: {}", fetched.faults.join("; "))));
        }
        let cache = receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        cache.ok_or_else(|| Error::data("nothing was received"))
    }

    /// Processor time that client and server have used; 0 where the system does not tell.
    fn cpu_s(&self) -> f64 {
        let of = |process: &str| {
            let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // Behind the name, which may hold anything: user and system time are the 12th and 13th, in 1/100 s.
            let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
        };
        of("self") + self.server.process().map_or(0.0, |id| of(&id.to_string()))
    }
}
