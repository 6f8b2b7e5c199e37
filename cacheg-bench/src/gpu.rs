//! Where the time of decoding on a GPU goes, beside the CPU's, in one process.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cacheg::core::{Backend, Chunk, Cpu, KvOut};
use cacheg::gpu::{Gpu, Measured, adapters};
use cacheg::report::{Report, progress};
use cacheg::{Encoder, KvCache, KvFile, Limits, Pipeline, Result};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Times are medians. `prepare` (checksums, escapes, records), `submit` (upload) and `read` (download, copies) are the\nhost's; `decode` (entropy coding) and `reconstruct` (all else) are the device's own clock, where it has one. A decoder\noverlaps them; here they follow each other. GB/s count f16 or bf16 values that come out."
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
    /// The sample's rows are repeated to this many tokens [default: the input's]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Repetitions
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u8).range(1..))]
    runs: u8,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let file = match &args.input {
        Some(path) => KvFile::open(path, &Limits::default())?,
        None => cacheg::sample()?,
    };
    let cache = repeated(&file, args.tokens.unwrap_or(file.tokens()));
    let view = cache.view();
    let name = args.device.clone().or_else(|| Some(adapters().first()?.name.clone()));
    let gpu = Gpu::open(name.as_deref()).map_err(cacheg::Error::from)?;
    let bytes = (view.geometry().bytes_per_token() * view.tokens() as u64) as f64;

    let mut report = Report::new("cacheg-bench");
    report.field("adapter", gpu.info().name.clone());
    report.field("driver", gpu.info().driver.clone());
    report.field("api", gpu.info().api.clone());
    report.field("kernel", gpu.variant().name());
    report.field("correctness_only", gpu.info().is_cpu);
    let presets: Vec<&str> = args.presets.split(',').map(str::trim).collect();
    let bar = progress(presets.len() as u64, "measuring");
    for preset in presets {
        let (name, level) = match preset.split_once('@') {
            Some((name, level)) => {
                let level = level.parse().map_err(|e| cacheg::Error::setting(format!("{preset}: {e}")))?;
                (name, Some(level))
            }
            None => (preset, None),
        };
        let pipeline = Pipeline::parse(&registry, cacheg::preset(name)?.spec(level)?)?;
        let encoded =
            Encoder::new(pipeline, view.geometry(), None)?.encode(&view, 0..view.tokens(), &|_| ())?;
        let encoded = encoded.to_vec();
        let chunk = Chunk::parse(&encoded, &Limits::default())?;
        let plan = chunk.bind(&registry, None)?;
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
        let (whole, found) = decode(&gpu)?;
        if found != expected {
            return Err(cacheg::Error::corrupt("the GPU's elements are not the CPU's").at(preset));
        }
        let (_, steps) = median(args.runs, || {
            let mut out = KvCache::zeros(view.geometry(), view.tokens(), 0);
            let start = Instant::now();
            let measured = gpu.measure(Arc::clone(&plan), &chunk, &mut out.view_mut())?;
            Ok((start.elapsed(), measured))
        })?;
        let Measured { prepare, submit, device, read, decode, reconstruct, .. } = steps;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        report.row(json!({
            "name": preset,
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
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.print(args.json, |report| {
        let info = gpu.info();
        let mark = if info.is_cpu {
            "; it computes on a CPU: CORRECTNESS ONLY, its speed means nothing"
        } else {
            ""
        };
        let table = report.table(&[
            ("name", "preset", 0),
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
        format!(
            "{} ({}, {}), {} kernel{mark}\n{} tokens, {:.1} MB\n{table}",
            info.name,
            info.driver,
            info.api,
            gpu.variant().name(),
            view.tokens(),
            bytes / 1e6
        )
    })
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

/// A KV cache whose rows are those of a file, again and again.
fn repeated(file: &KvFile, tokens: usize) -> KvCache {
    let view = file.view();
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
