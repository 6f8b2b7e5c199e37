//! cacheg: LLM KV caches as compact, streamable containers.
//!
//! This crate names the codecs, so that they are linked, and tells the story of a KV cache in [`flow`]. What
//! the parts are is in [`core`].
//!
//! ```
//! use cacheg::{Encoder, Limits, Pipeline, flow};
//!
//! let registry = cacheg::builtins()?;
//! let sample = cacheg::sample()?;
//! let pipeline = Pipeline::parse(&registry, "mean|uniform(bits=4;group=32)|rans(tables=class)")?;
//!
//! let mut bytes = Vec::new();
//! let encoder = Encoder::new(pipeline, sample.geometry(), None)?;
//! flow::encode(&sample.view(), sample.metadata(), &encoder, 1_500, &mut bytes, &|_| ())?;
//! let decoder = flow::Decode { registry: &registry, profile: None, backend: &cacheg::core::Cpu };
//! let decoded = decoder.run(&bytes, &Limits::default(), &|_| ())?;
//!
//! assert_eq!(decoded.cache.tokens(), sample.tokens());
//! assert!(bytes.len() * 3 < sample.view().planes().iter().map(|p| p.channels() * p.shape.dtype.size()).sum::<usize>() * sample.tokens());
//! # Ok::<(), cacheg::Error>(())
//! ```

mod builtins;
pub mod compare;
mod device;
pub mod flow;
#[cfg(feature = "net")]
pub mod levels;
pub mod output;
mod presets;
pub mod rate;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "net")]
pub mod timeline;

pub use cacheg_core as core;
pub use cacheg_core::{
    Encoder, Error, ErrorKind, Geometry, KvCache, KvFile, KvView, Limits, Pipeline, Plugin, Profile,
    Registry, Result, Statistics, calibrate, calibrate_with, register_stage, spec,
};

pub use builtins::builtins;
#[cfg(feature = "net")]
pub use builtins::transports;
#[cfg(feature = "gpu")]
pub use cacheg_gpu as gpu;
#[cfg(feature = "net")]
pub use cacheg_net as net;
pub use device::Device;
pub use presets::{PRESETS, Preset, preset};

/// A real KV cache to try things on: 168 tokens of a novel through SmolLM2-135M-Instruct, all 30 layers, f16.
///
/// # Errors
/// Never, unless the crate was built from a damaged checkout.
pub fn sample() -> Result<KvFile> {
    KvFile::from_bytes(&include_bytes!("../sample/smollm2-135m-novel.safetensors")[..], &Limits::default())
}

/// A profile of the sample's model for level 3 of the preset `predictive-key`, made from other texts (`cacheg/sample/README.md`).
///
/// # Errors
/// Never, unless the crate was built from a damaged checkout.
pub fn sample_profile() -> Result<Profile> {
    Profile::from_bytes(include_bytes!("../sample/smollm2-135m.cgprof").to_vec())
}

/// Preset and level that [`sample_profile`] is for.
pub const SAMPLE_PROFILE: (&str, usize) = ("predictive-key", 3);
