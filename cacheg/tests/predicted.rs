//! Pipelines that predict planes from others, there and back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::{Container, Dtype, LayerGroup, reseal};
use cacheg::{ErrorKind, Geometry, KvCache, Limits, Pipeline, Profile, Registry, calibrate};
use common::{cache, decode, encode, mixed, rmse, shape};

const SPEC: &str = "sinks(first=2)|unrope|mean|predict|klt|bins(step=0.25)|rans";

/// 100 tokens, and a profile of others.
fn setup(registry: &Registry, spec: &str, [kv, other]: [KvCache; 2]) -> (KvCache, Profile) {
    let pipeline = Pipeline::parse(registry, spec).unwrap();
    let profile = calibrate(&[pipeline], &[other.view()], 64, &|_| ()).unwrap();
    (kv, profile)
}

/// Of the sample.
fn real() -> [KvCache; 2] {
    let file = cacheg::sample().unwrap();
    [KvCache::copy_of(&file.view(), 0, 100), KvCache::copy_of(&file.view(), 40, 128)]
}

/// Of layers that differ in everything.
fn made() -> [KvCache; 2] {
    [cache(&mixed(), 100, 1), cache(&mixed(), 128, 2)]
}

#[test]
fn decoders_predict_as_encoders_do() {
    let registry = cacheg::builtins().unwrap();
    let all = [
        (SPEC, real()),
        (SPEC, made()),
        ("predict(layers=2;v-from-k=false)|uniform(bits=6)|raw", made()),
        ("mean|klt|predict|bins(step=0.5)|range", made()),
    ];
    for (spec, caches) in all {
        let (kv, profile) = setup(&registry, spec, caches);
        let spread = rmse(&kv, &KvCache::zeros(kv.geometry(), 100, 0));
        for chunk in [100, 33, 1] {
            let bytes = encode(&registry, spec, &kv, Some(&profile), chunk).unwrap();
            let back = decode(&registry, &bytes, Some(&profile)).unwrap();
            assert!(rmse(&kv, &back) < 0.25 * spread, "{spec}: {} of {spread}", rmse(&kv, &back));
            // The same on any number of threads.
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            one.install(|| {
                assert_eq!(encode(&registry, spec, &kv, Some(&profile), chunk).unwrap(), bytes, "{spec}");
                assert_eq!(decode(&registry, &bytes, Some(&profile)).unwrap(), back, "{spec}");
            });
        }
    }
}

/// Tokens of 100 layers, each of which adds a little to the one before.
fn deep(tokens: usize, seed: u64) -> KvCache {
    let shape = shape(2, 8, Dtype::F32);
    let layers = LayerGroup { repeat: 100, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([layers]).unwrap();
    let mut random = cacheg::core::testkit::Random::new(seed);
    let mut planes: Vec<Vec<f32>> = Vec::new();
    for plane in 0..200 {
        let noise = (0..tokens * 16).map(|_| random.normal());
        planes.push(match planes.len().checked_sub(2) {
            None => noise.collect(),
            Some(before) => planes[before].iter().zip(noise).map(|(x, y)| 0.98 * x + 0.2 * y).collect(),
        });
        assert_eq!(planes.len(), plane + 1);
    }
    KvCache::from_fn(&geometry, tokens, |plane, token, channel| planes[plane.index][token * 16 + channel])
}

/// Root mean square error over some planes.
fn error_in(a: &KvCache, b: &KvCache, planes: std::ops::Range<usize>) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for plane in planes {
        let load = |kv: &KvCache| {
            let mut rows = vec![0.0; kv.tokens() * 16];
            kv.view().load(plane, 0, kv.tokens(), &mut rows);
            rows
        };
        for (a, b) in load(a).iter().zip(load(b)) {
            sum += f64::from(a - b).powi(2);
            count += 1;
        }
    }
    (sum / f64::from(count)).sqrt()
}

/// What is predicted from what was predicted, a hundred times over, is no worse than what was not.
#[test]
fn errors_do_not_add_up_over_100_layers() {
    let registry = cacheg::builtins().unwrap();
    for step in [0.1, 0.5, 2.0] {
        let spec = |predict: &str| format!("mean|{predict}klt|bins(step={step})|rans");
        let (kv, profile) = setup(&registry, &spec("predict|"), [deep(96, 1), deep(256, 2)]);
        let bytes = encode(&registry, &spec("predict|"), &kv, Some(&profile), 96).unwrap();
        let back = decode(&registry, &bytes, Some(&profile)).unwrap();
        // The first layer is predicted from nothing.
        let all: Vec<f64> = (0..5).map(|i| error_in(&kv, &back, (40 * i).max(2)..40 * i + 40)).collect();
        let (least, most) =
            all.iter().fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(*x), high.max(*x)));
        assert!(least > 0.0 && most < 1.5 * least, "step {step}: {all:?}");
        // It does predict: what is left is much smaller than the values.
        let (kv, without) = setup(&registry, &spec(""), [deep(96, 1), deep(256, 2)]);
        let plain = decode(
            &registry,
            &encode(&registry, &spec(""), &kv, Some(&without), 96).unwrap(),
            Some(&without),
        )
        .unwrap();
        let (with, plain) = (error_in(&kv, &back, 40..200), error_in(&kv, &plain, 40..200));
        assert!(with < 0.6 * plain, "step {step}: {with} with predictions, {plain} without");
    }
}

#[test]
fn without_a_profile_or_the_other_planes_it_is_refused() {
    let registry = cacheg::builtins().unwrap();
    let (kv, profile) = setup(&registry, SPEC, made());
    let error = encode(&registry, SPEC, &kv, None, 100).unwrap_err();
    assert!(error.kind() == ErrorKind::Profile && error.to_string().contains("predict"), "{error}");
    let bytes = encode(&registry, SPEC, &kv, Some(&profile), 100).unwrap();
    let container = Container::parse(&bytes, &Limits::default()).unwrap();
    let chunk = &container.chunks[0];
    let plan = chunk.bind(&registry, Some(&profile)).unwrap();
    let mut out = KvCache::zeros(kv.geometry(), 100, 0);
    let error =
        chunk.decode_groups(&plan, 0..1, &mut out.view_mut().planes_mut()[..1], 0, &|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    // Two stages that predict.
    let twice = Pipeline::parse(&registry, "predict|predict|bins(step=0.5)|rans").unwrap();
    let error = calibrate(&[twice], &[kv.view()], 64, &|_| ()).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("second"), "{error}");
}

/// Damage is noticed; and with checksums made right it is an error, or rubbish comes out, but nothing panics.
#[test]
fn damaged_chunks() {
    let registry = cacheg::builtins().unwrap();
    let (kv, profile) = setup(&registry, SPEC, made());
    let bytes = encode(&registry, SPEC, &kv, Some(&profile), 100).unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 997) {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(decode(&registry, &bad, Some(&profile)).is_err(), "byte {at}");
        assert!(decode(&registry, &bytes[..at], Some(&profile)).is_err(), "cut at {at}");
        reseal::container(&mut bad);
        let _ = decode(&registry, &bad, Some(&profile));
    }
}
