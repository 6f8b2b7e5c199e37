//! The kernels of `rans`: `cargo bench -p cacheg-entropy --bench rans`.
//!
//! Levels are compared on the same streams; `CACHEG_SIMD` has no say here. Symbols are normal, with a mean and a
//! width of each channel's own, 192 channels, tiles of 256 rows, 64 classes.

#![expect(clippy::unwrap_used, reason = "a bench")]

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Coder, CoderScratch, DecodeJob, Dtype, EncodeJob, Geometry, LayerGroup,
    Part, PartCx, Role, Seen, Segment, Shape, Source, TileCx,
};
use cacheg_entropy::rans::{Level, Rans, RansSettings};
use divan::Bencher;
use divan::counter::ItemsCount;

const ROWS: usize = 256;
const COLS: usize = 192;

fn main() {
    divan::main();
}

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

/// Tiles of one plane each, and what they are encoded to.
struct Tiles {
    bound: Box<dyn BoundCoder>,
    scratch: CoderScratch,
    segments: Vec<[Segment; 1]>,
    symbols: Vec<Vec<u8>>,
    streams: Vec<Vec<u8>>,
    out: Vec<Vec<u8>>,
}

impl Tiles {
    fn new(level: Level, (size, contexts): (u16, u8), batch: usize) -> Self {
        let shape = Some(Shape { heads: 3, head_dim: 64, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 4, key: shape, value: None, latent: None, rope: None };
        let planes = Geometry::new([layer]).unwrap().planes();
        let alphabet = Alphabet { size, escape: false };
        let mut part = Part::new(Role::Whole, COLS);
        part.alphabets.push(alphabet);
        let parts = vec![vec![part]; planes.len()];
        let (mut random, middle) = (Random(1), f64::from(size) / 2.0);
        let symbols: Vec<Vec<u8>> = planes
            .iter()
            .map(|_| {
                let channels: Vec<(f64, f64)> = (0..COLS)
                    .map(|_| (random.normal() * middle / 16.0, middle / 8.0 * (random.normal() * 0.4).exp()))
                    .collect();
                (0..ROWS * COLS)
                    .map(|i| {
                        let (mean, deviation) = channels[i % COLS];
                        let value = middle + mean + deviation * random.normal();
                        value.clamp(0.0, f64::from(size - 1)) as u8
                    })
                    .collect()
            })
            .collect();
        let rans = Rans::new(RansSettings { contexts, ..RansSettings::default() }).unwrap();
        let calibrator = rans.calibrator(&BindCx::new(&planes, &parts, None, Source::Profile)).unwrap();
        let observed = planes.iter().zip(&symbols).map(|(plane, symbols)| {
            let mut accumulator = calibrator.accumulator(plane);
            let part = PartCx::new(0, Role::Whole, ROWS, COLS);
            accumulator.observe(&TileCx::new(plane, 0, ROWS, 0), &part, Seen::Symbols(0, symbols)).unwrap();
            accumulator.finish().unwrap()
        });
        let data = calibrator.finish(observed.collect()).unwrap();
        let bound = rans.bind_at(&BindCx::new(&planes, &parts, Some(&data), Source::Profile), level).unwrap();
        let segments: Vec<[Segment; 1]> =
            (0..batch).map(|plane| [Segment::new(plane, 0, 0, ROWS, COLS, alphabet)]).collect();
        let mut tiles = Self {
            scratch: bound.scratch(),
            out: vec![vec![0; bound.max_len(&segments[0])]; batch],
            bound,
            segments,
            symbols: symbols.into_iter().take(batch).collect(),
            streams: Vec::new(),
        };
        let lens = tiles.encode();
        tiles.streams = tiles.out.iter().zip(lens).map(|(out, len)| out[..len].to_vec()).collect();
        tiles
    }

    fn encode(&mut self) -> Vec<usize> {
        let jobs = self.segments.iter().zip(&self.symbols).zip(&mut self.out);
        let mut jobs: Vec<_> = jobs.map(|((s, symbols), out)| EncodeJob::new(s, symbols, out)).collect();
        self.bound.encode_batch(&mut jobs, &mut self.scratch);
        jobs.into_iter().map(|job| job.result.unwrap()).collect()
    }

    fn decode(&mut self) {
        let jobs = self.segments.iter().zip(&self.streams).zip(&mut self.symbols);
        let mut jobs: Vec<_> = jobs.map(|((s, bytes), to)| DecodeJob::new(s, bytes, to)).collect();
        self.bound.decode_batch(&mut jobs, &mut self.scratch);
        assert!(jobs.iter().all(|job| job.result.is_ok()));
    }
}

/// Level, alphabet and contexts, streams at a time.
fn cases() -> Vec<(Level, (u16, u8), usize)> {
    let levels = Level::ALL.into_iter().filter(|level| level.is_available());
    levels
        .flat_map(|level| [(16, 1), (32, 1), (32, 3), (256, 1)].map(|size| (level, size)))
        .flat_map(|(level, size)| {
            let batches: &[usize] = if level == Level::Scalar { &[1] } else { &[1, 2, 4] };
            batches.iter().map(move |batch| (level, size, *batch))
        })
        .collect()
}

#[divan::bench(args = cases().into_iter().map(Case).collect::<Vec<_>>())]
fn encode(bencher: Bencher<'_, '_>, case: &Case) {
    let Case((level, size, batch)) = *case;
    let mut tiles = Tiles::new(level, size, batch);
    bencher.counter(ItemsCount::new(batch * ROWS * COLS)).bench_local(|| tiles.encode());
}

#[divan::bench(args = cases().into_iter().map(Case).collect::<Vec<_>>())]
fn decode(bencher: Bencher<'_, '_>, case: &Case) {
    let Case((level, size, batch)) = *case;
    let mut tiles = Tiles::new(level, size, batch);
    bencher.counter(ItemsCount::new(batch * ROWS * COLS)).bench_local(|| tiles.decode());
}

struct Case((Level, (u16, u8), usize));

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (level, (size, contexts), batch) = self.0;
        write!(f, "{level:?}, {size} symbols, {contexts} contexts, {batch} streams")
    }
}
