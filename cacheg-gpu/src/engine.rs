//! Runs programs on a device.

use std::sync::Arc;
use std::time::Duration;

use bytemuck::{bytes_of, cast_slice};
use wgpu::BufferUsages;
use wgpu::util::DeviceExt as _;

use crate::GpuError;
use crate::device::{Device, PATIENCE};
use crate::device_kv::DeviceKv;
use crate::error::fault;
use crate::program::Program;
use crate::recording::{Pass, Recording};
use crate::work::{Window, Work};

/// A compiled program; parameters are not part of it.
#[derive(Debug)]
pub(crate) struct Compiled {
    layout: wgpu::BindGroupLayout,
    decode: Option<wgpu::ComputePipeline>,
    reconstruct: wgpu::ComputePipeline,
    check_escapes: wgpu::ComputePipeline,
}

/// A program on a device.
#[derive(Debug)]
pub(crate) struct Pipelines {
    compiled: Arc<Compiled>,
    data: wgpu::Buffer,
}

fn words(words: usize) -> u64 {
    // Bindings are not empty.
    4 * words.max(4) as u64
}

impl Pipelines {
    /// Sends the parameters of a program.
    pub(crate) fn new(device: &Device, compiled: Arc<Compiled>, program: &Program) -> Result<Self, GpuError> {
        check_binding(device, "the stages' parameters", words(program.data.len()))?;
        let data = device.scoped(|| upload(&device.device, "parameters", &program.data))?;
        Ok(Self { compiled, data })
    }
}

/// A buffer of these words, and not less than a binding must have.
fn upload(device: &wgpu::Device, label: &str, contents: &[u32]) -> wgpu::Buffer {
    let few = [0; 4];
    device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some(label),
        contents: cast_slice(if contents.is_empty() { &few } else { contents }),
        usage: BufferUsages::STORAGE,
    })
}

impl Compiled {
    pub(crate) fn new(device: &Device, program: &Program) -> Result<Self, GpuError> {
        device.scoped(|| Self::build(&device.device, program))
    }

    fn build(device: &wgpu::Device, program: &Program) -> Self {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("cacheg"),
            source: wgpu::ShaderSource::Wgsl(program.source.as_str().into()),
        });
        let entry = |binding, ty, dynamic| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
            count: None,
        };
        let storage =
            |binding, read_only| entry(binding, wgpu::BufferBindingType::Storage { read_only }, false);
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
        entries.extend((1..4).map(|binding| storage(binding, true)));
        entries.extend((4..8).map(|binding| storage(binding, false)));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("cacheg"),
            entries: &entries,
        });
        let pipelines = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("cacheg"),
            bind_group_layouts: &[Some(&layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        let pipeline = |name| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipelines),
                module: &module,
                entry_point: Some(name),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        };
        Self {
            decode: (program.lanes > 0).then(|| pipeline("decode")),
            reconstruct: pipeline(if program.whole_words { "reconstruct" } else { "reconstruct_any" }),
            check_escapes: pipeline("check_escapes"),
            layout,
        }
    }
}

fn check_binding(device: &Device, what: &'static str, size: u64) -> Result<(), GpuError> {
    let limit = device.info.max_binding.min(device.info.max_buffer);
    if size > limit { Err(GpuError::Limit { what, size, limit }) } else { Ok(()) }
}

/// Work that is under way.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) work: Work,
    staging: wgpu::Buffer,
    index: wgpu::SubmissionIndex,
    mapped: std::sync::mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
    /// Bytes of the output, in front of the faults.
    output: u64,
    /// Passes that were timed, and where their times are among the results.
    timed: Option<(Vec<Pass>, u64)>,
}

/// What came back of some work.
pub(crate) struct Results<'a> {
    pub(crate) work: &'a Work,
    /// Elements, unless they have stayed.
    pub(crate) elements: &'a [u8],
    /// How long each pass took on the device, of those that were timed.
    pub(crate) passes: Vec<(Pass, Duration)>,
}

/// Executes a recording: sends it and returns while it runs. Elements go to `target`, or come back.
pub(crate) fn submit(
    device: &Device,
    pipelines: &Pipelines,
    recording: Recording,
    target: Option<&DeviceKv>,
    timed: bool,
) -> Result<Submitted, GpuError> {
    let work = &recording.work;
    for (what, size) in [
        ("coded tiles", words(work.payload.len())),
        ("records", words(work.table.len())),
        ("symbols", words(work.scratch_words)),
        ("states", words(work.state_words)),
        ("elements", words(work.output_words)),
    ] {
        check_binding(device, what, size)?;
    }
    device.scoped(|| execute(device, pipelines, recording, target, timed && device.info.timestamps))
}

