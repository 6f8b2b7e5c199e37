//! Damaged and dishonest input: an error, never a panic, never rubbish.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::{Chunk, Container, Dtype, LayerGroup, reseal};
use cacheg::{ErrorKind, Geometry, KvCache, Limits, Pipeline, Profile, calibrate, spec};
use common::{cache, decode, encode, mixed, shape, specs};

#[test]
fn every_flip_and_every_truncation_is_noticed() {
    let registry = cacheg::builtins().unwrap();
    let bytes = encode(
        &registry,
        "mean|bins(step=0.5)|rans(tables=class;classes=4)",
        &cache(&mixed(), 13, 1),
        None,
        8,
    )
    .unwrap();
    let good = decode(&registry, &bytes, None).unwrap();
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= mask;
            // Only a version that we do not know is not corruption.
            let error = decode(&registry, &bad, None).expect_err("a flipped byte");
            let known = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Limit];
            assert!(known.contains(&error.kind()), "byte {at}: {error}");
        }
        assert!(decode(&registry, &bytes[..at], None).is_err(), "cut at {at}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(decode(&registry, &longer, None).is_err());
    assert_eq!(decode(&registry, &bytes, None).unwrap(), good);
}

/// The same with checksums made right, as somebody who means it would.
#[test]
fn flips_under_right_checksums_never_panic() {
    let registry = cacheg::builtins().unwrap();
    let kv = cache(&mixed(), 11, 1);
    let mut limits = Limits::default();
    limits.max_output = 1 << 24;
    for spec in specs() {
        let bytes = encode(&registry, spec, &kv, None, 50).unwrap();
        // Every byte of the shorter ones; a coprime stride through the longer.
        let stride = (bytes.len() / 1_500).max(1) | 1;
        for at in (0..bytes.len()).step_by(stride) {
            for mask in [0x01, 0x40, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= mask;
                reseal::container(&mut bad);
                let decode =
                    cacheg::flow::Decode { registry: &registry, profile: None, backend: &cacheg::core::Cpu };
                let _ = decode.run(&bad, &limits, &|_| ());
            }
        }
    }
}

#[test]
fn absurd_lengths_are_limits_and_allocate_nothing() {
    let registry = cacheg::builtins().unwrap();
    let bytes = encode(&registry, "uniform|raw", &cache(&mixed(), 3, 1), None, 50).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find("\"tokens\":3").unwrap();
    // The container's header says how many tokens there are; make it many, in as many digits as padding allows.
    let mut bad = bytes.clone();
    let digits = b"\"tokens\":9e9";
    let from = bad.windows(10).position(|w| w == b"\"tokens\":3").unwrap();
    assert!(at > 0);
    bad.splice(from..from + 10, digits.iter().copied());
    reseal::container(&mut bad);
    assert!(decode(&registry, &bad, None).is_err());

    let mut limits = Limits::default();
    limits.max_output = 100;
    assert_eq!(Container::parse(&bytes, &limits).unwrap_err().kind(), ErrorKind::Limit);
    let mut limits = Limits::default();
    limits.max_header = 10;
    assert_eq!(Container::parse(&bytes, &limits).unwrap_err().kind(), ErrorKind::Limit);
    let mut limits = Limits::default();
    limits.max_tile_values = 10;
    assert_eq!(Container::parse(&bytes, &limits).unwrap_err().kind(), ErrorKind::Limit);
    let mut chunk = bytes[Container::parse(&bytes, &Limits::default()).unwrap().header_bytes..].to_vec();
    chunk[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Chunk::parse(&chunk, &Limits::default()).unwrap_err().kind(), ErrorKind::Limit);
    chunk[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Chunk::parse(&chunk, &Limits::default()).is_err());
}

