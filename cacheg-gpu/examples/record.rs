//! Writes recordings of decoding, with what must come out, for `dawn/run.mjs`: `cargo run --example record -- FOLDER`.

use std::error::Error;

use cacheg_core::testkit::{Random, models};
use cacheg_core::{Backend, Chunk, Cpu, Encoder, KvCache, KvOut, Limits, Pipeline, Registry};
use cacheg_gpu::{Recorded, Variant};
use serde_json::json;

const PIPELINES: &[&str] = &[
    "mean|bins(step=0.4;reach=15)|rans",
    "mean|bins(step=0.2;reach=60)|rans(contexts=3)",
    "anchor-delta|bins(step=0.5)|range",
    "identity|bins(scale=f16)|range(tables=channel;streams=channel;cdf=33)",
    "uniform(bits=8)|raw",
    "uniform(bits=3;axis=channel;zero=true)|rans",
    "bytes|rans(tables=class;classes=256)",
    "anchor-delta(group=3)|bins(step=0.5)|rans",
    "hadamard|lloyd-max(bits=3)|raw",
    "mean|hadamard|uniform(bits=4)|rans",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("record FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    let registry = Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied())?;
    let mut written = 0;
    for model in models()? {
        for spec in PIPELINES {
            let mut random = Random::new(7);
            let tokens = 300;
            let cache = KvCache::from_fn(&model.geometry, tokens, |_, _, channel| {
                (channel % 7) as f32 - 3.0 + random.normal()
            });
            let pipeline = Pipeline::parse(&registry, spec)?;
            let encoder = match Encoder::new(pipeline, &model.geometry, None) {
                Ok(encoder) => encoder,
                Err(error) => return Err(format!("{spec}: {error}").into()),
            };
            let bytes = encoder.encode(&cache.view(), 0..tokens, &|_| ())?.to_vec();
            let chunk = Chunk::parse(&bytes, &Limits::default())?;
            let plan = chunk.bind(&registry, None)?;
            let mut out = KvCache::zeros(&model.geometry, tokens, 0);
            Cpu.decoder(plan.clone())?.decode(&chunk, KvOut::Host(&mut out.view_mut(), 0), &|_| ())?;
            let mut expected: Vec<u32> = Vec::new();
            for plane in model.geometry.planes() {
                let mut bytes = out.view().plane_bytes(plane.index).to_vec();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                expected.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
            }
            let recorded = Recorded::new(&chunk, &plan, Variant::Portable)?;
            let json = json!({
                "name": format!("{}: {spec}", model.name),
                "source": recorded.source,
                "data": recorded.data,
                "payload": recorded.payload,
                "table": recorded.table,
                "scratch": recorded.scratch_words,
                "states": recorded.state_words,
                "output": recorded.output_words,
                "faults": recorded.fault_words,
                "windows": recorded.windows,
                "dispatches": recorded.dispatches,
                "expected": expected,
            });
            std::fs::write(format!("{folder}/{written:03}.json"), serde_json::to_vec(&json)?)?;
            written += 1;
        }
    }
    println!("{written} recordings");
    Ok(())
}
