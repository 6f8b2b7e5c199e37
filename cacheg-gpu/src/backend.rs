//! The backend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cacheg_core::{Backend, Decoder, Plan, Result};

use crate::compiled::Compiled;
use crate::decoder::GpuDecoder;
use crate::device::{AdapterInfo, Device};
use crate::program::{Program, Variant};
use crate::{GpuError, SelfTest, selftest};

/// How much a GPU is given at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of elements of a window, and of whatever else it consists of: what is uploaded, decoded and downloaded at a
    /// time is as many tiles of as many chunks as have no more. By default 256 MiB, enough to fill large GPUs, or half of
    /// what the device can bind; on CPUs 32 MiB.
    pub window: Option<usize>,
    /// Windows that are under way at a time, each with buffers of its own: one is uploaded while another is decoded.
    pub depth: usize,
    /// Whether to do without subgroups where there are some, to compare.
    pub portable: bool,
    /// Bytes of the largest buffer of a [`DeviceKv`](crate::DeviceKv), if not as much as the device can bind.
    pub buffer: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { window: None, depth: 2, portable: false, buffer: None }
    }
}

/// Decodes on a GPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: Device,
    name: String,
    tested: SelfTest,
    options: Options,
    /// Programs by their text: plans of one pipeline have the same, with parameters of their own.
    compiled: Mutex<BTreeMap<String, Arc<Compiled>>>,
}

impl Gpu {
    /// Opens the best adapter, or the best whose name contains `name`, and tests it.
    ///
    /// Adapters that compute on a CPU are taken only by name, or if [`ALLOW_CPU`](crate::ALLOW_CPU) is set.
    ///
    /// # Errors
    /// If there is none, if it cannot be opened, or if it does not compute what it should.
    pub fn open(name: Option<&str>) -> Result<Self, GpuError> {
        Self::open_with(name, Options::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(name: Option<&str>, options: Options) -> Result<Self, GpuError> {
        let device = Device::open(name, options.portable)?;
        let tested = selftest::run(&device)?;
        let name = format!("gpu:{}", device.info.name);
        Ok(Self { shared: Arc::new(Shared { device, name, tested, options, compiled: Mutex::default() }) })
    }

    /// What is known of the adapter.
    pub fn info(&self) -> &AdapterInfo {
        &self.shared.device.info
    }

    /// How the lanes of a stream work together on it.
    pub fn variant(&self) -> Variant {
        self.shared.device.variant
    }

    /// The device, for programs that compute on what was decoded.
    pub fn wgpu_device(&self) -> &wgpu::Device {
        &self.shared.device.device
    }

    /// Its queue.
    pub fn wgpu_queue(&self) -> &wgpu::Queue {
        &self.shared.device.queue
    }

    /// A decoder for chunks of this plan, with what [`Backend::decoder`] hides.
    ///
    /// # Errors
    /// If a stage has no WGSL, or the device fails.
    pub fn open_decoder(&self, plan: Arc<Plan>) -> Result<GpuDecoder> {
        GpuDecoder::new(self.shared.clone(), plan)
    }

    /// Bytes of a buffer of a KV cache, at most.
    pub(crate) fn buffer_limit(&self) -> u64 {
        let limit = self.device().limit();
        self.shared.options.buffer.map_or(limit, |most| most.min(limit))
    }

    /// Whether this is the same open adapter. (What wgpu compares, numbers, are unique in one instance only.)
    pub(crate) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Bytes of elements of a window.
    pub(crate) fn window(&self) -> usize {
        self.shared.window()
    }

    pub(crate) fn device(&self) -> &Device {
        &self.shared.device
    }

    /// What its self-test has found.
    pub fn tested(&self) -> SelfTest {
        self.shared.tested
    }
}

impl Shared {
    pub(crate) fn compiled(&self, program: &Program) -> Result<Arc<Compiled>, GpuError> {
        // Held while compiling: another thread would only compile the same.
        let mut known = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = known.get(&program.source) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(Compiled::new(&self.device, program)?);
        known.insert(program.source.clone(), compiled.clone());
        Ok(compiled)
    }

    /// Bytes of elements of a window.
    pub(crate) fn window(&self) -> usize {
        let usual = if self.device.info.is_cpu { 32 << 20 } else { 256 << 20 };
        let limit = usize::try_from(self.device.limit()).unwrap_or(usize::MAX);
        self.options.window.unwrap_or(usual).min(limit / 2)
    }

    pub(crate) fn depth(&self) -> usize {
        self.options.depth.max(1)
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn supports(&self, plan: &Plan) -> Result<()> {
        Program::new(plan, self.shared.device.variant, 0).map(drop)
    }

    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(self.open_decoder(plan)?))
    }
}
