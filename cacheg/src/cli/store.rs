//! `cacheg store ls|rm|gc|verify`

use std::time::Duration;

use cacheg::core::ResultExt;
use cacheg::net::store::{ContextId, gc, verify};
use cacheg::{Error, Result};
use serde_json::json;

use super::stores::{self, StoreArgs};
use cacheg::report::{Report, progress};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the contexts of a store
    Ls(Ls),
    /// Remove contexts; their chunks go with `gc`
    Rm(Rm),
    /// Remove what no context refers to
    Gc(Gc),
    /// Read everything and check it
    Verify(Verify),
}

#[derive(clap::Args)]
pub(crate) struct Ls {
    /// The store: a folder or a URL
    url: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Rm {
    /// The store: a folder or a URL
    url: String,
    /// The contexts
    #[arg(required = true)]
    contexts: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(clap::Args)]
pub(crate) struct Gc {
    /// The store: a folder or a URL
    url: String,
    /// Keep what was written less than this ago: longer than anybody takes to publish a context
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// The store: a folder or a URL
    url: String,
    /// The contexts [default: all]
    contexts: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    let runtime = stores::runtime()?;
    match command {
        Command::Ls(args) => runtime.block_on(ls(args)),
        Command::Rm(args) => runtime.block_on(rm(args)),
        Command::Gc(args) => runtime.block_on(collect(args)),
        Command::Verify(args) => runtime.block_on(check(args)),
    }
}

fn ids(contexts: &[String]) -> Result<Vec<ContextId>> {
    contexts.iter().map(ContextId::new).collect()
}

async fn ls(args: &Ls) -> Result<()> {
    let store = args.store.store(&args.url)?;
    let mut report = Report::new("cacheg");
    for id in store.contexts().await? {
        // One that is damaged must not hide the others.
        report.row(match store.manifest(&id).await {
            Ok(manifest) => {
                let of = |level: &str| -> u64 {
                    manifest
                        .chunks
                        .iter()
                        .filter_map(|c| c.levels.get(level))
                        .map(|object| object.bytes)
                        .sum()
                };
                let levels: Vec<&str> = manifest.levels.iter().map(|level| level.name.as_str()).collect();
                json!({
                    "name": id.as_str(),
                    "context": id.as_str(),
                    "model": manifest.model.name,
                    "tokens": manifest.tokens,
                    "chunks": manifest.chunks.len(),
                    "levels": levels.join(" "),
                    "bytes": levels.iter().map(|level| of(level)).sum::<u64>(),
                })
            }
            Err(error) => json!({ "name": id.as_str(), "context": id.as_str(), "model": error.to_string() }),
        });
    }
    report.print(args.json, |report| {
        report.table(&[
            ("name", "context", 0),
            ("model", "model", 0),
            ("tokens", "tokens", 0),
            ("chunks", "chunks", 0),
            ("bytes", "bytes", 0),
            ("levels", "levels", 0),
        ])
    })
}

async fn rm(args: &Rm) -> Result<()> {
    let store = args.store.store(&args.url)?;
    for id in ids(&args.contexts)? {
        store.remove(&id).await?;
    }
    Ok(())
}

async fn collect(args: &Gc) -> Result<()> {
    let store = args.store.store(&args.url)?;
    let collected = gc(&store, args.grace, args.dry_run).await?;
    let bytes: u64 = collected.removed.iter().map(|(_, size)| size).sum();
    let mut report = Report::new("cacheg");
    report.field("dry_run", args.dry_run);
    report.field("removed_bytes", bytes);
    report.field("young", collected.young);
    report.field("used", collected.used);
    report.field("foreign", collected.foreign);
    report.field("repointed", collected.repointed);
    for (key, size) in &collected.removed {
        report.row(json!({ "name": key.as_str(), "bytes": size }));
    }
    let summary = format!(
        "{} {} objects ({:.1} MB); {} in use, {} younger than {}, {} not of this store",
        if args.dry_run { "would remove" } else { "removed" },
        collected.removed.len(),
        bytes as f64 / 1e6,
        collected.used,
        collected.young,
        humantime::format_duration(args.grace),
        collected.foreign,
    );
    report.print(args.json, |_| summary)
}

async fn check(args: &Verify) -> Result<()> {
    let store = args.store.store(&args.url)?;
    let contexts = if args.contexts.is_empty() { store.contexts().await? } else { ids(&args.contexts)? };
    let mut report = Report::new("cacheg");
    let (mut faults, mut checked) = (0, 0);
    let bar = progress(contexts.len() as u64, "verifying");
    for id in &contexts {
        let bytes = std::sync::atomic::AtomicU64::new(0);
        let count = |n: u64| {
            bytes.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
        };
        let found = match verify(&store, id, &count).await {
            Ok(found) => found.into_iter().map(|fault| (fault.object, fault.error)).collect(),
            Err(error) => vec![(format!("contexts/{id}/manifest.json"), error)],
        };
        bar.inc(1);
        checked += bytes.into_inner();
        faults += found.len();
        for (object, error) in found {
            report.row(json!({ "name": object, "context": id.as_str(), "error": error.to_string() }));
        }
    }
    bar.finish_and_clear();
    report.field("contexts", contexts.len());
    report.field("bytes", checked);
    let summary = format!("{} contexts, {:.1} MB: {faults} faults", contexts.len(), checked as f64 / 1e6);
    report.print(args.json, |report| match faults {
        0 => summary,
        _ => format!("{summary}\n{}", report.table(&[("name", "object", 0), ("error", "error", 0)])),
    })?;
    match faults {
        0 => Ok(()),
        _ => Err(Error::corrupt(format!(
            "{faults} faults; publish the contexts again after `cacheg store rm` and `gc`"
        )))
        .at(|| stores::shown(&args.url)),
    }
}
