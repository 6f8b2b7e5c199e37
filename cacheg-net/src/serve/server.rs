//! Listening, and stopping in an orderly way.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cacheg_core::{Error, Result, Transport};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Settings;
use super::connection::{builder, handle};
use super::service::Shared;

/// A server that listens. Needs a Tokio runtime with I/O and time.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stopped {
    /// Connections that had not finished within [`Settings::grace`] and were broken off.
    pub broken_off: usize,
}

impl Server {
    /// Listens on an address; port 0 is any free one.
    ///
    /// # Errors
    /// `Io` if it cannot be listened on.
    pub async fn bind(
        transport: Arc<dyn Transport>,
        address: SocketAddr,
        settings: Settings,
    ) -> Result<Self> {
        let io = |source| Error::Io { context: format!("cannot listen on {address}"), source };
        let listener = TcpListener::bind(address).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        Ok(Self { listener, address, shared: Arc::new(Shared::new(transport, settings)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as clients say it.
    pub fn url(&self) -> String {
        let scheme = if self.shared.settings.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Serves until `stop` is ready, then accepts nothing new and gives what is running [`Settings::grace`] to finish.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Stopped {
        let Self { listener, shared, .. } = self;
        let tls = shared.settings.tls.as_ref().map(super::Tls::acceptor);
        let builder = builder(&shared.settings);
        let (close, closing) = watch::channel(false);
        let places =
            Arc::new(Semaphore::new(shared.settings.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let mut connections = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => {}
                (place, stream, peer) = accept(&listener, &places) => {
                    let (shared, builder, tls) = (Arc::clone(&shared), builder.clone(), tls.clone());
                    let closing = closing.clone();
                    connections.spawn(async move {
                        handle(shared, builder, tls, stream, peer, closing).await;
                        drop(place);
                    });
                }
            }
        }
        drop(listener);
        // All receivers may be gone.
        let _ = close.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(shared.settings.grace, all).await;
        let broken_off = connections.len();
        connections.shutdown().await;
        Stopped { broken_off }
    }
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, TcpStream, SocketAddr) {
    // It is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (place, stream, peer),
            // That connection failed, not the listener.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
                ) => {}
            // Most likely no file descriptors are left: others must finish first.
            Err(error) => {
                tracing::warn!(target: "cacheg::serve", %error, "cannot accept connections");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("transport", &self.transport).finish_non_exhaustive()
    }
}
