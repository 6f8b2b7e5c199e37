//! Runs programs on a device.

use std::sync::Arc;

use bytemuck::{bytes_of, cast_slice};
use wgpu::util::DeviceExt as _;
use wgpu::{BufferUsages, CommandEncoder};

use crate::GpuError;
use crate::device::{Device, PATIENCE};
use crate::error::fault;
use crate::program::{LANES, Program};
use crate::work::{Window, Work};

/// Workgroups in a row; `PER_ROW` in passes.wgsl.
const PER_ROW: u32 = 32_768;

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
    pub(crate) fn new(
        device: &Device,
        compiled: Arc<Compiled>,
        program: &Program,
    ) -> Result<Self, GpuError> {
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
        let storage = |binding, read_only| entry(binding, wgpu::BufferBindingType::Storage { read_only }, false);
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
            reconstruct: pipeline("reconstruct"),
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
pub(crate) struct Submitted {
    staging: wgpu::Buffer,
    index: wgpu::SubmissionIndex,
    mapped: std::sync::mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
    names: Vec<String>,
    output: u64,
}

/// Sends work and returns while it runs.
pub(crate) fn submit(
    device: &Device,
    program: &Program,
    pipelines: &Pipelines,
    work: &Work,
) -> Result<Submitted, GpuError> {
    for (what, size) in [
        ("coded tiles", words(work.payload.len())),
        ("records", words(work.table.len())),
        ("symbols", words(work.scratch_words)),
        ("states", words(work.state_words)),
        ("elements", words(work.output_words)),
    ] {
        check_binding(device, what, size)?;
    }
    device.scoped(|| record(device, program, pipelines, work))
}

fn record(device: &Device, program: &Program, pipelines: &Pipelines, work: &Work) -> Submitted {
    let gpu = &device.device;
    let empty = |label, size, usage| {
        gpu.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
    };
    let copied = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let payload = upload(gpu, "coded tiles", &work.payload);
    let table = upload(gpu, "records", &work.table);
    let scratch = empty("symbols", words(work.scratch_words), BufferUsages::STORAGE);
    let states = empty("states", words(work.state_words), BufferUsages::STORAGE);
    let output = empty("elements", words(work.output_words), copied);
    let faults = empty("faults", words(work.names.len()), copied);

    // One window for each round of `decode`, and the first one for all else.
    let stride = (size_of::<Window>() as u64)
        .next_multiple_of(u64::from(gpu.limits().min_uniform_buffer_offset_alignment));
    let rounds = work.rounds.max(1);
    let mut windows = vec![0u8; (stride * u64::from(rounds)) as usize];
    for (round, bytes) in (0..rounds).zip(windows.chunks_exact_mut(stride as usize)) {
        let mut window = work.window;
        window.round = round;
        bytes[..size_of_val(&window)].copy_from_slice(bytes_of(&window));
    }
    let windows = gpu.create_buffer_init(&wgpu::util::BufferInitDescriptor {
        label: Some("windows"),
        contents: &windows,
        usage: BufferUsages::UNIFORM,
    });
    let window = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer: &windows,
        offset: 0,
        size: wgpu::BufferSize::new(size_of::<Window>() as u64),
    });
    let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: window }];
    let buffers = [&payload, &table, &pipelines.data, &scratch, &states, &output, &faults];
    entries.extend((1..).zip(buffers).map(|(binding, buffer)| wgpu::BindGroupEntry {
        binding,
        resource: buffer.as_entire_binding(),
    }));
    let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("cacheg"),
        layout: &pipelines.compiled.layout,
        entries: &entries,
    });

    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let offset = |round: u32| u32::try_from(stride * u64::from(round)).unwrap_or(0);
    if let Some(pipeline) = &pipelines.compiled.decode {
        let groups = if program.lanes == LANES { work.window.run_count } else { work.window.run_count.div_ceil(LANES) };
        for round in 0..work.rounds {
            dispatch(&mut encoder, pipeline, &group, offset(round), groups, 1);
        }
    }
    let groups = u32::try_from(work.plane_words.div_ceil(64)).unwrap_or(u32::MAX);
    dispatch(&mut encoder, &pipelines.compiled.reconstruct, &group, 0, groups, work.window.plane_count);
    dispatch(&mut encoder, &pipelines.compiled.check_escapes, &group, 0, work.window.escape_count.div_ceil(64), 1);

    let (output_size, faults_size) = (output.size(), faults.size());
    let staging =
        empty("results", output_size + faults_size, BufferUsages::COPY_DST | BufferUsages::MAP_READ);
    encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, output_size);
    encoder.copy_buffer_to_buffer(&faults, 0, &staging, output_size, faults_size);
    let index = device.queue.submit([encoder.finish()]);
    let (sender, mapped) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
    Submitted { staging, index, mapped, names: work.names.clone(), output: output_size }
}

/// One dispatch in a pass of its own, so that it sees what the one before has written.
fn dispatch(
    encoder: &mut CommandEncoder,
    pipeline: &wgpu::ComputePipeline,
    group: &wgpu::BindGroup,
    offset: u32,
    groups: u32,
    planes: u32,
) {
    if groups == 0 || planes == 0 {
        return;
    }
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[offset]);
    pass.dispatch_workgroups(groups.min(PER_ROW), groups.div_ceil(PER_ROW), planes);
}

impl Submitted {
    /// Waits for the results; `take` gets the output's bytes.
    pub(crate) fn finish(self, device: &Device, take: impl FnOnce(&[u8])) -> Result<(), GpuError> {
        device.wait(self.index)?;
        // Another thread that waits may be the one that is just about to say so.
        match self.mapped.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(GpuError::DeviceLost(format!("its memory cannot be read: {error}"))),
            Err(_) => return Err(GpuError::Timeout { seconds: PATIENCE.as_secs() }),
        }
        let range = self.staging.get_mapped_range(..);
        let view = range.map_err(|error| GpuError::DeviceLost(error.to_string()))?;
        let (output, faults) = view.split_at(self.output as usize);
        let faults: &[u32] = cast_slice(faults);
        if let Some(index) = faults.iter().take(self.names.len()).position(|bits| *bits != 0) {
            let tile = self.names[index].clone();
            return Err(GpuError::Corrupt { index, tile, reason: fault(faults[index]) });
        }
        take(output);
        Ok(())
    }
}
