//! Pipelines that drop tokens: what is left, where it was, and bytes that lie about either.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::BTreeMap;

use cacheg::core::{Chunk, Container, Cpu, Dtype, Kept, LayerGroup, reseal};
use cacheg::{
    Encoder, Error, ErrorKind, Geometry, KvCache, Limits, Pipeline, Profile, Registry, Result, calibrate,
    flow,
};
use common::{cache, decode, encode, encode_with, even, importance, mixed, rmse, shape};

fn whole(registry: &Registry, bytes: &[u8], profile: Option<&Profile>) -> Result<flow::Decoded> {
    flow::Decode { registry, profile, backend: &Cpu }.run(bytes, &Limits::default(), &|_| ())
}

/// The rows that `kept` names, taken from the whole cache by hand.
fn left(kv: &KvCache, kept: &Kept) -> KvCache {
    let view = kv.view();
    let mut row = Vec::new();
    KvCache::from_fn(kv.geometry(), kept.tokens(), |plane, token, channel| {
        let head = channel / plane.shape.head_dim as usize;
        let position = kept.positions(plane.layer as usize, head).nth(token).unwrap();
        row.resize(plane.channels(), 0.0);
        view.load(plane.index, (position - kept.first_position()) as usize, 1, &mut row);
        row[channel]
    })
}

/// One bare chunk of a lossless pipeline with h2o, and its parts.
fn chunk_bytes(registry: &Registry) -> Vec<u8> {
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 13, 1), importance(&geometry, 13, 2));
    let pipeline = Pipeline::parse(registry, "h2o(keep=0.4)|bytes|raw").unwrap();
    let encoder = Encoder::new(pipeline, &geometry, None).unwrap();
    let view = kv.view().with_importance(&importance).unwrap();
    encoder.encode(&view, 0..13, &|_| ()).unwrap().to_vec()
}

/// Some stages see the same values as on a chunk that has only the kept rows, and give the same.
#[test]
fn what_is_left_is_coded_like_any_other_chunk() {
    let registry = cacheg::builtins().unwrap();
    let gqa = LayerGroup {
        repeat: 3,
        key: shape(2, 64, Dtype::F16),
        value: shape(2, 64, Dtype::F16),
        latent: None,
        rope: None,
    };
    for geometry in [even(), Geometry::new([gqa]).unwrap()] {
        for (tokens, chunk) in [(1, 50), (2, 50), (64, 64), (103, 20), (700, 650)] {
            let (kv, importance) = (cache(&geometry, tokens, 1), importance(&geometry, tokens, 2));
            for keep in [0.01, 0.5, 0.7] {
                let select = format!("h2o(keep={keep};recent=0.25)");
                let bytes =
                    encode_with(&registry, &format!("{select}|bytes|raw"), &kv, &importance, None, chunk)
                        .unwrap();
                let decoded = whole(&registry, &bytes, None).unwrap();
                let kept = decoded.kept.as_ref().unwrap();
                let want: usize = (0..tokens)
                    .step_by(chunk)
                    .map(|first| ((keep * chunk.min(tokens - first) as f64).round() as usize).max(1))
                    .sum();
                assert_eq!((kept.tokens(), decoded.cache.tokens()), (want, want), "{tokens} {chunk} {keep}");
                assert_eq!((kept.context_tokens(), kept.next_position()), (tokens as u64, tokens as u64));
                assert!(decoded.cache == left(&kv, kept), "{tokens} {chunk} {keep}");
                for lossy in ["mean|bins(step=0.5)|rans", "anchor-delta(group=4)|bins|range"] {
                    let spec = format!("{select}|{lossy}");
                    let bytes = encode_with(&registry, &spec, &kv, &importance, None, chunk).unwrap();
                    let got = whole(&registry, &bytes, None).unwrap();
                    assert_eq!(got.kept.as_ref(), Some(kept), "which ones depends on the first stage alone");
                    if tokens <= chunk {
                        let bytes = encode(&registry, lossy, &decoded.cache, None, chunk).unwrap();
                        assert!(got.cache == decode(&registry, &bytes, None).unwrap(), "{spec}");
                    }
                }
            }
        }
    }
}

