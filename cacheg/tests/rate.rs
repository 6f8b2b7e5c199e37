//! KV caches encoded with so many bits as are wanted.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::calibrate_with;
use cacheg::{Encoder, Pipeline, rate};
use common::{cache, decode, even, importance, rmse};

/// Of a ladder.
fn level(step: f32, importance: &str) -> String {
    format!("sinks(first=2)|unrope|mean|klt|steps(step={step}{importance})|rans(tables=scale)")
}

const GRADED: &str = ";importance=attention;power=0.5";
const TOKENS: usize = 300;

/// Those levels, calibrated on another KV cache.
fn levels(specs: &[String]) -> (Vec<(usize, Encoder)>, cacheg::Profile) {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (other, attention) = (cache(&geometry, 256, 2), importance(&geometry, 256, 3));
    let pipelines: Vec<Pipeline> =
        specs.iter().map(|spec| Pipeline::parse(&registry, spec).unwrap()).collect();
    let views = [other.view().with_importance(&attention).unwrap()];
    let profile = calibrate_with(&pipelines, &views, 256, None, &|_| ()).unwrap();
    let encoders = pipelines.into_iter().enumerate();
    let encoder = |(at, pipeline)| (at, Encoder::new(pipeline, &geometry, Some(&profile)).unwrap());
    (encoders.map(encoder).collect(), profile)
}

#[test]
fn wanted_rates_are_met() {
    let registry = cacheg::builtins().unwrap();
    let geometry = even();
    let (kv, attention) = (cache(&geometry, TOKENS, 1), importance(&geometry, TOKENS, 4));
    let view = kv.view().with_importance(&attention).unwrap();
    let (levels, profile) = levels(&[level(0.3, GRADED), level(1.5, GRADED)]);
    let usual: Vec<f64> = levels
        .iter()
        .map(|(_, encoder)| {
            let bytes = encoder.encode(&view, 0..TOKENS, &|_| ()).unwrap().len();
            bytes as f64 * 8.0 / (geometry.values_per_token() * TOKENS as u64) as f64
        })
        .collect();
    let mut last = f64::INFINITY;
    // From beyond the finest level to beyond the coarsest.
    for (share, on) in [(1.15, 0), (0.9, 0), (0.72, 0), (0.3, 1), (0.05, 1), (-0.1, 1)] {
        let wanted = usual[1] + share * (usual[0] - usual[1]);
        let found = rate::of_bits(&view, &levels, TOKENS, wanted).unwrap();
        assert!((found.bits_per_value / wanted - 1.0).abs() < rate::TOLERANCE, "{wanted}: {found:?}");
        assert_eq!(found.level, on, "{wanted} of {usual:?}");
        let mut bytes = Vec::new();
        let none = std::collections::BTreeMap::new();
        cacheg::flow::encode(&view, &none, &found.encoder, TOKENS, &mut bytes, &|_| ()).unwrap();
        let bits = bytes.len() as f64 * 8.0 / (geometry.values_per_token() * TOKENS as u64) as f64;
        assert!((bits - found.bits_per_value).abs() < 1e-9);
        assert!(found.bits_per_value < last);
        last = found.bits_per_value;
        // Decoders know nothing of it; the fewer bits, the more error.
        let error = rmse(&kv, &decode(&registry, &bytes, Some(&profile)).unwrap());
        assert!(error > 0.0 && error < rmse(&kv, &cacheg::KvCache::zeros(&geometry, TOKENS, 0)));
    }
}

#[test]
fn rates_that_cannot_be_met_are_refused() {
    let geometry = even();
    let (kv, attention) = (cache(&geometry, TOKENS, 1), importance(&geometry, TOKENS, 4));
    let view = kv.view().with_importance(&attention).unwrap();
    let (graded, _) = levels(&[level(0.5, GRADED)]);
    let message = |levels: &[(usize, Encoder)], wanted: f64| {
        rate::of_bits(&view, levels, TOKENS, wanted).unwrap_err().to_string()
    };
    assert!(message(&graded, 20.0).contains("as near as its steps can be moved"));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(message(&graded, bad).contains("positive"));
    }
    assert!(message(&[], 1.0).contains("no level"));
    let (alike, _) = levels(&[level(0.5, ""), level(2.0, "")]);
    assert!(alike[0].1.shifted(1.0).is_none());
    let near = rate::of_bits(&view, &alike, TOKENS, 3.0).map(|found| found.bits_per_value);
    let bits = near.unwrap_or_else(|error| {
        let text = error.to_string();
        assert!(text.contains("whose steps cannot be moved"), "{text}");
        text.split("takes ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
    });
    // What a level takes can be had.
    let found = rate::of_bits(&view, &alike, TOKENS, bits * 1.03).unwrap();
    assert_eq!(found.shift, 0.0);
    let none = rate::of_bits(&cacheg::KvCache::zeros(&geometry, 0, 0).view(), &alike, TOKENS, 1.0);
    assert!(none.unwrap_err().to_string().contains("no tokens"));
}
