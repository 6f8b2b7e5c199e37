//! A store over HTTP: [`Server`] hands out the objects of any [`Transport`], by HTTP/1.1 and HTTP/2.
//!
//! * `GET` and `HEAD` with single ranges, strong ETags, conditional requests; bodies are streamed.
//! * `PROPFIND` lists, as WebDAV clients (among them the `object_store` crate) expect; page by page, never as a whole in
//!   memory.
//! * With [`Settings::writable`]: `PUT` (`If-None-Match: *` never replaces), `DELETE`, `COPY`, `MKCOL`.
//! * Bearer tokens with expiry, TLS, limits on everything that a client could make grow, metrics for Prometheus at
//!   `/-/metrics`, health at `/-/health`, one line of `tracing` per request.
//!
//! # Memory
//! What clients can make a server hold is bounded, whatever they do:
//! `max_connections` × (1 read buffer + 1 write buffer, each of `max_header_bytes` or 16 KiB, and TLS's 32 KiB) +
//! `max_requests` × 2 pieces of the transport + `max_object` for uploads, together.
//!
//! ```no_run
//! # async fn example(transport: std::sync::Arc<dyn cacheg_core::Transport>) -> cacheg_core::Result<()> {
//! use cacheg_net::serve::{Server, Settings};
//! let server = Server::bind(transport, "127.0.0.1:0".parse().unwrap(), Settings::default()).await?;
//! println!("listening on {}", server.url());
//! server.run(std::future::pending()).await;
//! # Ok(()) }
//! ```

mod activity;
mod answer;
mod body;
mod conditions;
mod connection;
mod etag;
mod listing;
mod metrics;
mod place;
mod range;
mod read;
mod refusal;
mod server;
mod service;
mod settings;
mod tls;
mod tokens;
mod write;

pub use server::{Server, Stopped};
pub use settings::Settings;
pub use tls::Tls;
pub use tokens::Tokens;

#[cfg(doc)]
use cacheg_core::Transport;
