//! Objects to store, and the plain words for what checks do with them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cacheg_core::testkit::{Check, Failure};
use cacheg_core::{Body, ErrorKind, Key, ObjectMeta, Put, PutOutcome, Result, Transport};

pub(super) type Store = Arc<dyn Transport>;

pub(super) fn key(name: &str) -> Result<Key, Failure> {
    Ok(Key::new(name)?)
}

/// Bytes that tell where they come from: no two pieces of an object, and no two objects, are alike.
pub(super) fn bytes(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

pub(super) fn ensure(condition: bool, message: impl FnOnce() -> String) -> Check {
    if condition { Ok(()) } else { Err(Failure::new(message())) }
}

pub(super) async fn put(store: &Store, name: &str, bytes: &Bytes) -> Check {
    let outcome = store.put(&key(name)?, bytes.clone(), Put::Replace).await?;
    ensure(outcome == PutOutcome::Written, || format!("put of {name} with Replace says {outcome:?}"))
}

/// Reads it all and checks that a body keeps its word.
pub(super) async fn get(store: &Store, name: &str, range: Option<Range<u64>>) -> Result<Bytes, Failure> {
    let body = store.get(&key(name)?, range.clone()).await?;
    let announced = body.range.clone();
    let expected = range.unwrap_or(0..body.meta.size);
    ensure(announced == expected, || format!("get of {name} announces {announced:?}, not {expected:?}"))?;
    let bytes = read(body).await?;
    let length = announced.end - announced.start;
    ensure(bytes.len() as u64 == length, || {
        format!("get of {name} announces {length} bytes and gives {}", bytes.len())
    })?;
    Ok(bytes)
}

pub(super) async fn read(mut body: Body) -> Result<Bytes, Failure> {
    let mut all = Vec::new();
    while let Some(piece) = body.pieces.next().await? {
        ensure(!piece.is_empty(), || "a piece of a body is empty".into())?;
        all.extend_from_slice(&piece);
    }
    let more = body.pieces.next().await;
    ensure(matches!(more, Ok(None)), || format!("after its end a body gives {more:?}"))?;
    Ok(all.into())
}

pub(super) async fn holds(store: &Store, name: &str, expected: &Bytes) -> Check {
    let found = get(store, name, None).await?;
    ensure(found == *expected, || {
        format!("{name} comes back as other bytes ({} instead of {})", found.len(), expected.len())
    })
}

/// All objects of a listing; none may come twice.
pub(super) async fn list(
    store: &Store,
    folder: Option<&str>,
) -> Result<BTreeMap<String, ObjectMeta>, Failure> {
    let folder = folder.map(key).transpose()?;
    let mut all = BTreeMap::new();
    let mut listing = store.list(folder.as_ref());
    while let Some(page) = listing.next().await? {
        ensure(!page.is_empty(), || "a page of a listing is empty".into())?;
        for (key, meta) in page {
            let twice = all.insert(key.to_string(), meta).is_some();
            ensure(!twice, || format!("{key} is listed twice"))?;
        }
    }
    let more = listing.next().await;
    ensure(matches!(more, Ok(None)), || format!("after its end a listing gives {more:?}"))?;
    Ok(all)
}

pub(super) fn fails<T: std::fmt::Debug>(what: &str, result: Result<T>, kind: ErrorKind) -> Check {
    match result {
        Err(e) if e.kind() == kind => Ok(()),
        other => Err(Failure::new(format!("{what} must be {kind:?} and is {other:?}"))),
    }
}
