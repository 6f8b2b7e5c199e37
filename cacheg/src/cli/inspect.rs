//! `cacheg inspect`

use std::fmt::Write as _;
use std::path::PathBuf;

use cacheg::core::{Chunk, ChunkBytes, Container, Kind, ResultExt};
use cacheg::{Geometry, Limits, Profile, Registry, Result};
use serde_json::json;

use super::args;
use cacheg::report::{Report, per_value, stages};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg inspect kv.cgkv\n  cacheg inspect kv.cgkv --json\n\nAll symbols are decoded to divide the tiles' bytes; that needs the profile, if there is one."
)]
pub(crate) struct Args {
    /// The container
    input: PathBuf,
    /// The profile that the container was encoded with, if any
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Refuse containers that decode to more than this
    #[arg(long, value_name = "GIB", default_value = "64")]
    max_output: u32,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let profile = args::profile(args.profile.as_ref())?;
    let bytes = args::container(&args.input)?;
    let mut limits = Limits::default();
    limits.max_output = u64::from(args.max_output) << 30;
    let container = Container::parse(&bytes, &limits).at(|| args.input.display())?;
    let mut sums = Sums::default();
    for (index, chunk) in container.chunks.iter().enumerate() {
        sums.add(chunk, &registry, profile.as_ref())
            .at(|| format!("{}: chunk {index} ({chunk})", args.input.display()))?;
    }
    let header = &container.header;
    let values = header.geometry.values_per_token() * header.tokens;
    let mut report = Report::new("cacheg");
    let mut row = |name: String, bytes: usize| {
        if bytes > 0 {
            report.row(json!({
                "name": name,
                "bytes": bytes,
                "percent": bytes as f64 * 100.0 / sums.total(container.header_bytes) as f64,
                "bits_per_value": per_value(bytes as u64, values),
            }));
        }
    };
    row("payload: the coder's streams".into(), sums.bytes.tiles.stream);
    row("escapes".into(), sums.bytes.tiles.escapes);
    row("scales (side information)".into(), sums.bytes.tiles.side);
    if sums.undivided > 0 {
        row("tiles (give --profile to divide them)".into(), sums.undivided);
    }
    if sums.kept_sets > 0 {
        row("which tokens were kept".into(), sums.kept_sets);
    }
    for (stage, bytes) in &sums.carried {
        row(format!("data carried for `{stage}`"), *bytes);
    }
    row("directory: tile lengths and checksums".into(), sums.bytes.directory);
    row("chunk headers".into(), sums.bytes.header);
    row("container header and metadata".into(), container.header_bytes);
    row("padding".into(), sums.bytes.padding);
    let total = sums.total(container.header_bytes);
    debug_assert_eq!(total, bytes.len(), "every byte is accounted for");
    row("file".into(), total);
    let first = container.chunks.first();
    report.field("tokens", header.tokens);
    report.field("kept_tokens", container.rows());
    report.field("chunks", header.chunks);
    report.field("bytes", bytes.len());
    report.field("bits_per_value", per_value(bytes.len() as u64, values));
    report.field("ideal_stream_bytes", json!(sums.ideal_bits.map(|bits| bits / 8.0)));
    report.field("geometry", json!(header.geometry));
    report.field("pipeline", json!(first.map(Chunk::pipeline)));
    report.field("profile", json!(first.and_then(Chunk::profile)));
    report.print(args.json, |report| {
        let mut text = format!(
            "{}: {} tokens in {} chunk{}, positions from {}\n",
            args.input.display(),
            header.tokens,
            header.chunks,
            if header.chunks == 1 { "" } else { "s" },
            header.position
        );
        if sums.kept_sets > 0 {
            let kept: Vec<String> = container.chunks.iter().map(kept).collect();
            let _ = writeln!(
                text,
                "kept by each head (bits/value below are of the whole):\n    {} tokens, by chunk {}",
                container.rows(),
                shortened(&kept)
            );
        }
        let _ = writeln!(text, "geometry:\n{}", geometry(&header.geometry));
        if let Some(chunk) = first {
            let _ = writeln!(text, "stages:\n{}", stages(chunk.pipeline()));
            if let Some(hash) = chunk.profile() {
                let _ = writeln!(text, "profile:\n    {hash}");
            }
            let layout = chunk.layout();
            let _ = writeln!(
                text,
                "tiles:\n    {} per chunk, {} tokens × {} planes",
                layout.tiles(),
                layout.rows,
                layout.planes
            );
        }
        if let Some(bits) = sums.ideal_bits.filter(|bits| *bits > 0.0) {
            let over = sums.bytes.tiles.stream as f64 * 8.0 / bits - 1.0;
            let _ =
                writeln!(text, "streams over their tables' ideal code length:\n    {:+.2} %", over * 100.0);
        }
        let _ = write!(
            text,
            "\n{}",
            report.table(&[
                ("name", "where", 0),
                ("bytes", "bytes", 0),
                ("percent", "%", 2),
                ("bits_per_value", "bits/value", 4)
            ])
        );
        text
    })
}