#[test]
fn heads_keep_the_newest_and_the_heaviest_of_each_chunk() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 40, 1), importance(&geometry, 40, 2));
    let bytes =
        encode_with(&registry, "h2o(keep=0.4;recent=0.5)|bytes|raw", &kv, &importance, None, 20).unwrap();
    let kept = whole(&registry, &bytes, None).unwrap().kept.unwrap();
    let mut sets = Vec::new();
    for (layer, head) in (0..kept.layers()).flat_map(|l| (0..kept.heads(l)).map(move |head| (l, head))) {
        let positions: Vec<u64> = kept.positions(layer, head).collect();
        for (chunk, own) in positions.chunks(8).enumerate() {
            let first = 20 * chunk as u64;
            assert_eq!(own[4..], [16, 17, 18, 19].map(|token| first + token));
            let sums = importance.accumulated(layer, head);
            let lightest = own[..4].iter().map(|at| sums[*at as usize]).fold(f32::MAX, f32::min);
            let mut dropped = (first..first + 16).filter(|at| !own.contains(at));
            assert!(dropped.all(|at| sums[at as usize] <= lightest), "layer {layer}, head {head}: {own:?}");
        }
        sets.push(positions);
    }
    sets.dedup();
    assert!(sets.len() > 5, "heads differ");
}

#[test]
fn keeping_everything_drops_nothing() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 45, 1), importance(&geometry, 45, 2));
    for spec in ["bytes|raw", "mean|bins(step=0.5;reach=15)|rans", "uniform(bits=4)|raw"] {
        let all = encode_with(&registry, &format!("h2o(keep=1)|{spec}"), &kv, &importance, None, 20).unwrap();
        let decoded = whole(&registry, &all, None).unwrap();
        let want = decode(&registry, &encode(&registry, spec, &kv, None, 20).unwrap(), None).unwrap();
        assert!(decoded.cache == want, "{spec}");
        let kept = decoded.kept.as_ref().unwrap();
        assert!(kept.positions(2, 1).eq(0..45));
        // The same tokens, whether or not it is said which.
        cacheg::compare::planes(&kv.view(), &decoded.view().unwrap()).unwrap();
        let pipeline = Pipeline::parse(&registry, "uniform|raw").unwrap();
        let encoder = Encoder::new(pipeline, &geometry, None).unwrap();
        encoder.encode(&decoded.view().unwrap(), 0..45, &|_| ()).unwrap();
    }
}

