//! Listings, and the `object_store` crate as a client.

use bytes::Bytes;
use cacheg_net::serve::Settings;
use object_store::http::{HttpBuilder, HttpStore};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt};

use crate::support::{Running, Store, settings};

fn names() -> [(&'static str, Bytes); 6] {
    ["a", "b/c", "b/d/e", "b/d/f", "b-x/y", "z/1"].map(|name| (name, Bytes::from(name)))
}

fn paths(text: &str) -> Vec<&str> {
    text.split("<D:href>").skip(1).map(|rest| rest.split('<').next().unwrap()).collect()
}

#[tokio::test]
async fn depths() {
    let server = Running::start(&Store::with(&names()), Settings::default()).await;
    for (path, depth, expected) in [
        ("/", "0", &["/"][..]),
        ("/", "1", &["/", "/a", "/b-x/", "/b/", "/z/"]),
        ("/", "infinity", &["/", "/a", "/b-x/y", "/b/c", "/b/d/e", "/b/d/f", "/z/1"]),
        ("/b", "0", &["/b/"]),
        ("/b", "1", &["/b/", "/b/c", "/b/d/"]),
        ("/b/", "infinity", &["/b/", "/b/c", "/b/d/e", "/b/d/f"]),
        ("/a", "0", &["/a"]),
        ("/a", "1", &["/a"]),
        ("/a", "infinity", &["/a"]),
    ] {
        let reply = server.ask("PROPFIND", path, &[("depth", depth)], b"").await;
        assert_eq!(reply.status, 207);
        assert_eq!(paths(&reply.text()), expected, "{path} {depth}");
    }
    for (path, depth, status) in
        [("/none", "1", 404), ("/none", "0", 404), ("/a/", "0", 404), ("/", "2", 400)]
    {
        let reply = server.ask("PROPFIND", path, &[("depth", depth)], b"").await;
        assert_eq!(reply.status, status, "{path} {depth}");
    }
    let empty = Running::start(&Store::with(&[]), Settings::default()).await;
    assert_eq!(paths(&empty.ask("PROPFIND", "/", &[], b"").await.text()), ["/"]);
}

#[tokio::test]
async fn a_listing_is_whole_or_breaks_off() {
    let server = Running::start(&Store::with(&names()), settings(|all| all.max_listing = 5)).await;
    let answer = server.raw(b"PROPFIND / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("207") && !answer.contains("</D:multistatus>"), "{answer}");
    let answer = server.raw(b"PROPFIND / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ndepth: 1\r\n\r\n").await;
    assert!(answer.contains("</D:multistatus>"), "{answer}");
}

fn client(server: &Running) -> HttpStore {
    // Even plain connections want to know which cryptography they would use.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let options = ClientOptions::new().with_allow_http(true);
    HttpBuilder::new().with_url(&server.url).with_client_options(options).build().unwrap()
}

async fn listed(store: &HttpStore, prefix: Option<&str>) -> Vec<(String, u64)> {
    use futures_util::TryStreamExt;
    let prefix = prefix.map(Path::from);
    let all: Vec<_> = store.list(prefix.as_ref()).try_collect().await.unwrap();
    let mut all: Vec<_> = all.into_iter().map(|meta| (meta.location.to_string(), meta.size)).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn object_store_as_a_client() {
    let server = Running::start(&Store::with(&[]), settings(|all| all.writable = true)).await;
    let store = client(&server);
    assert_eq!(listed(&store, None).await, []);
    for (name, bytes) in names() {
        store.put(&Path::from(name), bytes.into()).await.unwrap();
    }
    let got = store.get(&Path::from("b/d/e")).await.unwrap();
    assert!(got.meta.e_tag.is_some());
    assert_eq!(got.bytes().await.unwrap(), "b/d/e");
    assert_eq!(store.get_range(&Path::from("b/d/e"), 2..4).await.unwrap(), "d/");
    assert_eq!(store.head(&Path::from("b/c")).await.unwrap().size, 3);
    let missing = store.get(&Path::from("b")).await.unwrap_err();
    assert!(matches!(missing, object_store::Error::NotFound { .. }), "{missing}");
    let both = [("b/c".to_owned(), 3), ("b/d/e".to_owned(), 5), ("b/d/f".to_owned(), 5)];
    assert_eq!(listed(&store, Some("b")).await, both);
    assert_eq!(listed(&store, Some("none")).await, []);
    assert_eq!(listed(&store, None).await.len(), 6);
    let level = store.list_with_delimiter(None).await.unwrap();
    assert_eq!(level.common_prefixes.iter().map(AsRef::as_ref).collect::<Vec<_>>(), ["b-x", "b", "z"]);
    assert_eq!(level.objects.len(), 1);
    store.copy(&Path::from("a"), &Path::from("new/folder/a")).await.unwrap();
    assert_eq!(store.get(&Path::from("new/folder/a")).await.unwrap().bytes().await.unwrap(), "a");
    let taken = store.copy_if_not_exists(&Path::from("a"), &Path::from("z/1")).await.unwrap_err();
    assert!(matches!(taken, object_store::Error::AlreadyExists { .. }), "{taken}");
    store.rename(&Path::from("a"), &Path::from("renamed")).await.unwrap();
    assert!(store.head(&Path::from("a")).await.is_err());
    store.delete(&Path::from("renamed")).await.unwrap();
    assert!(store.head(&Path::from("renamed")).await.is_err());
}
