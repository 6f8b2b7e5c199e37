//! What the codecs promise, measured: sizes against their bounds, memory, time against length.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cacheg::core::{Chunk, ChunkBytes, Container, Cpu, write_kv};
use cacheg::output::OutputFile;
use cacheg::report::{Report, progress};
use cacheg::{
    Encoder, Error, KvCache, KvFile, KvView, Limits, Pipeline, Profile, Registry, Result, calibrate, flow,
};
use serde_json::{Value, json};

use crate::peak;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// KV caches of one model, from different texts; profiles are calibrated on the others [default: the embedded
    /// sample, cut in two]
    inputs: Vec<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let limits = Limits::default();
    let files = args.inputs.iter().map(|path| KvFile::open(path, &limits)).collect::<Result<Vec<_>>>()?;
    let sample = cacheg::sample()?;
    let half = sample.tokens() / 2;
    let halves = [KvCache::copy_of(&sample.view(), 0, half), KvCache::copy_of(&sample.view(), half, half)];
    let views: Vec<KvView<'_>> = if files.is_empty() {
        halves.iter().map(KvCache::view).collect()
    } else {
        files.iter().map(KvFile::view).collect()
    };
    let mut report = Report::new("cacheg-bench");
    let bar = progress(5, "measuring");
    sizes(&registry, &views, &mut report)?;
    bar.inc(2);
    memory(&views[0], &mut report)?;
    bar.inc(1);
    length(&registry, &views[0], &mut report)?;
    bar.finish_and_clear();
    report.print(args.json, |report| {
        report.table(&[
            ("name", "what", 0),
            ("measured", "measured", 3),
            ("bound", "bound", 3),
            ("unit", "", 0),
            ("ok", "", 0),
        ])
    })
}

/// A measurement and its bound.
fn row(name: String, measured: f64, bound: Option<f64>, unit: &str) -> Value {
    let ok = bound.map_or("", |bound| if measured <= bound { "ok" } else { "MISSED" });
    json!({"name": name, "measured": measured, "bound": bound, "unit": unit, "ok": ok})
}

/// Bytes of all chunks and of the whole container; bits of an ideal coder.
struct Size {
    bytes: ChunkBytes,
    container: usize,
    ideal_bits: f64,
    values: f64,
}

fn encode(
    registry: &Registry,
    view: &KvView<'_>,
    preset: &str,
    level: Option<usize>,
    profile: Option<&Profile>,
) -> Result<Size> {
    let preset = cacheg::preset(preset)?;
    let pipeline = Pipeline::parse(registry, preset.spec(level)?)?;
    let encoder = Encoder::new(pipeline, view.geometry(), profile)?;
    let mut out = Vec::new();
    flow::encode(view, &std::collections::BTreeMap::new(), &encoder, preset.chunk_tokens, &mut out, &|_| ())?;
    let decoded = flow::Decode { registry, profile, backend: &Cpu }.run(&out, &Limits::default(), &|_| ())?;
    if preset.name == "lossless" {
        for plane in view.planes() {
            if *KvCache::copy_of(view, 0, view.tokens()).plane_bytes(plane.index)
                != *decoded.cache.plane_bytes(plane.index)
            {
                return Err(Error::data(format!("lossless is not, in {}", plane.name())));
            }
        }
    }
    let mut size = Size {
        bytes: ChunkBytes::default(),
        container: out.len(),
        ideal_bits: 0.0,
        values: (view.geometry().values_per_token() * view.tokens() as u64) as f64,
    };
    for chunk in &Container::parse(&out, &Limits::default())?.chunks {
        let chunk: &Chunk<'_> = chunk;
        let (bytes, ideal) = chunk.account(&*chunk.bind(registry, profile)?)?;
        size.bytes.carried.extend(&bytes.carried);
        size.bytes.tiles.stream += bytes.tiles.stream;
        size.bytes.tiles.side += bytes.tiles.side;
        size.bytes.tiles.escapes += bytes.tiles.escapes;
        size.ideal_bits += ideal.unwrap_or(f64::NAN);
    }
    Ok(size)
}

