#![doc = include_str!("../README.md")]

mod backend;
mod compiled;
mod decoder;
mod device;
mod device_kv;
mod engine;
mod error;
mod hybrid;
mod measure;
mod program;
mod recorded;
mod recording;
mod selftest;
#[cfg(feature = "simulate")]
mod simulate;
mod slot;
mod told;
mod windows;
mod work;

pub use backend::{Gpu, Options};
pub use decoder::GpuDecoder;
pub use device::{ALLOW_CPU, AdapterInfo, adapters};
pub use device_kv::DeviceKv;
pub use error::GpuError;
pub use hybrid::Hybrid;
pub use measure::Measured;
pub use program::{Program, Variant};
pub use recorded::Recorded;
pub use selftest::SelfTest;
#[cfg(feature = "simulate")]
pub use simulate::{BindingCounts, Counts, LoopCounts, Simulated, simulate};