/// Calibrated on what is left, shared by chunks, which carry only their sets.
#[test]
fn profiles_go_with_selections() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let kv = KvCache::copy_of(&cache(&geometry, 60, 1).view(), 10, 50);
    let other = cache(&geometry, 90, 3);
    let (of_kv, of_other) = (importance(&geometry, 50, 2), importance(&geometry, 90, 4));
    let other = other.view().with_importance(&of_other).unwrap();
    for spec in ["h2o(keep=0.3)|mean|bins(step=0.5;reach=15)|rans", "h2o|anchor-delta(group=5)|bins|range"] {
        let pipeline = || Pipeline::parse(&registry, spec).unwrap();
        let profile = calibrate(&[pipeline()], std::slice::from_ref(&other), 30, &|_| ()).unwrap();
        let bytes = encode_with(&registry, spec, &kv, &of_kv, Some(&profile), 20).unwrap();
        let container = Container::parse(&bytes, &Limits::default()).unwrap();
        for chunk in &container.chunks {
            assert!(chunk.selects() && chunk.profile() == Some(profile.hash()));
            assert!(chunk.coded_like(&container.chunks[0]));
            let (sets, others) = chunk.sizes().carried.split_first().unwrap();
            assert_eq!(*sets, 4 + 10 * chunk.tokens().len().div_ceil(8));
            assert!(others.iter().all(|len| *len == 4));
            let (sizes, _) = chunk.account(&chunk.bind(&registry, Some(&profile)).unwrap()).unwrap();
            assert_eq!(sizes.total(), chunk.len());
        }
        let decoded = whole(&registry, &bytes, Some(&profile)).unwrap();
        let kept = decoded.kept.as_ref().unwrap();
        assert_eq!((kept.first_position(), kept.next_position()), (10, 60));
        let (want, zeros) = (left(&kv, kept), KvCache::zeros(&geometry, kept.tokens(), 0));
        assert!(rmse(&want, &decoded.cache) < 0.75 * rmse(&want, &zeros), "{spec}");
        assert_eq!(whole(&registry, &bytes, None).unwrap_err().kind(), ErrorKind::Profile);

        // Means of what is left are other means.
        let without = spec.split_once('|').unwrap().1;
        let plain = calibrate(
            &[Pipeline::parse(&registry, without).unwrap()],
            std::slice::from_ref(&other),
            30,
            &|_| (),
        )
        .unwrap();
        assert!(plain.sections().next().unwrap().len() < profile.sections().next().unwrap().len());
        assert!(encode_with(&registry, spec, &kv, &of_kv, Some(&plain), 20).is_err());
    }
    // The means are those of the kept rows, which calibration on these alone finds, too.
    let spec = "h2o(keep=0.3)|mean|uniform|raw";
    let select = Pipeline::parse(&registry, "h2o(keep=0.3)|bytes|raw").unwrap();
    let encoder = Encoder::new(select, &geometry, None).unwrap();
    let mut bytes = Vec::new();
    flow::encode(&other, &BTreeMap::new(), &encoder, 30, &mut bytes, &|_| ()).unwrap();
    let rows = whole(&registry, &bytes, None).unwrap().cache;
    let calibrated = |spec: &str, view: &cacheg::KvView<'_>, chunk| {
        let pipeline = Pipeline::parse(&registry, spec).unwrap();
        calibrate(&[pipeline], std::slice::from_ref(view), chunk, &|_| ()).unwrap()
    };
    let a = calibrated(spec, &other, 30);
    let b = calibrated("mean|uniform|raw", &rows.view(), 9);
    let data = |profile: &Profile| {
        let file = safetensors::SafeTensors::deserialize(profile.bytes()).unwrap();
        file.tensor("s0/mean").unwrap().data().to_vec()
    };
    assert_eq!(data(&a), data(&b));
}

#[test]
fn missing_importance_says_how_to_get_it() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let kv = cache(&geometry, 20, 1);
    let pipeline = || Pipeline::parse(&registry, "h2o|mean|uniform|raw").unwrap();
    for error in [
        encode(&registry, "h2o|mean|uniform|raw", &kv, None, 20).unwrap_err(),
        calibrate(&[pipeline()], &[kv.view()], 20, &|_| ()).unwrap_err(),
    ] {
        let message = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{message}");
        assert!(message.contains("`h2o`") && message.contains("prefill --statistics"), "{message}");
    }
    let other = importance(&geometry, 19, 1);
    assert!(kv.view().with_importance(&other).is_err());
    assert!(kv.view().with_importance(&importance(&mixed(), 20, 1)).is_err());
}

#[test]
fn pipelines_that_make_no_sense_are_refused() {
    let registry = cacheg::builtins().unwrap();
    let refused = |spec: &str, geometry: &Geometry| -> Error {
        let made = Pipeline::parse(&registry, spec).and_then(|p| Encoder::new(p, geometry, None));
        made.map(drop).unwrap_err()
    };
    for (spec, says) in [
        ("mean|h2o|uniform|raw", "select `h2o`"),
        ("h2o|h2o|uniform|raw", "select `h2o`"),
        ("uniform|h2o|raw", "at most one select"),
        ("h2o(keep=0)|uniform|raw", "`keep`"),
        ("h2o|unrope|uniform|raw", "stage `unrope`"),
    ] {
        let error = refused(spec, &even());
        assert_eq!(error.kind(), ErrorKind::InvalidSetting, "{spec}: {error}");
        assert!(error.to_string().contains(says), "{spec}: {error}");
    }
    // Where data is gathered first, the stage is bound with the first chunk.
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 9, 1), importance(&geometry, 9, 2));
    let error = encode_with(&registry, "h2o|mean|unrope|uniform|raw", &kv, &importance, None, 9).unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("drops tokens"),
        "{error}"
    );
    // Keys with other heads than values.
    let error = refused("h2o|uniform|raw", &mixed());
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("layer 2"), "{error}");
}