#[test]
fn a_missing_or_wrong_profile_is_named() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    let spec = "mean|uniform(bits=4)|rans";
    let pipeline = || Pipeline::parse(&registry, spec).unwrap();
    let profile = |seed| calibrate(&[pipeline()], &[cache(&geometry, 40, seed).view()], 40, &|_| ()).unwrap();
    let (right, wrong) = (profile(1), profile(2));
    let bytes = encode(&registry, spec, &cache(&geometry, 20, 3), Some(&right), 50).unwrap();
    let error = decode(&registry, &bytes, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Profile);
    assert!(error.to_string().contains(right.hash()), "{error}");
    let error = decode(&registry, &bytes, Some(&wrong)).unwrap_err().to_string();
    assert!(error.contains(right.hash()) && error.contains(wrong.hash()), "{error}");

    // A profile that was calibrated for another pipeline, or for another model.
    let error =
        encode(&registry, "uniform(bits=3)|rans", &cache(&geometry, 20, 3), Some(&right), 50).unwrap_err();
    assert!(error.kind() == ErrorKind::Profile && error.to_string().contains("calibrated for"), "{error}");
    let sample = cacheg::sample().unwrap();
    let kv = KvCache::copy_of(&sample.view(), 0, 5);
    let error = encode(&registry, spec, &kv, Some(&right), 50).unwrap_err();
    assert!(error.kind() == ErrorKind::Profile && error.to_string().contains("another model"), "{error}");

    // A profile is named by its bytes and reads back the same.
    let again = Profile::from_bytes(right.bytes().to_vec()).unwrap();
    assert_eq!(again.hash(), right.hash());
    assert_eq!(profile(1).hash(), right.hash());
    for cut in (0..right.bytes().len()).step_by(37) {
        assert!(Profile::from_bytes(right.bytes()[..cut].to_vec()).is_err());
    }
    let mut damaged = right.bytes().to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(Profile::from_bytes(damaged).map_or(true, |profile| profile.hash() != right.hash()));
}

#[test]
fn another_format_version_is_refused_by_name() {
    let registry = cacheg::builtins().unwrap();
    let mut stages = spec::parse("mean|uniform|rans").unwrap();
    stages[2].version = Some(9);
    let error = Pipeline::new(&registry, &stages).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("`rans`") && error.to_string().contains('9'), "{error}");
    let mut bytes = encode(&registry, "uniform|raw", &cache(&mixed(), 3, 1), None, 50).unwrap();
    bytes[5] = 7;
    let error = decode(&registry, &bytes, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("0.7"), "{error}");
}

