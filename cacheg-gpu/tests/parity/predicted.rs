//! Pipelines that predict planes from others, and that give tokens grades: all of them need a profile.

use cacheg_core::testkit::{even_heads, models};
use cacheg_core::{
    Backend, Chunk, Cpu, Dtype, Geometry, KvCache, KvOut, LayerGroup, Limits, Order, Profile, Shape,
};
use cacheg_gpu::{DeviceKv, Gpu, Options};

use super::close::{BOUND, worst};
use super::corrupt::verdicts;
use super::device::read;
use super::profiles::{broad, chunk_of, profile};
use super::{GPU, REGISTRY, both_with, decode};

/// Those of the presets: `unrope` alone is not bit for bit.
const PRESETS: &[&str] = &[
    "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=63)|rans(tables=scale)",
    "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;importance=key;power=0.5)|rans(tables=scale)",
    "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity)|rans(tables=scale)",
    "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=7;importance=key;power=0.5)|range(tables=scale)",
    "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=3;importance=attention;power=0.5)|rans(tables=scale)",
];

const GRADED: &[&str] = &[
    "mean|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)",
    "mean|klt|steps(step=0.3;reach=4;importance=attention;power=2)|range(tables=scale)",
    "sinks(first=2;last=1)|mean|steps(step=0.4;importance=key)|raw",
];

const PREDICTED: &[&str] = &[
    "sinks(first=1)|mean|predict(layers=2)|klt|steps(step=0.5;importance=attention;power=0.5)|range(tables=scale)",
    "mean|predict(layers=2)|klt(metric=sensitivity)|steps(step=0.5;unit=sensitivity;reach=2)|rans(tables=scale)",
    "predict(layers=2;v-from-k=false)|uniform(bits=6)|raw",
    // What works on rows in front of what predicts, and in front of that what needs any rows.
    "mean|klt|predict|bins(step=0.5)|range",
    "mean|predict(layers=7)|bins(step=0.3)|rans",
];

fn check(bytes: &[u8], profile: &Profile, what: &str) {
    let [cpu, gpu] = both_with(bytes, Some(profile)).unwrap();
    let (cpu, gpu) = (cpu.unwrap(), gpu.unwrap_or_else(|error| panic!("{what}: {error}")));
    let chunk = Chunk::parse(bytes, &Limits::default()).unwrap();
    let worst = worst(&chunk.bind(&REGISTRY, Some(profile)).unwrap(), &cpu, &gpu);
    assert!(worst <= BOUND, "{what}: {worst}");
}

/// Models of the kit, as far as pipelines are for them, and others; how many pairs there were.
fn every_model(specs: &[&str]) -> usize {
    let kit = models().unwrap().into_iter().map(|model| model.geometry);
    let mut pairs = 0;
    for geometry in kit.chain([even_heads().unwrap()]) {
        for spec in specs {
            // Heads that keys and values do not share, layers without keys.
            let profile = match profile(&REGISTRY, &geometry, spec) {
                Ok(profile) => profile,
                Err(error) => {
                    assert!(spec.contains("importance"), "{spec}: {error}");
                    continue;
                }
            };
            for tokens in [0, 1, 2, 33, 70, 300] {
                let bytes = chunk_of(&REGISTRY, &geometry, &profile, spec, tokens);
                check(&bytes, &profile, &format!("{spec}, {tokens} tokens, {geometry:?}"));
            }
            pairs += 1;
        }
    }
    pairs
}

#[test]
fn presets_on_every_model() {
    assert!(every_model(PRESETS) > 30);
}

#[test]
fn grades_on_every_model() {
    assert!(every_model(GRADED) > 12);
}

#[test]
fn predictions_on_every_model() {
    assert!(every_model(PREDICTED) > 40);
}

/// Several workgroups for a plane, references of several times its width.
#[test]
fn broad_planes() {
    for spec in [PRESETS[4], PREDICTED[3]] {
        let profile = profile(&REGISTRY, &broad(), spec).unwrap();
        for tokens in [40, 200] {
            check(&chunk_of(&REGISTRY, &broad(), &profile, spec, tokens), &profile, spec);
        }
    }
}

