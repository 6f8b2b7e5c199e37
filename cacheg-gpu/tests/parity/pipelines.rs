//! All pipelines on all kinds of models.

use cacheg_core::testkit::models;
use cacheg_core::{
    Backend, Chunk, Cpu, Dtype, Encoder, Geometry, KvCache, LayerGroup, Limits, Pipeline, Shape,
};

use super::{GPU, REGISTRY, both, cache, encode};

const ELEMENTWISE: &[&str] = &[
    "sinks(first=4)|mean|bins(step=0.4;level=1;reach=15)|rans(tables=channel;carried=class)",
    "sinks(first=1;last=2)|mean|bins(step=0.4;level=0.5;reach=31)|rans(contexts=3)",
    "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=0.5)|range(tables=channel;carried=class)",
    "anchor-delta(group=3)|bins(scale=f16;anchor=200)|rans",
    "identity|bins(k=32,16,16;v=32,16;scale=f16)|range(tables=channel;streams=channel;cdf=33)",
    "bins(k=5;v=255)|raw",
    "sinks(first=4)|mean|steps(step=0.4)|rans(tables=scale)",
    "anchor-delta(group=5)|steps(step=0.1;reach=127)|range(tables=scale)",
    "steps(step=2;reach=1)|raw",
    "uniform(bits=8;axis=token;group=32)|raw",
    "uniform(bits=3;axis=token;group=0)|rans",
    "uniform(bits=4;axis=channel,token;group=32;zero=true;scale=bf16)|raw",
    "uniform(bits=2;axis=channel;group=5;zero=true)|range",
    "bytes|rans(tables=class;classes=256)",
    "identity|bytes|raw",
    "mean|uniform(bits=5)|range(streams=channel)",
    "lloyd-max(bits=1,8;group=5)|rans",
    "mean|lloyd-max(bits=3,2;scale=bf16)|raw",
    "anchor-delta(group=7)|lloyd-max(group=32)|range",
];

/// With a stage that works on whole rows of heads.
const ROWS: &[&str] = &[
    "hadamard|uniform(bits=4;axis=token;group=32)|raw",
    "hadamard(seed=5)|lloyd-max(bits=3)|raw",
    "hadamard|lloyd-max(bits=4)|rans",
    "sinks(first=3)|mean|hadamard|bins(step=0.5)|rans",
    "mean|hadamard|steps(step=0.3;reach=31)|rans",
    "hadamard|mean|uniform(bits=6;axis=channel,token;group=8)|range",
    "hadamard|anchor-delta(group=7)|bins|rans(contexts=3)",
    "hadamard|bytes|raw",
];

fn check(geometry: &Geometry, tokens: usize, spec: &str) {
    check_cache(&cache(geometry, tokens, 7), spec);
}

