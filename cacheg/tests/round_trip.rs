//! Whole pipelines, there and back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::{Container, Dtype, LayerGroup};
use cacheg::{Encoder, ErrorKind, Geometry, KvCache, Limits, Pipeline, calibrate, flow};
use common::{cache, decode, encode, mixed, rmse, shape, specs};

/// 0 and 1 tokens, no multiple of any group, several chunks.
#[test]
fn every_pipeline_every_length_with_and_without_profile() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    let other = cache(&geometry, 90, 2);
    for spec in specs() {
        let pipeline = Pipeline::parse(&registry, spec).unwrap();
        let profile = calibrate(&[pipeline], &[other.view()], 50, &|_| ()).unwrap();
        for (tokens, chunk) in [(0, 50), (1, 50), (9, 50), (10, 50), (11, 4), (64, 64), (103, 50)] {
            let kv = cache(&geometry, tokens, 1);
            for profile in [None, Some(&profile)] {
                let bytes =
                    encode(&registry, spec, &kv, profile, chunk).unwrap_or_else(|e| panic!("{spec}: {e}"));
                let back =
                    decode(&registry, &bytes, profile).unwrap_or_else(|e| panic!("{spec}, {tokens}: {e}"));
                assert_eq!(back.tokens(), tokens);
                assert_eq!(back.geometry(), kv.geometry());
                if spec.starts_with("bytes") {
                    assert_eq!(back, kv, "{spec}");
                } else if tokens > 0 {
                    // Far below the spread of the values, which is what silent garbage would have.
                    let (error, spread) =
                        (rmse(&kv, &back), rmse(&kv, &KvCache::zeros(&geometry, tokens, 0)));
                    assert!(error < 0.75 * spread, "{spec}, {tokens} tokens: {error} of {spread}");
                }
            }
        }
    }
}

/// Rows that are wider than a piece: a piece then is one group of rows.
#[test]
fn wide_rows() {
    let registry = cacheg::builtins().unwrap();
    let key = shape(1, 4_200, Dtype::F16);
    let group = LayerGroup { repeat: 1, key, value: key, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    let (kv, other) = (cache(&geometry, 23, 1), cache(&geometry, 30, 2));
    let spread = rmse(&kv, &KvCache::zeros(&geometry, 23, 0));
    // Matrices of so wide a head take a minute for each pipeline that has them: one is enough.
    for spec in specs().into_iter().filter(|spec| !spec.contains("klt|steps")) {
        let pipeline = Pipeline::parse(&registry, spec).unwrap();
        if spec.contains("klt") {
            // Matrices as wide as this head would take longer than anybody waits.
            let error = calibrate(&[pipeline], &[other.view()], 50, &|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
            assert_eq!(encode(&registry, spec, &kv, None, 50).unwrap_err().kind(), ErrorKind::Limit);
            continue;
        }
        let profile = calibrate(&[pipeline], &[other.view()], 50, &|_| ()).unwrap();
        for profile in [None, Some(&profile)] {
            let bytes = encode(&registry, spec, &kv, profile, 50).unwrap_or_else(|e| panic!("{spec}: {e}"));
            let back = decode(&registry, &bytes, profile).unwrap_or_else(|e| panic!("{spec}: {e}"));
            assert!(rmse(&kv, &back) < 0.75 * spread, "{spec}");
        }
    }
}

/// Whole rows come back bit for bit at the ends, whatever is in them, and are in no chunk's tables.
#[test]
fn exact_tokens() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    let other = cache(&geometry, 90, 2);
    let spec = "sinks(first=6;last=3)|mean|bins(step=0.5;reach=15)|rans";
    let profile =
        calibrate(&[Pipeline::parse(&registry, spec).unwrap()], &[other.view()], 50, &|_| ()).unwrap();
    let wild = KvCache::from_fn(&geometry, 40, |plane, token, channel| match token {
        0..6 | 37.. => [f32::NAN, f32::INFINITY, 3e4, -0.0][(token + channel + plane.index) % 4],
        _ => ((token * 7 + channel * 5) % 11) as f32 * 0.25,
    });
    let tame = KvCache::from_fn(&geometry, 40, |_, token, channel| match token {
        0..6 | 37.. => 0.0,
        _ => ((token * 7 + channel * 5) % 11) as f32 * 0.25,
    });
    for profile in [None, Some(&profile)] {
        for chunk in [64, 39, 17, 5, 4] {
            let bytes = encode(&registry, spec, &wild, profile, chunk).unwrap();
            let back = decode(&registry, &bytes, profile).unwrap();
            let tame = decode(&registry, &encode(&registry, spec, &tame, profile, chunk).unwrap(), profile);
            let tame = tame.unwrap();
            for plane in geometry.planes() {
                let len = plane.channels() * 40;
                let (mut a, mut b, mut c) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
                wild.view().load(plane.index, 0, 40, &mut a);
                back.view().load(plane.index, 0, 40, &mut b);
                tame.view().load(plane.index, 0, 40, &mut c);
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let (head, tail) = (6 * plane.channels(), 37 * plane.channels());
                assert_eq!(bits(&a[..head]), bits(&b[..head]), "{chunk}");
                assert_eq!(bits(&a[tail..]), bits(&b[tail..]), "{chunk}");
                assert_eq!(bits(&c[head..tail]), bits(&b[head..tail]), "{chunk}");
            }
        }
    }
}

/// Chunks without exact tokens are of version 0.1, whatever the pipeline; decoders then need no other plan.
#[test]
fn only_chunks_with_exact_tokens_are_of_a_newer_version() {
    let registry = cacheg::builtins().unwrap();
    let kv = cache(&mixed(), 40, 1);
    let bytes = encode(&registry, "sinks(first=4)|uniform|raw", &kv, None, 10).unwrap();
    let container = Container::parse(&bytes, &Limits::default()).unwrap();
    let minors = container.chunks.iter().map(|chunk| {
        let encoder = Encoder::new(
            Pipeline::parse(&registry, "sinks(first=4)|uniform|raw").unwrap(),
            kv.geometry(),
            None,
        );
        encoder.unwrap().encode(&kv.view(), chunk.tokens(), &|_| ()).unwrap().to_vec()[5]
    });
    assert_eq!(minors.collect::<Vec<_>>(), [2, 1, 1, 1]);
}

#[test]
fn the_same_bytes_every_time_and_on_any_number_of_threads() {
    let registry = cacheg::builtins().unwrap();
    let kv = KvCache::copy_of(&cacheg::sample().unwrap().view(), 0, 60);
    for spec in specs() {
        let bytes = encode(&registry, spec, &kv, None, 40).unwrap();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| encode(&registry, spec, &kv, None, 40).unwrap()), bytes, "{spec}");
        let back = decode(&registry, &bytes, None).unwrap();
        assert_eq!(one.install(|| decode(&registry, &bytes, None).unwrap()), back, "{spec}");
    }
}

