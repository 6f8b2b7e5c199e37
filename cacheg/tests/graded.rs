//! Pipelines that give single tokens finer or coarser steps, there and back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::{Container, Statistics, calibrate_with, reseal};
use cacheg::{ErrorKind, Geometry, KvCache, Limits, Pipeline, Profile, Registry, Result};
use common::{cache, decode, encode, encode_with, even, importance, mixed, rmse, statistics};

const ATTENTION: &str =
    "sinks(first=2)|unrope|mean|klt|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)";
const PREDICTED: &str = "sinks(first=2)|unrope|mean|predict|klt|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)";
const KEY: &str = "sinks(first=2)|unrope|mean|klt(metric=sensitivity)|\
    steps(step=0.5;unit=sensitivity;importance=key;power=0.5)|range(tables=scale)";

const TOKENS: usize = 100;

/// Layers with keys and values of as many heads, and nothing else.
fn plain() -> Geometry {
    Geometry::new(even().groups()[..2].iter().copied()).unwrap()
}

fn profile(
    registry: &Registry,
    spec: &str,
    geometry: &Geometry,
    known: Option<&Statistics>,
) -> Result<Profile> {
    let (other, attention) = (cache(geometry, 128, 2), importance(geometry, 128, 3));
    let pipeline = Pipeline::parse(registry, spec)?;
    calibrate_with(&[pipeline], &[other.view().with_importance(&attention)?], 64, known, &|_| ())
}

/// Mean square errors of each head's tokens, in a plane.
fn errors(a: &KvCache, b: &KvCache, plane: usize) -> Vec<Vec<f64>> {
    let of = &a.view().planes()[plane].clone();
    let load = |kv: &KvCache| {
        let mut values = vec![0.0; TOKENS * of.channels()];
        kv.view().load(plane, 0, TOKENS, &mut values);
        values
    };
    let (a, b, dim) = (load(a), load(b), of.shape.head_dim as usize);
    let error = |token: usize, head: usize| {
        let range = token * of.channels() + head * dim..token * of.channels() + (head + 1) * dim;
        let pairs = a[range.clone()].iter().zip(&b[range]);
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / dim as f64
    };
    (0..of.shape.heads as usize).map(|head| (0..TOKENS).map(|token| error(token, head)).collect()).collect()
}

#[test]
fn tokens_that_matter_have_smaller_errors() {
    let registry = cacheg::builtins().unwrap();
    for spec in [ATTENTION, PREDICTED] {
        let geometry = even();
        let (kv, attention) = (cache(&geometry, TOKENS, 1), importance(&geometry, TOKENS, 4));
        let profile = profile(&registry, spec, &geometry, None).unwrap();
        for chunk in [TOKENS, 33, 1] {
            let bytes = encode_with(&registry, spec, &kv, &attention, Some(&profile), chunk).unwrap();
            let back = decode(&registry, &bytes, Some(&profile)).unwrap();
            let spread = rmse(&kv, &KvCache::zeros(&geometry, TOKENS, 0));
            assert!(rmse(&kv, &back) < 0.5 * spread, "{spec}: {} of {spread}", rmse(&kv, &back));
            // The same on any number of threads.
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            one.install(|| {
                let again = encode_with(&registry, spec, &kv, &attention, Some(&profile), chunk).unwrap();
                assert_eq!(again, bytes, "{spec}");
                assert_eq!(decode(&registry, &bytes, Some(&profile)).unwrap(), back, "{spec}");
            });
            if chunk != TOKENS {
                continue;
            }
            for (layer, plane) in [(0, 0), (1, 3)] {
                for (head, errors) in errors(&kv, &back, plane).iter().enumerate() {
                    let got = attention.recent(layer, head);
                    let mean = |wanted: fn(f32) -> bool| {
                        let own: Vec<f64> =
                            (2..TOKENS).filter(|t| wanted(got[*t])).map(|t| errors[t]).collect();
                        own.iter().sum::<f64>() / own.len() as f64
                    };
                    let (much, little) = (mean(|a| a > 8.0), mean(|a| a < 2.0));
                    assert!(much < 0.7 * little, "{spec}, plane {plane}: {much} {little}");
                }
            }
        }
    }
}

