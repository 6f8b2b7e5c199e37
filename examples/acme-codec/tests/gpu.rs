//! A transform of ours on a GPU, next to cacheg's stages, whose crates know nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use acme_codec as _;
use cacheg::core::{Backend, Chunk, Cpu, KvOut, Limits};
use cacheg::gpu::{Gpu, adapters};
use cacheg::{Encoder, KvCache, Pipeline};

#[test]
fn pairs_on_a_gpu() {
    let adapter =
        adapters().into_iter().next().expect("no adapter; `cargo xtask test-deps` installs a driver");
    let gpu = Gpu::open(Some(&adapter.name)).unwrap();
    let registry = cacheg::builtins().unwrap();
    let sample = cacheg::sample().unwrap();
    for spec in ["acme.pair|uniform(bits=6)|rans", "mean|acme.pair(pairs=halves)|bins(step=0.1)|rans"] {
        let encoder =
            Encoder::new(Pipeline::parse(&registry, spec).unwrap(), sample.geometry(), None).unwrap();
        let bytes = encoder.encode(&sample.view(), 0..sample.tokens(), &|_| ()).unwrap().to_vec();
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&registry, None).unwrap();
        let decode = |backend: &dyn Backend| {
            let mut out = KvCache::zeros(sample.geometry(), sample.tokens(), 0);
            let mut decoder = backend.decoder(plan.clone()).unwrap();
            decoder.decode(&chunk, KvOut::Host(&mut out.view_mut(), 0), &|_| ()).unwrap();
            out
        };
        assert!(decode(&Cpu) == decode(&gpu), "{spec}");
    }
}
