#![doc = include_str!("../README.md")]

#[cfg(feature = "serve")]
pub mod serve;
