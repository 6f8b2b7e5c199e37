//! The checks. Each says in its first line what a transport must do.
#![expect(clippy::missing_errors_doc, reason = "failing is what a check is for")]

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cacheg_core::testkit::{Check, Failure};
use cacheg_core::{ErrorKind, Key, Put, PutOutcome};
use tokio::task::JoinSet;

use super::Promises;
use super::fixture::{Store, bytes, ensure, fails, get, holds, key, list, put, read};

/// What is put can be read, asked about, listed and removed.
pub async fn objects(store: &Store, _: &Promises) -> Check {
    ensure(list(store, None).await?.is_empty(), || "the store is not empty at first".into())?;
    for (name, size) in [("a", 1), ("folder/b.cgkv", 1_000), ("folder/deep/er/c=1_2-3", 70_000)] {
        let object = bytes(size as u64, size);
        put(store, name, &object).await?;
        holds(store, name, &object).await?;
        let meta = store.head(&key(name)?).await?;
        ensure(meta.size == size as u64, || format!("head of {name} says {} bytes, not {size}", meta.size))?;
    }
    let listed: Vec<String> = list(store, None).await?.into_keys().collect();
    let expected = ["a", "folder/b.cgkv", "folder/deep/er/c=1_2-3"];
    ensure(listed == expected, || format!("{listed:?} is listed instead of {expected:?}"))?;
    for name in expected {
        store.delete(&key(name)?).await?;
        fails("get of a removed object", store.get(&key(name)?, None).await, ErrorKind::NotFound)?;
    }
    ensure(list(store, None).await?.is_empty(), || "what was removed is listed".into())
}

/// `head`, `get` and `list` say the same of an object; a new version has another etag.
pub async fn metadata(store: &Store, promises: &Promises) -> Check {
    let name = "contexts/x/manifest.json";
    let mut etags = BTreeSet::new();
    // Versions of one length, written at once: neither length nor a coarse clock tells them apart.
    for version in 0..5 {
        put(store, name, &bytes(version, 100)).await?;
        let head = store.head(&key(name)?).await?;
        let body = store.get(&key(name)?, Some(10..20)).await?.meta;
        let listed = list(store, Some("contexts")).await?.remove(name);
        ensure(head.size == 100 && body.size == 100, || {
            format!("the whole object has 100 bytes; head says {}, a range's meta {}", head.size, body.size)
        })?;
        let listed = listed.ok_or_else(|| Failure::new("the object is not listed"))?;
        ensure(listed.size == 100, || format!("the listing says {} bytes, not 100", listed.size))?;
        if promises.etag {
            let etag = head.etag.clone().ok_or_else(|| Failure::new("head brings no etag"))?;
            ensure(body.etag == head.etag, || format!("etags differ: {:?}, {:?}", head.etag, body.etag))?;
            ensure(listed.etag.is_none() || listed.etag == head.etag, || {
                format!("etags differ: head {:?}, listing {:?}", head.etag, listed.etag)
            })?;
            ensure(etags.insert(etag), || "two versions have the same etag".into())?;
        }
        if promises.modified {
            let modified = head.modified.ok_or_else(|| Failure::new("head does not say when"))?;
            let now = SystemTime::now();
            // Whole seconds, and the clock of another machine.
            let distance = now.duration_since(modified).unwrap_or_else(|e| e.duration());
            ensure(distance < Duration::from_secs(60), || format!("just written, it says {modified:?}"))?;
        }
    }
    Ok(())
}

/// What is not there is `NotFound`, except for `delete`, which has nothing to do.
pub async fn missing_objects(store: &Store, _: &Promises) -> Check {
    put(store, "folder/there", &bytes(1, 10)).await?;
    for name in ["missing", "no/such/folder/missing", "folder/missing", "folder", "folder/there.too"] {
        let key = key(name)?;
        fails(&format!("get of {name}"), store.get(&key, None).await, ErrorKind::NotFound)?;
        fails(&format!("get of a range of {name}"), store.get(&key, Some(0..1)).await, ErrorKind::NotFound)?;
        fails(&format!("head of {name}"), store.head(&key).await, ErrorKind::NotFound)?;
        store.delete(&key).await?;
    }
    ensure(list(store, Some("no/such")).await?.is_empty(), || "a missing folder lists something".into())?;
    holds(store, "folder/there", &bytes(1, 10)).await
}

