//! Stores: publishing, sharing, finding, checking, collecting, fetching; on memory and folders.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::single_range_in_vec_init, reason = "one run of tokens is a list of ranges")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{ErrorKind, Key, KvCache, KvFile, Limits, Put, calibrate};
use cacheg_net::fetch::{FetchOptions, FileReceiver, Got, MemoryReceiver, Receiver, fetch};
use cacheg_net::store::{ContextId, Hash, PrefixChain, Store, fingerprint, gc, nmse, publish, verify};
use common::{Flaky, cache, ids, keys, publication, registry, store};

fn id(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

#[tokio::test]
async fn a_context_is_published_checked_and_comes_back() {
    let (store, registry) = (store(), registry());
    let published =
        publish(&store, &registry, &publication(&cache(50, 1), 20, ids(50)), &|_| ()).await.unwrap();
    let manifest = &published.manifest;
    assert_eq!(manifest.chunks.iter().map(|chunk| chunk.tokens).collect::<Vec<_>>(), [20, 20, 10]);
    assert_eq!((published.written, published.shared), (6, 0));
    assert_eq!(store.contexts().await.unwrap(), std::slice::from_ref(&manifest.id));
    assert_eq!(store.manifest(&manifest.id).await.unwrap(), *manifest);
    assert_eq!(store.tokens(manifest).await.unwrap(), ids(50));
    assert!(verify(&store, &manifest.id, &|_| ()).await.unwrap().is_empty());
    // Worse levels are smaller and farther from the original; the lossless one is not.
    for chunk in &manifest.chunks {
        assert_eq!(chunk.levels["exact"].distortion, 0.0);
        assert!(chunk.levels["small"].distortion > 0.0);
        assert!(chunk.levels["small"].bytes < chunk.levels["exact"].bytes);
    }
    for (policy, exact) in [(Some("fixed(level=0)"), true), (Some("fixed(level=1)"), false), (None, true)] {
        let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
        let mut options = FetchOptions::default();
        options.policy = policy.map(Into::into);
        let fetched = fetch(&store, &registry, &manifest.id, &options, receiver.clone(), None).await.unwrap();
        let back = receiver.lock().unwrap().take().unwrap();
        assert!(fetched.complete.is_some() && fetched.absent().is_empty() && fetched.faults.is_empty());
        assert_eq!(nmse(&cache(50, 1).view(), 0..50, &back) == 0.0, exact, "{policy:?}");
        // What the manifest promises is what comes.
        for (index, got) in fetched.chunks.iter().enumerate() {
            let Got::Level { distortion, .. } = got else { panic!("{got:?}") };
            let rows = index * 20..(index * 20 + 20).min(50);
            let part = KvCache::copy_of(&back.view(), rows.start, rows.len());
            assert_eq!(*distortion, nmse(&cache(50, 1).view(), rows, &part));
        }
    }
}

#[tokio::test]
async fn contexts_that_begin_alike_share_chunks_and_are_found() {
    let (store, registry) = (store(), registry());
    let long = cache(50, 1);
    let first = publish(&store, &registry, &publication(&long, 20, ids(50)), &|_| ()).await.unwrap().manifest;
    // The same 40 tokens, then others.
    let mut other_ids = ids(50).unwrap();
    other_ids[40..].iter_mut().for_each(|id| *id += 1_000);
    let second =
        publish(&store, &registry, &publication(&long, 20, Some(other_ids.clone())), &|_| ()).await.unwrap();
    assert_eq!((second.written, second.shared), (2, 4));
    assert_eq!(first.chunks[..2], second.manifest.chunks[..2]);
    assert_ne!(first.id, second.manifest.id);

    let model = fingerprint(long.geometry(), "test").unwrap();
    let lookup = |ids: Vec<u32>| {
        let (store, model) = (&store, &model);
        async move {
            store.lookup(model, None, 0, &ids, 20).await.unwrap().map(|found| (found.tokens, found.chunks))
        }
    };
    let all = ids(50).unwrap();
    assert_eq!(lookup(all.clone()).await, Some((50, 3)));
    assert_eq!(lookup(all[..45].to_vec()).await, Some((40, 2)));
    assert_eq!(
        lookup([&all[..], &[7, 8]].concat()).await,
        Some((50, 3)),
        "a short last chunk in front of more"
    );
    assert_eq!(lookup(all[..19].to_vec()).await, None);
    assert_eq!(lookup(all[1..].to_vec()).await, None);
    assert_eq!(lookup(Vec::new()).await, None);
    let other_model = fingerprint(long.geometry(), "another").unwrap();
    assert!(store.lookup(&other_model, None, 0, &all, 20).await.unwrap().is_none());
    // The pointers are to the first context; without it they lead nowhere, until collected.
    store.remove(&first.id).await.unwrap();
    assert_eq!(lookup(all[..45].to_vec()).await, None);
    let collected = gc(&store, Duration::ZERO, false).await.unwrap();
    assert_eq!(collected.repointed, 2);
    assert_eq!(lookup(all[..45].to_vec()).await, Some((40, 2)));
    assert_eq!(lookup(other_ids).await, Some((50, 3)));
    // Two chunk objects, the text and a prefix of the first context.
    assert_eq!(collected.removed.len(), 4, "{:?}", collected.removed);
    assert!(verify(&store, &second.manifest.id, &|_| ()).await.unwrap().is_empty());
    assert_eq!(gc(&store, Duration::ZERO, false).await.unwrap().removed, []);
}

#[tokio::test]
async fn collecting_spares_the_young_the_foreign_and_the_used() {
    let (store, registry) = (store(), registry());
    let manifest =
        publish(&store, &registry, &publication(&cache(30, 1), 20, ids(30)), &|_| ()).await.unwrap().manifest;
    let foreign = Key::new("notes/readme").unwrap();
    store.transport().put(&foreign, Bytes::from_static(b"x"), Put::Create).await.unwrap();
    store.remove(&manifest.id).await.unwrap();
    let before = keys(&store).await;
    let young = gc(&store, Duration::from_secs(3600), false).await.unwrap();
    assert_eq!((young.removed.len(), young.foreign), (0, 1));
    let dry = gc(&store, Duration::ZERO, true).await.unwrap();
    assert_eq!(dry.removed.len(), young.young);
    assert_eq!(keys(&store).await, before, "a dry run changes nothing");
    gc(&store, Duration::ZERO, false).await.unwrap();
    assert_eq!(keys(&store).await, [foreign]);
    assert_eq!(store.remove(&manifest.id).await.unwrap_err().kind(), ErrorKind::NotFound);
    // A manifest that nobody can read: nobody knows what it needs.
    let broken = Key::new("contexts/broken/manifest.json").unwrap();
    store.transport().put(&broken, Bytes::from_static(b"{"), Put::Create).await.unwrap();
    let error = gc(&store, Duration::ZERO, false).await.unwrap_err();
    assert!(error.to_string().contains("nothing was removed"), "{error}");
}

#[tokio::test]
async fn interrupted_publications_are_invisible_and_taken_up() {
    let registry = registry();
    let (all, count) = {
        let store = store();
        publish(&store, &registry, &publication(&cache(50, 1), 20, ids(50)), &|_| ()).await.unwrap();
        let keys = keys(&store).await;
        (keys.clone(), keys.len())
    };
    for puts in 0..count {
        let flaky = Arc::new(Flaky::new(puts as u64));
        let store = Store::new(flaky.clone(), Limits::default());
        let wanted = publication(&cache(50, 1), 20, ids(50));
        let error = publish(&store, &registry, &wanted, &|_| ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // Only pointers come after the manifest.
        let visible = store.contexts().await.unwrap().len();
        assert_eq!(visible, usize::from(puts >= count - 3), "after {puts} of {count} objects");
        let written: Vec<Key> = keys(&store).await;
        flaky.heal();
        let again = publish(&store, &registry, &wanted, &|_| ()).await.unwrap();
        let chunks = written.iter().filter(|key| key.as_str().starts_with("chunks/")).count();
        assert_eq!((again.shared, again.written), (chunks, 6 - chunks), "{puts} objects");
        assert_eq!(keys(&store).await, all, "the same store as at once");
        assert!(verify(&store, &again.manifest.id, &|_| ()).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn two_publishers_of_one_context() {
    let (store, registry) = (store(), registry());
    let wanted = publication(&cache(50, 1), 20, ids(50));
    let (a, b) = tokio::join!(
        publish(&store, &registry, &wanted, &|_| ()),
        publish(&store, &registry, &wanted, &|_| ())
    );
    assert_eq!(a.unwrap().manifest, b.unwrap().manifest);
    // The same tokens computed a little differently elsewhere: both are whole, under two names.
    let mut other = publication(&cache(50, 2), 20, ids(50));
    other.id = Some(id("other"));
    let (c, d) = tokio::join!(
        publish(&store, &registry, &wanted, &|_| ()),
        publish(&store, &registry, &other, &|_| ())
    );
    c.unwrap();
    d.unwrap();
    for context in store.contexts().await.unwrap() {
        assert!(verify(&store, &context, &|_| ()).await.unwrap().is_empty());
    }
    // A name that is taken.
    let mut taken = publication(&cache(30, 3), 20, ids(30));
    taken.id = Some(id("other"));
    let error = publish(&store, &registry, &taken, &|_| ()).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::InvalidSetting && error.to_string().contains("another name"),
        "{error}"
    );
    assert!(verify(&store, &id("other"), &|_| ()).await.unwrap().is_empty(), "what is there stays whole");
    taken.replace = true;
    publish(&store, &registry, &taken, &|_| ()).await.unwrap();
    assert_eq!(store.manifest(&id("other")).await.unwrap().tokens, 30);
}

#[tokio::test]
async fn profiles_travel_and_contexts_without_text_are_named_by_content() {
    let (store, registry) = (store(), registry());
    let cache = cache(40, 1);
    let mut wanted = publication(&cache, 20, None);
    let pipeline = cacheg_core::Pipeline::parse(&registry, "mean|bins(step=0.5)|rans").unwrap();
    let profile = calibrate(std::slice::from_ref(&pipeline), &[cache.view()], 20, &|_| ());
    wanted.levels = vec![cacheg_net::store::LevelSpec { name: "p".into(), pipeline }];
    wanted.profile = Some(Arc::new(profile.unwrap()));
    let manifest = publish(&store, &registry, &wanted, &|_| ()).await.unwrap().manifest;
    assert!(manifest.profile.is_some() && manifest.text.is_none());
    assert!(verify(&store, &manifest.id, &|_| ()).await.unwrap().is_empty());
    let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
    let options = FetchOptions::default();
    let fetched = fetch(&store, &registry, &manifest.id, &options, receiver, None).await.unwrap();
    assert!(fetched.complete.is_some());
    // Another KV cache is another context.
    let mut chain =
        PrefixChain::of_content(&manifest.model.fingerprint, manifest.profile.as_ref().map(|b| &b.sha256), 0);
    assert_eq!(chain.clone().next_rows(&cache.view(), 0..20), manifest.chunks[0].key);
    assert_ne!(chain.next_rows(&common::cache(40, 2).view(), 0..20), manifest.chunks[0].key);
}

#[tokio::test]
async fn wrong_input_is_refused() {
    let (store, registry) = (store(), registry());
    let good = publication(&cache(30, 1), 20, ids(30));
    let kind = |result: cacheg_core::Result<cacheg_net::store::Published>| result.unwrap_err().kind();
    let mut bad = good.clone();
    bad.levels.clear();
    assert_eq!(kind(publish(&store, &registry, &bad, &|_| ()).await), ErrorKind::InvalidSetting);
    let mut bad = good.clone();
    bad.levels[1].name = bad.levels[0].name.clone();
    assert_eq!(kind(publish(&store, &registry, &bad, &|_| ()).await), ErrorKind::InvalidSetting);
    let mut bad = good.clone();
    bad.levels[0].name = "../x".into();
    assert_eq!(kind(publish(&store, &registry, &bad, &|_| ()).await), ErrorKind::InvalidSetting);
    for ids in ["[1,2]", "nonsense", "[1,-2]"] {
        let mut bad = good.clone();
        bad.metadata.insert("token_ids".into(), ids.into());
        assert_eq!(kind(publish(&store, &registry, &bad, &|_| ()).await), ErrorKind::InvalidData, "{ids}");
    }
    assert_eq!(
        kind(publish(&store, &registry, &publication(&cache(0, 1), 20, None), &|_| ()).await),
        ErrorKind::InvalidData
    );
    assert!(store.contexts().await.unwrap().is_empty());
    assert_eq!(store.manifest(&id("nobody")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
    let options = FetchOptions::default();
    let error = fetch(&store, &registry, &id("nobody"), &options, receiver, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// Every change of every field: an error of the right kind or another valid manifest; never a panic, never a hang.
#[tokio::test]
async fn hostile_manifests() {
    let (store, registry) = (store(), registry());
    let manifest =
        publish(&store, &registry, &publication(&cache(50, 1), 20, ids(50)), &|_| ()).await.unwrap().manifest;
    let bytes = manifest.to_bytes(store.limits()).unwrap();
    let key = Key::new(format!("contexts/{}/manifest.json", manifest.id)).unwrap();
    let whole: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let edits: Vec<(&str, serde_json::Value)> = vec![
        ("/tokens", 0.into()),
        ("/tokens", u64::MAX.into()),
        ("/tokens", 49.into()),
        ("/position", u64::MAX.into()),
        ("/cacheg_manifest", "9.9".into()),
        ("/id", "other".into()),
        ("/id", "../../etc".into()),
        ("/chunks/0/tokens", 0.into()),
        ("/chunks/0/tokens", u64::MAX.into()),
        ("/chunks/0/key", "../../../etc/passwd".into()),
        ("/chunks/0/key", "http://elsewhere/".into()),
        ("/chunks/0/levels/exact/bytes", u64::MAX.into()),
        ("/chunks/0/levels/exact/bytes", 0.into()),
        ("/chunks/0/levels/exact/bytes", 1.into()),
        ("/chunks/0/levels/exact/distortion", (-1.0).into()),
        ("/chunks/0/levels/exact/distortion", "NaN".into()),
        ("/chunks/0/levels/exact/sha256", "00".into()),
        ("/chunks/0/levels", serde_json::json!({})),
        (
            "/chunks/0/levels",
            serde_json::json!({ "unknown": { "bytes": 1, "distortion": 0, "sha256": manifest.chunks[0].key } }),
        ),
        ("/levels/1/name", "exact".into()),
        ("/levels/0/name", "a/b".into()),
        ("/geometry/layers/0/repeat", u32::MAX.into()),
        ("/geometry/layers/0/key/head_dim", u32::MAX.into()),
        ("/text/bytes", u64::MAX.into()),
        ("/text/bytes", 1.into()),
        ("/text/sha256", manifest.chunks[0].key.as_str().into()),
        ("/chunks", serde_json::json!([])),
    ];
    for (pointer, value) in edits {
        let mut edited = whole.clone();
        *edited.pointer_mut(pointer).unwrap() = value.clone();
        store.transport().put(&key, Bytes::from(edited.to_string()), Put::Replace).await.unwrap();
        let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
        let mut options = FetchOptions::default();
        options.slo = Some(Duration::from_secs(2));
        let fetched = tokio::time::timeout(
            Duration::from_secs(4),
            fetch(&store, &registry, &manifest.id, &options, receiver, None),
        );
        // A level that cannot be had is got over; everything else is refused.
        match fetched.await.expect("no hang") {
            Ok(fetched) => assert!(!fetched.faults.is_empty(), "{pointer} = {value}"),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::Limit | ErrorKind::Unsupported | ErrorKind::NotFound
                ),
                "{pointer} = {value}: {error}"
            ),
        }
    }
    for cut in (0..bytes.len()).step_by(7) {
        store.transport().put(&key, Bytes::copy_from_slice(&bytes[..cut]), Put::Replace).await.unwrap();
        assert_eq!(store.manifest(&manifest.id).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn damaged_and_missing_chunks_are_got_over_and_reported() {
    let (store, registry) = (store(), registry());
    let manifest =
        publish(&store, &registry, &publication(&cache(50, 1), 20, ids(50)), &|_| ()).await.unwrap().manifest;
    let options = FetchOptions::default();
    let run = async |options: &FetchOptions| {
        let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
        let fetched = fetch(&store, &registry, &manifest.id, options, receiver.clone(), None).await.unwrap();
        let back = receiver.lock().unwrap().take().unwrap();
        (fetched, back)
    };
    let level = |got: &Got| match got {
        Got::Level { level, .. } => level.clone(),
        other => format!("{other:?}"),
    };
    // One byte of the best level of chunk 0; that of chunk 1 is gone.
    let (first, _) = manifest.object(0, "exact").unwrap().unwrap();
    let (second, _) = manifest.object(1, "exact").unwrap().unwrap();
    common::flip(&store, &first, 100).await;
    store.transport().delete(&second).await.unwrap();
    let (fetched, back) = run(&options).await;
    let levels: Vec<String> = fetched.chunks.iter().map(level).collect();
    assert_eq!(levels, ["small", "small", "exact"]);
    assert_eq!(fetched.faults.len(), 2, "{:?}", fetched.faults);
    assert!(nmse(&cache(50, 1).view(), 0..50, &back) < 0.1);
    let faults = verify(&store, &manifest.id, &|_| ()).await.unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
    // All levels of chunk 1: recomputed if anybody can, else missing.
    let (third, _) = manifest.object(1, "small").unwrap().unwrap();
    store.transport().delete(&third).await.unwrap();
    let (fetched, _) = run(&options).await;
    assert_eq!((fetched.complete, &fetched.chunks[1]), (None, &Got::Missing));
    assert_eq!(fetched.absent(), [20..40]);
    let mut options = options.clone();
    // `cachegen` would leave everything to the model, which has no distortion.
    options.policy = Some("fixed(level=0)".into());
    options.recompute = Some(Duration::from_micros(100));
    let (fetched, _) = run(&options).await;
    assert!(fetched.complete.is_some());
    assert_eq!((&fetched.chunks[1], fetched.absent()), (&Got::Left, vec![20..40]));
    // Publishing again heals what is damaged.
    let again = publish(&store, &registry, &publication(&cache(50, 1), 20, ids(50)), &|_| ()).await.unwrap();
    assert_eq!(again.manifest, manifest);
    let left: Vec<String> =
        verify(&store, &manifest.id, &|_| ()).await.unwrap().into_iter().map(|f| f.object).collect();
    assert_eq!(left, [first.as_str()], "only what looks whole from outside is left");
}

#[tokio::test]
async fn files_are_filled_as_chunks_arrive_and_taken_up_after_a_kill() {
    let (store, registry) = (store(), registry());
    let original = cache(50, 1);
    let manifest =
        publish(&store, &registry, &publication(&original, 20, ids(50)), &|_| ()).await.unwrap().manifest;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.safetensors");
    let options = FetchOptions::default();
    // The third chunk cannot be had: the request ends without it, as if it had been killed there.
    let (third, _) = manifest.object(2, "exact").unwrap().unwrap();
    let (fourth, _) = manifest.object(2, "small").unwrap().unwrap();
    let mut kept = Vec::new();
    for key in [&third, &fourth] {
        kept.push(common::get(&store, key).await);
        store.transport().delete(key).await.unwrap();
    }
    let receiver = Arc::new(Mutex::new(FileReceiver::new(&path)));
    let fetched = fetch(&store, &registry, &manifest.id, &options, receiver.clone(), None).await.unwrap();
    assert_eq!(fetched.chunks[2], Got::Missing);
    drop(receiver);
    assert!(!path.exists() && folder.path().join("kv.safetensors.part").exists());
    // A journal whose last line was cut off.
    let journal = folder.path().join("kv.safetensors.part.journal");
    let mut text = std::fs::read(&journal).unwrap();
    text.extend(b"{\"chunk\":2,\"lev");
    std::fs::write(&journal, text).unwrap();
    for (key, bytes) in [&third, &fourth].into_iter().zip(kept) {
        store.transport().put(key, bytes, Put::Create).await.unwrap();
    }
    let receiver = Arc::new(Mutex::new(FileReceiver::new(&path)));
    let fetched = fetch(&store, &registry, &manifest.id, &options, receiver.clone(), None).await.unwrap();
    assert_eq!(fetched.chunks[..2], [Got::Held, Got::Held]);
    assert_eq!(fetched.bytes, manifest.chunks[2].levels["exact"].bytes);
    receiver.lock().unwrap().finish(false).unwrap();
    let file = KvFile::open(&path, &Limits::default()).unwrap();
    for plane in 0..file.geometry().planes().len() {
        assert_eq!(file.view().plane_bytes(plane), original.plane_bytes(plane));
    }
    assert_eq!(file.metadata()["token_ids"], serde_json::json!(ids(50)).to_string());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
    // A journal of another context is not believed.
    let mut other = FileReceiver::new(&folder.path().join("other"));
    std::fs::write(folder.path().join("other.part"), b"rubbish").unwrap();
    std::fs::write(
        folder.path().join("other.part.journal"),
        format!("{{\"manifest\":\"{}\"}}\n{{\"chunk\":0,\"level\":null}}\n", Hash::of(b"x")),
    )
    .unwrap();
    assert!(other.begin(&manifest, None).unwrap().is_empty());
}
