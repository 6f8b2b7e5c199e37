//! All transports against the suite that third parties run.

use std::sync::Arc;

use cacheg_core::{OpenOptions, Transport, Transports};
use cacheg_net::conformance::{self, Check, Promises};
use cacheg_net::transport::{FileStore, MemoryStore, TRANSPORTS};

const BOTH: Promises = Promises { etag: true, modified: true };

#[tokio::test(flavor = "multi_thread")]
async fn mem() -> Check {
    conformance::run(&BOTH, async || Ok(Arc::new(MemoryStore::new()) as Arc<dyn Transport>)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn file() -> Check {
    let folder = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU32::new(0);
    conformance::run(&BOTH, async || {
        let next = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Arc::new(FileStore::new(folder.path().join(format!("store{next}")))?) as Arc<dyn Transport>)
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
    for url in ["mem:x", path, &format!("file:{path}"), &format!("file://{path}")] {
        all.open(url, &OpenOptions::default()).unwrap();
    }
    for url in ["file:", "file://host/x", "nonsense:x"] {
        assert!(all.open(url, &OpenOptions::default()).is_err(), "{url}");
    }
}
