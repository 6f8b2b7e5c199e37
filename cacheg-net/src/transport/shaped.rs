//! `shaped+URL#…`: any other transport behind a link of a given bandwidth and latency, to try things on.
//!
//! Object bytes go through token buckets, one for reading and one for writing. Transfers at the same time share them
//! fairly: they take turns, a few milliseconds' worth of bytes each. Every request waits for the latency first. That is all:
//! requests and listings themselves cost no bandwidth, and what the inner transport takes comes on top.
//!
//! Time is tokio's, so that tests can pause it.

mod link;
mod shape;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, OpenOptions, Page, Pieces, Put, PutOutcome, Result,
    Transport, TransportPlugin, Transports,
};
use tokio::time::{sleep, timeout};

use link::Link;
pub use shape::Shape;

/// The plug-in.
pub(super) const PLUGIN: TransportPlugin = TransportPlugin {
    scheme: "shaped+",
    origin: super::ORIGIN,
    summary: "any other one, with the bandwidth and latency of a link",
    usage: "shaped+URL#rate=20Mbps&latency=30ms or #trace=FILE[&scale=0.1][&pick=N][&step=100ms]; [&burst=64KiB]",
    open,
};

fn open(url: &str, options: &OpenOptions, transports: &Transports) -> Result<Arc<dyn Transport>> {
    let inner = url.strip_prefix("shaped+").unwrap_or(url);
    // The inner URL may have secrets and is not shown.
    let (inner, shape) = inner.rsplit_once('#').ok_or_else(|| {
        Error::setting("shaped+ needs a link: add #rate=20Mbps&latency=30ms or #trace=FILE")
    })?;
    let shape = Shape::parse(shape)?;
    let inner = transports.open(inner, options)?;
    Ok(Arc::new(Shaped::new(inner, shape, options.patience)))
}

/// A transport behind a link.
#[derive(Debug)]
pub struct Shaped {
    inner: Arc<dyn Transport>,
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    down: Option<Link>,
    up: Option<Link>,
    latency: Duration,
    patience: Duration,
}

impl Shaped {
    /// Another one behind a link that carries nothing for `patience` before a transfer counts as lost.
    pub fn new(inner: Arc<dyn Transport>, shape: Shape, patience: Duration) -> Self {
        let link = || shape.trace.clone().map(|trace| Link::new(trace, shape.burst));
        let shared = Shared { down: link(), up: link(), latency: shape.latency, patience };
        Self { url: format!("shaped+{}", inner.url()), inner, shared: Arc::new(shared) }
    }
}

impl Shared {
    async fn wait(&self) {
        if !self.latency.is_zero() {
            sleep(self.latency).await;
        }
    }

    async fn carry(&self, link: &Link, bytes: usize) -> Result<()> {
        timeout(self.patience, link.carry(bytes)).await.map_err(|_| {
            Error::unavailable(format!("the shaped link has carried nothing for {:?}", self.patience))
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("latency", &self.latency).finish_non_exhaustive()
    }
}

impl Transport for Shaped {
    fn url(&self) -> &str {
        &self.url
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            self.shared.wait().await;
            let Body { meta, range, pieces } = self.named(self.inner.get(key, range).await)?;
            let slow = Slow { shared: Arc::clone(&self.shared), source: pieces, rest: Bytes::new() };
            Ok(Body { meta, range, pieces: Box::new(slow) })
        })
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        Box::pin(async move {
            self.shared.wait().await;
            if let Some(link) = &self.shared.up {
                let mut left = bytes.len();
                while left > 0 {
                    let turn = link.turn().min(left);
                    self.shared.carry(link, turn).await?;
                    left -= turn;
                }
            }
            self.named(self.inner.put(key, bytes, mode).await)
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        Box::pin(async move {
            self.shared.wait().await;
            self.named(self.inner.head(key).await)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.shared.wait().await;
            self.named(self.inner.delete(key).await)
        })
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        Box::new(Pages { shared: &self.shared, inner: self.inner.list(folder) })
    }

    fn sweep(&self, age: Duration) -> BoxFuture<'_, Result<u64>> {
        self.inner.sweep(age)
    }
}

impl Shaped {
    /// Says in errors that the link was in between.
    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| e.at(&self.url))
    }
}

/// A body that arrives no faster than the link carries it.
struct Slow {
    shared: Arc<Shared>,
    source: Box<dyn Pieces>,
    rest: Bytes,
}

impl Pieces for Slow {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            if self.rest.is_empty() {
                match self.source.next().await? {
                    Some(piece) => self.rest = piece,
                    None => return Ok(None),
                }
            }
            let Some(link) = &self.shared.down else {
                return Ok(Some(std::mem::take(&mut self.rest)));
            };
            let turn = link.turn().min(self.rest.len());
            self.shared.carry(link, turn).await?;
            Ok(Some(self.rest.split_to(turn)))
        })
    }
}

struct Pages<'a> {
    shared: &'a Shared,
    inner: Box<dyn Listing + 'a>,
}

impl Listing for Pages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            self.shared.wait().await;
            self.inner.next().await
        })
    }
}
