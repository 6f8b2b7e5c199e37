//! The transports that cacheg brings, one file per URL scheme. They need a tokio runtime with time (and, for all but
//! `mem:`, I/O) enabled.

mod file;
mod mem;

use std::ops::Range;

use cacheg_core::{Error, Key, Result, TransportPlugin};

pub use file::FileStore;
pub use mem::MemoryStore;

/// All of them, under the features of this build.
pub const TRANSPORTS: &[TransportPlugin] = &[file::PLUGIN, mem::PLUGIN];

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
