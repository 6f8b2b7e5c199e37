//! All programs of both variants, executed without any GPU, against the CPU.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

#[path = "parity/profiles.rs"]
mod profiles;

use std::sync::{Arc, LazyLock};

use cacheg_core::testkit::{Random, even_heads, models};
use cacheg_core::{
    Backend, Chunk, Cpu, Encoder, Geometry, KvCache, KvOut, Limits, Pipeline, Plan, Profile, Registry,
    Result, reseal,
};
use cacheg_gpu::{Recorded, Simulated, Variant, simulate};

const PIPELINES: &[&str] = &[
    "mean|bins(step=0.4;reach=15)|rans",
    "mean|hadamard|lloyd-max(bits=4)|raw",
    "hadamard|lloyd-max(bits=3)|rans",
    "sinks(first=4)|mean|bins(step=0.4;level=1;reach=15)|rans(tables=channel;carried=class)",
    "sinks(first=1;last=2)|mean|bins(step=0.4;level=0.5;reach=31)|rans(contexts=3)",
    "mean|bins(step=0.2;reach=60)|rans(contexts=3)",
    "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=0.5)|range(tables=channel;carried=class)",
    "anchor-delta(group=3)|bins(scale=f16;anchor=200)|rans",
    "identity|bins(k=32,16,16;v=32,16;scale=f16)|range(tables=channel;streams=channel;cdf=33)",
    "bins(k=5;v=255)|raw",
    "uniform(bits=8;axis=token;group=32)|raw",
    "uniform(bits=3;axis=channel;zero=true)|rans",
    "uniform(bits=4;axis=channel,token;group=32;zero=true;scale=bf16)|raw",
    "uniform(bits=2;axis=channel;group=5;zero=true)|range",
    "bytes|rans(tables=class;classes=256)",
    "bytes|rans(contexts=3)",
];

/// The same with profiles.
const PROFILED: &[&str] = &[
    "mean|steps(step=0.5;importance=attention;power=0.5)|rans(tables=scale)",
    "mean|klt|steps(step=0.5;reach=3;importance=attention;power=0.5)|range(tables=scale)",
    "sinks(first=1)|mean|predict|klt|steps(step=0.5;reach=3;importance=attention;power=0.5)|rans(tables=scale)",
    "mean|klt|predict(layers=2)|bins(step=0.5)|rans",
];

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap()
});

/// Offsets by channel, a few values far outside.
fn encode(geometry: &Geometry, tokens: usize, spec: &str) -> Vec<u8> {
    let mut random = Random::new(7);
    let cache = KvCache::from_fn(geometry, tokens, |_, _, channel| {
        let far = if random.below(97) == 0 { 20.0 } else { 1.0 };
        (channel % 7) as f32 - 3.0 + random.normal() * 0.5 * far
    });
    let pipeline = Pipeline::parse(&REGISTRY, spec).unwrap();
    let encoder = Encoder::new(pipeline, geometry, None).unwrap();
    encoder.encode(&cache.view(), 0..tokens, &|_| ()).unwrap().to_vec()
}

/// What the CPU makes of a chunk, as recordings have it: without exact rows.
fn decode(chunk: &Chunk<'_>, plan: &Arc<Plan>) -> Result<Vec<u32>> {
    let rows = chunk.rows();
    let mut cache = KvCache::zeros(chunk.geometry(), rows, 0);
    Cpu.decoder(plan.clone())?.decode(chunk, KvOut::Host(&mut cache.view_mut(), 0), &|_| ())?;
    let [first, last] = chunk.exact_rows();
    let mut words = Vec::new();
    for plane in chunk.geometry().planes() {
        let head = plane.shape.head_dim as usize * plane.shape.dtype.size();
        let view = cache.view();
        let heads = view.plane_bytes(plane.index).chunks(rows * head);
        let mut bytes: Vec<u8> =
            heads.flat_map(|bytes| &bytes[first * head..(rows - last) * head]).copied().collect();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        words.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
    }
    Ok(words)
}

/// What the simulator makes of it; nothing that it looks for must be there, whatever the chunk holds.
fn run(chunk: &Chunk<'_>, plan: &Plan, variant: Variant, what: &str) -> Option<Simulated> {
    let recorded = Recorded::new(chunk, plan, variant).ok()?;
    let simulated = simulate(&recorded).unwrap_or_else(|error| panic!("{what}, {}: {error}", variant.name()));
    let divergent: u64 = simulated.passes.values().map(|counts| counts.divergent_subgroup_ops).sum();
    assert_eq!(
        (simulated.races, simulated.unordered, divergent),
        (0, 0, 0),
        "{what}, {}: races, unordered atomics, divergent subgroup operations",
        variant.name()
    );
    Some(simulated)
}

fn check(geometry: &Geometry, tokens: usize, spec: &str) {
    let bytes = encode(geometry, tokens, spec);
    check_bytes(&bytes, None, &format!("{spec}, {tokens} tokens, {geometry:?}"));
}

