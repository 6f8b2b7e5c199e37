//! Speed and size of coders, ours and others', on symbols of real KV caches; and of whole encodes and decodes.

mod ours;
mod peers;
mod plot;
mod race;
mod reference;
mod report;
mod symbols;
mod whole;

use std::path::PathBuf;
use std::rc::Rc;

use cacheg::core::ResultExt;
use cacheg::report::Report;
use cacheg::{Error, KvFile, KvView, Limits, Registry, Result};
use serde_json::Value;

use ours::Ours;
use plot::Point;
use race::{Family, Lane};
use report::{CODER_COLUMNS, Scale, WHOLE_COLUMNS};
use symbols::Symbols;

/// Which measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Entropy coders on symbols, on one core
    Coders,
    /// Whole KV caches by preset and number of threads
    EndToEnd,
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg-bench throughput kv.safetensors --svg throughput.svg\n  cacheg-bench throughput --only end-to-end --preset cachegen-paper --threads 1,2,4 --json"
)]
pub(crate) struct Args {
    /// KV caches [default: the embedded sample]
    inputs: Vec<PathBuf>,
    /// Levels of the quantizer that makes the symbols
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(4..=256))]
    bins: u16,
    /// Times that every entrant is visited; medians are reported
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only one of the two tables
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// A coder of ours, e.g. 'rans(tables=class)'; may be repeated [default: rans and range]
    #[arg(long, value_name = "SPEC")]
    coder: Vec<String>,
    /// A preset to run end to end; may be repeated [default: all]
    #[arg(long, value_name = "NAME")]
    preset: Vec<String>,
    /// Numbers of threads to run end to end with
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<u16>,
    /// Draw decode speed against size
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let limits = Limits::default();
    let open = |path: &PathBuf| KvFile::open(path, &limits).at(|| path.display());
    let mut files = args.inputs.iter().map(open).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        files.push(cacheg::sample()?);
    }
    let views: Vec<KvView<'_>> = files.iter().map(KvFile::view).collect();
    let work = Work { registry: &registry, distinct: views.len(), views: repeat(&views) };
    let wants = |part| args.only.is_none_or(|only| only == part);
    let mut report = Report::new("cacheg-bench");
    let mut texts = Vec::new();
    if wants(Part::Coders) {
        texts.push(coders(args, &work, &mut report)?);
    }
    if wants(Part::EndToEnd) {
        texts.push(end_to_end(args, &work, &mut report)?);
    }
    report.print(args.json, |_| texts.join("\n\n"))
}

/// Fewer values than these fit in the caches of large processors, where `memcpy` is no measure of anything: real
/// KV caches never do.
const VALUES: u64 = 16_000_000;

/// What is measured.
struct Work<'a> {
    registry: &'a Registry,
    /// The KV caches, again and again if they are small.
    views: Vec<KvView<'a>>,
    /// How many of them there are in truth.
    distinct: usize,
}

fn repeat<'a>(views: &[KvView<'a>]) -> Vec<KvView<'a>> {
    let values = |view: &KvView<'_>| view.geometry().values_per_token() * view.tokens() as u64;
    let once = views.iter().map(values).sum::<u64>().max(1);
    let times = VALUES.div_ceil(once).min(VALUES) as usize;
    (0..times).flat_map(|_| views.iter().cloned()).collect()
}

/// Adds rows to the report; returns them as a table of their own.
fn add(report: &mut Report, rows: Vec<Value>, columns: &[cacheg::report::Column]) -> String {
    let mut own = Report::new("");
    for row in rows {
        own.row(row.clone());
        report.row(row);
    }
    own.table(columns)
}