/// Windows of some rows, all planes of them; buffers of some planes; both orders.
#[test]
fn small_windows_and_buffers() {
    let shape = Some(Shape { heads: 2, head_dim: 64, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    const TOKENS: usize = 2_500;
    for spec in [
        "sinks(first=1)|mean|predict|klt|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)",
        "mean|klt|steps(step=0.5;importance=attention)|rans(tables=scale)",
    ] {
        let profile = profile(&REGISTRY, &geometry, spec).unwrap();
        let bytes = chunk_of(&REGISTRY, &geometry, &profile, spec, TOKENS);
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&REGISTRY, Some(&profile)).unwrap();
        assert!(chunk.layout().blocks() > 1, "{:?}", chunk.layout());
        let expected = decode(&Cpu, &chunk, &plan).unwrap();
        for (window, buffer, order) in [
            (1, None, Order::TokenMajor),
            (1 << 30, Some(1 << 20), Order::HeadMajor),
            (1, Some(1 << 20), Order::TokenMajor),
        ] {
            let mut options = Options::default();
            (options.window, options.buffer) = (Some(window), buffer);
            let gpu = Gpu::open_with(Some(&GPU.info().name), options).unwrap();
            let what = format!("{spec}, windows of {window}, buffers of {buffer:?}");
            assert!(decode(&gpu, &chunk, &plan).unwrap() == expected, "{what}");
            let mut kv = DeviceKv::new(&gpu, &geometry, TOKENS + 1, order).unwrap();
            assert_eq!(kv.buffers().len(), buffer.map_or(1, |_| 2));
            gpu.decoder(plan.clone()).unwrap().decode(&chunk, KvOut::Device(&mut kv, 1), &|_| ()).unwrap();
            for plane in kv.planes() {
                let found = read(&gpu, &kv.plane(plane.index).unwrap());
                for (row, head) in (0..=TOKENS).flat_map(|row| [(row, 0), (row, 1)]) {
                    let from = 128 * (head * (TOKENS + 1) + row);
                    let at = if order == Order::TokenMajor { 128 * (2 * row + head) } else { from };
                    let own = &expected.plane_bytes(plane.index)[from..from + 128];
                    assert!(found[at..at + 128] == *own, "{what}, {}, row {row}", plane.name());
                }
            }
        }
    }
}

/// Chunks in one window, each with rows and grades of its own.
#[test]
fn many_chunks_at_a_time() {
    let geometry = even_heads().unwrap();
    for spec in [PREDICTED[0], GRADED[0]] {
        let profile = profile(&REGISTRY, &geometry, spec).unwrap();
        let bytes = [40, 1, 333].map(|tokens| chunk_of(&REGISTRY, &geometry, &profile, spec, tokens));
        let chunks = bytes.each_ref().map(|bytes| Chunk::parse(bytes, &Limits::default()).unwrap());
        let at = [(&chunks[0], 0), (&chunks[1], 40), (&chunks[2], 41)];
        let plan = chunks[0].bind(&REGISTRY, Some(&profile)).unwrap();
        let decode = |backend: &dyn Backend| {
            let mut out = KvCache::zeros(&geometry, 374, 0);
            let mut decoder = backend.decoder(plan.clone()).unwrap();
            decoder.decode_all(&at, &mut out.view_mut(), &|_| ()).unwrap();
            out
        };
        assert!(decode(&Cpu) == decode(&*GPU), "{spec}");
    }
}

#[test]
fn damaged_chunks_get_the_cpus_verdict() {
    let geometry = even_heads().unwrap();
    for spec in [PREDICTED[0], PREDICTED[1], PREDICTED[3], GRADED[0], GRADED[1]] {
        let profile = profile(&REGISTRY, &geometry, spec).unwrap();
        let bytes = chunk_of(&REGISTRY, &geometry, &profile, spec, 150);
        // Grades are in front of the tiles.
        let (found, harmless) = verdicts(&bytes, Some(&profile), bytes.len() / 4, 100, spec);
        assert!(found > 15 && found + harmless > 50, "{spec}: {found} found, {harmless} harmless");
    }
}
