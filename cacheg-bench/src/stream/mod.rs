//! Streaming: policies side by side on simulated links.

mod ladder;
mod links;
mod oracle;
mod plot;
mod random;
mod run;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use cacheg::report::{Report, progress};
use cacheg::{Error, Result};
use cacheg_net::control::{Estimator, Job, Policy, estimators, policies};
use cacheg_net::trace::Trace;
use rayon::prelude::*;
use serde_json::json;

use crate::comma;
use links::{KINDS, Link};
use oracle::Bound;
use random::{Purpose, Random};
use run::Outcome;
use table::{Group, Run};

/// Deadlines in milliseconds. From 2 s on all chunks fit as text, and nothing is tested.
const SLOS: [u64; 5] = [500, 750, 1_000, 1_250, 1_500];
/// Those of the artifact's own model.
const OWN_SLOS: [u64; 2] = [1_000, 1_500];
/// Its streams of random numbers are those of this kind.
const OWN_KIND: usize = 200;
const TRACE_KIND: usize = 100;

const POLICIES: [&str; 13] = [
    "artifact",
    "cachegen",
    "cachegen(overlap=true)",
    "fixed(level=0)",
    "fixed(level=2)",
    "plan",
    "plan+harmonic",
    "plan+ewma",
    "plan+holt",
    "plan+quantile",
    "plan(lambda=1;spread=1;first=0.5)",
    "plan(upgrade=false)",
    "plan(abandon=false)",
];

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cacheg-bench stream --sim
  cacheg-bench stream --sim --policy plan --policy cachegen --runs 1000 --svg docs
  cacheg-bench stream --sim --trace bw.jsonl --scale 0.5 --json")]
pub(crate) struct Args {
    /// A policy, or policy+estimator, e.g. 'plan(lambda=2)+harmonic(n=5)'; may be repeated [default: a selection]
    #[arg(long, value_name = "SPEC")]
    policy: Vec<String>,
    /// Links of each kind for each deadline
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Begins the streams of random numbers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=0x7fff_ffff))]
    seed: u32,
    /// Numbers for reporting, or others to choose settings by; they never meet
    #[arg(long, value_enum, default_value = "report")]
    purpose: Purpose,
    /// Traces to run on instead of the kinds of link (CacheGen's JSON lines, Mahimahi, or `seconds Mbit/s`)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Rates of --trace times this
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Milliseconds that a number of a CacheGen trace holds
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    step: u64,
    /// Write stream-misses.svg and stream-distortion.svg to this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Write all rows as comma-separated values
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// One link and one deadline.
struct Case {
    group: Group,
    kind: usize,
    number: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let specs: Vec<String> = match args.policy.as_slice() {
        [] => POLICIES.map(str::to_owned).to_vec(),
        specs => specs.to_vec(),
    };
    // Wrong specs are found before anything runs.
    specs.iter().try_for_each(|spec| build(spec).map(drop))?;
    let traces = match &args.trace {
        None => None,
        Some(path) => {
            let traces = Trace::read(path, Duration::from_millis(args.step))?;
            Some(traces.iter().map(|trace| trace.scaled(args.scale)).collect::<Result<Vec<_>>>()?)
        }
    };
    let cases = cases(args, traces.as_deref());
    let make = |case: &Case| make(args, case, traces.as_deref());
    let bar = progress(cases.len() as u64 * (specs.len() as u64 + 1), "links");
    let bounds: Vec<Bound> = cases
        .par_iter()
        .map(|case| {
            let (job, link) = make(case)?;
            bar.inc(1);
            Ok(oracle::bound(&job, &link))
        })
        .collect::<Result<_>>()?;
    let mut runs = vec![Run::oracle(&bounds)];
    for spec in &specs {
        let outcomes: Vec<Outcome> = cases
            .par_iter()
            .map(|case| {
                let (job, link) = make(case)?;
                let (policy, estimator) = build(spec)?;
                bar.inc(1);
                Ok(run::run(&job, policy, estimator, &link))
            })
            .collect::<Result<_>>()?;
        runs.push(Run { name: spec.clone(), outcomes });
    }
    bar.finish_and_clear();
    let groups: Vec<Group> = cases.iter().map(|case| case.group).collect();
    report(args, &groups, &bounds, &runs)
}