fn coders(args: &Args, work: &Work<'_>, report: &mut Report) -> Result<String> {
    let Work { registry, views, distinct } = work;
    let symbols = Symbols::quantize(views, args.bins)?.repeating(*distinct);
    let once = Symbols::quantize(&views[..*distinct], args.bins)?;
    let scale = Scale { symbols: symbols.len(), entropy_bits: symbols.entropy_bits };
    let specs = match args.coder.as_slice() {
        [] => ours::CODERS.map(str::to_owned).to_vec(),
        specs => specs.to_vec(),
    };
    let values: Rc<[u8]> = symbols.dequantized().into();
    let mut entrants = reference::entrants(&symbols, &values);
    entrants.extend(ours::entrants(registry, &specs, &symbols)?);
    entrants.extend(peers::entrants(registry, &symbols)?);
    let lanes = race::run(&symbols, &values, entrants, usize::from(args.rounds))?;
    let mut others = Vec::new();
    for spec in &specs {
        let coder = ours::build(registry, spec)?;
        if let Some(mut codec) = Ours::with_tables_of_others(&coder, &once)? {
            let bytes = codec.stream_len(&once)? * symbols.repeats();
            others
                .extend(lanes.iter().filter(|lane| is_of(lane, spec)).map(|lane| (lane.name.clone(), bytes)));
        }
    }
    let bits = symbols.entropy_bits / symbols.len() as f64;
    report.field("repeats", symbols.repeats());
    report.field("symbols", once.len());
    report.field("bins", symbols.bins);
    report.field("entropy_bits_per_symbol", bits);
    report.field("streams", symbols.streams.len());
    report.field("rounds", args.rounds);
    let names = [("best_peer", scale.best_peer(&lanes)), ("near_peer", scale.near_peer(&lanes))];
    for (key, lane) in names {
        report.field(key, lane.map(|lane| lane.name.clone()));
    }
    let caption = format!(
        "{:.1} M symbols of {distinct} KV cache(s){}, {} bins, H = {bits:.3} bits per symbol by (layer, channel)",
        once.len() as f64 / 1e6,
        repeated(work),
        symbols.bins
    );
    if let Some(path) = &args.svg {
        let picture = plot::svg(&points(&lanes, scale), &caption)?;
        std::fs::write(path, picture).map_err(|e| Error::io("cannot write", path, e))?;
    }
    let table = add(report, scale.rows(&lanes, &others), CODER_COLUMNS);
    let name = |lane: Option<&Lane>| lane.map_or("none", |lane| lane.name.as_str()).to_owned();
    let mut notes = format!(
        "size / H counts everything that a reader needs. × best peer: {}; near H (at most 1.05): {}.",
        name(scale.best_peer(&lanes)),
        name(scale.near_peer(&lanes)),
    );
    if !peers::ALL {
        notes += "\nhtscodecs takes part with `--features peers` (`cargo xtask bench-deps` installs it).";
    }
    Ok(format!("{caption}\n\n{table}\n\n{notes}"))
}

fn repeated(work: &Work<'_>) -> String {
    match work.views.len() / work.distinct {
        1 => String::new(),
        times => format!(", {times} times over so that no cache holds them"),
    }
}