#[test]
fn importance_is_guessed_from_keys() {
    let registry = cacheg::builtins().unwrap();
    let geometry = plain();
    let known = statistics(&geometry, 5);
    let profile = profile(&registry, KEY, &geometry, Some(&known)).unwrap();
    let kv = cache(&geometry, TOKENS, 1);
    let bytes = encode(&registry, KEY, &kv, Some(&profile), TOKENS).unwrap();
    let back = decode(&registry, &bytes, Some(&profile)).unwrap();
    let spread = rmse(&kv, &KvCache::zeros(&geometry, TOKENS, 0));
    assert!(rmse(&kv, &back) < 0.7 * spread, "{} of {spread}", rmse(&kv, &back));
    // The chunk carries grades, and every byte is accounted for.
    let container = Container::parse(&bytes, &Limits::default()).unwrap();
    let chunk = &container.chunks[0];
    let (sizes, ideal) = chunk.account(&chunk.bind(&registry, Some(&profile)).unwrap()).unwrap();
    assert_eq!(sizes.total(), chunk.len());
    assert!(sizes.carried[4] > 40, "{:?}", sizes.carried);
    // What the coder's stream may have over its ideal length: 8 bytes, and rounding, for each of a few tiles.
    let ideal = ideal.unwrap() / 8.0;
    assert!(
        (sizes.tiles.stream as f64 - ideal).abs() < 0.02 * ideal + 100.0,
        "{} {ideal}",
        sizes.tiles.stream
    );
}

#[test]
fn what_is_missing_is_named() {
    let registry = cacheg::builtins().unwrap();
    let refused = |result: Result<Vec<u8>>, kind, says: &str| {
        let error = result.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(says), "{error}");
    };
    let (geometry, kv) = (plain(), cache(&plain(), TOKENS, 1));
    let good = profile(&registry, ATTENTION, &geometry, None).unwrap();
    refused(encode(&registry, ATTENTION, &kv, Some(&good), 64), ErrorKind::InvalidData, "importance=key");
    refused(encode(&registry, ATTENTION, &kv, None, 64), ErrorKind::Profile, "needs a profile");
    let error = profile(&registry, KEY, &geometry, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Profile && error.to_string().contains("--statistics"), "{error}");
    // Tokens of a selection, heads that keys and values do not share, models without keys.
    let dropping = "h2o(keep=0.5)|mean|steps(importance=attention)|rans(tables=scale)";
    let error = profile(&registry, dropping, &geometry, None).unwrap_err();
    assert!(error.to_string().contains("selection"), "{error}");
    let error = profile(&registry, ATTENTION, &mixed(), None).unwrap_err();
    assert!(error.to_string().contains("as many heads"), "{error}");
    let error = profile(&registry, KEY, &even(), Some(&statistics(&even(), 5))).unwrap_err();
    assert!(error.to_string().contains("needs keys and values"), "{error}");
    // Parts, which no grades can be told of.
    let parts = "anchor-delta|steps(importance=attention)|rans(tables=scale)";
    let error = profile(&registry, parts, &geometry, None).unwrap_err();
    assert!(error.to_string().contains("one part"), "{error}");
}

/// Damage is noticed; and with checksums made right it is an error, or rubbish comes out, but nothing panics.
#[test]
fn damaged_chunks() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, attention) = (cache(&geometry, TOKENS, 1), importance(&geometry, TOKENS, 4));
    let profile = profile(&registry, ATTENTION, &geometry, None).unwrap();
    let bytes = encode_with(&registry, ATTENTION, &kv, &attention, Some(&profile), TOKENS).unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 997) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(decode(&registry, &bad, Some(&profile)).is_err(), "byte {at}");
        assert!(decode(&registry, &bytes[..at], Some(&profile)).is_err(), "cut at {at}");
        reseal::container(&mut bad);
        let _ = decode(&registry, &bad, Some(&profile));
    }
}