/// Chunks that drop nothing are what they were before there were others.
#[test]
fn only_selections_have_the_new_version() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 20, 1), importance(&geometry, 20, 2));
    let plain = encode_with(&registry, "mean|uniform|raw", &kv, &importance, None, 50).unwrap();
    let selected = encode_with(&registry, "h2o|mean|uniform|raw", &kv, &importance, None, 50).unwrap();
    for (bytes, minor) in [(&plain, 1), (&selected, 2)] {
        let at = Container::parse(bytes, &Limits::default()).unwrap().header_bytes;
        assert_eq!((bytes[5], bytes[at + 5]), (1, minor));
        let mut other = bytes.clone();
        other[at + 5] = 3 - minor;
        reseal::container(&mut other);
        let error = whole(&registry, &other, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let text = String::from_utf8_lossy(&plain);
    assert!(!text.contains("kept") && String::from_utf8_lossy(&selected).contains(r#""kept":10"#));
}

#[test]
fn a_chunk_of_no_tokens_keeps_none() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 9, 1), importance(&geometry, 9, 2));
    let pipeline = Pipeline::parse(&registry, "h2o|bytes|rans").unwrap();
    let encoder = Encoder::new(pipeline, &geometry, None).unwrap();
    let view = kv.view().with_importance(&importance).unwrap();
    let bytes = encoder.encode(&view, 4..4, &|_| ()).unwrap().to_vec();
    let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
    assert_eq!((chunk.rows(), chunk.tokens()), (0, 4..4));
    assert_eq!(chunk.kept().unwrap().tokens(), 0);
    let mut out = KvCache::zeros(&geometry, 0, 4);
    chunk.decode(&chunk.bind(&registry, None).unwrap(), &mut out.view_mut(), 0, &|_| ()).unwrap();
}

/// An encoder makes no such thing, but whoever cuts chunks together may.
#[test]
fn chunks_with_and_without_selection_go_together() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 30, 1), importance(&geometry, 30, 2));
    let view = kv.view().with_importance(&importance).unwrap();
    let mut bytes = Vec::new();
    let header = cacheg::core::ContainerHeader {
        chunks: 3,
        geometry: geometry.clone(),
        metadata: BTreeMap::new(),
        position: 0,
        tokens: 30,
    };
    header.write_to(&mut bytes).unwrap();
    for (spec, range) in [("bytes|raw", 0..7), ("h2o(keep=0.3)|bytes|raw", 7..20), ("mean|bytes|raw", 20..30)]
    {
        let encoder = Encoder::new(Pipeline::parse(&registry, spec).unwrap(), &geometry, None).unwrap();
        // Without a selection nobody asks for it.
        let spec_view = if spec.starts_with("mean") { kv.view() } else { view.clone() };
        encoder.encode(&spec_view, range, &|_| ()).unwrap().write_to(&mut bytes).unwrap();
    }
    let decoded = whole(&registry, &bytes, None).unwrap();
    let kept = decoded.kept.as_ref().unwrap();
    assert_eq!((kept.tokens(), kept.context_tokens()), (7 + 4 + 10, 30));
    let positions: Vec<u64> = kept.positions(0, 0).collect();
    assert!(positions[..7].iter().copied().eq(0..7) && positions[11..].iter().copied().eq(20..30));
    assert!(rmse(&left(&kv, kept), &decoded.cache) < 0.05);
}