/// Ranges are exact; one that is not within the object is `InvalidData`.
pub async fn ranges(store: &Store, _: &Promises) -> Check {
    let object = bytes(2, 100_000);
    put(store, "object", &object).await?;
    for range in [0..1, 0..100_000, 99_999..100_000, 1..99_999, 65_535..65_537, 50_000..100_000] {
        let found = get(store, "object", Some(range.clone())).await?;
        let expected = object.slice(range.start as usize..range.end as usize);
        ensure(found == expected, || format!("bytes {range:?} are not those of the object"))?;
    }
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is tested")]
    for range in [
        0..100_001,
        99_999..100_001,
        100_000..100_001,
        200_000..200_001,
        5..5,
        100_000..100_000,
        7..3,
        0..u64::MAX,
    ] {
        let result = store.get(&key("object")?, Some(range.clone())).await;
        fails(&format!("get of {range:?} of 100000 bytes"), result, ErrorKind::InvalidData)?;
    }
    Ok(())
}

/// An object may have no bytes.
pub async fn empty_objects(store: &Store, _: &Promises) -> Check {
    put(store, "empty", &Bytes::new()).await?;
    holds(store, "empty", &Bytes::new()).await?;
    ensure(store.head(&key("empty")?).await?.size == 0, || "an empty object has a size".into())?;
    ensure(get(store, "empty", Some(0..0)).await?.is_empty(), || "0..0 of nothing is something".into())?;
    let result = store.get(&key("empty")?, Some(0..1)).await;
    fails("get of 0..1 of nothing", result, ErrorKind::InvalidData)?;
    ensure(list(store, None).await?.contains_key("empty"), || "an empty object is not listed".into())
}

/// `Replace` replaces, also by something shorter or longer.
pub async fn replacing(store: &Store, _: &Promises) -> Check {
    for (version, size) in [(1, 1_000), (2, 10), (3, 200_000), (4, 0), (5, 10)] {
        put(store, "folder/object", &bytes(version, size)).await?;
        holds(store, "folder/object", &bytes(version, size)).await?;
    }
    ensure(list(store, None).await?.len() == 1, || "one object under one key is listed as several".into())
}

/// `Create` writes what is not there and leaves what is.
pub async fn creating(store: &Store, _: &Promises) -> Check {
    let taken = key("folder/object")?;
    let create = |version| store.put(&taken, bytes(version, 500), Put::Create);
    ensure(create(1).await? == PutOutcome::Written, || "Create of a free key does not write".into())?;
    ensure(create(2).await? == PutOutcome::Exists, || "Create of a taken key does not say so".into())?;
    holds(store, "folder/object", &bytes(1, 500)).await?;
    store.delete(&taken).await?;
    ensure(create(3).await? == PutOutcome::Written, || "a removed key cannot be created again".into())?;
    holds(store, "folder/object", &bytes(3, 500)).await
}

/// Of many who create one key at once exactly one wins, and its bytes are there.
pub async fn many_creators(store: &Store, _: &Promises) -> Check {
    for round in 0..4 {
        let name = format!("round{round}/object");
        let mut all = JoinSet::new();
        for creator in 0..16_u64 {
            let (store, key) = (store.clone(), key(&name)?);
            all.spawn(async move { (creator, store.put(&key, bytes(creator, 30_000), Put::Create).await) });
        }
        let mut winners = Vec::new();
        while let Some(done) = all.join_next().await {
            let (creator, outcome) = done.map_err(|e| Failure::new(e.to_string()))?;
            if outcome? == PutOutcome::Written {
                winners.push(creator);
            }
        }
        let [winner] = winners[..] else {
            return Err(Failure::new(format!("{} of 16 creators of one key won", winners.len())));
        };
        holds(store, &name, &bytes(winner, 30_000)).await?;
    }
    Ok(())
}

/// Readers beside writers see one version or another, whole, or none while it is removed.
pub async fn readers_see_whole_objects(store: &Store, _: &Promises) -> Check {
    const VERSIONS: u64 = 6;
    let length = |version: u64| 200_000 + 50_000 * version as usize;
    let name = "busy/object";
    put(store, name, &bytes(0, length(0))).await?;
    let mut all: JoinSet<Check> = JoinSet::new();
    for writer in 0..3 {
        let store = store.clone();
        all.spawn(async move {
            for round in 0..8 {
                let version = (writer + round) % VERSIONS;
                put(&store, name, &bytes(version, length(version))).await?;
            }
            Ok(())
        });
    }
    for _ in 0..6 {
        let store = store.clone();
        all.spawn(async move {
            for _ in 0..12 {
                let body = match store.get(&key(name)?, None).await {
                    // A version may go before its first byte has been sent; a transport may say so.
                    Err(e) if e.kind() == ErrorKind::Unavailable => continue,
                    body => body?,
                };
                let found = match read(body).await {
                    Ok(found) => found,
                    Err(e) => return Err(Failure::new(format!("a reader fails: {e}"))),
                };
                let whole = (0..VERSIONS).any(|version| found == bytes(version, length(version)));
                ensure(whole, || format!("a reader gets {} bytes of no version", found.len()))?;
            }
            Ok(())
        });
    }
    joined(all).await?;
    ensure(list(store, None).await?.len() == 1, || "writers have left something behind".into())
}

