//! `cacheg-bench stream --real`: time to the first token, with a model, a server and a link that are real.

use std::path::{Path, PathBuf};

use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_bench::llm::{Model, Tokenizer, model_hash, resolve};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::child::Child;
use super::contexts::{self, Prepared};
use super::link::Link;
use super::methods::{self, Method, Slo};
use super::protocol::{Answer, Ask, Ready, Setup, Text};
use super::table::{self, Measured};
use super::{median, plot, scale};
use crate::prefill::with_bar;

/// A server in one network namespace, a client with the model in memory in another one, and a link between them that is
/// throttled to one rate after the other. ttft_s is from the request to the logits of the first token: all chunks of the
/// context fetched and decoded, or recomputed, in the model's KV cache, and the request's last token on top of it.
/// kl is that of the continuation on what arrived to that on the model's own KV cache, per token, in nats.
/// equivalent_7b_gbps is the rate at which a 7B model on a GPU has the same ratio of transfer to recomputing.
///
/// Needs root, `ip` and `tc`; without them --loopback throttles in the client.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Text files (UTF-8), one behind the other [default: of those that quality is measured on, another kind in each turn]
    texts: Vec<PathBuf>,
    /// Rates of the link, in Mbit/s
    #[arg(long, value_name = "MBPS", value_delimiter = ',', default_value = "10,20,50,100,200,500,1000")]
    rates: Vec<f64>,
    /// Deadlines of adaptive methods, in seconds
    #[arg(long, value_name = "SECONDS", value_delimiter = ',', default_value = "0.5,1,2,4")]
    slos: Vec<f64>,
    /// One more deadline at each rate: this share of what the faster of recomputing and 8 bits takes
    #[arg(long, value_name = "SHARE", default_value_t = 1.0 / 3.0)]
    share: f64,
    /// Times that everything is measured; of what takes long, fewer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Long is what has taken more than this, in seconds, at one rate
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    patience: f64,
    /// Length of the context
    #[arg(long, default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(2..))]
    tokens: u32,
    /// Tokens that are read on what arrived, to judge it
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    continuation: u32,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    /// Only methods whose names begin like this, as `text,q8,plan`; shares of text and 8 bits need those two
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    methods: Vec<String>,
    /// No namespaces: loopback, throttled in the client
    #[arg(long)]
    loopback: bool,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Write ttft.svg, slo.svg and timeline.svg to this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rates.is_empty()
        || args.rates.iter().chain(&args.slos).chain([&args.share]).any(|x| !x.is_finite() || *x <= 0.0)
    {
        return Err(Error::setting("rates, deadlines and the share are above 0"));
    }
    if let Some(missing) = super::namespaces::missing().filter(|_| !args.loopback) {
        return Err(Error::unsupported(format!(
            "{missing}; --loopback measures on a simulated link in its place"
        )));
    }
    let path = resolve(args.model.as_deref())?;
    let tokenizer = Tokenizer::open(&path)?;
    let lengths = (args.tokens as usize, args.continuation as usize);
    let texts = contexts::read(&args.texts, &tokenizer, args.repeat as usize, lengths)?;
    let folder = super::temporary()?;
    let (prepared, per_token) = {
        let model = with_bar("loading", |progress| Model::open(&path, progress))?;
        let name = crate::publish::name(&path);
        let chunk = args.chunk_tokens as usize;
        let prepared = contexts::prepare(&model, &name, &tokenizer, &texts, chunk, folder.path())?;
        (prepared, model.geometry().bytes_per_token())
    };
    let runtime = crate::runtime()?;
    let raced = runtime.block_on(async {
        tokio::select! {
            // Whoever is interrupted cleans up: what is dropped here takes children and namespaces along. First, so that it is
            // listened for before there is any.
            biased;
            () = interrupted() => Err(Error::unavailable("interrupted")),
            raced = race(args, &path, folder.path(), &prepared, texts) => raced,
        }
    })?;
    report(args, &path, per_token, &prepared, &raced)
}

async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        // Nobody can tell: never.
        std::future::pending::<()>().await;
    }
}

/// Beside transfers and decoding on the same cores, recomputing takes longer than alone.
const CONTENTION: f64 = 1.25;

/// Everything that was measured.
struct Raced {
    ready: Ready,
    link: &'static str,
    measured: Vec<Measured>,
}

fn understand<T: DeserializeOwned>(said: Value) -> Result<T> {
    serde_json::from_value(said).map_err(|e| Error::data(format!("the client said something strange: {e}")))
}

