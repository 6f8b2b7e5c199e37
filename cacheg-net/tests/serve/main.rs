//! The server as clients meet it, on loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "serve")]

mod dav;
mod hostile;
mod reading;
mod shutdown;
mod support;
mod tls;
mod tokens;
mod writing;