/// The public code's arithmetic, written down once more: symbols from x·C/max, values from (symbol − C)·max/C.
#[test]
fn cachegen_release_is_the_public_formula() {
    let registry = cacheg::builtins().unwrap();
    let file = cacheg::sample().unwrap();
    let kv = KvCache::copy_of(&file.view(), 0, 168);
    let spec = cacheg::preset("cachegen-release").unwrap().spec(None).unwrap();
    let back = decode(&registry, &encode(&registry, spec, &kv, None, 256).unwrap(), None).unwrap();
    let bins = |plane: &cacheg::core::Plane| match plane.kind {
        cacheg::core::Kind::Key if plane.layer < 10 => 32.0,
        cacheg::core::Kind::Value if plane.layer < 2 => 32.0,
        _ => 16.0f64,
    };
    let view = kv.view();
    for plane in view.planes() {
        let c = bins(plane) / 2.0 - 1.0;
        let (mut x, mut y) = (vec![0.0; plane.channels()], vec![0.0; plane.channels()]);
        for token in 0..kv.tokens() {
            view.load(plane.index, token, 1, &mut x);
            back.view().load(plane.index, token, 1, &mut y);
            let max = x.iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs())));
            for (x, y) in x.iter().zip(&y) {
                let symbol = (f64::from(*x) * c / max).round_ties_even() + c;
                let mut want = [0; 2];
                Dtype::F16.narrow(&[((symbol - c) * max / c) as f32], &mut want);
                let mut got = [0; 2];
                Dtype::F16.narrow(&[*y], &mut got);
                assert_eq!(got, want, "{} token {token}: {x}", plane.name());
            }
        }
    }
}

#[test]
fn bare_chunks_tolerate_what_follows_them() {
    let registry = cacheg::builtins().unwrap();
    let kv = cache(&mixed(), 30, 3);
    let pipeline = Pipeline::parse(&registry, "mean|uniform(bits=4)|rans").unwrap();
    let encoder = Encoder::new(pipeline, kv.geometry(), None).unwrap();
    let chunk = encoder.encode(&kv.view(), 10..30, &|_| ()).unwrap();
    let mut bytes = chunk.to_vec();
    assert_eq!(bytes.len(), chunk.len());
    bytes.extend([0xaa; 100]);
    let chunk = cacheg::core::Chunk::parse(&bytes, &Limits::default()).unwrap();
    assert_eq!((chunk.tokens(), chunk.position(), chunk.len()), (10..30, 10, bytes.len() - 100));
    let mut out = KvCache::zeros(kv.geometry(), 20, 10);
    let plan = chunk.bind(&registry, None).unwrap();
    chunk.decode(&plan, &mut out.view_mut(), 0, &|_| ()).unwrap();
    assert!(rmse(&KvCache::copy_of(&kv.view(), 10, 20), &out) < 0.3);
}

