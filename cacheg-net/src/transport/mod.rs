//! The transports that cacheg brings, one file per URL scheme. They need a tokio runtime with time (and, for all but
//! `mem:`, I/O) enabled.

#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod exact;
mod file;
#[cfg(feature = "http")]
mod http;
mod mem;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "s3")]
mod s3;
mod shaped;

use std::ops::Range;

use cacheg_core::{Error, Key, Result, TransportPlugin};

pub use file::FileStore;
#[cfg(feature = "http")]
pub use http::HttpStore;
pub use mem::MemoryStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
#[cfg(feature = "s3")]
pub use s3::S3Store;
pub use shaped::{Shape, Shaped};

/// All of them, under the features of this build.
pub const TRANSPORTS: &[TransportPlugin] = &[
    file::PLUGIN,
    #[cfg(feature = "http")]
    http::PLUGINS[0],
    #[cfg(feature = "http")]
    http::PLUGINS[1],
    mem::PLUGIN,
    #[cfg(feature = "redis")]
    redis::PLUGIN,
    #[cfg(feature = "s3")]
    s3::PLUGIN,
    shaped::PLUGIN,
];

/// What plug-ins name as their origin.
const ORIGIN: &str = "cacheg-net";

/// The range that was asked for, if it is within an object of `size` bytes and not empty (unless the object is).
fn check_range(url: &str, key: &Key, range: Option<Range<u64>>, size: u64) -> Result<Range<u64>> {
    match range {
        None => Ok(0..size),
        Some(range) if range.start < range.end && range.end <= size => Ok(range),
        Some(range) if size == 0 && range == (0..0) => Ok(range),
        Some(range) => Err(Error::data(format!(
            "bytes {}..{} of {} are asked for, which has {size}",
            range.start,
            range.end,
            at(url, key)
        ))),
    }
}

/// An object's URL.
fn at(url: &str, key: &Key) -> String {
    let slash = if url.ends_with(['/', ':']) { "" } else { "/" };
    format!("{url}{slash}{key}")
}

fn missing(url: &str, key: &Key) -> Error {
    Error::not_found(format!("there is no {}", at(url, key)))
}
