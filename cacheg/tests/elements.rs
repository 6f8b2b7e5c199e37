//! Pipelines whose symbols stand for elements do without symbols where the coder can; what comes out is what the stages
//! would have made, bit for bit.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::Order;
use cacheg::{KvCache, KvView, Pipeline, Registry, calibrate};
use common::{cache, decode, encode, mixed};

/// Of no value that tests use.
const FAR: f32 = 30_000.0;

/// The same stages with a coder that knows of no elements.
fn check(registry: &Registry, stages: &str, kv: &KvCache, other: &KvCache, chunk: usize) {
    let of = |coder: &str| {
        let spec = format!("{stages}|{coder}");
        let pipeline = Pipeline::parse(registry, &spec).unwrap();
        // Of `other`, so that some values are far out.
        let profile = calibrate(&[pipeline], &[other.view()], 1_500, &|_| ()).unwrap();
        [None, Some(&profile)].map(|profile| {
            let bytes = encode(registry, &spec, kv, profile, chunk).unwrap();
            decode(registry, &bytes, profile).unwrap()
        })
    };
    let want = of("raw");
    for coder in ["rans(tables=channel)", "rans", "rans(contexts=3)"] {
        assert!(of(coder) == want, "{stages}|{coder}, {} tokens", kv.tokens());
    }
}

#[test]
fn elements_are_what_the_stages_make() {
    let registry = cacheg::builtins().unwrap();
    let sample = cacheg::sample().unwrap();
    // Long enough for plans of one chunk to be tabulated, too.
    let long = |first: usize, tokens: usize| {
        let view = sample.view();
        KvCache::from_fn(view.geometry(), tokens, |plane, token, channel| {
            let mut row = vec![0.0; plane.channels()];
            view.load(plane.index, (first + token) % view.tokens(), 1, &mut row);
            row[channel]
        })
    };
    for stages in [
        "mean|bins(step=0.5;reach=15)",
        "bins(step=0.3;reach=9)",
        "mean|identity|bins(step=2;reach=1)",
        "mean|steps(step=0.4)",
    ] {
        check(&registry, stages, &KvCache::copy_of(&sample.view(), 40, 97), &long(0, 60), 1_500);
    }
    check(&registry, "mean|bins(step=0.5;reach=15)", &long(3, 600), &long(0, 60), 1_500);
}

/// Rows between exact ones: they begin and end anywhere in the output.
#[test]
fn between_exact_tokens() {
    let registry = cacheg::builtins().unwrap();
    let sample = cacheg::sample().unwrap();
    let (kv, other) = (KvCache::copy_of(&sample.view(), 0, 160), KvCache::copy_of(&sample.view(), 60, 100));
    for (sinks, chunk) in [("sinks", 1_500), ("sinks(first=3;last=7)", 1_500), ("sinks(first=40;last=9)", 50)]
    {
        check(&registry, &format!("{sinks}|mean|bins(step=0.5;reach=15)"), &kv, &other, chunk);
    }
}

/// Layers that differ, of all element types: those that have no 16 bits keep everybody from it.
#[test]
fn other_geometries() {
    let registry = cacheg::builtins().unwrap();
    let geometry = mixed();
    let narrow = cacheg::Geometry::new(geometry.groups()[..1].iter().copied()).unwrap();
    for geometry in [geometry, narrow] {
        check(
            &registry,
            "mean|bins(step=0.4;reach=14)",
            &cache(&geometry, 90, 1),
            &cache(&geometry, 70, 2),
            64,
        );
    }
}

/// Few escapes are filled in, many are left to the stages; both ways.
#[test]
fn escapes() {
    let registry = cacheg::builtins().unwrap();
    let geometry = cacheg::Geometry::new(mixed().groups()[..1].iter().copied()).unwrap();
    let other = cache(&geometry, 70, 2);
    for every in [7, 1_999, 100_000] {
        let mut count = 0;
        let base = cache(&geometry, 600, 1);
        let kv = KvCache::from_fn(&geometry, 600, |plane, token, channel| {
            let mut row = vec![0.0; plane.channels()];
            base.view().load(plane.index, token, 1, &mut row);
            count += 1;
            if count % every == 0 { if count % 2 == 0 { FAR } else { -FAR } } else { row[channel] }
        });
        check(&registry, "mean|bins(step=0.5;reach=15)", &kv, &other, 1_500);
    }
}

/// Whoever encodes them, values that cannot be coded are reported alike.
#[test]
fn values_that_are_not_finite() {
    let registry = cacheg::builtins().unwrap();
    let geometry = cacheg::Geometry::new(mixed().groups()[..1].iter().copied()).unwrap();
    let good = cache(&geometry, 40, 2);
    let mut bytes: Vec<Vec<u8>> =
        (0..geometry.planes().len()).map(|plane| good.plane_bytes(plane).to_vec()).collect();
    for element in [0x7c00u16, 0xfc00, 0x7e01, 0xffff] {
        bytes[1][2 * 37..][..2].copy_from_slice(&element.to_le_bytes());
        let slices = bytes.iter().map(Vec::as_slice).collect();
        let view = KvView::new(geometry.clone(), 40, 0, Order::HeadMajor, slices).unwrap();
        let error = |coder: &str| {
            let spec = format!("mean|bins(step=0.5;reach=15)|{coder}");
            let pipeline = Pipeline::parse(&registry, &spec).unwrap();
            let profile = calibrate(std::slice::from_ref(&pipeline), &[good.view()], 1_500, &|_| ()).unwrap();
            let encoder = cacheg::Encoder::new(pipeline, &geometry, Some(&profile)).unwrap();
            encoder.encode(&view, 0..40, &|_| ()).unwrap_err().to_string()
        };
        let message = error("raw");
        assert!(message.contains("layers.0.value") && message.contains("token 4"), "{message}");
        assert_eq!(error("rans"), message);
    }
}
