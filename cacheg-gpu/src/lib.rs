#![doc = include_str!("../README.md")]

mod backend;
mod device;
mod device_kv;
mod engine;
mod error;
mod hybrid;
mod measure;
mod portable;
mod program;
mod recording;
mod selftest;
mod work;

pub use backend::Gpu;
pub use device::{ALLOW_CPU, AdapterInfo, adapters};
pub use device_kv::DeviceKv;
pub use error::GpuError;
pub use hybrid::Hybrid;
pub use measure::Measured;
pub use portable::Portable;
pub use program::{Program, Variant};
pub use selftest::SelfTest;
