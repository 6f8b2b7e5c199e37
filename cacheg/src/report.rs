//! Reports of commands: a table for people, one JSON object for programs; progress bars.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::SystemTime;

use cacheg_core::{Error, Result, spec};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

/// One column of a table: the key of a row's field, its title, decimals of its numbers.
pub type Column = (&'static str, &'static str, usize);

/// A report in the making.
#[derive(Debug)]
pub struct Report {
    fields: Map<String, Value>,
    rows: Vec<Value>,
}

impl Report {
    /// A report of this program's command, with date and machine.
    pub fn new(program: &str) -> Self {
        let mut fields = Map::new();
        let words: Vec<String> =
            std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        fields.insert("command".into(), format!("{program} {}", words.join(" ")).into());
        fields.insert("date".into(), humantime::format_rfc3339_seconds(SystemTime::now()).to_string().into());
        fields.insert("machine".into(), machine().into());
        Self { fields, rows: Vec::new() }
    }

    /// Adds a field beside the rows.
    pub fn field(&mut self, key: &str, value: impl Into<Value>) {
        self.fields.insert(key.into(), value.into());
    }

    /// Adds a row.
    pub fn row(&mut self, row: Value) {
        self.rows.push(row);
    }

    /// What stands beside the rows.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Value] {
        &self.rows
    }

    /// The rows as a table.
    pub fn table(&self, columns: &[Column]) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(columns.iter().map(|(_, title, _)| *title));
        for row in &self.rows {
            table.add_row(columns.iter().map(|(key, _, decimals)| cell(&row[*key], *decimals)));
        }
        for (index, (key, ..)) in columns.iter().enumerate() {
            let numbers = self.rows.iter().any(|row| row[*key].is_number());
            if let Some(column) = table.column_mut(index).filter(|_| numbers) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    /// Prints the JSON object, or what `text` makes of the report.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn print(mut self, json: bool, text: impl FnOnce(&Self) -> String) -> Result<()> {
        if !json {
            return print(&text(&self));
        }
        self.fields.insert("rows".into(), Value::Array(self.rows));
        print(&serde_json::to_string_pretty(&Value::Object(self.fields)).unwrap_or_default())
    }
}

fn cell(value: &Value, decimals: usize) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if !number.is_f64() => number.to_string(),
        number => number.as_f64().map_or_else(|| number.to_string(), |n| decimal(n, decimals)),
    }
}

/// So many decimals, unless they would say nothing or too much.
fn decimal(n: f64, decimals: usize) -> String {
    let tiny = n != 0.0 && n.abs() < 0.5 * 0.1f64.powi(decimals as i32);
    if tiny || n.abs() >= 1e9 { format!("{n:.3e}") } else { format!("{n:.decimals$}") }
}

/// Bits per value; nothing if there are no values.
pub fn per_value(bytes: u64, values: u64) -> Option<f64> {
    (values > 0).then(|| bytes as f64 * 8.0 / values as f64)
}

/// A number for JSON, which has no infinities: those become text.
pub fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { format!("{x}").into() }
}

/// Processor and cores, for people who compare numbers.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        line.split_once(':').map(|(_, name)| name.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, {cores} cores, {}",
        cpu.unwrap_or_else(|| std::env::consts::ARCH.into()),
        std::env::consts::OS
    )
}

/// A bar on stderr, on a terminal only.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta} left");
    let bar = ProgressBar::new(total).with_message(what);
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// The stages one under the other.
pub fn stages(specs: &[spec::StageSpec]) -> String {
    let mut text = String::new();
    for stage in specs {
        let version = stage.version.unwrap_or_default();
        let _ = writeln!(text, "    {}  [format {version}]", spec::format(std::slice::from_ref(stage)));
    }
    text.trim_end().to_owned()
}

/// Writes a line to standard output; a reader that has gone away is no error.
///
/// # Errors
/// If standard output cannot be written to.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Io { context: "cannot write to standard output".into(), source: e })
        }
        _ => Ok(()),
    }
}
