//! `cacheg-bench calibrate`: statistics of a model from texts, and a check of what they predict.

mod check;

use std::path::{Path, PathBuf};
use std::time::Instant;

use cacheg::core::{Kind, Plane, Statistics};
use cacheg::output::OutputFile;
use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_bench::calibration::Calibration;
use cacheg_bench::llm::{Model, Tokenizer, resolve};
use serde_json::json;

use crate::prefill::with_bar;
use crate::quality::contexts::{self, Context};

/// Runs a model over texts and writes statistics (.cgstat) for `cacheg profile --statistics`: moments of keys (before
/// RoPE) and values and of these with previous layers', what errors cost in every layer and head, and which tokens are
/// attended to. Only forward passes are needed; FORMAT.md, section 8, has the formulas and every byte.
///
/// The report has by layer what an error of one channel costs (mean diagonal of the sensitivity), the standard deviation
/// of keys and values, and the root mean square of the residual stream.
///
/// With --check FILE, nothing is written: noise of a known size goes to one head's keys or values at a time, and the KL
/// of the model's predictions, measured, is set against what the statistics in FILE predict.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `default`, text files, or `longchat:FILE` (JSON lines with `prompt`); with --check, `default` are other texts
    #[arg(default_value = "default")]
    texts: Vec<String>,
    /// The statistics to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "check")]
    output: Option<PathBuf>,
    /// Statistics of other texts, to add to; the result goes to --output
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    extend: Option<PathBuf>,
    /// Set what these statistics predict against what is measured
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "window", "sinks"])]
    check: Option<PathBuf>,
    /// Layers to check, keys and values of one head each [default: six, evenly spread]
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "check")]
    layers: Vec<usize>,
    /// Check every head of these layers
    #[arg(long, requires = "check")]
    every_head: bool,
    /// Noise of a check, in standard deviations of what it is added to
    #[arg(long, value_name = "X", default_value_t = 0.1, requires = "check")]
    noise: f64,
    /// Length of the contexts; a text that is too short gives a shorter one, of half as many tokens at least
    #[arg(long, value_name = "N", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Tokens that are read on the context
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    continuation: u32,
    /// Previous layers that cross moments reach back to
    #[arg(long, value_name = "N", default_value_t = WINDOW, value_parser = clap::value_parser!(u32).range(..=64))]
    window: u32,
    /// Tokens left out at the beginning of each context (attention sinks)
    #[arg(long, value_name = "N", default_value_t = SINKS)]
    sinks: u32,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match (&args.check, &args.output) {
        (Some(file), _) => check::run(args, file),
        (None, Some(output)) => gather(args, output),
        (None, None) => Err(Error::setting("neither --output nor --check")),
    }
}

/// The model's path, the model, and the texts, cut. Contexts of at least `least` tokens will do.
fn open(args: &Args, default: contexts::Texts, least: u32) -> Result<(PathBuf, Model, Vec<Context>)> {
    let path = resolve(args.model.as_deref())?;
    let mut texts = contexts::read(&args.texts, default, &Tokenizer::open(&path)?)?;
    texts.iter_mut().for_each(|text| text.ids.truncate((args.tokens + args.continuation) as usize));
    for text in &texts {
        if text.ids.len() < (least + args.continuation) as usize {
            return Err(Error::data(format!(
                "the text has {} tokens; {least} of context and {} of continuation are needed",
                text.ids.len(),
                args.continuation
            ))
            .at(&text.name));
        }
    }
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    Ok((path, model, texts))
}

/// Tokens left out at the beginning of each context, and layers that cross moments reach back to, unless told otherwise.
pub(crate) const SINKS: u32 = 4;
pub(crate) const WINDOW: u32 = 2;

/// Statistics of texts, the last tokens of each being read on the others.
pub(crate) fn statistics_of(
    model: &Model,
    texts: &[Context],
    continuation: usize,
    sinks: u32,
    window: u32,
) -> Result<Statistics> {
    let mut calibration = Calibration::new(model, sinks, window)?;
    let bar = progress(texts.iter().map(|text| text.ids.len() as u64).sum(), "statistics");
    for text in texts {
        let before = bar.position();
        let (context, continuation) = text.ids.split_at(text.ids.len().saturating_sub(continuation));
        let done = |done: usize, _: usize| bar.set_position(before + done as u64);
        calibration.add(&text.name, context, continuation, &done)?;
    }
    bar.finish_and_clear();
    Ok(calibration.into_statistics())
}

fn gather(args: &Args, output: &Path) -> Result<()> {
    let mut out = OutputFile::create(output, args.force)?;
    let earlier = args.extend.as_deref().map(Statistics::open).transpose()?;
    let (path, model, texts) = open(args, contexts::CALIBRATION, args.tokens.div_ceil(2))?;
    if let Some(earlier) = &earlier {
        earlier.check_model(model.geometry())?;
    }
    let start = Instant::now();
    let own = statistics_of(&model, &texts, args.continuation as usize, args.sinks, args.window)?;
    let statistics = match earlier {
        None => own,
        Some(mut earlier) => {
            earlier.merge(&own)?;
            earlier
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    let (bytes, hash) = statistics.write(&mut out)?;
    out.commit()?;

    let counts = statistics.counts();
    let mut report = Report::new("cacheg-bench");
    report.field("model", path.display().to_string());
    report.field("statistics", hash.clone());
    report.field("bytes", bytes);
    report.field("seconds", seconds);
    report.field("contexts", counts.contexts);
    report.field("tokens", counts.tokens);
    report.field("continuation_tokens", counts.continuation_tokens);
    report.field("sinks", statistics.sinks());
    report.field("window", statistics.window());
    let planes = statistics.geometry().planes();
    let of = |layer: usize, kind: Kind| planes.iter().find(|p| p.layer as usize == layer && p.kind == kind);
    for layer in 0..statistics.geometry().layers() as usize {
        let cost = |kind| of(layer, kind).map(|plane| statistics.mean_sensitivity(plane));
        let deviation = |kind| of(layer, kind).map(|plane| deviation(&statistics, plane, None));
        report.row(json!({
            "layer": layer,
            "key_sensitivity": cost(Kind::Key),
            "value_sensitivity": cost(Kind::Value),
            "key_deviation": deviation(Kind::Key),
            "value_deviation": deviation(Kind::Value),
            "residual_rms": statistics.residual(layer).sqrt(),
        }));
    }
    report.print(args.json, |report| {
        format!(
            "{}\n{}: {bytes} bytes, {} contexts, {} tokens, {} read on them, {seconds:.1} s\nsha256 {hash}",
            report.table(&[
                ("layer", "layer", 0),
                ("key_sensitivity", "cost of keys", 9),
                ("value_sensitivity", "of values", 9),
                ("key_deviation", "deviation of keys", 3),
                ("value_deviation", "of values", 3),
                ("residual_rms", "residual RMS", 3),
            ]),
            output.display(),
            counts.contexts,
            counts.tokens,
            counts.continuation_tokens,
        )
    })
}

/// Standard deviation of all channels of a plane, or of one head's, about their means.
fn deviation(statistics: &Statistics, plane: &Plane, head: Option<usize>) -> f64 {
    let (covariance, channels) = (statistics.covariance(plane), plane.channels());
    let dim = plane.shape.head_dim as usize;
    let range = head.map_or(0..channels, |head| head * dim..(head + 1) * dim);
    let count = range.len() as f64;
    (range.map(|channel| covariance[channel * (channels + 1)].max(0.0)).sum::<f64>() / count).sqrt()
}