/// `policy` or `policy+estimator`.
fn build(spec: &str) -> Result<(Box<dyn Policy>, Box<dyn Estimator>)> {
    let (policy, estimator) = spec.split_once('+').unwrap_or((spec, "last"));
    Ok((policies().build(policy.trim())?, estimators().build(estimator.trim())?))
}

fn cases(args: &Args, traces: Option<&[Trace]>) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &'static str, kind: usize, slos: &[u64]| {
        for (index, slo) in slos.iter().enumerate() {
            let group = Group { kind: name, slo: *slo };
            let first = index as u32 * 0x10_0000;
            cases.extend((0..args.runs).map(|run| Case { group, kind, number: first + run }));
        }
    };
    if traces.is_some() {
        add("trace", TRACE_KIND, &SLOS);
        return cases;
    }
    for (kind, about) in KINDS.iter().enumerate() {
        add(about.name, kind, &SLOS);
    }
    add(table::OWN, OWN_KIND, &OWN_SLOS);
    cases
}

fn make(args: &Args, case: &Case, traces: Option<&[Trace]>) -> Result<(Job, Link)> {
    let mut random = Random::new(args.purpose, args.seed, case.kind as u32, case.number);
    let slo = Duration::from_millis(case.group.slo);
    let link = match (case.kind, traces) {
        (TRACE_KIND, Some(traces)) => {
            let trace = traces[random.below(traces.len())].clone();
            let start = trace.period().mul_f64(random.unit());
            Link::Series(trace, start)
        }
        (OWN_KIND, _) => links::per_chunk(ladder::CHUNKS, &mut random),
        (kind, _) => links::draw(kind, slo, &mut random)?,
    };
    Ok((ladder::job(slo)?, link))
}

fn report(args: &Args, groups: &[Group], bounds: &[Bound], runs: &[Run]) -> Result<()> {
    let rows = table::rows(groups, bounds, runs);
    let mut report = Report::new("cacheg-bench");
    report.field("seed", args.seed);
    report.field("purpose", if args.purpose == Purpose::Report { "report" } else { "tune" });
    report.field("runs", groups.len());
    report.field("chunks", ladder::CHUNKS);
    report.field("bytes", json!(ladder::BITS.map(ladder::bytes)));
    report.field("kl", json!(ladder::BITS.map(ladder::kl)));
    report.field("links", json!(KINDS.map(|kind| format!("{}: {} (Gbit/s)", kind.name, kind.about))));
    report.field("text_s", ladder::TEXT.as_secs_f64());
    report.field("decode_s", ladder::DECODE.as_secs_f64());
    for row in &rows {
        report.row(row.clone());
    }
    if let Some(folder) = &args.svg {
        let caption = format!("{} links, 10 chunks of a 7B model, text 0.2 s a chunk", groups.len());
        save(&folder.join("stream-misses.svg"), plot::misses(&rows, &caption)?.as_bytes())?;
        save(&folder.join("stream-distortion.svg"), plot::distortion(&rows, &caption)?.as_bytes())?;
    }
    if let Some(path) = &args.csv {
        let rows: Vec<comma::Row> = rows.iter().filter_map(|row| row.as_object().cloned()).collect();
        let mut keys = Vec::new();
        comma::add_keys(&mut keys, &rows);
        save(path, &comma::write(&keys, &rows)?)?;
    }
    report.print(args.json, |_| table::text(&rows))
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|error| Error::io("cannot write", path, error))
}

#[cfg(test)]
mod tests;
