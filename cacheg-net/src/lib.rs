#![doc = include_str!("../README.md")]

#[cfg(feature = "testkit")]
pub mod conformance;
pub mod control;
#[cfg(feature = "serve")]
pub mod serve;
pub mod trace;
pub mod transport;
