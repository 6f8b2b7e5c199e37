//! Transports against real servers on loopback, which the tests start and stop.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests, beside the tests themselves")]

mod conformance;
mod fault_server;
mod http_faults;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "s3")]
mod s3;
mod servers;
mod shaped;