#[test]
fn sets_that_lie_are_corrupt() {
    let registry = cacheg::builtins().unwrap();
    let good = chunk_bytes(&registry);
    let parse = |bytes: &[u8]| Chunk::parse(bytes, &Limits::default()).map(drop);
    parse(&good).unwrap();
    let field = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap()) as usize;
    let carried = 40 + field(16).next_multiple_of(4);
    // 2 + 2 + 3 + 1 + 2 heads of 2 bytes each.
    assert_eq!(field(carried), 20);
    let refused = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bad = good.clone();
        edit(&mut bad);
        assert!(reseal::chunk(&mut bad).is_some());
        let error = parse(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        error.to_string()
    };
    for head in 0..10 {
        let at = carried + 4 + 2 * head;
        assert!(refused(&|bytes| bytes[at] ^= 1).contains("where 5 are expected"));
        // One token exchanged for one that does not exist.
        let exchange = |bytes: &mut Vec<u8>| {
            bytes[at + 1] = 0x80;
            let all = u16::from_le_bytes([bytes[at], 0]);
            let count = all.count_ones();
            bytes[at] = if count < 4 { 0x0f } else { bytes[at] };
            while bytes[at].count_ones() > 4 {
                bytes[at] &= bytes[at] - 1;
            }
        };
        refused(&exchange);
    }
    // A shorter set, behind which the padding is no longer right, or is.
    refused(&|bytes| bytes[carried] = 19);
    refused(&|bytes| bytes[carried] = 16);
    refused(&|bytes| bytes[carried..carried + 4].fill(0xff));
    let replace = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let (from, to) = (from.to_owned(), to.to_owned());
        move |bytes: &mut Vec<u8>| {
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    refused(&replace(r#""kept":5"#, r#""kept":0"#));
    refused(&replace(r#""kept":5"#, r#""kept":4"#));
    refused(&replace(r#""kept":5"#, r#""kept":6"#));
    refused(&replace(r#""count":13"#, r#""count":17"#));
    refused(&replace(r#""count":13"#, r#""count": 4"#));
    refused(&replace(r#""count":13"#, r#""count": 0"#));
    refused(&replace(r#""kept":5,"#, "         "));
    // The stage is not what its place says.
    let mut bad = good.clone();
    replace(
        r#"{"config":{"keep":0.4,"recent":0.5},"name":"h2o","version":1}"#,
        &format!("{:<61}", r#"{"config":{},"name":"identity","version":1}"#),
    )(&mut bad);
    reseal::chunk(&mut bad);
    let chunk = Chunk::parse(&bad, &Limits::default()).unwrap();
    let error = chunk.bind(&registry, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("select stage"), "{error}");

    let mut limits = Limits::default();
    limits.max_tokens = 12;
    assert_eq!(Chunk::parse(&good, &limits).unwrap_err().kind(), ErrorKind::Limit);
    for cut in 0..good.len() {
        assert!(parse(&good[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn flips_never_panic_and_never_pass_unnoticed() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 19, 1), importance(&geometry, 19, 2));
    for spec in ["h2o(keep=0.4)|bytes|raw", "h2o(keep=0.3)|mean|bins(step=0.5)|rans(tables=class;classes=4)"]
    {
        let bytes = encode_with(&registry, spec, &kv, &importance, None, 11).unwrap();
        for at in 0..bytes.len() {
            for mask in [0x01, 0x40, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= mask;
                assert!(whole(&registry, &bad, None).is_err(), "byte {at}");
                reseal::container(&mut bad);
                let _ = whole(&registry, &bad, None);
            }
        }
    }
}

/// The limit is on what comes out, not on what went in.
#[test]
fn limits_count_what_is_left() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, importance) = (cache(&geometry, 100, 1), importance(&geometry, 100, 2));
    let bytes = encode_with(&registry, "h2o(keep=0.1)|uniform|raw", &kv, &importance, None, 50).unwrap();
    let mut limits = Limits::default();
    limits.max_output = 10 * geometry.bytes_per_token();
    assert_eq!(Container::parse(&bytes, &limits).unwrap().rows(), 10);
    limits.max_output -= 1;
    assert_eq!(Container::parse(&bytes, &limits).unwrap_err().kind(), ErrorKind::Limit);

    // Heads so small that their positions weigh more than they do.
    let tiny = shape(64, 1, Dtype::F8E4m3);
    let group = LayerGroup { repeat: 1, key: tiny, value: None, latent: None, rope: None };
    let geometry = Geometry::new([group]).unwrap();
    let (kv, importance) = (cache(&geometry, 100, 1), common::importance(&geometry, 100, 2));
    let bytes = encode_with(&registry, "h2o(keep=0.1)|bytes|raw", &kv, &importance, None, 50).unwrap();
    limits.max_output = 10 * 64 * 4;
    assert_eq!(Container::parse(&bytes, &limits).unwrap().rows(), 10);
    limits.max_output -= 1;
    assert_eq!(Container::parse(&bytes, &limits).unwrap_err().kind(), ErrorKind::Limit);
}
