//! Speed and size of all coders on synthetic symbols: one core, channels of different widths, 32 bins.
//!
//! `cargo run --release -p cacheg-entropy --example speed [rows of a tile]`

use std::hint::black_box;
use std::time::Instant;

use cacheg_core::{
    Alphabet, BindCx, Build, Coder, Dtype, Geometry, LayerGroup, Part, PartCx, Plane, Result, Role, Seen,
    Segment, Shape, Source, StageData, TileCx, spec,
};

const CHANNELS: usize = 192;
const TOKENS: usize = 1024;

struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

struct Data {
    planes: Vec<Plane>,
    parts: Vec<Vec<Part>>,
    size: u16,
    symbols: Vec<Vec<u8>>,
}

impl Data {
    fn new(size: u16, spread: f64) -> Result<Self> {
        let shape = Some(Shape { heads: 3, head_dim: 64, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 30, key: shape, value: shape, latent: None, rope: None };
        let planes = Geometry::new([layer])?.planes();
        let mut part = Part::new(Role::Whole, CHANNELS);
        part.alphabets.push(Alphabet { size, escape: false });
        let parts = vec![vec![part]; planes.len()];
        let mut random = Random(1);
        let symbols = planes
            .iter()
            .map(|_| {
                let channels: Vec<(f64, f64)> = (0..CHANNELS)
                    .map(|_| (random.normal() * spread / 2.0, spread * (random.normal() * 0.4).exp()))
                    .collect();
                let middle = f64::from(size) / 2.0;
                (0..TOKENS * CHANNELS)
                    .map(|i| {
                        let (mean, deviation) = channels[i % CHANNELS];
                        (middle + mean + deviation * random.normal()).clamp(0.0, f64::from(size - 1)) as u8
                    })
                    .collect()
            })
            .collect();
        Ok(Self { planes, parts, size, symbols })
    }

    fn len(&self) -> usize {
        self.planes.len() * TOKENS * CHANNELS
    }

    fn segment(&self, plane: usize, rows: usize) -> Segment {
        Segment::new(plane, 0, 0, rows, CHANNELS, Alphabet { size: self.size, escape: false })
    }

    fn calibrate(&self, coder: &dyn Coder, cx: &BindCx<'_>) -> Result<Option<StageData>> {
        let Some(calibrator) = coder.calibrator(cx) else { return Ok(None) };
        let mut gathered = Vec::new();
        let (start, mut observed) = (Instant::now(), 0.0);
        for (plane, symbols) in self.planes.iter().zip(&self.symbols) {
            let mut accumulator = calibrator.accumulator(plane);
            let part = PartCx::new(0, Role::Whole, TOKENS, CHANNELS);
            accumulator.observe(&TileCx::new(plane, 0, TOKENS, 0), &part, Seen::Symbols(0, symbols))?;
            gathered.push(accumulator.finish()?);
            observed = start.elapsed().as_secs_f64();
        }
        let data = calibrator.finish(gathered)?;
        let finish = start.elapsed().as_secs_f64() - observed;
        print!("  calibrate: observe {observed:.3} s, finish {finish:.3} s;");
        Ok(Some(data))
    }
}

fn measure(data: &Data, text: &str, rows: usize, source: Source) -> Result<()> {
    let stage = &spec::parse(text)?[0];
    let registry = cacheg_core::Registry::new(cacheg_entropy::PLUGINS.iter().copied())?;
    let Build::Coder(build) = registry.get(&stage.name)?.build else { return Ok(()) };
    let coder = build(&stage.config)?;
    let cx = BindCx::new(&data.planes, &data.parts, None, source);
    println!("{text}, {source:?}");
    let mut tables = data.calibrate(&*coder, &cx)?;
    if let Some(made) = &tables {
        let packed = coder.pack(&cx, made)?;
        let file = made.to_bytes()?.len();
        print!(
            " packed {} B ({:.3} bits/symbol), profile {file} B;",
            packed.len(),
            8.0 * packed.len() as f64 / data.len() as f64
        );
        tables = Some(coder.unpack(&cx, &packed)?);
    }
    let start = Instant::now();
    let bound = coder.bind(&BindCx::new(&data.planes, &data.parts, tables.as_ref(), source))?;
    println!(" bind {:.3} s", start.elapsed().as_secs_f64());
    let mut scratch = bound.scratch();
    let tiles: Vec<(Segment, &[u8])> = (0..data.planes.len())
        .flat_map(|plane| data.symbols[plane].chunks(rows * CHANNELS).map(move |s| (plane, s)))
        .map(|(plane, symbols)| (data.segment(plane, symbols.len() / CHANNELS), symbols))
        .collect();
    let (mut encode, mut decode) = (f64::MAX, f64::MAX);
    let (mut bytes, mut ideal) = (0, None::<f64>);
    for _ in 0..3 {
        let mut streams = Vec::new();
        let mut out = vec![0; bound.max_len(&[data.segment(0, rows)])];
        let mut spent = 0.0;
        for (segment, symbols) in &tiles {
            let start = Instant::now();
            let len = bound.encode(&[*segment], symbols, &mut out, &mut scratch)?;
            spent += start.elapsed().as_secs_f64();
            streams.push(out[..len].to_vec());
        }
        encode = spent.min(encode);
        let mut back = vec![0; rows * CHANNELS];
        let start = Instant::now();
        for ((segment, symbols), stream) in tiles.iter().zip(&streams) {
            bound.decode(&[*segment], stream, &mut back[..symbols.len()], &mut scratch)?;
            black_box(&mut back);
        }
        decode = start.elapsed().as_secs_f64().min(decode);
        bytes = streams.iter().map(Vec::len).sum();
        ideal = tiles.iter().map(|(s, symbols)| bound.ideal_bits(&[*s], symbols)).sum();
    }
    let n = data.len() as f64;
    print!(
        "  encode {:.3} Gsym/s, decode {:.3} Gsym/s, {:.4} bits/symbol",
        n / encode / 1e9,
        n / decode / 1e9,
        8.0 * bytes as f64 / n,
    );
    match ideal {
        Some(ideal) => println!(", {:.2} % over ideal", (8.0 * bytes as f64 / ideal - 1.0) * 100.0),
        None => println!(),
    }
    Ok(())
}

fn main() -> Result<()> {
    let rows = std::env::args().nth(1).and_then(|rows| rows.parse().ok()).unwrap_or(256);
    let data = Data::new(32, 1.9)?;
    println!("{} symbols of 32 bins, tiles of {rows} × {CHANNELS}", data.len());
    for text in [
        "rans",
        "rans(tables=channel)",
        "range",
        "range(tables=channel)",
        "range(streams=channel)",
        "zstd",
        "raw",
    ] {
        measure(&data, text, rows, Source::Profile)?;
    }
    for text in ["rans", "rans(tables=channel)", "range(tables=channel;streams=channel;cdf=33)"] {
        measure(&data, text, rows, Source::Chunk)?;
    }
    let data = Data::new(256, 12.0)?;
    println!("{} symbols of 256 bins", data.len());
    for text in
        ["rans", "rans(tables=channel)", "rans(tables=one)", "range", "range(tables=channel)", "zstd", "raw"]
    {
        measure(&data, text, rows, Source::Profile)?;
    }
    Ok(())
}