/// Bytes of all chunks.
#[derive(Default)]
struct Sums {
    bytes: ChunkBytes,
    /// Sets of kept tokens.
    kept_sets: usize,
    carried: Vec<(String, usize)>,
    undivided: usize,
    ideal_bits: Option<f64>,
    chunks: usize,
}

impl Sums {
    fn add(&mut self, chunk: &Chunk<'_>, registry: &Registry, profile: Option<&Profile>) -> Result<()> {
        let (sizes, ideal) = if chunk.profile().is_some() && profile.is_none() {
            self.undivided += chunk.len() - chunk.sizes().total();
            (chunk.sizes().clone(), None)
        } else {
            chunk.account(&*chunk.bind(registry, profile)?)?
        };
        let selects = usize::from(chunk.selects());
        self.kept_sets += sizes.carried[..selects].iter().sum::<usize>();
        for (stage, bytes) in chunk.pipeline().iter().zip(&sizes.carried).skip(selects) {
            match self.carried.iter_mut().find(|(name, _)| *name == stage.name) {
                Some((_, sum)) => *sum += bytes,
                None => self.carried.push((stage.name.clone(), *bytes)),
            }
        }
        self.bytes.header += sizes.header;
        self.bytes.directory += sizes.directory;
        self.bytes.padding += sizes.padding + sizes.tiles.padding;
        self.bytes.tiles.side += sizes.tiles.side;
        self.bytes.tiles.escapes += sizes.tiles.escapes;
        self.bytes.tiles.stream += sizes.tiles.stream;
        self.ideal_bits =
            if self.chunks == 0 { ideal } else { self.ideal_bits.zip(ideal).map(|(a, b)| a + b) };
        self.chunks += 1;
        Ok(())
    }

    fn total(&self, header: usize) -> usize {
        header
            + self.undivided
            + self.kept_sets
            + self.bytes.total()
            + self.carried.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }
}

fn kept(chunk: &Chunk<'_>) -> String {
    format!("{} of {}", chunk.rows(), chunk.tokens().len())
}

/// A list that may be long.
fn shortened(items: &[String]) -> String {
    const SHOWN: usize = 4;
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => items.join(", "),
        Some(more) => format!("{} and {more} more", items[..SHOWN].join(", ")),
    }
}

fn geometry(geometry: &Geometry) -> String {
    let mut text = String::new();
    let mut layer = 0;
    for group in geometry.groups() {
        let shapes: Vec<String> = Kind::ALL
            .iter()
            .filter_map(|kind| Some((kind, group.shape(*kind)?)))
            .map(|(kind, s)| format!("{} {}×{} {}", kind.name(), s.heads, s.head_dim, s.dtype))
            .collect();
        let rope = group
            .rope
            .map_or(String::new(), |rope| format!(", RoPE base {} over {} channels", rope.theta, rope.dims));
        let last = layer + group.repeat - 1;
        let _ = writeln!(text, "    layers {layer}–{last}: {}{rope}", shapes.join(", "));
        layer += group.repeat;
    }
    text.trim_end().to_owned()
}
