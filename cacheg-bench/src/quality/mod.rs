//! `cacheg-bench quality`: what codecs do to a language model's predictions, and at what size.

mod answer;
pub(crate) mod codecs;
pub(crate) mod contexts;
pub(crate) mod measure;
pub(crate) mod metrics;
mod parts;
pub(crate) mod reading;
mod received;
mod retrieval;
pub(crate) mod rows;
pub(crate) mod source;
pub(crate) mod topics;
mod visible;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use cacheg::core::{Importance, Statistics};
use cacheg::output::OutputFile;
use cacheg::report::{Report, progress};
use cacheg::{Error, KvCache, KvView, Registry, Result};
use cacheg_bench::llm::{Model, Tokenizer, model_hash, resolve};
use serde_json::Value;

use crate::prefill::with_bar;
use crate::report::Document;
use codecs::{Codec, Ready};
use contexts::Context;
use measure::{Lengths, Outcome, Task};

/// A model reads the beginning of each text; its KV cache goes through every codec and back; then the model reads on,
/// once on its own cache and once on each reconstruction, and predictions are compared.
///
/// bits_per_value counts all bytes of the container, but not the profile that all contexts share (profile_bytes).
/// visible_bits_per_value, of models with local layers, counts bytes and values of what the next token sees.
/// kl is the mean of KL(reference ‖ codec) over the tokens that are read, in nats; top1_percent is how often the
/// likeliest next token is the same; delta_ppl_percent is the change of perplexity. greedy_percent: the model goes on
/// alone, so many of its tokens are at their place; greedy_first: so many before the first that differs. The task
/// `reread` repeats the middle of the context instead of reading on. Intervals: 90 %, by bootstrap over contexts.
///
/// The task `retrieval` has contexts of its own: records of conversations about several topics, as LongChat has them,
/// behind which the first topic is asked for. retrieval_percent: it is in the answer, by string match (and in that of
/// the model's own cache: reference_retrieval_percent); answer_equal_percent: the answer is that of the reference; label_nll: negative log-likelihood of the topic as the
/// answer, in nats per token, and delta_label_nll, its change.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Texts to judge by: `default` (ten of five kinds, and `topics`), `topics` (ten records for retrieval alone),
    /// `foreign` (eight of kinds that no calibration text has), text files, `longchat:FILE` (JSON lines with `prompt`
    /// and, for retrieval, `label`)
    #[arg(long, num_args = 1.., default_value = "default")]
    contexts: Vec<String>,
    /// Texts to calibrate profiles on, in the same way; they must not share runs of 12 tokens with the contexts
    #[arg(long, num_args = 1.., default_value = "default")]
    calibration: Vec<String>,
    /// `default`, `all` (those and all levels of presets that take statistics), presets (`fast@2` is level 2), `f16`, spec
    /// strings, `text` (zstd, prefilled again); separated by commas.
    /// `h2o(keep=0.5)+CODEC` drops tokens first; `prune(keep=0.8)+CODEC` prefills only the tokens that say most
    #[arg(long, num_args = 1.., default_value = "default")]
    codecs: Vec<String>,
    /// Length of the contexts
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Tokens that are read on the reconstruction
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    continuation: u32,
    /// Tokens with which the model goes on alone
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    greedy: u32,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Statistics to calibrate profiles with, from `cacheg-bench calibrate`; without, presets that take some have them
    /// gathered from the calibration texts first
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// Every context's rows as comma-separated values
    #[arg(long)]
    csv: Option<PathBuf>,
    /// A page with curves and tables, see `cacheg-bench report`
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Report as JSON: rows over all contexts (`context` is `all`) and of every one
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let codecs = codecs::parse(&args.codecs)?;
    if codecs.is_empty() {
        return Err(Error::setting("no codecs"));
    }
    let csv = args.csv.as_ref().map(|path| OutputFile::create(path, args.force)).transpose()?;
    let page = args.report.as_ref().map(|path| OutputFile::create(path, args.force)).transpose()?;
    let statistics = args.statistics.as_deref().map(Statistics::open).transpose()?;
    let path = resolve(args.model.as_deref())?;
    let lengths = Lengths {
        tokens: args.tokens as usize,
        continuation: args.continuation as usize,
        greedy: args.greedy as usize,
    };
    let tokenizer = Tokenizer::open(&path)?;
    let (test, calibration) = texts(&args.contexts, &args.calibration, &tokenizer, lengths)?;
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    let ready = calibrated(&model, &registry, codecs, &calibration, lengths, statistics.as_ref())?;
    let bar = progress((test.len() * ready.len()) as u64, "quality");
    let codecs: Vec<&Ready<'_>> = ready.iter().collect();
    let mut measured: Vec<(&Context, Vec<Outcome>)> = Vec::new();
    for context in &test {
        let done = || bar.inc(1);
        let outcomes =
            measure::measure((&model, &tokenizer), context, lengths, &codecs, &done, &mut |_, _| Ok(()));
        measured.push((context, outcomes.map_err(|e| e.at(&context.name))?));
    }
    bar.finish_and_clear();

    let mut report = Report::new("cacheg-bench");
    describe(&mut report, &path, &model, lengths)?;
    report.field("calibration", calibration.iter().map(|c| Value::from(&c.name[..])).collect::<Vec<_>>());
    let (mut singles, mut tables) = (Vec::new(), Vec::new());
    for task in Task::ALL {
        let of_task: Vec<&(&Context, Vec<Outcome>)> =
            measured.iter().filter(|(context, _)| Task::of(context).contains(&task)).collect();
        if of_task.is_empty() {
            continue;
        }
        // A report of its own, as a table is of all rows.
        let mut table = Report::new("cacheg-bench");
        for (at, ready) in ready.iter().enumerate() {
            let each: Vec<Value> = of_task
                .iter()
                .map(|(context, outcomes)| rows::single(ready, task, &context.name, &outcomes[at]))
                .collect();
            let row = rows::overall(&each.iter().filter_map(Value::as_object).collect::<Vec<_>>());
            singles.extend(each);
            table.row(rows::with_intervals(row.clone()));
            report.row(row);
        }
        let title = match task {
            Task::Continuation => format!("{} contexts of {} tokens, read on", of_task.len(), args.tokens),
            Task::Reread => "the middle of the context read once more".to_owned(),
            Task::Retrieval => {
                format!(
                    "{} contexts of up to {} tokens, the first topic asked for",
                    of_task.len(),
                    args.tokens
                )
            }
        };
        tables.push(format!("{title}\n{}", table.table(&rows::columns(task))));
    }
    if let Some(mut out) = csv {
        let failed = |source| Error::Io { context: "cannot write the table".into(), source };
        out.write_all(&rows::csv(&singles)?).map_err(failed)?;
        out.commit()?;
    }
    singles.into_iter().for_each(|row| report.row(row));
    if let Some(page) = page {
        let document = Document::of_rows("quality", report.fields().clone(), report.rows().to_vec());
        crate::report::write(page, crate::report::TITLE, &[document])?;
    }
    report.print(args.json, |_| tables.join("\n\n"))
}

