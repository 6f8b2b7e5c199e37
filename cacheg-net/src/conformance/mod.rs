//! What every transport must do, checked by one call.
//!
//! ```
//! # use std::sync::Arc;
//! # use cacheg_core::Transport;
//! # use cacheg_net::{conformance, transport::MemoryStore};
//! # #[tokio::main]
//! # async fn main() -> Result<(), conformance::Failure> {
//! let promises = conformance::Promises { etag: true, modified: true };
//! conformance::run(&promises, async || Ok(Arc::new(MemoryStore::new()) as Arc<dyn Transport>)).await
//! # }
//! ```
//!
//! Each check is also a function of its own, for authors who want to see which one fails, or who know that one does.
//! All of them want an empty store; they need a tokio runtime, better with several threads. The suite is no part of the
//! stable interface; a minor version may add checks.

mod checks;
mod fixture;

use std::sync::Arc;
use std::time::Duration;

pub use cacheg_core::testkit::{Check, Failure};
use cacheg_core::{Result, Transport};

pub use checks::*;

/// What a transport says of objects beside their size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Promises {
    /// [`ObjectMeta::etag`](cacheg_core::ObjectMeta::etag) is there.
    pub etag: bool,
    /// [`ObjectMeta::modified`](cacheg_core::ObjectMeta::modified) is there.
    pub modified: bool,
}

/// A check that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs all checks, each on a store of its own: `make` must give an empty one every time.
///
/// # Errors
/// The first failure, with the name of the check.
pub async fn run(promises: &Promises, make: impl AsyncFn() -> Result<Arc<dyn Transport>>) -> Check {
    macro_rules! all {
        ($($check:ident),* $(,)?) => { $({
            let name = stringify!($check);
            let failed = |what: String| Failure::new(format!("{name}: {what}"));
            let store = make().await.map_err(|e| failed(format!("no store: {e}")))?;
            match tokio::time::timeout(PATIENCE, $check(&store, promises)).await {
                Ok(result) => result.map_err(|e| failed(e.to_string()))?,
                Err(_) => return Err(failed(format!("hangs; it has had {PATIENCE:?}"))),
            }
        })* };
    }
    all! {
        objects, metadata, missing_objects, ranges, empty_objects, replacing, creating, many_creators,
        readers_see_whole_objects, keys_at_their_limits, folders_are_whole_segments, objects_and_folders,
        long_listings, large_objects, abandoned_bodies, dropped_writes, messages,
    }
    Ok(())
}
