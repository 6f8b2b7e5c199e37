//! What a server may do and how much of everything it gives.

use std::time::Duration;

use super::{Tls, Tokens};

/// Settings of a [`Server`](super::Server). Sizes are in bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// Whether objects may be written and removed.
    pub writable: bool,
    /// Who may ask; `None`: everybody.
    pub tokens: Option<Tokens>,
    /// Certificate and key; `None`: plain text.
    pub tls: Option<Tls>,
    /// Connections at a time; more wait in the system's queue.
    pub max_connections: usize,
    /// Requests at a time, over all connections; more wait for [`queue_timeout`](Self::queue_timeout), then get 503.
    pub max_requests: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub max_streams: u32,
    /// A request's line and headers together; more is 431.
    pub max_header_bytes: usize,
    /// A request's headers; more is 431.
    pub max_headers: usize,
    /// The longest object that may be uploaded (more is 413), and what all uploads at a time may hold in memory.
    pub max_object: u64,
    /// The most entries in an answer to `PROPFIND`; a longer one is broken off, so that no client takes it for whole.
    pub max_listing: usize,
    /// How long a new connection may take for TLS and its first request's headers.
    pub header_timeout: Duration,
    /// How long a connection may lie idle, and how long a transfer may go without any progress.
    pub idle_timeout: Duration,
    /// How long a request waits for its turn when [`max_requests`](Self::max_requests) are running.
    pub queue_timeout: Duration,
    /// How long transfers may go on after the server was told to stop.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            writable: false,
            tokens: None,
            tls: None,
            max_connections: 1024,
            max_requests: 1024,
            max_streams: 100,
            max_header_bytes: 32 << 10,
            max_headers: 64,
            max_object: 256 << 20,
            max_listing: 1_000_000,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            queue_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        }
    }
}
