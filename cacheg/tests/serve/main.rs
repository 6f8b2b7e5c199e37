//! `cacheg serve` as a process of its own.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![cfg(all(feature = "serve", unix))]

mod command;
mod load;
mod process;
