//! `cacheg-bench ablate`: a grid of codecs measured like `quality` measures, into a table that can be gone on with.

mod grid;
mod settings;
mod table;

use std::path::{Path, PathBuf};

use cacheg::core::{ResultExt, Statistics};
use cacheg::output::OutputFile;
use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_bench::llm::{Model, Tokenizer, model_hash, resolve};
use serde_json::{Value, json};

use crate::comma::Row;
use crate::prefill::with_bar;
use crate::quality::codecs::{Codec, Ready};
use crate::quality::contexts::Context;
use crate::quality::measure::{self, Lengths, Outcome, Task};
use crate::quality::{self, rows};
use crate::report::{Document, SETTING, TITLE, settings_path};
use grid::{Grid, Point};
use settings::Settings;
use table::Table;

/// Measures every codec of a grid on every context and task, as `quality` does, one row each.
///
/// The grid is a TOML file: `contexts`, `calibration` (as those of `quality`; paths are relative to the file),
/// `tokens`, `continuation`, `greedy`, `statistics` (a file of `calibrate`), `codecs` (names as for `quality`), and any number of entries like
///
///   [[grid]]
///   name = "mean"                    # in front of the codecs' names
///   spec = "mean|bins(step={step};reach={reach})|rans"
///   step = [0.25, 0.5, [0.5, 1, 1.5]]
///   reach = [15, 31]                 # all combinations
///   curve = "step"                   # along which pictures draw a line [default: the first with several values]
///   profile = false                  # chunks carry all data [default: true]
///   chunk-tokens = 256               # [default: 1500]
///
///   [[grid]]
///   preset = "cachegen-paper"
///   levels = [0, 2]                  # [default: all]
///
/// Rows are written as soon as a run of eight codecs has been measured on a context. A run that was ended goes on
/// where it was; codecs and contexts may be added. Results of another model, other lengths or other texts are refused;
/// results of another build of the program are not told apart: --force starts anew.
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The grid
    grid: PathBuf,
    /// The table; beside it, OUTPUT.settings.json [default: the grid's name with .csv, in this folder]
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// A page with curves and tables of all rows, see `cacheg-bench report`; replaced when a run goes on
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
    /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
    #[arg(long)]
    model: Option<PathBuf>,
    /// List the codecs and stop
    #[arg(long)]
    list: bool,
    /// Begin anew where there are results, and replace the page
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let grid = Grid::open(&args.grid, &registry)?;
    if args.list {
        return list(&grid.points, args.json);
    }
    let output = args.output.clone().unwrap_or_else(|| {
        let stem = args.grid.file_stem().unwrap_or_default();
        PathBuf::from(stem).with_extension("csv")
    });
    // Going on with a table replaces its page: all rows will be in the new one.
    let replace = args.force || output.exists();
    let page = args.report.as_ref().map(|path| OutputFile::create(path, replace)).transpose()?;
    let statistics = grid.statistics.as_deref().map(Statistics::open).transpose()?;
    let path = resolve(args.model.as_deref())?;
    let lengths = Lengths { tokens: grid.tokens, continuation: grid.continuation, greedy: grid.greedy };
    let tokenizer = Tokenizer::open(&path)?;
    let (test, calibration) = quality::texts(&grid.contexts, &grid.calibration, &tokenizer, lengths)?;
    check_names(&test)?;
    let model = with_bar("loading", |progress| Model::open(&path, progress))?;
    let mut report = Report::new("cacheg-bench");
    quality::describe(&mut report, &path, &model, lengths)?;
    let hash = grid.statistics.as_deref().map(model_hash).transpose()?;
    report.field("statistics_sha256", hash);
    let settings = Settings::new(report.fields(), &test, &calibration);
    let mut table = open(&output, &grid.points, &settings, args.force)?;

    let points = &grid.points;
    let missing = |context: &Context| -> Vec<usize> {
        let done = |point: &Point| table.rows().iter().any(|row| is_of(row, point, &context.name));
        (0..points.len()).filter(|at| !done(&points[*at])).collect()
    };
    let todo: Vec<Vec<usize>> = test.iter().map(missing).collect();
    let used: Vec<usize> = (0..points.len()).filter(|at| todo.iter().any(|todo| todo.contains(at))).collect();
    let codecs: Vec<Codec> = used.iter().map(|at| points[*at].codec.clone()).collect();
    // All of them are calibrated even if a context lacks only one: what profiles hold must not depend on it.
    let ready = match codecs.is_empty() {
        true => Vec::new(),
        false => quality::calibrated(&model, &registry, codecs, &calibration, lengths, statistics.as_ref())?,
    };
    measure_all((&model, &tokenizer), &test, lengths, (points, &used, &ready), &todo, &mut table)?;
    finish(args, report, page, &output, &grid, &test, &table)
}

