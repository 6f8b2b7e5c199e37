#![doc = include_str!("../README.md")]

mod backend;
mod device;
mod engine;
mod error;
mod program;
mod selftest;
mod work;

pub use backend::Gpu;
pub use device::{ALLOW_CPU, AdapterInfo, adapters};
pub use error::GpuError;
pub use program::Program;
pub use selftest::SelfTest;
