//! `cacheg-bench report`: what other commands measured, as one page that needs nothing else.

mod chart;
mod cost;
mod document;
mod entries;
mod equal;
mod marks;
mod page;
mod paper;
mod quality;
mod reproduce;
mod sensitivity;
mod text;

use std::io::Write as _;
use std::path::PathBuf;

use cacheg::output::OutputFile;
use cacheg::{Error, Result};
use maud::{Markup, html};
use serde_json::Value;

pub(crate) use document::Document;
#[cfg(feature = "llm")]
pub(crate) use document::settings_path;
use document::{Kind, kind};
#[cfg(feature = "llm")]
pub(crate) use entries::SETTING;
use entries::Task;
use page::Section;

pub(crate) const TITLE: &str = "Quality of KV cache codecs";

/// Makes one HTML file from what other commands reported: `quality --json` or `--csv`, tables of `ablate`,
/// `throughput --json` (speeds), `calibrate --json` (sensitivity of layers).
///
/// The page has its pictures inside, loads nothing and runs nothing. Sections appear when there are rows for them;
/// of what was measured twice the last file counts.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  cacheg-bench quality --json > q.json && cacheg-bench throughput --json > t.json\n  cacheg-bench report q.json t.json -o report.html"
)]
pub(crate) struct Args {
    /// JSON or CSV files
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The page
    #[arg(short, long)]
    output: PathBuf,
    /// Its title
    #[arg(long, default_value = TITLE)]
    title: String,
    /// Replace the page if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = OutputFile::create(&args.output, args.force)?;
    let documents = args.inputs.iter().map(|path| Document::open(path)).collect::<Result<Vec<_>>>()?;
    for document in &documents {
        let unknown = document.rows.iter().filter(|row| kind(row) == Kind::Unknown).count();
        if unknown > 0 {
            eprintln!("{}: {unknown} rows are of no kind that a report has a section for", document.source);
        }
    }
    write(out, &args.title, &documents)
}

/// Writes the page.
pub(crate) fn write(mut out: OutputFile, title: &str, documents: &[Document]) -> Result<()> {
    let page = render(title, documents)?;
    let failed = |source| Error::Io { context: "cannot write the report".into(), source };
    out.write_all(page.as_bytes()).map_err(failed)?;
    out.commit()
}

fn render(title: &str, documents: &[Document]) -> Result<String> {
    let rows = documents.iter().flat_map(|document| &document.rows);
    let tasks = entries::tasks(rows.filter(|row| kind(row) == Kind::Quality));
    let mut sections = Vec::new();
    let mut add = |id, title: &str, body: Option<Markup>| {
        sections.extend(body.map(|body| Section { id, title: title.to_owned(), body }));
    };
    let mut curves = Vec::new();
    for task in &tasks {
        let heading = html! { h3 { (quality::title(&task.name)) } p { (quality::about(&task.name)) } };
        curves.push(html! { (heading) (quality::curves(task)?) });
    }
    let any = |parts: Vec<Markup>| (!parts.is_empty()).then(|| html! { @for part in &parts { (part) } });
    add("curves", "Rate and distortion", any(curves));
    add("equal", "Bits at equal KL", quality::equal(&tasks));
    add("paper", "Against the paper", paper::section(&tasks));
    let tables =
        tasks.iter().map(|task| html! { h3 { (quality::title(&task.name)) } (quality::everything(task)) });
    add("all", "Everything measured", any(tables.collect()));
    add("kinds", "By kind of text", tasks.iter().find_map(quality::kinds));
    add("side", "Cost of side information", cost::side(&tasks));
    add("speed", "Speed", cost::speed(&tasks, documents));
    add("layers", "Sensitivity of layers", sensitivity::section(documents)?);
    if sections.is_empty() {
        return Err(Error::data(
            "nothing to report: there are no rows of `quality`, `ablate`, `throughput` or `calibrate` in these files",
        ));
    }
    let body = reproduce::section(documents, &tasks);
    sections.push(Section { id: "reproduce", title: "How to reproduce".to_owned(), body });
    Ok(page::page(title, &lead(documents, &tasks), &sections))
}

/// What a reader must know before the first number.
fn lead(documents: &[Document], tasks: &[Task]) -> Markup {
    let field = |key: &str| documents.iter().find_map(|document| document.fields.get(key));
    let model =
        field("model").and_then(Value::as_str).map(|path| path.rsplit(['/', '\\']).next().unwrap_or(path));
    let date = field("date").and_then(Value::as_str).map(|date| date.split('T').next().unwrap_or(date));
    let contexts = tasks.iter().flat_map(|task| &task.entries).map(|entry| entry.contexts().count()).max();
    html! {
        @if !tasks.is_empty() {
            p {
                @if let Some(model) = model { b { (model) } } @else { "A language model" }
                " read "
                @if let Some(contexts) = contexts.filter(|count| *count > 0) { (contexts) " contexts" }
                @else { "contexts" }
                @if let Some(tokens) = field("tokens").and_then(Value::as_u64) { " of " (tokens) " tokens" }
                "; its KV cache went through each codec, into a real container and back, and the model read on with the \
                 reconstruction. Bits count every byte of the container. KL(reference ‖ codec) is in nats per token, the \
                 mean over the tokens read; 0 means that every prediction is the same."
            }
        }
        @if let Some(date) = date { p.meta { "Measured " (date) @if let Some(machine) = field("machine").and_then(Value::as_str) { " on " (machine) } "." } }
    }
}

#[cfg(test)]
mod tests;