/// Whether the lane's coder was built from this spec; its name goes on with the SIMD level.
fn is_of(lane: &Lane, spec: &str) -> bool {
    let rest = lane.name.strip_prefix(spec);
    lane.family == Family::Ours && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

fn points(lanes: &[Lane], scale: Scale) -> Vec<Point> {
    let point = |lane: &Lane| {
        let coder = lane.family != Family::Reference;
        Point {
            name: lane.name.clone(),
            family: lane.family,
            decode_gsym_s: scale.decode_gsym_s(lane),
            size: coder.then(|| scale.size(lane)),
            stream_size: coder.then(|| scale.stream_size(lane)),
        }
    };
    lanes.iter().map(point).collect()
}

fn end_to_end(args: &Args, work: &Work<'_>, report: &mut Report) -> Result<String> {
    let threads: Vec<usize> = args.threads.iter().map(|threads| usize::from(*threads).max(1)).collect();
    let wholes = whole::run(work, &args.preset, &threads, usize::from(args.rounds))?;
    let table = add(report, report::whole_rows(&wholes), WHOLE_COLUMNS);
    let notes = "memcpy copies the KV caches with as many threads. Profiles are calibrated on the other KV \
                 caches, if there are any, and bound before the clock starts.";
    Ok(format!(
        "whole KV caches in memory, {:.1} MB{}\n\n{table}\n\n{notes}",
        wholes.bytes / 1e6,
        repeated(work)
    ))
}

#[cfg(test)]
mod tests {
    use super::symbols::tests::small;
    use super::*;

    /// Everybody's round trip is checked by the race itself.
    fn lanes(tokens: usize, bins: u16) -> (Symbols, Vec<Lane>) {
        let registry = cacheg::builtins().unwrap();
        let symbols = small(tokens, bins);
        let values: Rc<[u8]> = symbols.dequantized().into();
        let mut entrants = reference::entrants(&symbols, &values);
        entrants.extend(ours::entrants(&registry, &ours::CODERS.map(str::to_owned), &symbols).unwrap());
        entrants.extend(peers::entrants(&registry, &symbols).unwrap());
        let lanes = race::run(&symbols, &values, entrants, 1).unwrap();
        (symbols, lanes)
    }

    #[test]
    fn everybody_decodes_what_was_encoded() {
        for bins in [4, 16, 32, 256] {
            let (symbols, lanes) = lanes(37, bins);
            let scale = Scale { symbols: symbols.len(), entropy_bits: symbols.entropy_bits };
            for lane in lanes.iter().filter(|lane| lane.family != Family::Reference) {
                // Tables per channel are as large as the streams of 37 tokens; nobody beats the entropy by far.
                let size = scale.stream_size(lane);
                assert!((0.8..8.0).contains(&size), "{} at {bins} bins: {size}", lane.name);
            }
        }
    }

    #[test]
    fn repetitions_share_tables_and_are_counted_as_often() {
        let registry = cacheg::builtins().unwrap();
        let sample = cacheg::sample().unwrap();
        let sizes = [1, 3].map(|times| {
            let symbols = Symbols::quantize(&vec![sample.view(); times], 32).unwrap().repeating(1);
            let values: Rc<[u8]> = symbols.dequantized().into();
            let mut entrants = ours::entrants(&registry, &["rans(tables=class)".into()], &symbols).unwrap();
            entrants.extend(peers::entrants(&registry, &symbols).unwrap().drain(..2));
            let lanes = race::run(&symbols, &values, entrants, 1).unwrap();
            lanes.into_iter().map(|lane| (lane.stream_len, lane.tables_len)).collect::<Vec<_>>()
        });
        let [once, thrice] = sizes;
        assert_eq!(once.into_iter().map(|(a, b)| (3 * a, 3 * b)).collect::<Vec<_>>(), thrice);
    }

    #[test]
    fn rows_have_their_keys() {
        let (symbols, lanes) = lanes(84, 32);
        let scale = Scale { symbols: symbols.len(), entropy_bits: symbols.entropy_bits };
        let name = lanes[2].name.clone();
        let rows = scale.rows(&lanes, &[(name, symbols.len() / 2)]);
        assert_eq!(rows.len(), lanes.len());
        for row in &rows {
            for (key, ..) in CODER_COLUMNS {
                assert!(row.get(*key).is_some(), "{key}");
            }
            assert!(row["decode_gsym_s"].as_f64().unwrap() > 0.0 && row["decode_vs_memcpy"].is_number());
            assert_eq!(row["size_over_entropy"].is_null(), row["family"] == "reference");
        }
        assert!(rows[2]["profile_over_entropy"].as_f64().unwrap() > 1.0);
        assert_eq!(rows.iter().filter(|row| row["decode_vs_best_peer"] == 1.0).count(), 1);
        let document = plot::svg(&points(&lanes, scale), "test").unwrap();
        assert!(roxmltree::Document::parse(&document).is_ok());
    }
}
