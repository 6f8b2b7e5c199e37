//! Servers that end with the value that stands for them.

use std::net::SocketAddr;
use std::sync::Arc;

use cacheg_core::{OpenOptions, Transport, Transports};
use cacheg_net::serve::{Server, Settings};
use cacheg_net::transport::TRANSPORTS;
use tokio::task::JoinHandle;

/// `cacheg serve`, in this process.
pub(crate) struct Http {
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Http {
    pub(crate) async fn start(store: Arc<dyn Transport>, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), store, change).await
    }

    pub(crate) async fn start_at(
        address: SocketAddr,
        store: Arc<dyn Transport>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let mut settings = Settings::default();
        settings.writable = true;
        change(&mut settings);
        let server = Server::bind(store, address, settings).await.unwrap();
        let (url, address) = (server.url(), server.address());
        let task = tokio::spawn(async move {
            server.run(std::future::pending()).await;
        });
        Self { url, address, task }
    }

    /// As if killed: all connections break.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn open(url: &str, change: impl FnOnce(&mut OpenOptions)) -> Arc<dyn Transport> {
    let mut options = OpenOptions::default();
    change(&mut options);
    Transports::new(TRANSPORTS.iter().copied()).unwrap().open(url, &options).unwrap()
}
