//! All programs through all compilers at hand: naga to SPIR-V, Metal and HLSL, and tint, which finds what naga accepts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

#[path = "parity/profiles.rs"]
mod profiles;

use std::process::Command;

use cacheg_core::testkit::{even_heads, models};
use cacheg_core::{Encoder, Geometry, KvCache, Limits, Pipeline, Plan, Registry};
use cacheg_gpu::{Program, Variant};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// Every coder, every quantizer and every transform that has WGSL.
const PIPELINES: &[&str] = &[
    "sinks|mean|bins(step=0.4;reach=15)|rans",
    "anchor-delta|bins(step=0.5)|range",
    "identity|bins|raw",
    "mean|steps|rans(tables=scale)",
    "uniform|raw",
    "lloyd-max|raw",
    "bytes|rans(contexts=3)",
    "unrope|bins(step=0.5)|rans",
    "mean|hadamard|uniform|raw",
    "mean|klt|bins(step=0.4;reach=15)|rans",
    "unrope|hadamard|lloyd-max|rans",
];

/// The same with profiles: what works on rows of heads behind a prediction, in front of it, not at all.
const PROFILED: [&str; 4] = [
    "mean|klt|steps(importance=attention)|rans(tables=scale)",
    "sinks|unrope|mean|predict|klt|steps(importance=attention)|rans(tables=scale)",
    "mean|klt|predict|bins(step=0.5)|range",
    "predict(layers=2)|bins(step=0.5)|rans",
];

fn programs() -> Vec<(String, Program)> {
    let registry =
        Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap();
    let mut programs = Vec::new();
    // Rows that are whole words, and such that are not.
    for model in
        models().unwrap().iter().filter(|model| ["equal layers", "odd channels"].contains(&model.name))
    {
        programs_of(&registry, &model.geometry, &mut programs);
    }
    for (geometry, spec) in
        [even_heads().unwrap(), profiles::broad()].iter().flat_map(|g| PROFILED.map(|s| (g, s)))
    {
        let profile = profiles::profile(&registry, geometry, spec).unwrap();
        let bytes = profiles::chunk_of(&registry, geometry, &profile, spec, 40);
        let chunk = cacheg_core::Chunk::parse(&bytes, &Limits::default()).unwrap();
        programs_for(&chunk.bind(&registry, Some(&profile)).unwrap(), spec, &mut programs);
    }
    programs
}

fn programs_of(registry: &Registry, geometry: &Geometry, programs: &mut Vec<(String, Program)>) {
    let cache = KvCache::from_fn(geometry, 40, |_, token, channel| (token * 7 % 11 + channel) as f32);
    for spec in PIPELINES {
        let encoder = Encoder::new(Pipeline::parse(registry, spec).unwrap(), geometry, None).unwrap();
        let bytes = encoder.encode(&cache.view(), 0..40, &|_| ()).unwrap().to_vec();
        let chunk = cacheg_core::Chunk::parse(&bytes, &Limits::default()).unwrap();
        programs_for(&chunk.bind(registry, None).unwrap(), spec, programs);
    }
}

fn programs_for(plan: &Plan, spec: &str, programs: &mut Vec<(String, Program)>) {
    for variant in [Variant::Portable, Variant::Subgroup] {
        let program = Program::new(plan, variant, 64).unwrap();
        programs.push((format!("{spec}, {}", variant.name()), program));
    }
}

fn entries(source: &str) -> impl Iterator<Item = &'static str> + '_ {
    ["decode", "predict", "keep", "reconstruct", "check_escapes"]
        .into_iter()
        .filter(move |name| source.contains(&format!("fn {name}(")))
}

#[test]
fn naga_translates_all_programs() {
    for (name, program) in programs() {
        let module = naga::front::wgsl::parse_str(&program.source)
            .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&program.source)));
        let subgroups = name.ends_with("subgroup");
        let capabilities = if subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        let info = validator.validate(&module).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        for entry in entries(&program.source) {
            let pipeline = spv::PipelineOptions {
                shader_stage: naga::ShaderStage::Compute,
                entry_point: entry.to_owned(),
            };
            let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
            assert!(spv::write_vec(&module, &info, &options, Some(&pipeline)).unwrap().len() > 100, "{name}");
        }
        let options = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
        let (text, _) =
            msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
        assert!(text.contains("kernel void"), "{name}");
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..hlsl::Options::default() };
        let mut text = String::new();
        let pipeline = hlsl::PipelineOptions::default();
        hlsl::Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).unwrap();
        assert!(text.contains("numthreads"), "{name}");
    }
}

/// tint is no crate and no package: where it is not, this says so and cannot do more.
#[test]
fn tint_accepts_all_programs() {
    if Command::new("tint").arg("--help").output().is_err() {
        eprintln!("SKIPPED: there is no `tint` to check programs with");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("program.wgsl"), folder.path().join("out.wgsl"));
    for (name, program) in programs() {
        let enable = if name.ends_with("subgroup") { "enable subgroups;\n" } else { "" };
        std::fs::write(&from, format!("{enable}{}", program.source)).unwrap();
        for entry in entries(&program.source) {
            let out = Command::new("tint").args(["--ep", entry, "-o"]).arg(&to).arg(&from).output().unwrap();
            assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

#[test]
fn programs_of_one_pipeline_have_one_text() {
    let texts: Vec<String> = programs().into_iter().map(|(_, program)| program.source).collect();
    let again: Vec<String> = programs().into_iter().map(|(_, program)| program.source).collect();
    assert_eq!(texts, again);
    assert!(texts.iter().all(|text| !text.contains('$')));
}
