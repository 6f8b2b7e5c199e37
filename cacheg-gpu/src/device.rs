//! Adapters: which there are, which one is taken, and opening it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor};

use crate::GpuError;
use crate::program::{LANES, Variant};

/// Allows adapters that compute on a CPU, like Mesa's llvmpipe, where nobody has asked for one by name.
pub const ALLOW_CPU: &str = "CACHEG_GPU_CPU_ADAPTERS";

/// How long a device may compute without an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Driver and version.
    pub driver: String,
    /// Vulkan, Metal, DX12.
    pub api: String,
    /// Discrete, integrated, virtual, cpu or other.
    pub kind: &'static str,
    /// Whether it computes on a CPU: good for tests, never for speed.
    pub is_cpu: bool,
    /// Bytes that one binding can have.
    pub max_binding: u64,
    /// Bytes that one buffer can have.
    pub max_buffer: u64,
    /// Invocations of the smallest and the largest subgroup.
    pub subgroups: [u32; 2],
    /// Whether time can be measured on the device.
    pub timestamps: bool,
}

fn info(adapter: &Adapter) -> AdapterInfo {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "cpu",
        DeviceType::Other => "other",
    };
    AdapterInfo {
        name: info.name,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        api: info.backend.to_string(),
        kind,
        is_cpu: info.device_type == DeviceType::Cpu,
        max_binding: limits.max_storage_buffer_binding_size,
        max_buffer: limits.max_buffer_size,
        subgroups: [info.subgroup_min_size, info.subgroup_max_size],
        timestamps: adapter.features().contains(wgpu::Features::TIMESTAMP_QUERY),
    }
}

fn instance() -> Instance {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::PRIMARY;
    Instance::new(descriptor)
}

/// Adapters that can run our programs, the most powerful kinds first.
fn all() -> Vec<(Adapter, AdapterInfo)> {
    let mut adapters: Vec<_> = pollster::block_on(instance().enumerate_adapters(Backends::PRIMARY))
        .into_iter()
        .map(|adapter| {
            let info = info(&adapter);
            (adapter, info)
        })
        .collect();
    let rank = |info: &AdapterInfo| {
        ["discrete", "integrated", "virtual", "other", "cpu"].iter().position(|kind| *kind == info.kind)
    };
    adapters.sort_by_key(|(_, info)| rank(info));
    adapters
}

/// All adapters of this machine, in the order in which they would be taken.
pub fn adapters() -> Vec<AdapterInfo> {
    all().into_iter().map(|(_, info)| info).collect()
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) info: AdapterInfo,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) variant: Variant,
    /// Why it is gone, if it is: after that, calls of wgpu report nothing.
    lost: Arc<Mutex<Option<String>>>,
}

impl Device {
    /// Opens the best adapter, or the best whose name contains `name` (whatever its case).
    pub(crate) fn open(name: Option<&str>, portable: bool) -> Result<Self, GpuError> {
        let allow_cpu = std::env::var(ALLOW_CPU).is_ok_and(|value| !matches!(&*value, "" | "0"));
        let (adapters, mut passed_over) = (all(), Vec::new());
        let wanted = name.map(str::to_lowercase);
        for (adapter, info) in adapters {
            let fits = match &wanted {
                Some(wanted) => info.name.to_lowercase().contains(wanted),
                None => allow_cpu || !info.is_cpu,
            };
            if fits {
                return Self::of(&adapter, info, portable);
            }
            passed_over.push(format!("{} ({})", info.name, info.kind));
        }
        let found = if passed_over.is_empty() {
            "no driver offers any (Linux: install your vendor's Vulkan driver)".to_owned()
        } else {
            let name = passed_over[0].split([' ', '(']).next().unwrap_or_default();
            format!("there are: {}; take one by name: `gpu:{name}`", passed_over.join(", "))
        };
        let wanted =
            name.map_or_else(|| "(CPU adapters are not counted)".into(), |name| format!("named `{name}`"));
        Err(GpuError::NoAdapter { wanted, found })
    }

    fn of(adapter: &Adapter, info: AdapterInfo, portable: bool) -> Result<Self, GpuError> {
        let limits = adapter.limits();
        let base = wgpu::Limits::default();
        if !base.check_limits(&limits) {
            return Err(GpuError::MissingFeature {
                adapter: info.name,
                feature: "WebGPU's default limits".to_owned(),
            });
        }
        let required_limits = wgpu::Limits {
            max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
            max_buffer_size: limits.max_buffer_size,
            ..base
        };
        // A subgroup must hold the 32 lanes of a stream.
        let subgroups =
            !portable && adapter.features().contains(wgpu::Features::SUBGROUP) && info.subgroups[0] >= LANES;
        let variant = if subgroups { Variant::Subgroup } else { Variant::Portable };
        let wanted = wgpu::Features::TIMESTAMP_QUERY
            | if subgroups { wgpu::Features::SUBGROUP } else { wgpu::Features::empty() };
        let required_features = adapter.features() & wanted;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("cacheg"),
            required_features,
            required_limits,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| GpuError::DeviceLost(format!("{}: {error}", info.name)))?;
        let lost = Arc::new(Mutex::new(None));
        let flag = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            let reason = format!("{reason:?}: {message}");
            *flag.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        });
        // What no error scope catches would otherwise panic.
        device.on_uncaptured_error(Arc::new(|error: wgpu::Error| tracing::warn!(%error, "wgpu")));
        Ok(Self { info, device, queue, variant, lost })
    }

    /// Bytes of a buffer that is bound as a whole.
    pub(crate) fn limit(&self) -> u64 {
        self.info.max_binding.min(self.info.max_buffer)
    }

    /// # Errors
    /// If a binding of so many bytes is too large.
    pub(crate) fn check_binding(&self, what: &'static str, size: u64) -> Result<(), GpuError> {
        let limit = self.limit();
        if size > limit { Err(GpuError::Limit { what, size, limit }) } else { Ok(()) }
    }

    /// # Errors
    /// If the device is gone.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lost.map_or(Ok(()), |reason| Err(GpuError::DeviceLost(reason)))
    }

    /// Waits for commands.
    ///
    /// # Errors
    /// If they take too long, or the device is gone.
    pub(crate) fn wait(&self, index: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: Some(PATIENCE) };
        self.device.poll(wait).map_err(|error| match error {
            wgpu::PollError::Timeout => GpuError::Timeout { seconds: PATIENCE.as_secs() },
            other => GpuError::DeviceLost(other.to_string()),
        })?;
        self.check()
    }

    /// Looks for what is done.
    ///
    /// # Errors
    /// If the device is gone.
    pub(crate) fn poll(&self) -> Result<(), GpuError> {
        self.device.poll(wgpu::PollType::Poll).map_err(|error| GpuError::DeviceLost(error.to_string()))?;
        self.check()
    }

    /// Runs `work`, and reports what the device says against it.
    pub(crate) fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T, GpuError> {
        self.check()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let result = work();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if let Some(error) = memory {
            return Err(GpuError::OutOfMemory(error.to_string()));
        }
        if let Some(error) = validation.or(internal) {
            return Err(GpuError::Validation(error.to_string()));
        }
        self.check()?;
        Ok(result)
    }
}