/// Keys may be as long, as deep and as odd as [`Key`] allows.
pub async fn keys_at_their_limits(store: &Store, _: &Promises) -> Check {
    let segment = "s".repeat(Key::MAX_SEGMENT);
    let rest = "r".repeat(Key::MAX - 2 * Key::MAX_SEGMENT - 2);
    let deep = vec!["d"; Key::MAX / 2].join("/");
    let longest = format!("{}/{segment}/{rest}", "f".repeat(Key::MAX_SEGMENT));
    let names = [
        segment.as_str(),
        &longest,
        &deep,
        "0",
        "-x",
        "_",
        "=",
        "a.",
        "-rf",
        "a..b",
        "a==",
        "Case",
        "x.part",
        "A=B/c=D/e.f_g-h",
        "con",
        "index.html",
    ];
    for (version, name) in names.iter().enumerate() {
        put(store, name, &bytes(version as u64, 100)).await?;
    }
    for (version, name) in names.iter().enumerate() {
        holds(store, name, &bytes(version as u64, 100)).await?;
    }
    let listed: BTreeSet<String> = list(store, None).await?.into_keys().collect();
    let expected: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    ensure(listed == expected, || format!("of {expected:?} these are listed: {listed:?}"))?;
    for name in names {
        store.delete(&key(name)?).await?;
    }
    ensure(list(store, None).await?.is_empty(), || "not all of them could be removed".into())
}

/// A folder is no prefix of names: `a` does not list `ab/x`, nor the object `a`.
pub async fn folders_are_whole_segments(store: &Store, _: &Promises) -> Check {
    for name in ["a/1", "a/b/2", "a/b/c/3", "ab/4", "a.b/5", "a-/6", "b"] {
        put(store, name, &bytes(1, 10)).await?;
    }
    let expected: [(Option<&str>, &[&str]); 6] = [
        (None, &["a-/6", "a.b/5", "a/1", "a/b/2", "a/b/c/3", "ab/4", "b"]),
        (Some("a"), &["a/1", "a/b/2", "a/b/c/3"]),
        (Some("a/b"), &["a/b/2", "a/b/c/3"]),
        (Some("a/b/c"), &["a/b/c/3"]),
        (Some("ab"), &["ab/4"]),
        (Some("b"), &[]),
    ];
    for (folder, expected) in expected {
        let listed: Vec<String> = list(store, folder).await?.into_keys().collect();
        ensure(listed == expected, || format!("folder {folder:?} lists {listed:?}, not {expected:?}"))?;
    }
    Ok(())
}

/// An object below an object is kept or refused as `InvalidData`, and harms neither.
pub async fn objects_and_folders(store: &Store, _: &Promises) -> Check {
    put(store, "a", &bytes(1, 10)).await?;
    put(store, "f/b", &bytes(2, 10)).await?;
    for (name, beside) in [("a/below", "a"), ("f", "f/b")] {
        match store.put(&key(name)?, bytes(3, 10), Put::Replace).await {
            Ok(_) => {
                holds(store, name, &bytes(3, 10)).await?;
                store.delete(&key(name)?).await?;
            }
            Err(e) => {
                fails(&format!("put of {name} beside {beside}"), Err::<(), _>(e), ErrorKind::InvalidData)?;
            }
        }
        store.delete(&key(name)?).await?;
    }
    holds(store, "a", &bytes(1, 10)).await?;
    holds(store, "f/b", &bytes(2, 10)).await
}

/// More than a thousand objects, in nested folders, are listed once each.
pub async fn long_listings(store: &Store, _: &Promises) -> Check {
    let name = |i: usize| match i % 3 {
        0 => format!("contexts/c{}/o{i}", i % 7),
        1 => format!("contexts/c{}/deep/er/o{i}", i % 7),
        _ => format!("flat/o{i}"),
    };
    const COUNT: usize = 3_300;
    let mut all: JoinSet<Check> = JoinSet::new();
    for worker in 0..8 {
        let store = store.clone();
        all.spawn(async move {
            for i in (worker..COUNT).step_by(8) {
                put(&store, &name(i), &bytes(i as u64, i % 50)).await?;
            }
            Ok(())
        });
    }
    joined(all).await?;
    let listed = list(store, None).await?;
    ensure(listed.len() == COUNT, || format!("{} of {COUNT} objects are listed", listed.len()))?;
    for i in 0..COUNT {
        let size = listed.get(&name(i)).map(|meta| meta.size);
        ensure(size == Some((i % 50) as u64), || format!("{} is listed with size {size:?}", name(i)))?;
    }
    for folder in ["flat", "contexts", "contexts/c3", "contexts/c3/deep"] {
        let listed = list(store, Some(folder)).await?;
        let expected = (0..COUNT).filter(|i| name(*i).starts_with(&format!("{folder}/"))).count();
        ensure(listed.len() == expected, || {
            format!("folder {folder} lists {} of {expected} objects", listed.len())
        })?;
    }
    Ok(())
}

