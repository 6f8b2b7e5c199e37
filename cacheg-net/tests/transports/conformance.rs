//! Transports that need nothing but this process and loopback, against the suite that third parties run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cacheg_core::{OpenOptions, Transport, Transports};
use cacheg_net::conformance::{self, Check, Promises};
use cacheg_net::serve::{Tls, Tokens};
use cacheg_net::transport::{FileStore, MemoryStore, TRANSPORTS};

use crate::servers::{Http, open};

pub(crate) const BOTH: Promises = Promises { etag: true, modified: true };

fn memory() -> Arc<dyn Transport> {
    Arc::new(MemoryStore::new())
}

/// A new folder for each check.
struct Folders(tempfile::TempDir, AtomicU32);

impl Folders {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), AtomicU32::new(0))
    }

    fn next(&self) -> Arc<dyn Transport> {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        Arc::new(FileStore::new(self.0.path().join(format!("store{number}"))).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mem() -> Check {
    conformance::run(&BOTH, async || Ok(memory())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn file() -> Check {
    let folders = Folders::new();
    conformance::run(&BOTH, async || Ok(folders.next())).await
}

/// The servers of a run, which go on until its end.
async fn served(next: impl Fn() -> Arc<dyn Transport>, shape: Option<&str>) -> Check {
    let servers = std::sync::Mutex::new(Vec::new());
    conformance::run(&BOTH, async || {
        let server = Http::start(next(), |_| ()).await;
        let url = match shape {
            Some(shape) => format!("shaped+{}/#{shape}", server.url),
            None => server.url.clone(),
        };
        servers.lock().unwrap().push(server);
        Ok(open(&url, |_| ()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn http_of_memory() -> Check {
    served(memory, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn http_of_files() -> Check {
    let folders = Folders::new();
    served(|| folders.next(), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shaped_http() -> Check {
    served(memory, Some("rate=2Gbps&latency=100us")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shaped_mem() -> Check {
    let shape = "rate=4Gbps&latency=10us";
    conformance::run(&BOTH, async || Ok(open(&format!("shaped+mem:#{shape}"), |_| ()))).await
}

/// By TLS, which means HTTP/2 here, and with a token.
#[tokio::test(flavor = "multi_thread")]
async fn https_with_token() -> Check {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let servers = std::sync::Mutex::new(Vec::new());
    conformance::run(&BOTH, async || {
        let server = Http::start(memory(), |settings| {
            settings.tls = Some(Tls::open(&certificate, &key).unwrap());
            settings.tokens = Some(Tokens::parse("open-sesame").unwrap());
        })
        .await;
        let url = server.url.clone();
        assert!(url.starts_with("https://"));
        servers.lock().unwrap().push(server);
        Ok(open(&url, |options| {
            options.authority = Some(certificate.clone());
            options.token = Some("open-sesame".into());
        }))
    })
    .await
}

#[test]
fn every_scheme_opens_what_its_usage_says() {
    let all = Transports::new(TRANSPORTS.iter().copied()).unwrap();
    for plugin in all.iter() {
        assert!(plugin.usage.starts_with(plugin.scheme), "{}: {}", plugin.scheme, plugin.usage);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for url in ["mem:x", path, &format!("file:{path}"), &format!("file://{path}"), "http://localhost:1/a"] {
        all.open(url, &OpenOptions::default()).unwrap();
    }
    for url in
        ["file:", "file://host/x", "nonsense:x", "http:", "shaped+mem:x", "shaped+nonsense:x#rate=1Mbps"]
    {
        assert!(all.open(url, &OpenOptions::default()).is_err(), "{url}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn files_beside_a_store_are_out_of_reach() {
    use bytes::Bytes;
    use cacheg_core::{ErrorKind, Key, Put};
    let folder = tempfile::tempdir().unwrap();
    let (outside, root) = (folder.path().join("outside"), folder.path().join("store"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    std::os::unix::fs::symlink(outside.join("secret"), root.join("file")).unwrap();
    std::fs::write(root.join(".hidden"), "x").unwrap();
    std::fs::write(root.join("no key"), "x").unwrap();
    std::fs::write(root.join("there"), "x").unwrap();
    std::fs::write(root.join(".cacheg-abcdef.part"), "left").unwrap();
    let store = FileStore::new(&root).unwrap();
    let key = |name: &str| Key::new(name).unwrap();
    for name in ["link/secret", "link/deep/new", "file"] {
        assert_eq!(store.get(&key(name), None).await.unwrap_err().kind(), ErrorKind::Denied, "{name}");
        assert_eq!(store.head(&key(name)).await.unwrap_err().kind(), ErrorKind::Denied, "{name}");
    }
    for name in ["link/secret", "link/new", "link/deep/new", "link/new/er"] {
        for mode in [Put::Replace, Put::Create] {
            let put = store.put(&key(name), Bytes::from_static(b"bad"), mode).await;
            assert!(matches!(put, Err(ref e) if e.kind() == ErrorKind::Denied), "{name}: {put:?}");
        }
        assert!(store.delete(&key(name)).await.is_err());
    }
    // A link is replaced, what it names is not.
    store.put(&key("file"), Bytes::from_static(b"new"), Put::Replace).await.unwrap();
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2);
    let mut listing = store.list(None);
    let mut names: Vec<String> =
        listing.next().await.unwrap().unwrap().into_iter().map(|(k, _)| k.to_string()).collect();
    names.sort();
    assert_eq!(names, ["file", "there"]);
    assert!(store.list(Some(&key("link"))).next().await.unwrap().is_none());
    assert_eq!(store.sweep(std::time::Duration::from_secs(3600)).await.unwrap(), 0, "not yet");
    assert_eq!(store.sweep(std::time::Duration::ZERO).await.unwrap(), 4);
    assert!(!root.join(".cacheg-abcdef.part").exists() && root.join(".hidden").exists());
}
