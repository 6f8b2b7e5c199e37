#![doc = include_str!("../README.md")]

#[cfg(feature = "testkit")]
pub mod conformance;
pub mod control;
pub mod fetch;
#[cfg(feature = "serve")]
pub mod serve;
pub mod store;
pub mod trace;
pub mod transport;