async fn race(
    args: &Args,
    model: &Path,
    folder: &Path,
    prepared: &Prepared,
    texts: Vec<Text>,
) -> Result<Raced> {
    let link = Link::new(args.loopback, &folder.join("store")).await?;
    let mut client =
        Child::start("the client", link.namespace(), &["stream-client".as_ref(), model.as_os_str()])?;
    let setup = Setup { texts, profile: Some(prepared.profile.clone()) };
    client.tell(&json!(setup)).await?;
    let ready: Ready = understand(client.hear().await?)?;

    let wanted = |name: &str| args.methods.is_empty() || args.methods.iter().any(|m| name.starts_with(&**m));
    let mut methods = methods::all(&args.slos, args.share);
    methods.retain(|method| wanted(&method.name));
    if methods.is_empty() {
        return Err(Error::setting("--methods: there are none whose names begin like that"));
    }
    let (runs, repeat) = (methods.len() * args.rates.len(), args.repeat as usize);
    let bar = progress((runs * repeat) as u64, "fetching");
    let mut measured: Vec<Measured> = Vec::new();
    // Of recomputing at all rates, which does not depend on them.
    let mut recomputed = ready.prefill_s.clone();
    for (number, rate) in args.rates.iter().enumerate() {
        let url = link.shape(*rate)?;
        let first = measured.len();
        let new = |method: &Method| Measured {
            method: method.clone(),
            rate_mbps: *rate,
            slo_s: None,
            answers: Vec::new(),
        };
        measured.extend(methods.iter().map(new));
        for turn in 0..repeat {
            // What takes long is measured once at each rate: on another text at each.
            let text = (turn + number) % setup.texts.len();
            for (index, method) in methods.iter().enumerate() {
                let of = |name: &str| {
                    let same = |m: &&Measured| m.method.name == name && m.method.slo.is_none();
                    measured[first..].iter().find(same).map_or(f64::NAN, Measured::ttft_s)
                };
                // What counts is what it was when the first deadline was set.
                let slo_s = match (method.slo, measured[first + index].slo_s) {
                    (_, Some(slo)) => Some(slo),
                    (Some(Slo::Fixed(slo)), None) => Some(slo),
                    (Some(Slo::Share(share)), None) => Some(share * of(methods::TEXT).min(of(methods::Q8))),
                    (None, None) => None,
                };
                bar.inc(1);
                let spent: f64 = measured[first + index].answers.iter().map(|answer| answer.ttft_s).sum();
                if spent > args.patience {
                    continue;
                }
                let last = turn + 1 == repeat || spent + spent > args.patience;
                let ask = Ask {
                    url: url.clone(),
                    text,
                    context: contexts::id(method.context, text),
                    policy: method.policy.clone(),
                    slo_s,
                    recompute_s: method
                        .slo
                        .map(|_| CONTENTION * median(&recomputed) / f64::from(args.tokens)),
                    timeline: args
                        .svg
                        .as_deref()
                        .filter(|_| last)
                        .and_then(|folder| pictured(folder, method, *rate, args)),
                };
                client.tell(&json!(ask)).await?;
                let answer: Answer = understand(client.hear().await?)?;
                if method.policy.is_none() {
                    recomputed.push(answer.fetch_s);
                }
                let measured = &mut measured[first + index];
                measured.slo_s = slo_s;
                measured.answers.push(answer);
            }
        }
    }
    bar.finish_and_clear();
    // The client before its namespace.
    drop(client);
    Ok(Raced { ready, link: link.name(), measured })
}

/// The one timeline that is kept: of our policy, at the rate in the middle.
fn pictured(folder: &Path, method: &Method, rate: f64, args: &Args) -> Option<PathBuf> {
    let middle = args.rates.get((args.rates.len() - 1) / 2).copied();
    let ours = method.context == "fast" && matches!(method.slo, Some(Slo::Share(_)));
    (ours && middle == Some(rate)).then(|| folder.join("timeline.svg"))
}

fn report(args: &Args, model: &Path, per_token: u64, prepared: &Prepared, raced: &Raced) -> Result<()> {
    let text: Vec<f64> = raced
        .measured
        .iter()
        .filter(|measured| measured.method.policy.is_none())
        .flat_map(|measured| measured.answers.iter().map(|answer| answer.fetch_s))
        .collect();
    let prefill_tokens_s = f64::from(args.tokens) / median(&text);
    let factor = scale::factor(per_token as f64, prefill_tokens_s);
    let mut report = Report::new("cacheg-bench");
    report.field("version", env!("CARGO_PKG_VERSION"));
    report.field("model", model.display().to_string());
    report.field("model_sha256", model_hash(model)?);
    report.field("link", raced.link);
    report.field("load_average", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    report.field("tokens", args.tokens);
    report.field("chunk_tokens", args.chunk_tokens);
    report.field("continuation_tokens", args.continuation);
    report.field("perplexity", raced.ready.perplexity.clone());
    report.field("texts", raced.ready.perplexity.len());
    report.field("kv_bytes_per_token", per_token);
    report.field("prefill_tokens_s", prefill_tokens_s);
    report.field("token_s", raced.ready.token_s);
    report.field("equivalent_7b_rate_factor", factor);
    report.field("levels", table::levels(&prepared.manifests));
    for row in table::rows(&raced.measured, &prepared.manifests, factor) {
        report.row(row);
    }
    if let Some(folder) = &args.svg {
        let caption = format!(
            "{} tokens of {}, {:.0} tokens/s prefill, {}; medians",
            args.tokens,
            crate::publish::name(model),
            prefill_tokens_s,
            raced.link
        );
        let save = |name: &str, svg: String| {
            let path = folder.join(name);
            std::fs::write(&path, svg).map_err(|e| Error::io("cannot write", &path, e))
        };
        save("ttft.svg", plot::ttft(report.rows(), &caption, factor)?)?;
        save("slo.svg", plot::slo(report.rows(), &caption)?)?;
    }
    let (rows, ready) = (report.rows().to_vec(), &raced.ready);
    report.print(args.json, |report| {
        format!(
            "{} tokens, {} bytes of KV cache each; prefill {prefill_tokens_s:.0} tokens/s; a token on top {:.0} ms; {}\n\
             a 7B model on a GPU ({} bytes, {:.0} tokens/s) has the same ratios at {factor:.0} times the rate\n\n{}\n\n{}",
            args.tokens,
            per_token,
            ready.token_s * 1e3,
            raced.link,
            scale::LARGE_BYTES,
            scale::LARGE_TOKENS_S,
            report.table(table::COLUMNS),
            table::targets(&rows),
        )
    })
}