/// 32 MiB come back in pieces, whole and by ranges, several at once.
pub async fn large_objects(store: &Store, _: &Promises) -> Check {
    const SIZE: usize = 32 << 20;
    let object = bytes(7, SIZE);
    put(store, "large", &object).await?;
    let mut body = store.get(&key("large")?, None).await?;
    let mut at = 0;
    let mut pieces = 0;
    while let Some(piece) = body.pieces.next().await? {
        ensure(object.get(at..at + piece.len()) == Some(&piece[..]), || format!("wrong bytes from {at} on"))?;
        at += piece.len();
        pieces += 1;
    }
    ensure(at == SIZE, || format!("{at} of {SIZE} bytes came"))?;
    ensure(pieces >= 4, || format!("32 MiB come in {pieces} pieces: nobody can follow them arriving"))?;
    let mut all: JoinSet<Check> = JoinSet::new();
    for part in 0..4 {
        let (store, object) = (store.clone(), object.clone());
        all.spawn(async move {
            let range = part * SIZE / 4..(part + 1) * SIZE / 4;
            let found = get(&store, "large", Some(range.start as u64..range.end as u64)).await?;
            ensure(found == object[range], || format!("quarter {part} comes back as other bytes"))
        });
    }
    joined(all).await
}

/// A body that is dropped in the middle ends its transfer and nothing else.
pub async fn abandoned_bodies(store: &Store, _: &Promises) -> Check {
    let object = bytes(8, 8 << 20);
    put(store, "large", &object).await?;
    put(store, "small", &bytes(9, 100)).await?;
    for round in 0..20 {
        let mut body = store.get(&key("large")?, None).await?;
        for _ in 0..round % 3 {
            let piece = body.pieces.next().await?;
            ensure(piece.is_some(), || "8 MiB end after two pieces".into())?;
        }
        drop(body);
        // Perhaps a read that has begun, too.
        let mut body = store.get(&key("large")?, None).await?;
        let _ = tokio::time::timeout(Duration::ZERO, body.pieces.next()).await;
        drop(body);
        holds(store, "small", &bytes(9, 100)).await?;
    }
    holds(store, "large", &object).await
}

/// A write that is dropped leaves the old object or the new one.
pub async fn dropped_writes(store: &Store, _: &Promises) -> Check {
    const SIZE: usize = 4 << 20;
    let (old, new) = (bytes(1, SIZE), bytes(2, SIZE));
    put(store, "folder/object", &old).await?;
    for micros in [0, 100, 500, 2_000, 8_000, 20_000] {
        for (name, mode) in [("folder/object", Put::Replace), ("folder/fresh", Put::Create)] {
            let key = key(name)?;
            let write = store.put(&key, new.clone(), mode);
            let _ = dropped_after(Duration::from_micros(micros), write).await;
        }
        // Whatever still goes on may come to its end.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let found = get(store, "folder/object", None).await?;
        ensure(found == old || found == new, || "a dropped write leaves neither version".into())?;
        put(store, "folder/object", &old).await?;
        match store.get(&key("folder/fresh")?, None).await {
            Err(e) => fails("get of what was perhaps not written", Err::<(), _>(e), ErrorKind::NotFound)?,
            Ok(body) => ensure(read(body).await? == new, || "a dropped Create leaves a part".into())?,
        }
        store.delete(&key("folder/fresh")?).await?;
    }
    // A server may only now learn of the last one.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let listed: Vec<String> =
        list(store, None).await?.into_keys().filter(|name| name != "folder/fresh").collect();
    ensure(listed == ["folder/object"], || format!("dropped writes leave {listed:?}"))?;
    let found = get(store, "folder/object", None).await?;
    ensure(found == old || found == new, || "a dropped write leaves neither version".into())
}

/// Errors name the object.
pub async fn messages(store: &Store, _: &Promises) -> Check {
    let error = match store.get(&key("contexts/which/one")?, None).await {
        Err(e) => e.to_string(),
        Ok(_) => return Err(Failure::new("a missing object is found")),
    };
    ensure(error.contains("contexts/which/one"), || format!("`{error}` does not name the object"))?;
    ensure(error.contains(store.url()), || format!("`{error}` does not name the store, {}", store.url()))
}

async fn dropped_after<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(time, future).await.ok()
}

async fn joined(mut all: JoinSet<Check>) -> Check {
    while let Some(done) = all.join_next().await {
        done.map_err(|e| Failure::new(e.to_string()))??;
    }
    Ok(())
}