/// Every context by those codecs that it has no rows of.
fn measure_all(
    model: (&Model, &Tokenizer),
    test: &[Context],
    lengths: Lengths,
    (points, used, ready): (&[Point], &[usize], &[Ready<'_>]),
    todo: &[Vec<usize>],
    table: &mut Table,
) -> Result<()> {
    let bar = progress(todo.iter().map(|todo| todo.len() as u64).sum(), "measuring");
    for (context, todo) in test.iter().zip(todo).filter(|(_, todo)| !todo.is_empty()) {
        let wanted: Vec<(&Point, &Ready<'_>)> = used
            .iter()
            .zip(ready)
            .filter(|(at, _)| todo.contains(at))
            .map(|(at, ready)| (&points[*at], ready))
            .collect();
        let codecs: Vec<&Ready<'_>> = wanted.iter().map(|(_, ready)| *ready).collect();
        let mut keep = |first: usize, outcomes: &[Outcome]| {
            let measured = wanted[first..].iter().zip(outcomes);
            let rows = measured.flat_map(|((point, ready), outcome)| {
                Task::of(context).iter().map(|task| row(point, ready, *task, &context.name, outcome))
            });
            table.append(rows.collect())
        };
        measure::measure(model, context, lengths, &codecs, &|| bar.inc(1), &mut keep).at(|| &context.name)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Opens the table for going on, or begins one.
fn open(output: &Path, points: &[Point], settings: &Settings, force: bool) -> Result<Table> {
    let beside = settings_path(output);
    if force {
        for path in [output, &beside] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("cannot remove", path, e));
                }
                _ => {}
            }
        }
    }
    let settings = match (output.exists(), beside.exists()) {
        (_, true) => settings.continued(&beside)?,
        (true, false) => {
            return Err(Error::data(format!(
                "{} exists, but not {}, so what is in it is unknown: give --force to begin anew, or another --output",
                output.display(),
                beside.display()
            )));
        }
        (false, false) => settings.clone(),
    };
    let complete = |rows: &[Row], row: &Row| {
        let same =
            |other: &&Row| ["name", "spec", "context"].iter().all(|key| other.get(*key) == row.get(*key));
        let task = row.get("task").and_then(Value::as_str).unwrap_or_default();
        rows.iter().filter(same).count() == Task::together(task)
    };
    let mut columns: Vec<String> = Vec::new();
    for (hole, _) in points.iter().flat_map(|point| &point.settings) {
        let column = format!("{SETTING}{hole}");
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    let table = Table::open(output, columns, complete)?;
    settings.write(&beside)?;
    Ok(table)
}

fn row(point: &Point, ready: &Ready<'_>, task: Task, context: &str, outcome: &Outcome) -> Row {
    let mut row = match rows::single(ready, task, context, outcome) {
        Value::Object(row) => row,
        _ => Row::new(),
    };
    row.insert("name".into(), point.name.clone().into());
    row.insert("profile".into(), point.codec.profile.into());
    row.insert("chunk_tokens".into(), point.codec.chunk_tokens.into());
    for (hole, value) in &point.settings {
        row.insert(format!("{SETTING}{hole}"), value.clone().into());
    }
    row
}

/// Whether a row is the point's, with all that its numbers depend on.
fn is_of(row: &Row, point: &Point, context: &str) -> bool {
    let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
    text("name") == point.name
        && text("spec") == point.codec.spec
        && text("context") == context
        && row.get("profile").and_then(Value::as_bool) == Some(point.codec.profile)
        && row.get("chunk_tokens").and_then(Value::as_u64) == Some(point.codec.chunk_tokens as u64)
}

/// Rows are told apart by the names of contexts.
fn check_names(test: &[Context]) -> Result<()> {
    for (index, context) in test.iter().enumerate() {
        if test[..index].iter().any(|other| other.name == context.name) {
            return Err(Error::data(format!("two contexts are called `{}`", context.name)));
        }
        if context.name.contains(char::is_control) || context.name == "all" {
            return Err(Error::data(format!("a context cannot be called {:?}", context.name)));
        }
    }
    Ok(())
}

fn list(points: &[Point], json: bool) -> Result<()> {
    let mut report = Report::new("cacheg-bench");
    for point in points {
        let Codec { codec, level, spec, .. } = &point.codec;
        report.row(json!({"name": point.name, "codec": codec, "level": level, "spec": spec}));
    }
    report.print(json, |report| report.table(&[("name", "codec", 0), ("spec", "pipeline", 0)]))
}

/// What is printed: means over the contexts of this grid; and the page of all rows.
fn finish(
    args: &Args,
    mut report: Report,
    page: Option<OutputFile>,
    output: &Path,
    grid: &Grid,
    test: &[Context],
    table: &Table,
) -> Result<()> {
    report.field("table", output.display().to_string());
    let mut tables = Vec::new();
    for task in Task::ALL {
        let of_task: Vec<&Context> =
            test.iter().filter(|context| Task::of(context).contains(&task)).collect();
        if of_task.is_empty() {
            continue;
        }
        let mut printed = Report::new("cacheg-bench");
        for point in &grid.points {
            let singles: Vec<&Row> = of_task
                .iter()
                .filter_map(|context| {
                    let of = |row: &&Row| is_of(row, point, &context.name) && row["task"] == task.name();
                    table.rows().iter().find(of)
                })
                .collect();
            let row = rows::overall(&singles);
            printed.row(rows::with_intervals(row.clone()));
            report.row(row);
        }
        tables.push(format!("{}\n{}", task.name(), printed.table(&rows::columns(task))));
    }
    if let Some(page) = page {
        let mut document = Document::open(output)?;
        document.fields.insert("grid".into(), args.grid.display().to_string().into());
        crate::report::write(page, TITLE, &[document])?;
    }
    report.print(args.json, |_| tables.join("\n\n"))
}