/// Adds what the measurement depends on.
pub(crate) fn describe(report: &mut Report, path: &Path, model: &Model, lengths: Lengths) -> Result<()> {
    report.field("version", env!("CARGO_PKG_VERSION"));
    report.field("model", path.display().to_string());
    report.field("model_sha256", model_hash(path)?);
    report.field("kv_bytes_per_token", model.geometry().bytes_per_token());
    if model.hyper().local.is_some() {
        // What `visible_bits_per_value` is of.
        let all = model.geometry().values_per_token() * lengths.tokens as u64;
        let percent = model.hyper().visible_values(lengths.tokens) as f64 * 100.0 / all as f64;
        report.field("visible_values_percent", percent);
    }
    report.field("tokens", lengths.tokens);
    report.field("continuation_tokens", lengths.continuation);
    report.field("greedy_tokens", lengths.greedy);
    Ok(())
}

/// Texts for the test and for calibration, cut to what is used.
pub(crate) fn texts(
    test: &[String],
    calibration: &[String],
    tokenizer: &Tokenizer,
    lengths: Lengths,
) -> Result<(Vec<Context>, Vec<Context>)> {
    let texts: Vec<String> = test.iter().filter(|name| *name != topics::NAME).cloned().collect();
    let asked = topics::read(test, tokenizer, lengths.tokens)?;
    let mut test = contexts::read(&texts, contexts::TEST, tokenizer)?;
    contexts::cut(&mut test, lengths.tokens + lengths.continuation)?;
    test.extend(asked);
    let mut calibration = contexts::read(calibration, contexts::CALIBRATION, tokenizer)?;
    // Shorter ones will do.
    calibration.iter_mut().for_each(|context| context.ids.truncate(lengths.tokens + lengths.continuation));
    contexts::check_disjoint(&calibration, &test)?;
    if test.is_empty() {
        return Err(Error::data("no contexts"));
    }
    Ok((test, calibration))
}

/// The codecs, with profiles where they want them.
pub(crate) fn calibrated<'r>(
    model: &Model,
    registry: &'r Registry,
    codecs: Vec<Codec>,
    calibration: &[Context],
    lengths: Lengths,
    statistics: Option<&Statistics>,
) -> Result<Vec<Ready<'r>>> {
    let geometry = model.geometry();
    let gathered = match statistics {
        None if codecs.iter().any(|codec| codec.statistics) => {
            let (sinks, window) = (crate::calibrate::SINKS, crate::calibrate::WINDOW);
            Some(crate::calibrate::statistics_of(model, calibration, lengths.continuation, sinks, window)?)
        }
        _ => None,
    };
    let statistics = statistics.or(gathered.as_ref());
    let mut wanted = false;
    for codec in &codecs {
        wanted |= codecs::wants_profile(codec, registry, geometry).map_err(|e| e.at(codec.name()))?;
    }
    let calibration = if wanted { calibration } else { &[] };
    let bar = progress((calibration.len() + codecs.len()) as u64, "calibrating");
    let important = codecs.iter().any(|codec| codecs::wants_importance(codec, registry));
    let mut caches: Vec<(KvCache, Option<Importance>)> = Vec::new();
    for context in calibration {
        let tokens = &context.ids[..context.ids.len().min(lengths.tokens)];
        let read = source::read(model, tokens, important)?;
        caches.push((read.kv.to_cache()?, read.importance));
        bar.inc(1);
    }
    let mut views: Vec<KvView<'_>> = Vec::new();
    for (cache, importance) in &caches {
        views.push(cache.view().with_importance(importance.as_ref())?);
    }
    let ready = Ready::all(codecs, registry, geometry, &views, statistics, &|| bar.inc(1))?;
    bar.finish_and_clear();
    Ok(ready)
}
