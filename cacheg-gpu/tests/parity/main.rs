//! The GPU against the CPU, bit for bit but for rotations by position, on whatever adapter there is; Mesa's llvmpipe counts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod close;
mod corrupt;
mod device;
mod klt;
mod pipelines;
mod predicted;
mod profiles;
mod rotated;

use std::sync::{Arc, LazyLock};

use cacheg_core::testkit::Random;
use cacheg_core::{
    Backend, Chunk, Cpu, Encoder, Geometry, KvCache, KvOut, KvView, Limits, Pipeline, Plan, Profile,
    Registry, Result,
};
use cacheg_gpu::{Gpu, Hybrid};

static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap()
});

/// The adapter that `CACHEG_TEST_GPU` names, or any, those on a CPU too. Tests do not go without.
static GPU: LazyLock<Gpu> = LazyLock::new(|| {
    let name = std::env::var("CACHEG_TEST_GPU").ok();
    let name = name.or_else(|| Some(cacheg_gpu::adapters().first()?.name.clone()));
    Gpu::open(name.as_deref()).unwrap_or_else(|error| {
        panic!("{error}; `cargo xtask test-deps` installs a driver that needs no GPU")
    })
});

/// Values like those of real KV caches: offsets by channel, a few far outside.
fn cache(geometry: &Geometry, tokens: usize, seed: u64) -> KvCache {
    let mut random = Random::new(seed);
    KvCache::from_fn(geometry, tokens, |_, _, channel| {
        let far = if random.below(97) == 0 { 20.0 } else { 1.0 };
        (channel % 7) as f32 - 3.0 + random.normal() * 0.5 * far
    })
}

fn encode(view: &KvView<'_>, spec: &str) -> Result<Vec<u8>> {
    let pipeline = Pipeline::parse(&REGISTRY, spec)?;
    let encoder = Encoder::new(pipeline, view.geometry(), None)?;
    Ok(encoder.encode(view, 0..view.tokens(), &|_| ())?.to_vec())
}

fn decode(backend: &dyn Backend, chunk: &Chunk<'_>, plan: &Arc<Plan>) -> Result<KvCache> {
    let mut cache = KvCache::zeros(chunk.geometry(), chunk.rows() + 1, 0);
    let mut view = cache.view_mut();
    backend.decoder(plan.clone())?.decode(chunk, KvOut::Host(&mut view, 1), &|_| ())?;
    Ok(cache)
}

/// Both, on a chunk that may be damaged.
fn both(bytes: &[u8]) -> Option<[Result<KvCache>; 2]> {
    both_with(bytes, None)
}

/// The same of a pipeline that needs a profile.
fn both_with(bytes: &[u8], profile: Option<&Profile>) -> Option<[Result<KvCache>; 2]> {
    let chunk = Chunk::parse(bytes, &Limits::default()).ok()?;
    let plan = chunk.bind(&REGISTRY, profile).ok()?;
    let [cpu, gpu] = [decode(&Cpu, &chunk, &plan), decode(&*GPU, &chunk, &plan)];
    let hybrid = decode(&Hybrid::new(GPU.clone()), &chunk, &plan);
    match (&cpu, &hybrid) {
        (Ok(cpu), Ok(hybrid)) => assert!(close::worst(&plan, cpu, hybrid) <= close::BOUND),
        (Err(_), Err(_)) => {}
        // What one of them cannot, both together cannot.
        _ => assert!(gpu.is_err(), "{:?}", hybrid.err()),
    }
    Some([cpu, gpu])
}
