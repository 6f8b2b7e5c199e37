//! Where the time of decoding on a GPU goes, beside the CPU's, in one process; and what its programs do, without any.

mod counts;
mod model;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cacheg::core::{Backend, Chunk, Cpu, KvOut, KvView, Registry};
use cacheg::report::{Report, progress};
use cacheg::{Encoder, KvCache, KvFile, Limits, Pipeline, Result};
use cacheg_gpu::{Gpu, Measured, Options, Variant, adapters};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Times are medians. `prepare` (checksums, escapes, records), `submit` (upload) and `read` (download, copies) are the\nhost's; `decode` (entropy coding; all, where there is one pass) and `reconstruct` (all else) are the device's own clock, where it has one.\nA decoder overlaps them; here they follow each other. GB/s count f16 or bf16 values that come out.\n\n`--counts` executes the programs without any GPU and counts what they do: to compare versions of them."
)]
pub(crate) struct Args {
    /// A KV cache [default: the embedded sample]
    input: Option<PathBuf>,
    /// The adapter, by a part of its name [default: the best, even one that computes on a CPU]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Presets, with `@LEVEL` if not their own
    #[arg(long, value_name = "LIST", default_value = "fast,cachegen-paper,cachegen-release,q8,lossless")]
    presets: String,
    /// The input's rows are repeated to so many tokens, one size after the other [default: the input's; 1028 for `--counts`]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = tokens)]
    tokens: Vec<usize>,
    /// Count instructions, loads, barriers and bytes of the programs instead, and model what GPUs could make of them
    #[arg(long, conflicts_with = "device")]
    counts: bool,
    /// Repetitions
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// A number of tokens.
fn tokens(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(tokens) if tokens > 0 => Ok(tokens),
        _ => Err("a number of tokens, at least 1, expected".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let file = match &args.input {
        Some(path) => KvFile::open(path, &Limits::default())?,
        None => cacheg::sample()?,
    };
    if args.counts {
        return counts::run(args, &registry, &file);
    }
    let name = args.device.clone().or_else(|| Some(adapters().first()?.name.clone()));
    let mut gpus = vec![Gpu::open(name.as_deref()).map_err(cacheg::Error::from)?];
    if gpus[0].variant() != Variant::Portable {
        let options = Options { portable: true, ..Options::default() };
        gpus.push(Gpu::open_with(name.as_deref(), options).map_err(cacheg::Error::from)?);
    }
    let info = gpus[0].info().clone();
    let mut report = Report::new("cacheg-bench");
    report.field("adapter", info.name.clone());
    report.field("driver", info.driver.clone());
    report.field("api", info.api.clone());
    report.field("correctness_only", info.is_cpu);
    let sizes = if args.tokens.is_empty() { vec![file.tokens()] } else { args.tokens.clone() };
    let presets = presets(&args.presets)?;
    let bar = progress((presets.len() * sizes.len()) as u64, "measuring");
    for tokens in sizes {
        let cache = repeated(&file.view(), tokens);
        for (name, spec) in &presets {
            for row in measure(args, &registry, &gpus, &cache, name, spec)? {
                report.row(row);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    report.print(args.json, |report| {
        let mark = if info.is_cpu {
            "; it computes on a CPU: CORRECTNESS ONLY, its speed means nothing"
        } else {
            ""
        };
        let table = report.table(&[
            ("name", "preset", 0),
            ("tokens", "tokens", 0),
            ("kernel", "kernel", 0),
            ("cpu_gb_s", "CPU GB/s", 3),
            ("cpu_one_thread_gb_s", "one thread", 3),
            ("gpu_gb_s", "GPU GB/s", 3),
            ("gpu_vs_cpu_thread", "× thread", 2),
            ("prepare_ms", "prepare ms", 2),
            ("submit_ms", "submit", 2),
            ("device_ms", "device", 2),
            ("decode_ms", "(decode", 2),
            ("reconstruct_ms", "reconstruct)", 2),
            ("read_ms", "read", 2),
            ("dispatches", "dispatches", 0),
        ]);
        format!("{} ({}, {}){mark}\n{table}", info.name, info.driver, info.api)
    })
}

/// Presets and their spec strings.
fn presets(list: &str) -> Result<Vec<(String, &'static str)>> {
    let of = |preset: &str| {
        let (name, level) = match preset.split_once('@') {
            Some((name, level)) => {
                let level = level.parse().map_err(|e| cacheg::Error::setting(format!("{preset}: {e}")))?;
                (name, Some(level))
            }
            None => (preset, None),
        };
        Ok((preset.to_owned(), cacheg::preset(name)?.spec(level)?))
    };
    list.split(',').map(|preset| of(preset.trim())).collect()
}

/// A preset on the CPU and on the GPU, with each of its kernels.
fn measure(
    args: &Args,
    registry: &Registry,
    gpus: &[Gpu],
    cache: &KvCache,
    name: &str,
    spec: &str,
) -> Result<Vec<serde_json::Value>> {
    let view = cache.view();
    let bytes = (view.geometry().bytes_per_token() * view.tokens() as u64) as f64;
    let encoded = encode(registry, &view, spec)?;
    let chunk = Chunk::parse(&encoded, &Limits::default())?;
    let plan = chunk.bind(registry, None)?;
    let decode = |backend: &dyn Backend| {
        median(args.runs, || {
            let mut out = KvCache::zeros(view.geometry(), view.tokens(), 0);
            let mut decoder = backend.decoder(plan.clone())?;
            let start = Instant::now();
            decoder.decode(&chunk, KvOut::Host(&mut out.view_mut(), 0), &|_| ())?;
            Ok((start.elapsed(), out))
        })
    };
    let (cpu, expected) = decode(&Cpu)?;
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let one = one.map_err(|e| cacheg::Error::unavailable(format!("threads: {e}")))?;
    let (single, _) = one.install(|| decode(&Cpu))?;
    let mut rows = Vec::new();
    for gpu in gpus {
        let (whole, found) = decode(gpu)?;
        if found != expected {
            return Err(cacheg::Error::corrupt("the GPU's elements are not the CPU's").at(name));
        }
        let (_, steps) = median(args.runs, || {
            let mut out = KvCache::zeros(view.geometry(), view.tokens(), 0);
            let start = Instant::now();
            let measured = gpu.measure(Arc::clone(&plan), &chunk, &mut out.view_mut())?;
            Ok((start.elapsed(), measured))
        })?;
        let Measured { prepare, submit, device, read, decode, reconstruct, .. } = steps;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        rows.push(json!({
            "name": name,
            "tokens": view.tokens(),
            "kernel": gpu.variant().name(),
            "one_pass": steps.one_pass,
            "bits_per_value": encoded.len() as f64 * 8.0 / (view.geometry().values_per_token() * view.tokens() as u64) as f64,
            "cpu_gb_s": bytes / 1e9 / cpu.as_secs_f64(),
            "cpu_one_thread_gb_s": bytes / 1e9 / single.as_secs_f64(),
            "gpu_gb_s": bytes / 1e9 / whole.as_secs_f64(),
            "gpu_vs_cpu_thread": single.as_secs_f64() / whole.as_secs_f64(),
            "prepare_ms": ms(prepare),
            "submit_ms": ms(submit),
            "device_ms": ms(device),
            "decode_ms": decode.map(ms),
            "reconstruct_ms": reconstruct.map(ms),
            "read_ms": ms(read),
            "uploaded_bytes": steps.uploaded,
            "scratch_bytes": steps.scratch,
            "downloaded_bytes": steps.downloaded,
            "dispatches": steps.dispatches,
        }));
    }
    Ok(rows)
}

/// A chunk of all tokens.
fn encode(registry: &Registry, view: &KvView<'_>, spec: &str) -> Result<Vec<u8>> {
    let pipeline = Pipeline::parse(registry, spec)?;
    let encoder = Encoder::new(pipeline, view.geometry(), None)?;
    Ok(encoder.encode(view, 0..view.tokens(), &|_| ())?.to_vec())
}

/// The median time of some runs, and what the last one made.
fn median<T>(runs: u8, mut work: impl FnMut() -> Result<(Duration, T)>) -> Result<(Duration, T)> {
    let (mut times, mut made) = (Vec::new(), None);
    for _ in 0..runs.max(1) {
        let (time, result) = work()?;
        times.push(time);
        made = Some(result);
    }
    times.sort();
    let made = made.ok_or_else(|| cacheg::Error::data("no runs"))?;
    Ok((times[times.len() / 2], made))
}

/// A KV cache whose rows are those of another, again and again.
fn repeated(view: &KvView<'_>, tokens: usize) -> KvCache {
    let mut cache = KvCache::zeros(view.geometry(), tokens, view.first_position());
    let mut out = cache.view_mut();
    for (index, plane) in view.planes().iter().enumerate() {
        let mut values = vec![0.0; view.tokens() * plane.channels()];
        view.load(index, 0, view.tokens(), &mut values);
        let mut first = 0;
        while first < tokens {
            let rows = view.tokens().min(tokens - first);
            out.planes_mut()[index].store(first, rows, &values[..rows * plane.channels()]);
            first += rows;
        }
    }
    drop(out);
    cache
}