#[test]
fn every_byte_is_accounted_for() {
    let registry = cacheg::builtins().unwrap();
    let kv = cache(&mixed(), 45, 4);
    for spec in specs() {
        let bytes = encode(&registry, spec, &kv, None, 20).unwrap();
        let container = Container::parse(&bytes, &Limits::default()).unwrap();
        let mut total = container.header_bytes;
        for chunk in &container.chunks {
            let (sizes, ideal) = chunk.account(&chunk.bind(&registry, None).unwrap()).unwrap();
            assert_eq!(sizes.total(), chunk.len(), "{spec}");
            if let Some(bits) = ideal {
                assert!(bits <= sizes.tiles.stream as f64 * 8.0 + 1.0, "{spec}: better than ideal");
            }
            total += chunk.len();
        }
        assert_eq!(total, bytes.len());
    }
}

#[test]
fn nan_and_infinity_are_refused_by_name_or_carried_exactly() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let kv = KvCache::from_fn(&geometry, 12, |plane, token, channel| {
            if plane.name() == "layers.1.value" && (token, channel) == (7, 13) { bad } else { 0.5 }
        });
        let error = encode(&registry, "mean|uniform|raw", &kv, None, 50).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let message = error.to_string();
        assert!(
            message.contains("layers.1.value") && message.contains("head 1, token 7, channel 5"),
            "{message}"
        );
        assert!(message.contains("lossless"), "{message}");
        let bytes = encode(&registry, "bytes|rans", &kv, None, 50).unwrap();
        assert_eq!(decode(&registry, &bytes, None).unwrap(), kv);
    }
}

#[test]
fn all_bit_patterns_of_every_type_survive_lossless() {
    let registry = cacheg::builtins().unwrap();
    for dtype in Dtype::ALL {
        let group =
            LayerGroup { repeat: 1, key: shape(1, 256, dtype), value: None, latent: None, rope: None };
        let geometry = Geometry::new([group]).unwrap();
        let tokens = if dtype.size() == 1 { 1 } else { 256 };
        let mut bytes = vec![0u8; 256 * tokens * dtype.size()];
        match dtype.size() {
            1 => bytes.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8),
            size => bytes.chunks_mut(size).enumerate().for_each(|(i, b)| {
                let pattern = (i as u32).wrapping_mul(if size == 4 { 65_537 } else { 1 });
                b.copy_from_slice(&pattern.to_le_bytes()[..size]);
            }),
        }
        let view =
            cacheg::KvView::new(geometry.clone(), tokens, 0, cacheg::core::Order::HeadMajor, vec![&bytes])
                .unwrap();
        let kv = KvCache::copy_of(&view, 0, tokens);
        assert_eq!(kv.plane_bytes(0), bytes);
        for spec in ["bytes|rans", "identity|bytes|range(tables=layer)", "bytes|raw", "bytes|zstd"] {
            let back = decode(&registry, &encode(&registry, spec, &kv, None, 100).unwrap(), None).unwrap();
            assert_eq!(back.plane_bytes(0), bytes, "{dtype} {spec}");
        }
    }
}

#[test]
fn presets_hold_their_sizes_on_the_sample() {
    let registry = cacheg::builtins().unwrap();
    let file = cacheg::sample().unwrap();
    let kv = KvCache::copy_of(&file.view(), 0, file.tokens());
    let values = (kv.geometry().values_per_token() * 168) as f64;
    let bits = |name: &str, level| {
        let spec = cacheg::preset(name).unwrap().spec(level).unwrap();
        encode(&registry, spec, &kv, None, 1_500).unwrap().len() as f64 * 8.0 / values
    };
    assert!((bits("q8", None) - 8.5).abs() < 0.02 && (bits("q4", None) - 4.5).abs() < 0.02);
    assert!(bits("lossless", None) < 13.7);
    let paper: Vec<f64> = (0..4).map(|level| bits("cachegen-paper", Some(level))).collect();
    assert!(paper.is_sorted_by(|a, b| a > b) && paper[0] < 4.8 && paper[3] < 2.2, "{paper:?}");
}

#[test]
fn metadata_and_positions_come_back() {
    let registry = cacheg::builtins().unwrap();
    let kv = KvCache::copy_of(&cacheg::sample().unwrap().view(), 100, 20);
    let bytes = encode(&registry, "unrope|uniform(bits=8)|raw", &kv, None, 7).unwrap();
    let decoded = flow::Decode { registry: &registry, profile: None, backend: &cacheg::core::Cpu }
        .run(&bytes, &Limits::default(), &|_| ())
        .unwrap();
    assert_eq!(decoded.metadata["note"], "a test");
    assert_eq!(decoded.cache.view().first_position(), 100);
    assert!(rmse(&kv, &decoded.cache) < 0.05);
}