fn check_cache(cache: &KvCache, spec: &str) {
    let bytes = encode(&cache.view(), spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let [cpu, gpu] = both(&bytes).unwrap();
    let gpu = gpu.unwrap_or_else(|error| panic!("{spec}: {error}"));
    assert!(cpu.unwrap() == gpu, "{spec}, {} tokens, {:?}", cache.tokens(), cache.geometry());
}

#[test]
fn every_model_and_pipeline() {
    for model in models().unwrap() {
        for spec in ELEMENTWISE.iter().chain(ROWS) {
            for tokens in [0, 1, 2, 33, 70] {
                check(&model.geometry, tokens, spec);
            }
        }
    }
}

/// Scales of 0 keep the signs of symbols; scales that are subnormal or nearly infinite.
#[test]
fn extreme_scales() {
    let shape = |heads, head_dim| Some(Shape { heads, head_dim, dtype: Dtype::F32 });
    let layers = LayerGroup { repeat: 1, key: shape(3, 4), value: shape(1, 6), latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    for magnitude in [0.0, 1e-44, 3e-39, 2e-6, 1e4, 1e38] {
        let cache = KvCache::from_fn(&geometry, 9, |_, token, channel| {
            let sign = if token % 2 == 0 { -magnitude } else { magnitude };
            sign * (((token + channel) % 7) as f32 / 7.0)
        });
        for spec in ["lloyd-max(bits=8;scale=bf16)|raw", "lloyd-max(bits=3;group=3;scale=bf16)|raw"] {
            check_cache(&cache, spec);
        }
        if magnitude <= 1e4 {
            check_cache(&cache, "lloyd-max(bits=5)|raw");
        }
    }
}

#[test]
fn tiles_of_thousands_of_rows() {
    let shape = |heads, head_dim| Some(Shape { heads, head_dim, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 2, key: shape(1, 16), value: shape(3, 64), latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    for spec in ELEMENTWISE.iter().chain(ROWS) {
        check(&geometry, 2_500, spec);
    }
}

/// Blocks of all powers of two and of parts of heads, runs of one row, words that belong to several tiles.
#[test]
fn rows_of_heads_of_all_widths() {
    let widths = [1, 2, 4, 12, 32, 80, 96, 128, 256, 512, 576, 1024, 2048, 2050, 4096];
    for dtype in [Dtype::F16, Dtype::F32] {
        for width in widths {
            let shape = |heads| Some(Shape { heads, head_dim: width, dtype });
            let layers = LayerGroup { repeat: 1, key: shape(3), value: shape(1), latent: None, rope: None };
            let geometry = Geometry::new([layers]).unwrap();
            check(&geometry, 37, "mean|hadamard(seed=9)|lloyd-max(bits=4)|raw");
        }
    }
    for width in [3, 5, 7, 63, 4095] {
        let shape = |heads| Some(Shape { heads, head_dim: width, dtype: Dtype::F8E4m3 });
        let layers = LayerGroup { repeat: 3, key: shape(3), value: shape(1), latent: None, rope: None };
        check(&Geometry::new([layers]).unwrap(), 130, "mean|hadamard|uniform(bits=4)|raw");
    }
}

#[test]
fn what_rows_of_heads_cannot_do_is_refused() {
    let refused = |width, spec, part: &str| {
        let shape = Some(Shape { heads: 1, head_dim: width, dtype: Dtype::F16 });
        let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
        let geometry = Geometry::new([layers]).unwrap();
        let bytes = encode(&cache(&geometry, 5, 1).view(), spec).unwrap();
        let [cpu, gpu] = both(&bytes).unwrap();
        cpu.unwrap();
        let message = gpu.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(4098, "hadamard|uniform|raw", "heads of 4098 channels");
    refused(8, "hadamard|mean|hadamard(seed=1)|uniform|raw", "both work on rows of heads");
}

/// Outputs of more than a window's 32 MiB: windows of several planes, and windows of some rows of one plane.
#[test]
fn several_windows() {
    let geometry = |layers| {
        let shape = Some(Shape { heads: 8, head_dim: 128, dtype: Dtype::Bf16 });
        let group = LayerGroup { repeat: layers, key: shape, value: None, latent: None, rope: None };
        Geometry::new([group]).unwrap()
    };
    for spec in ["uniform|raw", "mean|bins(step=0.5;reach=15)|rans", "hadamard|lloyd-max|raw"] {
        check(&geometry(12), 1_500, spec);
        check(&geometry(1), 20_000, spec);
    }
}

/// More than the 128 MiB that WebGPU lets one bind.
#[test]
fn chunks_above_one_binding() {
    let shape = Some(Shape { heads: 8, head_dim: 128, dtype: Dtype::F16 });
    let group = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    assert!(33_000 * geometry.bytes_per_token() > 128 << 20);
    check(&geometry, 33_000, "uniform(bits=4)|raw");
}

/// Nearly every symbol an escape, in tiles of thousands of rows: each is looked for.
#[test]
fn escapes_everywhere() {
    let shape = Some(Shape { heads: 1, head_dim: 32, dtype: Dtype::F16 });
    let group = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    for spec in [
        "bins(step=0.01;reach=1)|rans",
        "anchor-delta|bins(step=0.01;reach=1)|rans",
        "steps(step=0.01;reach=1)|rans",
    ] {
        check(&geometry, 4_000, spec);
    }
}

/// Several chunks in one window, and what is said if one of them is damaged.
#[test]
fn many_chunks_at_a_time() {
    let geometry = &models().unwrap()[0].geometry;
    let source = cache(geometry, 150, 9);
    for spec in ["sinks(first=2)|mean|bins(step=0.4;reach=15)|rans", "anchor-delta|bins|range", "uniform|raw"]
    {
        let encoder = Encoder::new(Pipeline::parse(&REGISTRY, spec).unwrap(), geometry, None).unwrap();
        let ranges = [0..40, 40..80, 80..81, 81..150];
        let encode = |rows| encoder.encode(&source.view(), rows, &|_| ()).unwrap().to_vec();
        let mut bytes = ranges.clone().map(encode);
        let decode = |backend: &dyn Backend, bytes: &[Vec<u8>]| -> cacheg_core::Result<KvCache> {
            let chunks = bytes.iter().map(|bytes| Chunk::parse(bytes, &Limits::default()).unwrap());
            let chunks: Vec<Chunk<'_>> = chunks.collect();
            // Tables that chunks carry are those of the first one.
            let alike: Vec<_> =
                chunks.iter().zip(&ranges).map(|(chunk, rows)| (chunk, rows.start + 3)).collect();
            let mut out = KvCache::zeros(geometry, 160, 0);
            for run in alike.chunk_by(|(a, _), (b, _)| b.coded_like(a)) {
                let plan = run[0].0.bind(&REGISTRY, None).unwrap();
                backend.decoder(plan).unwrap().decode_all(run, &mut out.view_mut(), &|_| ())?;
            }
            Ok(out)
        };
        assert!(decode(&Cpu, &bytes).unwrap() == decode(&*GPU, &bytes).unwrap(), "{spec}");
        if spec.ends_with("rans") {
            let damaged = &mut bytes[3];
            let end = damaged.len() - 9;
            damaged[end] ^= 0x55;
            cacheg_core::reseal::chunk(damaged);
            let message = decode(&*GPU, &bytes).unwrap_err().to_string();
            assert!(message.contains("tokens 81..150") && message.contains("tile of planes"), "{message}");
        }
    }
}

#[test]
fn stages_without_wgsl_are_named() {
    let geometry = &models().unwrap()[0].geometry;
    let bytes = encode(&cache(geometry, 64, 1).view(), "mean|uniform(bits=4)|zstd").unwrap();
    let [cpu, gpu] = both(&bytes).unwrap();
    cpu.unwrap();
    let message = gpu.unwrap_err().to_string();
    assert!(message.contains("stage `zstd` has no WGSL"), "{message}");
}
