//! `cacheg demo`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cacheg::compare::{self, Sums};
use cacheg::core::{Cpu, Kind};
use cacheg::{Encoder, KvView, Limits, PRESETS, Pipeline, Preset, Profile, Registry, Result, flow};
use serde_json::{Value, json};

use super::args;
use cacheg::report::{Report, number, progress};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cacheg demo\n  cacheg demo --input kv.safetensors --json")]
pub(crate) struct Args {
    /// Use this KV cache instead of the embedded sample
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let file = match &args.input {
        Some(path) => args::kv(path)?,
        None => cacheg::sample()?,
    };
    let view = file.view();
    let mut report = Report::new("cacheg");
    report.field("tokens", view.tokens());
    report.field("values", view.geometry().values_per_token() * view.tokens() as u64);
    let mut runs: Vec<(&Preset, usize, Option<&Profile>)> = PRESETS
        .iter()
        .filter(|preset| !preset.statistics)
        .flat_map(|preset| (0..preset.levels.len()).map(move |level| (preset, level, None)))
        .collect();
    // Of one model.
    let profile = cacheg::sample_profile()?;
    if profile.geometry() == view.geometry() {
        let (name, level) = cacheg::SAMPLE_PROFILE;
        runs.push((cacheg::preset(name)?, level, Some(&profile)));
    }
    let bar = progress(runs.len() as u64, "encoding and decoding");
    for (preset, level, profile) in &runs {
        report.row(measure(&registry, preset, *level, *profile, &view)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let source = args.input.as_ref().map_or_else(
        || "the embedded sample (SmolLM2-135M-Instruct reading a novel)".to_owned(),
        |path| path.display().to_string(),
    );
    report.print(args.json, |report| {
        let layers = view.geometry().layers();
        let raw = view.geometry().bytes_per_token() * view.tokens() as u64;
        let note = if profile.geometry() == view.geometry() {
            format!(
                "`{}` uses a profile of {:.1} MB, calibrated on {} other texts, that all contexts of the model share.\n",
                cacheg::SAMPLE_PROFILE.0,
                profile.bytes().len() as f64 / 1e6,
                profile.contexts()
            )
        } else {
            String::new()
        };
        let table = report.table(&[
            ("name", "preset", 0),
            ("level", "level", 0),
            ("bits_per_value", "bits/value", 2),
            ("ratio", "ratio", 2),
            ("key_snr_db", "K SNR dB", 1),
            ("value_snr_db", "V SNR dB", 1),
            ("max_error", "max error", 3),
            ("encode_mb_s", "encode MB/s", 0),
            ("decode_mb_s", "decode MB/s", 0),
        ]);
        format!(
            "{source}: {} tokens, {layers} layers, {raw} bytes of KV cache.\n\
             Encoded to a container with every preset, decoded again, compared:\n\n{table}\n\n\
             bits/value counts every byte of the file; ratio is to the KV cache as it was; SNR is signal to error of keys\n\
             and values; MB/s are megabytes of KV cache per second on all cores, entropy tables included.\n{note}\n{NEXT}",
            view.tokens()
        )
    })
}

const NEXT: &str = "Try next:
  cacheg presets                                        what the names mean; `cacheg stages` lists the parts
  cacheg encode kv.safetensors -o kv.cgkv               your own KV cache (tensors layers.{i}.key / layers.{i}.value)
  cacheg profile a.safetensors b.safetensors -o m.cgprof
  cacheg encode kv.safetensors -o kv.cgkv --profile m.cgprof
                                                        tables calibrated once instead of carried in every chunk
  cacheg inspect kv.cgkv                                where the bytes go

Presets that take a profile of the model made with statistics, `klt`, `predictive`, `predictive-key` and `predictive-attention`,
put errors where the model does not look, which SNR cannot tell: for the same predictions of the model `klt` needs a third of
the bits of `cachegen-paper`, `predictive-key` a fifth to a quarter (docs/codecs.md).";

/// Encodes and decodes once in full for warming up, then takes the best of a few runs.
fn measure(
    registry: &Registry,
    preset: &Preset,
    level: usize,
    profile: Option<&Profile>,
    view: &KvView<'_>,
) -> Result<Value> {
    let pipeline = Pipeline::parse(registry, preset.spec(Some(level))?)?;
    let encoder = Encoder::new(pipeline, view.geometry(), profile)?;
    let mut bytes = Vec::new();
    let metadata = std::collections::BTreeMap::new();
    let encode_time = best(|| {
        bytes.clear();
        flow::encode(view, &metadata, &encoder, preset.chunk_tokens, &mut bytes, &|_| ()).map(drop)
    })?;
    let decode = flow::Decode { registry, profile, backend: &Cpu };
    let mut cache = None;
    let decode_time = best(|| {
        cache = Some(decode.run(&bytes, &Limits::default(), &|_| ())?.cache);
        Ok(())
    })?;
    let mut sums = [Sums::default(); 2];
    if let Some(cache) = &cache {
        for (plane, of) in view.planes().iter().zip(compare::planes(view, &cache.view())?) {
            let kind = usize::from(plane.kind != Kind::Key);
            sums[kind] = sums[kind].plus(of);
        }
    }
    let all = sums[0].plus(sums[1]).difference();
    let tokens = view.tokens() as u64;
    let (raw, values) =
        (view.geometry().bytes_per_token() * tokens, view.geometry().values_per_token() * tokens);
    let speed = |time: Duration| raw as f64 / 1e6 / time.as_secs_f64();
    Ok(json!({
        "name": preset.name,
        "codec": preset.name,
        "level": level,
        "bytes": bytes.len(),
        "bits_per_value": bytes.len() as f64 * 8.0 / values as f64,
        "ratio": raw as f64 / bytes.len() as f64,
        "max_error": number(all.max_error),
        "rmse": number(all.rmse),
        "key_snr_db": number(sums[0].difference().snr_db),
        "value_snr_db": number(sums[1].difference().snr_db),
        "encode_mb_s": speed(encode_time),
        "decode_mb_s": speed(decode_time),
    }))
}

/// The shortest of at least two runs, within about half a second.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    let mut shortest = Duration::MAX;
    for round in 0..16 {
        let start = Instant::now();
        run()?;
        shortest = shortest.min(start.elapsed());
        if round > 0 && begin.elapsed() > Duration::from_millis(400) {
            break;
        }
    }
    Ok(shortest)
}
