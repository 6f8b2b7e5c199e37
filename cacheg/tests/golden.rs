//! Containers that older versions wrote. Never rewritten; `CACHEG_WRITE_GOLDEN=1` adds missing ones.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::path::PathBuf;

use cacheg::core::{LayerGroup, Order};
use cacheg::{Geometry, KvCache, KvView, PRESETS, Pipeline, Profile, calibrate};
use common::{decode, encode};

/// Of the version that writes today.
const VERSION: &str = "v0.1";

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
    for preset in PRESETS {
        let bytes = encode(&registry, preset.spec(None).unwrap(), &input(), None, 8).unwrap();
        let version = if preset.levels[0].starts_with("sinks") { EXACT } else { VERSION };
        check(&format!("{version}-{}.cgkv", preset.name), &bytes);
    }
    let spec = "mean|uniform(bits=3)|rans";
    let profile =
        calibrate(&[Pipeline::parse(&registry, spec).unwrap()], &[input().view()], 8, &|_| ()).unwrap();
    check(&format!("{VERSION}-profile.cgprof"), profile.bytes());
    check(&format!("{VERSION}-profile.cgkv"), &encode(&registry, spec, &input(), Some(&profile), 8).unwrap());

    let mut seen = 0;
    let mut files: Vec<_> = std::fs::read_dir(golden("")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "cgkv")) {
        let profile = std::fs::read(path.with_extension("cgprof"))
            .ok()
            .map(|bytes| Profile::from_bytes(bytes).unwrap());
        let cache = decode(&registry, &std::fs::read(path).unwrap(), profile.as_ref()).unwrap();
        let mut digest = String::new();
        for plane in cache.geometry().planes() {
            let sum = cache.plane_bytes(plane.index).iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            digest.push_str(&format!("{} {sum:016x}\n", plane.name()));
        }
        let expected = path.with_extension("fnv");
        if !expected.exists() && std::env::var_os("CACHEG_WRITE_GOLDEN").is_some() {
            std::fs::write(&expected, &digest).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&expected).unwrap(), digest, "{}", path.display());
        seen += 1;
    }
    assert!(seen > PRESETS.len());
}
