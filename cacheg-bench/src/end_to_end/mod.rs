//! Streaming for real: servers, sockets and, with the feature `llm`, a model. Simulations are beside, in `stream`.

mod child;
#[cfg(feature = "llm")]
pub(crate) mod client;
#[cfg(feature = "llm")]
mod contexts;
#[cfg(feature = "llm")]
mod link;
pub(crate) mod long;
#[cfg(feature = "llm")]
mod methods;
#[cfg(feature = "llm")]
mod namespaces;
pub(crate) mod overhead;
#[cfg(feature = "llm")]
mod plot;
#[cfg(feature = "llm")]
mod protocol;
#[cfg(feature = "llm")]
pub(crate) mod real;
mod repeated;
#[cfg(feature = "llm")]
mod scale;
pub(crate) mod server;
#[cfg(feature = "llm")]
mod table;

use cacheg::{Error, Result};

/// A folder that is gone when the result is dropped.
fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|e| Error::io("cannot make a folder in", &std::env::temp_dir(), e))
}

/// The middle one of some numbers; of an even number the lower of both.
fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
