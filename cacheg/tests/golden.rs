//! Containers that older versions wrote. Never rewritten; `CACHEG_WRITE_GOLDEN=1` adds missing ones.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;

use cacheg::core::{Cpu, Importance, LayerGroup, Order};
use cacheg::{Geometry, KvCache, KvView, Limits, PRESETS, Pipeline, Profile, calibrate, flow};
use common::{encode, encode_with};

/// Of the version that writes today.
const VERSION: &str = "v0.1";
/// The same where tokens are dropped.
const SELECTED: &str = "v0.2";

/// Of chunks with exact tokens.
const EXACT: &str = "v0.2";

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The first layers and tokens of the sample, few enough for small files: 3 layers, 11 tokens, two chunks.
fn input() -> KvCache {
    let sample = cacheg::sample().unwrap();
    let first = sample.geometry().groups()[0];
    let geometry = Geometry::new([LayerGroup { repeat: 3, ..first }]).unwrap();
    let bytes = (0..geometry.planes().len()).map(|plane| sample.view().plane_bytes(plane)).collect();
    let view = KvView::new(geometry, sample.tokens(), 0, Order::HeadMajor, bytes).unwrap();
    KvCache::copy_of(&view, 0, 11)
}

/// Three query heads for each of three KV heads, as the sample's model has; some tokens got a lot, some equally much.
fn importance() -> Importance {
    let mut importance = Importance::new(11, Some(4));
    for layer in 0..3 {
        let sum =
            |i: usize| ((i * 37 + layer * 11) % 16) as f32 + if i.is_multiple_of(11) { 40.0 } else { 0.25 };
        let sums: Vec<f32> = (0..9 * 11).map(sum).collect();
        importance.push_layer(3, &sums, &sums).unwrap();
    }
    importance
}

/// FNV-1a.
fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let add = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325u64, add)
}

/// Compares with a golden file; writes it if it is missing and that is asked for.
fn check(name: &str, bytes: &[u8]) {
    let path = golden(name);
    if !path.exists() {
        assert!(
            std::env::var_os("CACHEG_WRITE_GOLDEN").is_some(),
            "{} is missing; set CACHEG_WRITE_GOLDEN=1 to add it, then commit it",
            path.display()
        );
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "{} is not what is written today", path.display());
}

/// Today's encoder still writes the same bytes, and every golden file there is, of whatever version, decodes
/// to what is stored beside it as a digest. One test, since the second half reads what the first may add.
#[test]
fn golden_files_are_written_and_read_as_ever() {
    let registry = cacheg::builtins().unwrap();
    for preset in PRESETS.iter().filter(|preset| !preset.statistics) {
        let bytes = encode(&registry, preset.spec(None).unwrap(), &input(), None, 8).unwrap();
        let version = if preset.levels[0].starts_with("sinks") { EXACT } else { VERSION };
        check(&format!("{version}-{}.cgkv", preset.name), &bytes);
    }
    let spec = "mean|uniform(bits=3)|rans";
    let profile =
        calibrate(&[Pipeline::parse(&registry, spec).unwrap()], &[input().view()], 8, &|_| ()).unwrap();
    check(&format!("{VERSION}-profile.cgprof"), profile.bytes());
    check(&format!("{VERSION}-profile.cgkv"), &encode(&registry, spec, &input(), Some(&profile), 8).unwrap());

    let spec = "h2o(keep=0.4;recent=0.5)|mean|bins(step=0.5;reach=15)|rans(tables=class;classes=4)";
    let importance = importance();
    let bytes = |profile| encode_with(&registry, spec, &input(), &importance, profile, 8).unwrap();
    check(&format!("{SELECTED}-h2o.cgkv"), &bytes(None));
    let (pipeline, input) = (Pipeline::parse(&registry, spec).unwrap(), input());
    let view = input.view().with_importance(&importance).unwrap();
    let profile = calibrate(&[pipeline], &[view], 8, &|_| ()).unwrap();
    check(&format!("{SELECTED}-h2o-profile.cgprof"), profile.bytes());
    check(&format!("{SELECTED}-h2o-profile.cgkv"), &bytes(Some(&profile)));

    // Grades, and planes that are predicted from others.
    for (name, predict) in [("graded", ""), ("graded-predict", "predict|")] {
        let spec = format!(
            "sinks(first=1)|unrope|mean|{predict}klt|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)"
        );
        let pipeline = Pipeline::parse(&registry, &spec).unwrap();
        let view = input.view().with_importance(&importance).unwrap();
        let file = format!("{EXACT}-{name}.cgprof");
        // Matrices are fitted in floating point, whose last bits may be other ones elsewhere.
        if !golden(&file).exists() {
            check(&file, calibrate(&[pipeline], &[view], 8, &|_| ()).unwrap().bytes());
        }
        let profile = Profile::from_bytes(std::fs::read(golden(&file)).unwrap()).unwrap();
        let bytes = encode_with(&registry, &spec, &input, &importance, Some(&profile), 8).unwrap();
        check(&format!("{EXACT}-{name}.cgkv"), &bytes);
    }

    let mut seen = 0;
    let mut files: Vec<_> = std::fs::read_dir(golden("")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "cgkv")) {
        let profile = std::fs::read(path.with_extension("cgprof"))
            .ok()
            .map(|bytes| Profile::from_bytes(bytes).unwrap());
        let decode = flow::Decode { registry: &registry, profile: profile.as_ref(), backend: &Cpu };
        let decoded = decode.run(&std::fs::read(path).unwrap(), &Limits::default(), &|_| ()).unwrap();
        let mut digest = String::new();
        for plane in decoded.cache.geometry().planes() {
            let sum = fnv(decoded.cache.plane_bytes(plane.index).iter().copied());
            digest.push_str(&format!("{} {sum:016x}\n", plane.name()));
        }
        for (layer, kept) in decoded.kept.iter().flat_map(|kept| (0..kept.layers()).map(move |l| (l, kept))) {
            let positions = (0..kept.heads(layer)).flat_map(|head| kept.positions(layer, head));
            digest.push_str(&format!(
                "layers.{layer}.positions {:016x}\n",
                fnv(positions.flat_map(u64::to_le_bytes))
            ));
        }
        let expected = path.with_extension("fnv");
        if !expected.exists() && std::env::var_os("CACHEG_WRITE_GOLDEN").is_some() {
            std::fs::write(&expected, &digest).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&expected).unwrap(), digest, "{}", path.display());
        seen += 1;
    }
    assert!(seen > PRESETS.iter().filter(|preset| !preset.statistics).count() + 4);
}
