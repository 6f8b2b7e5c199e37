//! The hot kernels outside of `rans`, which has a bench of its own: `cargo bench -p cacheg-bench --bench kernels`.
//!
//! Items are values. Stages work on a piece of a tile as the engine cuts them, 42 rows of 192 channels, that looks like
//! a KV cache. Whole pipelines work on the embedded sample, with a profile of it, on one thread.

#![expect(clippy::unwrap_used, reason = "a bench")]

use cacheg::{Encoder, KvCache, KvFile, Limits, PRESETS, Pipeline, Profile, Registry};
use cacheg_core::testkit::kv_like;
use cacheg_core::{
    BindCx, BoundQuantizer, BoundTransform, Build, Calibrator, Chunk, Dtype, Escapes, Geometry, LayerGroup,
    Part, PartCx, Plane, Role, Seen, Shape, Source, StageData, TileCx, spec,
};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ndarray::Array2;

const ROWS: usize = 42;
const COLS: usize = 192;

fn main() {
    // One thread, which is this one.
    rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().unwrap();
    divan::main();
}

/// Elements that are widened or narrowed at a time.
const ELEMENTS: usize = 8192;

#[divan::bench(args = [Dtype::F16, Dtype::Bf16])]
fn widen(bencher: Bencher<'_, '_>, dtype: Dtype) {
    let values = kv_like(dtype, Role::Whole, ELEMENTS / COLS + 1, COLS, 1);
    let (mut bytes, mut out) = (vec![0; 2 * ELEMENTS], vec![0.0; ELEMENTS]);
    dtype.narrow(&values.as_slice().unwrap()[..ELEMENTS], &mut bytes);
    bencher
        .counter(ItemsCount::new(ELEMENTS))
        .bench_local(|| dtype.widen(black_box(&bytes), black_box(&mut out)));
}

#[divan::bench(args = [Dtype::F16, Dtype::Bf16])]
fn narrow(bencher: Bencher<'_, '_>, dtype: Dtype) {
    let values = kv_like(Dtype::F32, Role::Whole, ELEMENTS / COLS + 1, COLS, 1);
    let (values, mut bytes) = (&values.as_slice().unwrap()[..ELEMENTS], vec![0; 2 * ELEMENTS]);
    bencher
        .counter(ItemsCount::new(ELEMENTS))
        .bench_local(|| dtype.narrow(black_box(values), black_box(&mut bytes)));
}

/// A stage's input: a piece of one plane.
struct Piece {
    planes: Vec<Plane>,
    x: Array2<f32>,
}

impl Piece {
    fn new() -> Self {
        let shape = Some(Shape { heads: 3, head_dim: 64, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
        let planes = Geometry::new([layer]).unwrap().planes();
        let planes = planes.into_iter().take(1).collect();
        Self { planes, x: kv_like(Dtype::F16, Role::Whole, ROWS, COLS, 2) }
    }

    fn tile(&self) -> TileCx<'_> {
        TileCx::new(&self.planes[0], 0, ROWS, 0)
    }

    fn part() -> PartCx {
        PartCx::new(0, Role::Whole, ROWS, COLS)
    }

    fn parts() -> Vec<Vec<Part>> {
        vec![vec![Part::new(Role::Whole, COLS)]]
    }

    /// A stage's data, if it needs any.
    fn data(&self, calibrator: Option<Box<dyn Calibrator>>) -> Option<StageData> {
        calibrator.map(|calibrator| {
            let mut accumulator = calibrator.accumulator(&self.planes[0]);
            accumulator.observe(&self.tile(), &Self::part(), Seen::Values(self.x.view())).unwrap();
            calibrator.finish(vec![accumulator.finish().unwrap()]).unwrap()
        })
    }

    fn transform(&self, text: &str) -> Box<dyn BoundTransform> {
        let Build::Transform(build) = plugin(text).0 else { unreachable!() };
        let stage = build(&plugin(text).1).unwrap();
        let data = self.data(stage.calibrator(&BindCx::new(&self.planes, &[], None, Source::Profile)));
        stage.bind(&BindCx::new(&self.planes, &[], data.as_ref(), Source::Profile)).unwrap()
    }

    fn quantizer(&self, text: &str) -> Box<dyn BoundQuantizer> {
        let Build::Quantizer(build) = plugin(text).0 else { unreachable!() };
        let (stage, parts) = (build(&plugin(text).1).unwrap(), Self::parts());
        let data = self.data(stage.calibrator(&BindCx::new(&self.planes, &parts, None, Source::Profile)));
        stage.bind(&BindCx::new(&self.planes, &parts, data.as_ref(), Source::Profile)).unwrap()
    }
}

/// How a stage is built, and its settings.
fn plugin(text: &str) -> (Build, serde_json::Value) {
    let stage = spec::parse(text).unwrap().remove(0);
    (cacheg::builtins().unwrap().get(&stage.name).unwrap().build, stage.config)
}

/// A transform and all parts of the piece.
struct Transformed {
    piece: Piece,
    bound: Box<dyn BoundTransform>,
    parts: Vec<Array2<f32>>,
}

impl Transformed {
    fn new(text: &str) -> Self {
        let piece = Piece::new();
        let bound = piece.transform(text);
        let parts = bound.parts(&piece.planes[0]);
        let parts =
            parts.iter().enumerate().map(|(i, part)| Array2::zeros((bound.part_rows(i, ROWS), part.cols)));
        let mut transformed = Self { parts: parts.collect(), piece, bound };
        transformed.forward();
        transformed
    }