fn sizes(registry: &Registry, views: &[KvView<'_>], report: &mut Report) -> Result<()> {
    let count = views.len() as f64;
    let bits = |bytes: usize, size: &Size| bytes as f64 * 8.0 / size.values;
    let mean = |of: &dyn Fn(&KvView<'_>) -> Result<f64>| -> Result<f64> {
        Ok(views.iter().map(of).collect::<Result<Vec<_>>>()?.iter().sum::<f64>() / count)
    };
    let unit = "bits/value";
    // The public code's stream lengths (a 32-bit integer per layer, K or V, and channel) are part of our streams.
    let mut parts = [0.0; 5];
    for view in views {
        let size = encode(registry, view, "cachegen-release", None, None)?;
        let chunks = view.tokens().div_ceil(256);
        let lengths = view.planes().iter().map(|plane| plane.channels() * 4).sum::<usize>() * chunks;
        let carried: usize = size.bytes.carried.iter().sum();
        let all =
            [size.bytes.tiles.stream - lengths, carried, size.bytes.tiles.side, lengths, size.container];
        for (sum, bytes) in parts.iter_mut().zip(all) {
            *sum += bits(bytes, &size) / count;
        }
    }
    for (name, part) in ["payload", "tables", "scales", "stream lengths", "container"].iter().zip(parts) {
        report.row(row(format!("cachegen-release: {name}"), part, None, unit));
    }
    let shipped = parts[..4].iter().sum::<f64>();
    report.row(row(
        "cachegen-release: as the public code ships it, against 4.63".into(),
        shipped / 4.63,
        Some(1.01),
        "×",
    ));
    let alone =
        mean(&|view| encode(registry, view, "lossless", None, None).map(|size| bits(size.container, &size)))?;
    report.row(row("lossless, alone".into(), alone, Some(13.7), unit));
    for (name, bound, preset) in [
        ("lossless, profile of other text", Some(13.4), "lossless"),
        ("cachegen-paper", None, "cachegen-paper"),
    ] {
        let levels = cacheg::preset(preset)?.levels;
        for level in 0..levels.len() {
            let (mut all, mut over) = (0.0, 0.0);
            for (index, view) in views.iter().enumerate() {
                let profile = calibrate_on_others(registry, views, index, levels[level])?;
                let size = encode(registry, view, preset, Some(level), Some(&profile))?;
                all += bits(size.container, &size) / count;
                over += (size.bytes.tiles.stream as f64 * 8.0 / size.ideal_bits - 1.0) / count;
            }
            let name = if levels.len() == 1 {
                name.to_owned()
            } else {
                format!("{name} level {level}, profile of other text")
            };
            report.row(row(name.clone(), all, bound, unit));
            report.row(row(format!("{name}: streams over ideal"), over * 100.0, Some(1.0), "%"));
        }
    }
    Ok(())
}

fn calibrate_on_others(
    registry: &Registry,
    views: &[KvView<'_>],
    without: usize,
    spec: &str,
) -> Result<Profile> {
    let others: Vec<KvView<'_>> = views
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != without)
        .map(|(_, view)| view.clone())
        .collect();
    if others.is_empty() {
        return Err(Error::data("profiles are calibrated on other text: at least two KV caches are needed"));
    }
    calibrate(&[Pipeline::parse(registry, spec)?], &others, 1_500, &|_| ())
}

/// The same tokens again and again: positions and statistics do not matter to memory and time.
fn repeated(view: &KvView<'_>, times: usize) -> KvCache {
    let mut cache = KvCache::zeros(view.geometry(), view.tokens() * times, 0);
    let mut out = cache.view_mut();
    let mut rows = Vec::new();
    for (index, plane) in out.planes_mut().iter_mut().enumerate() {
        rows.resize(view.tokens() * plane.plane().channels(), 0.0);
        view.load(index, 0, view.tokens(), &mut rows);
        for time in 0..times {
            plane.store(time * view.tokens(), view.tokens(), &rows);
        }
    }
    cache
}

fn memory(view: &KvView<'_>, report: &mut Report) -> Result<()> {
    let folder =
        tempfile::tempdir().map_err(|source| Error::Io { context: "no temporary folder".into(), source })?;
    let at = |name: &str| folder.path().join(name);
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    for times in [1, 16] {
        let kv = at("kv");
        let mut out = OutputFile::create(&kv, true)?;
        write_kv(&mut out, &repeated(view, times).view(), &std::collections::BTreeMap::new())?;
        out.commit()?;
        for preset in cacheg::PRESETS.iter().filter(|preset| !preset.statistics) {
            for (what, input, output) in
                [("encode", kv.clone(), at("coded")), ("decode", at("coded"), at("back"))]
            {
                let Some(peak) = peak::measure(what, &input, &output, preset.name)? else { continue };
                let over = (peak as f64 - (size(&input) + size(&output)) as f64) / f64::from(1 << 20);
                let name = format!(
                    "memory of {what} beyond input and output, {}, {} tokens",
                    preset.name,
                    view.tokens() * times
                );
                report.row(row(name, over, Some(64.0), "MiB"));
            }
        }
    }
    Ok(())
}

fn length(registry: &Registry, view: &KvView<'_>, report: &mut Report) -> Result<()> {
    const TIMES: [usize; 3] = [1, 4, 16];
    let caches = TIMES.map(|times| repeated(view, times));
    for name in ["cachegen-paper", "lossless"] {
        let preset = cacheg::preset(name)?;
        let encoder = Encoder::new(Pipeline::parse(registry, preset.spec(None)?)?, view.geometry(), None)?;
        let chunk = preset.chunk_tokens.min(view.tokens());
        let mut best = [[f64::INFINITY; 2]; TIMES.len()];
        // Lengths take turns, so that a slow moment of the machine does not hit one of them alone.
        for _ in 0..5 {
            for (cache, best) in caches.iter().zip(&mut best) {
                let mut bytes = Vec::new();
                let start = Instant::now();
                let none = std::collections::BTreeMap::new();
                flow::encode(&cache.view(), &none, &encoder, chunk, &mut bytes, &|_| ())?;
                best[0] = best[0].min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                flow::Decode { registry, profile: None, backend: &Cpu }.run(
                    &bytes,
                    &Limits::default(),
                    &|_| (),
                )?;
                best[1] = best[1].min(start.elapsed().as_secs_f64());
            }
        }
        for ((what, side), (times, of)) in [("encode", 0), ("decode", 1)]
            .into_iter()
            .flat_map(|w| TIMES.iter().zip(&best).map(move |b| (w, b)))
        {
            let ratio = of[side] / (*times as f64 * best[0][side]);
            let title = format!("time per token of {what} at {times}× the tokens, {name}");
            report.row(row(title, ratio, Some(1.15), "× that at 1×"));
        }
    }
    Ok(())
}