/// Claims of exact tokens that the bytes, the tokens or the stage do not bear out.
#[test]
fn false_claims_of_exact_tokens_are_refused() {
    let registry = cacheg::builtins().unwrap();
    let kv = cache(&mixed(), 9, 1);
    let right = encode(&registry, "sinks(first=2)|uniform|raw", &kv, None, 50).unwrap();
    decode(&registry, &right, None).unwrap();
    // Of the same length, so that nothing else moves.
    for (from, to) in [
        ("\"exact\":[2,0]", "\"exact\":[0,2]"),
        ("\"exact\":[2,0]", "\"exact\":[3,0]"),
        ("\"exact\":[2,0]", "\"exact\":[0,0]"),
        ("\"exact\":[2,0]", "\"exact\":[1,0]"),
        ("\"first\":2,\"last\":0", "\"first\":1,\"last\":0"),
    ] {
        let at = right.windows(from.len()).position(|run| run == from.as_bytes()).unwrap();
        let mut bytes = right.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        reseal::container(&mut bytes);
        let error = decode(&registry, &bytes, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{to}: {error}");
    }
    let mut bytes = right.clone();
    let chunk = bytes.windows(4).position(|run| run == b"CGKC").unwrap();
    bytes[chunk + 5] = 1;
    reseal::container(&mut bytes);
    let error = decode(&registry, &bytes, None).unwrap_err().to_string();
    assert!(error.contains("the chunk's version"), "{error}");
}

#[test]
fn wrong_specs_say_what_to_write() {
    let registry = cacheg::builtins().unwrap();
    for (spec, expected) in [
        ("mean|uniform|rnas", "did you mean `rans`"),
        ("mean|uniform(bit=4)|rans", "`bit`"),
        ("mean|uniform(bits=four)|rans", "uniform"),
        ("uniform(bits=99)|rans", "bits"),
        ("mean|rans", "one quantizer"),
        ("uniform", "no coder"),
        ("uniform|mean|rans", "transform `mean`"),
        ("uniform|rans|rans", "coder `rans`"),
        ("anchor-delta(group=0)|uniform|rans", "group"),
        ("sinks|mean|sinks(last=2)|uniform|rans", "another stage"),
        ("sinks(first=5000)|uniform|rans", "first"),
    ] {
        let error = Pipeline::parse(&registry, spec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSetting, "{spec}");
        assert!(error.to_string().contains(expected), "{spec}: {error}");
    }
}

/// What no reader would take is not written.
#[test]
fn encoders_keep_to_the_readers_limits() {
    let registry = cacheg::builtins().unwrap();
    let wide =
        LayerGroup { repeat: 1, key: shape(1, 12_288, Dtype::F8E4m3), value: None, latent: None, rope: None };
    let kv = KvCache::zeros(&Geometry::new([wide]).unwrap(), 1_500, 0);
    let error =
        encode(&registry, "uniform(bits=4;axis=channel;group=1500)|raw", &kv, None, 1_500).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    let many = LayerGroup {
        repeat: 4_096,
        key: shape(1, 8_192, Dtype::F8E4m3),
        value: None,
        latent: None,
        rope: None,
    };
    assert_eq!(Geometry::new([many]).unwrap_err().kind(), ErrorKind::Limit);
    let long = vec!["identity"; 20].join("|") + "|uniform|raw";
    assert_eq!(Pipeline::parse(&registry, &long).unwrap_err().kind(), ErrorKind::Limit);
}

#[test]
fn no_setting_and_no_transform_makes_rubbish_silently() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    let kv = cache(&geometry, 20, 1);
    for spec in ["mean|bins(step=1e300)|raw", "anchor-delta|bins(step=1;level=1e300)|rans"] {
        let error = encode(&registry, spec, &kv, None, 50).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("too large"),
            "{error}"
        );
    }
    // `bytes` keeps every bit, but the transforms before it may not.
    let nan = KvCache::from_fn(&geometry, 4, |_, token, _| if token == 2 { f32::NAN } else { 1.0 });
    let large =
        KvCache::from_fn(&geometry, 4, |plane, token, _| plane.shape.dtype.max() * [1.0, -1.0][token % 2]);
    for transform in ["hadamard", "anchor-delta"] {
        for kv in [&nan, &large] {
            let error = encode(&registry, &format!("{transform}|bytes|raw"), kv, None, 50).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{transform}: {error}");
        }
    }
    let bytes = encode(&registry, "identity|bytes|raw", &nan, None, 50).unwrap();
    assert_eq!(decode(&registry, &bytes, None).unwrap(), nan);
}

/// A stage without its version would lose the guard against other versions.
#[test]
fn pipelines_and_geometries_must_be_written_out() {
    let registry = cacheg::builtins().unwrap();
    let bytes = encode(&registry, "identity|uniform|raw", &cache(&mixed(), 3, 1), None, 50).unwrap();
    let text = br#"{"config":{},"name":"identity","version":1},"#;
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    let mut bad = bytes.clone();
    let short = br#"{            "name":"identity"            },"#;
    bad[at..at + text.len()].copy_from_slice(&short[..]);
    reseal::container(&mut bad);
    let error = decode(&registry, &bad, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("written out"), "{error}");
    let unmerged = r#"{"layers":[{"key":{"dtype":"f16","head_dim":4,"heads":1}},{"key":{"dtype":"f16","head_dim":4,"heads":1}}]}"#;
    let geometry: Geometry = serde_json::from_str(unmerged).unwrap();
    assert!(geometry.validate(&Limits::default()).is_err());
}
