//! What the programs of presets do, counted by executing them without any GPU.

use cacheg::core::{Chunk, KvView, LayerGroup, Registry};
use cacheg::report::{Report, progress};
use cacheg::{Geometry, KvCache, KvFile, Limits, Result};
use cacheg_gpu::{BindingCounts, Counts, Recorded, Simulated, Variant, simulate};
use serde_json::{Value, json};

use super::model::SHEETS;
use super::{Args, encode, presets, repeated};

/// Layers that are counted: executing them takes its time, and all layers are alike.
const LAYERS: usize = 2;

/// Tokens that are counted: four that `fast` keeps exact, and tiles of 512 rows, so that the entropy loop does whole columns.
const TOKENS: usize = 1_028;

/// Streams of a model of 8 billion parameters: 32 layers of keys and values of 1,024 channels, chunks of 1,500 tokens, tiles of 125.
const STREAMS: f64 = 768.0;

/// What a model of speed needs to know.
pub(super) struct Totals {
    /// Instructions of 32 lanes.
    pub(super) issued: f64,
    /// Bytes between memory and caches.
    pub(super) moved: f64,
    /// Bytes of elements.
    pub(super) elements: f64,
}

pub(super) fn run(args: &Args, registry: &Registry, file: &KvFile) -> Result<()> {
    let tokens = match args.tokens[..] {
        [] => TOKENS,
        [tokens] => tokens,
        _ => return Err(cacheg::Error::setting("`--counts` takes one number of tokens")),
    };
    let cache = middle(&repeated(&file.view(), tokens).view())?;
    let mut report = Report::new("cacheg-bench");
    report.field("tokens", tokens);
    let presets = presets(&args.presets)?;
    let bar = progress(presets.len() as u64, "counting");
    for (name, spec) in &presets {
        for variant in [Variant::Portable, Variant::Subgroup] {
            report.row(count(registry, &cache.view(), name, spec, variant)?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.print(args.json, |report| {
        let counted = report.table(&[
            ("name", "preset", 0),
            ("kernel", "kernel", 0),
            ("passes", "passes", 0),
            ("instructions_per_value", "instructions", 1),
            ("decode_loop_per_symbol", "(entropy loop)", 1),
            ("loads_per_value", "loads", 2),
            ("stores_per_value", "stores", 2),
            ("barriers_per_32", "barriers/32", 3),
            ("subgroup_ops_per_32", "subgroup ops/32", 2),
            ("moved_per_value", "bytes", 2),
            ("moved_ratio", "× least", 3),
            ("spirv_instructions", "SPIR-V", 0),
        ]);
        let mut columns = vec![("name", "preset", 0), ("kernel", "kernel", 0)];
        columns.extend(SHEETS.iter().map(|sheet| (sheet.name, sheet.name, 0)));
        let modelled = report.table(&columns);
        format!(
            "Counted, per value ({tokens} tokens of {LAYERS} layers): executed instructions of a lane, loads and stores of buffers, bytes\n\
             moved if caches catch all repeats, beside the least (coded bytes and elements). SPIR-V: instructions of the\n\
             programs as they stand.\n{counted}\n\n\
             MODEL, not measured: GB/s at most, from data sheets (bandwidth; one instruction per scheduler and cycle, dependent ones\n\
             five cycles apart; {STREAMS} streams, as a chunk of an 8B model has them).\n{modelled}"
        )
    })
}

/// Some layers from the middle of a KV cache, with the element type as it is.
fn middle(view: &KvView<'_>) -> Result<KvCache> {
    let first = view.planes().iter().map(|plane| plane.layer).max().unwrap_or(0) as usize / 2;
    let planes: Vec<_> =
        view.planes().iter().filter(|p| (first..first + LAYERS).contains(&(p.layer as usize))).collect();
    let last = planes.last().map_or(0, |plane| plane.layer as usize);
    let layers = view
        .geometry()
        .groups()
        .iter()
        .flat_map(|group| std::iter::repeat_n(LayerGroup { repeat: 1, ..*group }, group.repeat as usize));
    let geometry = Geometry::new(layers.take(last + 1).skip(first))?;
    let mut cache = KvCache::zeros(&geometry, view.tokens(), view.first_position());
    let mut out = cache.view_mut();
    for (to, from) in planes.iter().enumerate() {
        let mut values = vec![0.0; view.tokens() * from.channels()];
        view.load(from.index, 0, view.tokens(), &mut values);
        out.planes_mut()[to].store(0, view.tokens(), &values);
    }
    drop(out);
    Ok(cache)
}

fn count(registry: &Registry, view: &KvView<'_>, name: &str, spec: &str, variant: Variant) -> Result<Value> {
    let encoded = encode(registry, view, spec)?;
    let chunk = Chunk::parse(&encoded, &Limits::default())?;
    let plan = chunk.bind(registry, None)?;
    let recorded = Recorded::new(&chunk, &plan, variant)?;
    let simulated = simulate(&recorded).map_err(cacheg::Error::from)?;
    if let Some(tile) = simulated.faults.iter().position(|bits| *bits != 0) {
        return Err(cacheg::Error::corrupt(format!("tile {tile} is refused")).at(name));
    }
    let values = (view.geometry().values_per_token() * view.tokens() as u64) as f64;
    let elements = (view.geometry().bytes_per_token() * view.tokens() as u64) as f64;
    let sum = |of: fn(&Counts) -> u64| simulated.passes.values().map(of).sum::<u64>() as f64;
    // All but the window, which is a constant of a dispatch.
    let buffers = || simulated.passes.values().flat_map(|counts| &counts.bindings).filter(|(at, _)| at.1 > 0);
    let over = |of: fn(&BindingCounts) -> u64| buffers().map(|(_, counts)| of(counts)).sum::<u64>() as f64;
    let moved = over(|counts| counts.distinct_read + counts.distinct_written);
    let totals = Totals { issued: sum(|counts| counts.issued), moved, elements };
    let mut row = json!({
        "name": name,
        "kernel": variant.name(),
        "passes": simulated.passes.keys().filter(|name| *name != "check_escapes").count(),
        "instructions_per_value": sum(|counts| counts.executed) / values,
        "decode_loop_per_symbol": entropy_loop(&recorded, &simulated, spec).map(|executed| executed / values),
        "loads_per_value": over(|counts| counts.loads) / values,
        "stores_per_value": over(|counts| counts.stores) / values,
        "barriers_per_32": 32.0 * sum(|counts| counts.barriers) / values,
        "subgroup_ops_per_32": 32.0 * sum(|counts| counts.subgroup_ops) / values,
        "moved_per_value": moved / values,
        "moved_ratio": moved / (encoded.len() as f64 + elements),
        "spirv_instructions": recorded.spirv_instructions().map_err(cacheg::Error::from)?,
    });
    for sheet in &SHEETS {
        row[sheet.name] = json!(sheet.bound(&totals, STREAMS) / 1e9);
    }
    Ok(row)
}

/// Instructions of the coder's loop that has most, where streams are decoded by a pass.
fn entropy_loop(recorded: &Recorded, simulated: &Simulated, spec: &str) -> Option<f64> {
    let coder = spec.rsplit('|').next()?.split('(').next()?;
    let marker = format!("// Stage `{coder}`.");
    let begin = recorded.source.lines().position(|line| line == marker)?;
    let end = recorded.source.lines().position(|line| line.starts_with("fn pipeline_element"))?;
    let decode = simulated.passes.get("decode")?;
    let own = decode.loops.iter().filter(|(line, _)| (begin..end).contains(&(**line as usize)));
    own.map(|(_, counts)| counts.executed).max().map(|executed| executed as f64)
}
