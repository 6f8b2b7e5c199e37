#![doc = include_str!("../README.md")]

#[cfg(feature = "testkit")]
pub mod conformance;
pub mod transport;