    fn forward(&mut self) {
        for index in 0..self.parts.len() {
            let (done, rest) = self.parts.split_at_mut(index);
            let done: Vec<_> = done.iter().map(|part| part.view()).collect();
            let x = black_box(self.piece.x.view());
            self.bound.forward(&self.piece.tile(), index, x, &done, rest[0].view_mut()).unwrap();
        }
    }
}

const TRANSFORMS: &[&str] = &["mean", "anchor-delta(group=10)"];

#[divan::bench(args = TRANSFORMS)]
fn forward(bencher: Bencher<'_, '_>, text: &str) {
    let mut transformed = Transformed::new(text);
    bencher.counter(ItemsCount::new(ROWS * COLS)).bench_local(|| transformed.forward());
}

#[divan::bench(args = TRANSFORMS)]
fn inverse(bencher: Bencher<'_, '_>, text: &str) {
    let Transformed { piece, bound, parts } = Transformed::new(text);
    let (tile, mut out) = (piece.tile(), Array2::zeros((ROWS, COLS)));
    let parts: Vec<_> = parts.iter().map(|part| part.view()).collect();
    bencher
        .counter(ItemsCount::new(ROWS * COLS))
        .bench_local(|| bound.inverse(&tile, black_box(&parts), black_box(out.view_mut())).unwrap());
}

/// A quantizer and what it makes of the piece.
struct Quantized {
    piece: Piece,
    bound: Box<dyn BoundQuantizer>,
    symbols: Vec<u8>,
    side: Vec<u8>,
    escapes: Escapes,
}

impl Quantized {
    fn new(text: &str) -> Self {
        let piece = Piece::new();
        let bound = piece.quantizer(text);
        let planes = bound.alphabets(&piece.planes[0], &Piece::parts()[0][0], 0).len();
        let side = vec![0; bound.side_len(&piece.planes[0], &Piece::part())];
        let symbols = vec![0; planes * ROWS * COLS];
        let mut quantized = Self { piece, bound, symbols, side, escapes: Escapes::default() };
        quantized.quantize();
        quantized
    }

    fn quantize(&mut self) {
        let Self { piece, bound, symbols, side, escapes } = self;
        escapes.clear();
        let x = black_box(piece.x.view());
        bound.quantize(&piece.tile(), &Piece::part(), x, symbols, side, &mut escapes.writer(0)).unwrap();
    }
}

const QUANTIZERS: &[&str] = &[
    "bins(step=0.5;level=1)",
    "bins(step=0.5;level=1;reach=15)",
    "bins(k=32;v=32;scale=f16)",
    "uniform(bits=8;axis=token;group=32)",
    "uniform(bits=4;axis=token;group=32)",
];

#[divan::bench(args = QUANTIZERS)]
fn quantize(bencher: Bencher<'_, '_>, text: &str) {
    let mut quantized = Quantized::new(text);
    bencher.counter(ItemsCount::new(ROWS * COLS)).bench_local(|| quantized.quantize());
}

#[divan::bench(args = QUANTIZERS)]
fn dequantize(bencher: Bencher<'_, '_>, text: &str) {
    let Quantized { piece, bound, symbols, side, escapes } = Quantized::new(text);
    let (tile, mut out) = (piece.tile(), Array2::zeros((ROWS, COLS)));
    bencher.counter(ItemsCount::new(ROWS * COLS)).bench_local(|| {
        let mut reader = escapes.reader(0, symbols.len() as u32);
        let to = black_box(out.view_mut());
        bound.dequantize(&tile, &Piece::part(), black_box(&symbols), &side, &mut reader, to).unwrap();
    });
}

/// The sample under a preset.
struct Whole {
    registry: Registry,
    sample: KvFile,
    profile: Profile,
    encoder: Encoder,
}

impl Whole {
    fn new(preset: &str) -> Self {
        let (registry, sample) = (cacheg::builtins().unwrap(), cacheg::sample().unwrap());
        let preset = PRESETS.iter().find(|known| known.name == preset).unwrap();
        let pipeline = || Pipeline::parse(&registry, preset.spec(None).unwrap()).unwrap();
        let profile =
            cacheg::calibrate(&[pipeline()], &[sample.view()], preset.chunk_tokens, &|_| ()).unwrap();
        let encoder = Encoder::new(pipeline(), sample.geometry(), Some(&profile)).unwrap();
        Self { registry, sample, profile, encoder }
    }

    fn values(&self) -> ItemsCount {
        ItemsCount::new(self.sample.geometry().values_per_token() * self.sample.tokens() as u64)
    }

    fn encode(&self) -> cacheg_core::EncodedChunk {
        self.encoder.encode(&self.sample.view(), 0..self.sample.tokens(), &|_| ()).unwrap()
    }
}

const WHOLE: &[&str] = &["fast", "cachegen-paper", "q8", "lossless"];

#[divan::bench(args = WHOLE)]
fn encode(bencher: Bencher<'_, '_>, preset: &str) {
    let whole = Whole::new(preset);
    bencher.counter(whole.values()).bench_local(|| whole.encode());
}

#[divan::bench(args = WHOLE)]
fn decode(bencher: Bencher<'_, '_>, preset: &str) {
    let whole = Whole::new(preset);
    let bytes = whole.encode().to_vec();
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&whole.registry, Some(&whole.profile)).unwrap();
    let mut cache = KvCache::zeros(whole.sample.geometry(), whole.sample.tokens(), 0);
    bencher
        .counter(whole.values())
        .bench_local(|| chunk.decode(&plan, &mut cache.view_mut(), 0, &|_| ()).unwrap());
}
