//! Counts the work of pipelines, per symbol: `cargo run --release --features simulate --example simulate -- PIPELINE …`.

use std::error::Error;
use std::time::Instant;

use cacheg_core::testkit::Random;
use cacheg_core::{
    Chunk, Dtype, Encoder, Geometry, KvCache, LayerGroup, Limits, Pipeline, Plane, Registry, Shape,
};
use cacheg_gpu::{Recorded, Variant, simulate};

fn main() -> Result<(), Box<dyn Error>> {
    let registry = Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied())?;
    let shape = Some(Shape { heads: 2, head_dim: 64, dtype: Dtype::F16 });
    let layers = LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
    let geometry = Geometry::new([layers])?;
    let tokens = 1024;
    let mut random = Random::new(7);
    let cache =
        KvCache::from_fn(&geometry, tokens, |_, _, channel| (channel % 7) as f32 - 3.0 + random.normal());
    let symbols = (tokens * geometry.planes().iter().map(Plane::channels).sum::<usize>()) as f64;
    for spec in std::env::args().skip(1) {
        let encoder = Encoder::new(Pipeline::parse(&registry, &spec)?, &geometry, None)?;
        let bytes = encoder.encode(&cache.view(), 0..tokens, &|_| ())?.to_vec();
        let chunk = Chunk::parse(&bytes, &Limits::default())?;
        let plan = chunk.bind(&registry, None)?;
        for variant in [Variant::Portable, Variant::Subgroup] {
            let recorded = Recorded::new(&chunk, &plan, variant)?;
            let start = Instant::now();
            let simulated = simulate(&recorded)?;
            println!("{spec}, {}: {symbols} symbols in {:.2?}", variant.name(), start.elapsed());
            println!(
                "  {} bits/symbol, {} out of bounds, {} races, {} unordered, {} faults",
                bytes.len() as f64 * 8.0 / symbols,
                simulated.out_of_bounds,
                simulated.races,
                simulated.unordered,
                simulated.faults.iter().filter(|bits| **bits != 0).count(),
            );
            for (name, counts) in &simulated.passes {
                println!(
                    "  {name}: {} dispatches, {} workgroups; per symbol {:.3} issued, {:.2} executed; per 32 symbols {:.2} issued, {:.3} barriers, {:.3} subgroup operations ({} divergent)",
                    counts.dispatches,
                    counts.workgroups,
                    counts.issued as f64 / symbols,
                    counts.executed as f64 / symbols,
                    32.0 * counts.issued as f64 / symbols,
                    32.0 * counts.barriers as f64 / symbols,
                    32.0 * counts.subgroup_ops as f64 / symbols,
                    counts.divergent_subgroup_ops,
                );
                for (line, share) in counts.loops.iter().filter(|(_, share)| share.iterations > 0) {
                    println!(
                        "    line {line} `{}`: {} iterations, {:.1} issued each; {:.3} issued and {:.2} executed per symbol",
                        recorded.source.lines().nth(*line as usize - 1).unwrap_or("").trim(),
                        share.iterations,
                        share.issued as f64 / share.iterations as f64,
                        share.issued as f64 / symbols,
                        share.executed as f64 / symbols,
                    );
                }
                let memory = std::iter::once(("workgroup memory".to_owned(), &counts.workgroup_memory))
                    .chain(
                        counts.bindings.iter().map(|((_, binding), counts)| (binding.to_string(), counts)),
                    );
                for (binding, traffic) in memory.filter(|(_, traffic)| traffic.loads + traffic.stores > 0) {
                    println!(
                        "    {binding}: per symbol {:.3} loads, {:.3} stores, {:.3} bytes loaded, {:.3} stored; distinct {:.3} and {:.3}",
                        traffic.loads as f64 / symbols,
                        traffic.stores as f64 / symbols,
                        traffic.bytes_loaded as f64 / symbols,
                        traffic.bytes_stored as f64 / symbols,
                        traffic.distinct_read as f64 / symbols,
                        traffic.distinct_written as f64 / symbols,
                    );
                }
            }
        }
    }
    Ok(())
}