fn execute(
    device: &Device,
    pipelines: &Pipelines,
    recording: Recording,
    target: Option<&DeviceKv>,
    timed: bool,
) -> Submitted {
    let gpu = &device.device;
    let Recording { mut work, windows, dispatches } = recording;
    let empty = |label, size, usage| {
        gpu.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let copied = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let payload = upload(gpu, "coded tiles", &work.payload);
    let table = upload(gpu, "records", &work.table);
    let scratch = empty("symbols", words(work.scratch_words), BufferUsages::STORAGE);
    let states = empty("states", words(work.state_words), BufferUsages::STORAGE);
    // Passes that write no elements must have something bound all the same.
    let output_words = if target.is_some() { 0 } else { work.output_words };
    let output = empty("elements", words(output_words), copied);
    let faults = empty("faults", words(work.names.len()), copied);

    let stride = (size_of::<Window>() as u64)
        .next_multiple_of(u64::from(gpu.limits().min_uniform_buffer_offset_alignment));
    let mut uniforms = vec![0u8; (stride as usize) * windows.len().max(1)];
    for (window, bytes) in windows.iter().zip(uniforms.chunks_exact_mut(stride as usize)) {
        bytes[..size_of::<Window>()].copy_from_slice(bytes_of(window));
    }
    let uniforms = gpu.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("windows"),
        contents: &uniforms,
        usage: BufferUsages::UNIFORM,
    });
    let bind =
        |output: &wgpu::Buffer| {
            let window = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &uniforms,
                offset: 0,
                size: wgpu::BufferSize::new(size_of::<Window>() as u64),
            });
            let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: window }];
            let buffers = [&payload, &table, &pipelines.data, &scratch, &states, output, &faults];
            entries.extend((1..).zip(buffers).map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            }));
            gpu.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("cacheg"),
                layout: &pipelines.compiled.layout,
                entries: &entries,
            })
        };
    let together = bind(&output);

    let queries = (dispatches.len() as u32 * 2).min(wgpu::QUERY_SET_MAX_QUERIES);
    let times = timed.then(|| {
        let set = gpu.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count: queries,
        });
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        (set, empty("times", u64::from(queries) * 8, usage))
    });
    let mut passes = Vec::new();
    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    for (number, dispatch) in (0u32..).zip(&dispatches) {
        let compiled = &pipelines.compiled;
        let pipeline = match dispatch.pass {
            Pass::Decode => compiled.decode.as_ref(),
            Pass::Reconstruct => Some(&compiled.reconstruct),
            Pass::CheckEscapes => Some(&compiled.check_escapes),
        };
        let Some(pipeline) = pipeline else { continue };
        let own = dispatch
            .plane
            .zip(target)
            .map(|(plane, target)| bind(&target.buffers()[work.outputs[plane].plane]));
        let offset = u32::try_from(stride * dispatch.window as u64).unwrap_or(u32::MAX);
        // A pass of its own, so that it sees what the one before has written.
        let timestamp_writes = times.as_ref().filter(|_| 2 * number + 1 < queries).map(|(query_set, _)| {
            passes.push(dispatch.pass);
            wgpu::ComputePassTimestampWrites {
                query_set,
                beginning_of_pass_write_index: Some(2 * number),
                end_of_pass_write_index: Some(2 * number + 1),
            }
        });
        let mut pass =
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, own.as_ref().unwrap_or(&together), &[offset]);
        let [x, y, z] = dispatch.groups;
        pass.dispatch_workgroups(x, y, z);
    }

    let output_size = if target.is_some() { 0 } else { output.size() };
    let times_size = times.as_ref().map_or(0, |(_, times)| times.size());
    // Times are 64-bit numbers.
    let times_at = (output_size + faults.size()).next_multiple_of(8);
    let staging = empty("results", times_at + times_size, BufferUsages::COPY_DST | BufferUsages::MAP_READ);
    if let Some((set, times)) = &times {
        encoder.resolve_query_set(set, 0..queries, times, 0);
        encoder.copy_buffer_to_buffer(times, 0, &staging, times_at, times_size);
    }
    if output_size > 0 {
        encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, output_size);
    }
    encoder.copy_buffer_to_buffer(&faults, 0, &staging, output_size, faults.size());
    let index = device.queue.submit([encoder.finish()]);
    let (sender, mapped) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
    // They are on the device now.
    work.payload = Vec::new();
    work.table = Vec::new();
    let timed = times.map(|_| (passes, times_at));
    Submitted { work, staging, index, mapped, output: output_size, timed }
}

impl Submitted {
    /// Waits until the work is done.
    pub(crate) fn wait(&self, device: &Device) -> Result<(), GpuError> {
        device.wait(self.index.clone())
    }

    /// Waits for the results and hands them to `take`.
    pub(crate) fn finish(self, device: &Device, take: impl FnOnce(&Results<'_>)) -> Result<(), GpuError> {
        self.wait(device)?;
        let Self { work, staging, mapped, output, timed, .. } = self;
        // Another thread that waits may be the one that is just about to say so.
        match mapped.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(GpuError::DeviceLost(format!("its memory cannot be read: {error}")));
            }
            Err(_) => return Err(GpuError::Timeout { seconds: PATIENCE.as_secs() }),
        }
        let range = staging.get_mapped_range(..);
        let view = range.map_err(|error| GpuError::DeviceLost(error.to_string()))?;
        let (elements, rest) = view.split_at(output as usize);
        let faults: &[u32] = cast_slice(&rest[..4 * work.names.len()]);
        if let Some(index) = faults.iter().position(|bits| *bits != 0) {
            let tile = work.names[index].clone();
            return Err(GpuError::Corrupt { index, tile, reason: fault(faults[index]) });
        }
        let passes = timed.map_or_else(Vec::new, |(passes, at)| {
            let ticks = |at: usize| {
                view.get(at..at + 8)
                    .map_or(0, |bytes| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))
            };
            let period = f64::from(device.queue.get_timestamp_period());
            let time = |(number, pass)| {
                let at = at as usize + 16 * number;
                let nanoseconds = ticks(at + 8).saturating_sub(ticks(at)) as f64 * period;
                (pass, Duration::from_nanos(nanoseconds as u64))
            };
            passes.into_iter().enumerate().map(time).collect()
        });
        take(&Results { work: &work, elements, passes });
        Ok(())
    }
}