fn check_bytes(bytes: &[u8], profile: Option<&Profile>, what: &str) {
    let chunk = Chunk::parse(bytes, &Limits::default()).unwrap();
    let plan = chunk.bind(&REGISTRY, profile).unwrap();
    let expected = decode(&chunk, &plan).unwrap();
    for variant in [Variant::Portable, Variant::Subgroup] {
        let what = format!("{what}, {}", variant.name());
        let simulated = run(&chunk, &plan, variant, &what).unwrap();
        assert!(simulated.output == expected, "{what}");
        assert!(simulated.faults.iter().all(|bits| *bits == 0), "{what}: {:?}", simulated.faults);
        assert_eq!(simulated.out_of_bounds, 0, "{what}");
    }
}

#[test]
fn every_model_and_pipeline() {
    for model in models().unwrap() {
        for spec in PIPELINES {
            for tokens in [1, 33, 70] {
                // Where sinks take all tokens, there is nothing for a device to do.
                check(&model.geometry, tokens + 6, spec);
            }
        }
    }
}

/// Planes that are predicted from others, and tokens with grades.
#[test]
fn pipelines_that_need_profiles() {
    let models = models().unwrap();
    let geometries =
        [models[0].geometry.clone(), models[1].geometry.clone(), even_heads().unwrap(), profiles::broad()];
    let mut checked = 0;
    for (geometry, tokens) in geometries.iter().zip([&[1, 33, 70][..], &[33], &[40], &[20]]) {
        for spec in PROFILED {
            // Of models whose keys and values have not as many heads, nothing is graded.
            let Ok(profile) = profiles::profile(&REGISTRY, geometry, spec) else { continue };
            for tokens in tokens {
                let bytes = profiles::chunk_of(&REGISTRY, geometry, &profile, spec, *tokens);
                check_bytes(&bytes, Some(&profile), &format!("{spec}, {tokens} tokens, {geometry:?}"));
                checked += 1;
            }
        }
    }
    assert!(checked >= 5 * PROFILED.len(), "{checked}");
}

#[test]
fn tiles_of_hundreds_of_rows() {
    let models = models().unwrap();
    let wide = models.iter().find(|model| model.name == "wide").unwrap();
    for spec in PIPELINES {
        check(&wide.geometry, 300, spec);
    }
    check(&models[0].geometry, 9_000, "bins|range");
    check(&models[0].geometry, 9_000, "mean|bins(step=0.4;reach=15)|rans");
}

#[test]
fn verdicts_on_damaged_streams_are_those_of_the_cpu() {
    let geometry = &models().unwrap()[0].geometry;
    for spec in [
        "mean|bins(step=0.4;reach=15)|rans(tables=class)",
        "bins(step=0.1;reach=127)|rans(tables=class)",
        "mean|bins(step=0.4;reach=15)|rans(contexts=3)",
        "anchor-delta|bins(step=0.5)|range(tables=class)",
        "bins|range(tables=class;streams=channel)",
        "bins(k=5;v=20)|raw",
        "uniform(bits=3;group=3;zero=true)|raw",
    ] {
        let bytes = encode(geometry, 100, spec);
        let mut random = Random::new(11);
        let (mut found, mut harmless) = (0, 0);
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = bytes.len() / 2 + random.below(bytes.len() / 2);
                damaged[at] ^= 1 << random.below(8);
            }
            reseal::chunk(&mut damaged);
            let Ok(chunk) = Chunk::parse(&damaged, &Limits::default()) else { continue };
            let Ok(plan) = chunk.bind(&REGISTRY, None) else { continue };
            let expected = decode(&chunk, &plan);
            for variant in [Variant::Portable, Variant::Subgroup] {
                let simulated = run(&chunk, &plan, variant, spec);
                let fine = simulated.as_ref().is_some_and(|done| done.faults.iter().all(|bits| *bits == 0));
                match &expected {
                    Ok(expected) => {
                        assert!(fine && simulated.unwrap().output == *expected, "{spec}");
                        harmless += 1;
                    }
                    Err(error) => {
                        assert!(!fine, "{spec}: {error}");
                        found += 1;
                    }
                }
            }
        }
        assert!(found > 0 && found + harmless > 40, "{spec}: {found} found, {harmless} harmless");
    }
}

#[test]
fn missing_barriers_are_found() {
    let found = |spec: &str, variant: Variant, barrier: &str| {
        let bytes = encode(&models().unwrap()[0].geometry, 70, spec);
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&REGISTRY, None).unwrap();
        let whole = Recorded::new(&chunk, &plan, variant).unwrap();
        let missed = |at: usize| {
            let mut without = whole.clone();
            without.source.replace_range(at..at + barrier.len(), "");
            let simulated = simulate(&without).unwrap();
            simulated.races + simulated.unordered > 0
        };
        whole.source.match_indices(barrier).filter(|(at, _)| missed(*at)).count()
    };
    let rans = "mean|bins(step=0.4;reach=15)|rans";
    // Those of the ballot, and of what lanes give each other. (The ballots' also do for one of the latter.)
    assert_eq!(found(rans, Variant::Portable, "workgroupBarrier();"), 2);
    // Contexts' tables are in the workgroup's memory in both variants: before they are read, and before the next ones are written.
    let contexts = "mean|bins(step=0.4;reach=15)|rans(contexts=3)";
    assert_eq!(found(contexts, Variant::Subgroup, "workgroupBarrier();"), 2);
    // Anchors are other lanes'.
    let anchors = "anchor-delta(group=3)|bins(step=0.4;reach=15)|rans";
    assert_eq!(found(anchors, Variant::Subgroup, "storageBarrier();"), 1);
}
