//! What the fuzz targets share: a bound coder, small real containers, a small model.

use std::sync::OnceLock;

use cacheg::core::{
    Alphabet, BindCx, BoundCoder, Build, Cpu, Dtype, Importance, LayerGroup, Part, PartCx, Plane, Role, Seen,
    Segment, Shape, Source, TileCx, reseal,
};
use cacheg::{Encoder, Geometry, KvCache, Limits, PRESETS, Pipeline, Profile, Registry, calibrate, flow};

pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| cacheg::builtins().unwrap())
}

pub fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_output = 64 << 20;
    limits.max_tile_values = 1 << 20;
    limits
}

/// Two layers that differ.
pub fn geometry() -> Geometry {
    let shape = |heads, head_dim| Some(Shape { heads, head_dim, dtype: Dtype::F16 });
    let group = LayerGroup { repeat: 1, key: shape(2, 4), value: shape(2, 4), latent: None, rope: None };
    Geometry::new([group, LayerGroup { value: shape(2, 3), ..group }]).unwrap()
}

pub fn cache(tokens: usize, seed: u32) -> KvCache {
    let mut state = seed;
    KvCache::from_fn(&geometry(), tokens, |_, token, channel| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0 + channel as f32 * 0.25 + if token == 0 { 9.0 } else { 0.0 }
    })
}

/// Two query heads for each KV head.
pub fn importance(tokens: usize) -> Importance {
    let mut importance = Importance::new(tokens, None);
    for _ in 0..2 {
        let sums: Vec<f32> = (0..4 * tokens).map(|at| (at * 7 % 13) as f32).collect();
        importance.push_layer(2, &sums, &sums).unwrap();
    }
    importance
}

/// A coder bound to one plane with one alphabet; its tables fit `training`.
pub struct Bound {
    pub coder: Box<dyn BoundCoder>,
    pub segments: Vec<Segment>,
}

/// `config` is the coder's settings as JSON; half of the symbols make one segment, the rest another.
pub fn coder(
    name: &str,
    config: &str,
    size: u16,
    rows: usize,
    cols: usize,
    source: Source,
    training: &[u8],
) -> Option<Bound> {
    let Build::Coder(build) = registry().get(name).unwrap().build else { panic!("{name} is no coder") };
    let coder = build(&serde_json(config)).ok()?;
    let planes: Vec<Plane> = geometry().planes().into_iter().take(1).collect();
    let alphabet = Alphabet { size, escape: false };
    let mut part = Part::new(Role::Whole, cols);
    part.alphabets = vec![alphabet; 2];
    part.classes = classes(cols);
    let parts = vec![vec![part]];
    let cx = BindCx::new(&planes, &parts, None, source);
    let segment = |symbol_plane| Segment::new(0, 0, symbol_plane, rows, cols, alphabet);
    let segments = vec![segment(0), segment(1)];
    let data = match coder.calibrator(&cx) {
        None => None,
        Some(calibrator) => {
            let mut accumulator = calibrator.accumulator(&planes[0]);
            let tile = TileCx::new(&planes[0], 0, rows, 0);
            for symbol_plane in 0..2 {
                let seen =
                    Seen::Symbols(symbol_plane, &training[symbol_plane * rows * cols..][..rows * cols]);
                accumulator.observe(&tile, &PartCx::new(0, Role::Whole, rows, cols), seen).unwrap();
            }
            let data = calibrator.finish(vec![accumulator.finish().unwrap()]).unwrap();
            Some(match source {
                Source::Chunk => coder.unpack(&cx, &coder.pack(&cx, &data).unwrap()).unwrap(),
                Source::Profile => data,
            })
        }
    };
    let coder = coder.bind(&BindCx::new(&planes, &parts, data.as_ref(), source)).unwrap();
    Some(Bound { coder, segments })
}

/// Classes of columns, some of them equal.
fn classes(cols: usize) -> Vec<u8> {
    (0..cols).map(|col| (30 + 5 * (col % 4)) as u8).collect()
}

/// Tables that somebody else has packed: they may be refused, they may not panic or be believed.
pub fn unpack(name: &str, config: &str, size: u16, cols: usize, bytes: &[u8]) {
    let Build::Coder(build) = registry().get(name).unwrap().build else { panic!("{name} is no coder") };
    let Ok(coder) = build(&serde_json(config)) else { return };
    let planes: Vec<Plane> = geometry().planes().into_iter().take(1).collect();
    let mut part = Part::new(Role::Whole, cols);
    part.alphabets = vec![Alphabet { size, escape: false }];
    part.classes = classes(cols);
    let parts = vec![vec![part]];
    if let Ok(data) = coder.unpack(&BindCx::new(&planes, &parts, None, Source::Chunk), bytes) {
        let _ = coder.bind(&BindCx::new(&planes, &parts, Some(&data), Source::Chunk));
    }
}

fn serde_json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

