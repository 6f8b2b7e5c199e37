//! Entropy coders: the lossless half of a KV cache codec. They turn the symbols of a tile into bytes and back,
//! exactly.
//!
//! | stage | size | speed | use it for |
//! |---|---|---|---|
//! | [`rans`] | within 1 % of the tables' entropy on tiles of a few thousand symbols | fastest; made for SIMD and GPUs | everything |
//! | [`range`] | 0.1 % or less over the entropy, whatever the size | slow, one symbol at a time | tiny streams; comparison with CacheGen |
//! | [`zstd`] | 5 to 15 % above | medium | data without calibration |
//! | [`raw`] | no compression | memory speed | measuring what coding gains |
//!
//! `range` and `rans` need frequency tables, from a profile or carried by the chunk: see [`Scope`].
//! FORMAT.md describes all bytes.
//!
//! ```
//! let registry = cacheg_core::Registry::new(cacheg_entropy::PLUGINS.iter().copied()).unwrap();
//! assert!(registry.get("rans").is_ok());
//! ```

pub mod range;
pub mod rans;
pub mod raw;
mod segments;
mod tables;
#[cfg(feature = "zstd")]
pub mod zstd;

use cacheg_core::Plugin;

pub use tables::Scope;

/// All stages of this crate.
pub const PLUGINS: &[Plugin] = &[
    range::PLUGIN,
    rans::PLUGIN,
    raw::PLUGIN,
    #[cfg(feature = "zstd")]
    zstd::PLUGIN,
];