/// One run of a coder's target: a stream from the input must be refused or give legal symbols; symbols from the
/// input must come back.
pub fn run_coder(name: &str, configs: &[&str], data: &[u8]) {
    let [config, size, rows, cols, source, rest @ ..] = data else { return };
    let config = configs[usize::from(*config) % configs.len()];
    let size = 2 + u16::from(*size) % 255;
    let (rows, cols) = (usize::from(*rows) % 80, 1 + usize::from(*cols) % 9);
    let source = if source % 2 == 0 { Source::Chunk } else { Source::Profile };
    if source == Source::Chunk {
        unpack(name, config, size, cols, rest);
    }
    let count = 2 * rows * cols;
    let training: Vec<u8> = (0..count)
        .map(|index| (u16::from(rest.get(index % rest.len().max(1)).copied().unwrap_or(0)) % size) as u8)
        .collect();
    let Some(Bound { coder, segments }) = self::coder(name, config, size, rows, cols, source, &training)
    else {
        return;
    };
    let mut scratch = coder.scratch();
    let mut symbols = vec![0; count];
    if coder.decode(&segments, rest, &mut symbols, &mut scratch).is_ok() {
        assert!(symbols.iter().all(|symbol| u16::from(*symbol) < size));
    }
    let mut out = vec![0; coder.max_len(&segments)];
    let len = coder.encode(&segments, &training, &mut out, &mut scratch).unwrap();
    coder.decode(&segments, &out[..len], &mut symbols, &mut scratch).unwrap();
    assert_eq!(symbols, training);
    if let Some(cut) = rest.first().map(|cut| usize::from(*cut)).filter(|cut| *cut < len) {
        assert!(coder.decode(&segments, &out[..cut], &mut symbols, &mut scratch).is_err());
    }
}

/// Small containers of every preset and of pipelines with every stage, with the profile that they need.
pub fn containers() -> &'static [(Vec<u8>, Option<Profile>)] {
    static CONTAINERS: OnceLock<Vec<(Vec<u8>, Option<Profile>)>> = OnceLock::new();
    CONTAINERS.get_or_init(|| {
        let mut specs: Vec<String> = PRESETS
            .iter()
            .filter(|p| !p.statistics)
            .flat_map(|p| p.levels)
            .map(|s| (*s).to_owned())
            .collect();
        let more = [
            "unrope|mean|hadamard|uniform(bits=3;zero=true)|zstd",
            "unrope|mean|klt|bins(step=0.25)|rans",
            "sinks(first=1)|unrope|mean|predict|klt|bins(step=0.25)|rans",
            "mean|klt|steps(step=0.5)|rans(tables=scale)",
            "steps(step=0.1;reach=127)|range(tables=scale)",
            "sinks(first=1)|mean|klt|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)",
            "mean|predict|klt|steps(importance=attention;power=0.5)|range(tables=scale)",
            "mean|bins(step=0.5)|rans(tables=channel)",
            "anchor-delta(group=4)|bins|rans(tables=one)",
            "bytes|range(tables=layer)",
            "mean|uniform(bits=6;axis=channel;group=0)|rans(tables=layer)",
            "h2o(keep=0.3)|mean|bins(step=0.5)|rans(tables=class)",
            "h2o(keep=0.7;recent=0.2)|bytes|raw",
        ];
        specs.extend(more.map(str::to_owned));
        let (cache, other) = (cache(21, 1), cache(40, 2));
        let (of_cache, of_other) = (importance(21), importance(40));
        let view = || cache.view().with_importance(&of_cache).unwrap();
        let mut all = Vec::new();
        for spec in &specs {
            let pipeline = || Pipeline::parse(registry(), spec).unwrap();
            let profile =
                calibrate(&[pipeline()], &[other.view().with_importance(&of_other).unwrap()], 40, &|_| ())
                    .unwrap();
            // No chunk carries predictors, or tables of grades.
            let without = (!spec.contains("predict") && !spec.contains("importance")).then_some(None);
            for profile in without.into_iter().chain([Some(profile)]) {
                let encoder = Encoder::new(pipeline(), &geometry(), profile.as_ref()).unwrap();
                let mut bytes = Vec::new();
                flow::encode(&view(), &Default::default(), &encoder, 16, &mut bytes, &|_| ()).unwrap();
                all.push((bytes, profile));
            }
        }
        all
    })
}

/// Damages a container as the input says, makes its checksums right, and decodes it.
pub fn damage(data: &[u8]) {
    let [which, edits @ ..] = data else { return };
    let (bytes, profile) = &containers()[usize::from(*which) % containers().len()];
    let mut bytes = bytes.clone();
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        match edit[2] % 8 {
            0 => bytes.truncate(at.max(1)),
            1 => bytes.insert(at.min(bytes.len()), edit[3]),
            2 => drop((at < bytes.len()).then(|| bytes.remove(at))),
            3 => bytes.extend(vec![edit[3]; at % 64]),
            _ if at < bytes.len() => bytes[at] = edit[3],
            _ => {}
        }
    }
    reseal::container(&mut bytes);
    decode(&bytes, profile.as_ref());
}

/// Decodes whatever this is.
pub fn decode(bytes: &[u8], profile: Option<&Profile>) {
    let decode = flow::Decode { registry: registry(), profile, backend: &Cpu };
    if let Ok(decoded) = decode.run(bytes, &limits(), &|_| ()) {
        decoded.view().unwrap();
    }
}
