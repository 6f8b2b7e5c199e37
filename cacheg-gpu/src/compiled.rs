//! Programs, compiled for a device.

use std::sync::Arc;

use wgpu::util::DeviceExt as _;

use crate::GpuError;
use crate::device::Device;
use crate::program::Program;
use crate::recording::Pass;

/// A compiled program; parameters are not part of it.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) layout: wgpu::BindGroupLayout,
    pipelines: Vec<(Pass, wgpu::ComputePipeline)>,
}

/// A program on a device.
#[derive(Debug)]
pub(crate) struct Pipelines {
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) data: wgpu::Buffer,
}

impl Pipelines {
    /// Sends the parameters of a program.
    pub(crate) fn new(device: &Device, compiled: Arc<Compiled>, program: &Program) -> Result<Self, GpuError> {
        device.check_binding("the stages' parameters", 4 * program.data.len() as u64)?;
        // Bindings are not empty.
        let contents: &[u32] = if program.data.is_empty() { &[0; 4] } else { &program.data };
        let data = device.scoped(|| {
            device.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("parameters"),
                contents: bytemuck::cast_slice(contents),
                usage: wgpu::BufferUsages::STORAGE,
            })
        })?;
        Ok(Self { compiled, data })
    }
}

impl Compiled {
    pub(crate) fn new(device: &Device, program: &Program) -> Result<Self, GpuError> {
        device.scoped(|| Self::build(&device.device, program))
    }

    /// The pipeline of a pass; `None` where there is nothing to do.
    pub(crate) fn pipeline(&self, pass: Pass) -> Option<&wgpu::ComputePipeline> {
        self.pipelines.iter().find(|(other, _)| *other == pass).map(|(_, pipeline)| pipeline)
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
        let pipeline = |pass: Pass| {
            let name = pass.name();
            let rows = match pass {
                Pass::Reconstruct => program.matrix,
                _ => matches!(pass, Pass::Predict | Pass::Keep),
            };
            let compiled = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipelines),
                module: &module,
                entry_point: Some(name),
                // Rows are written before they are read, and zeros take longer than they do.
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: !rows,
                    ..wgpu::PipelineCompilationOptions::default()
                },
                cache: None,
            });
            (pass, compiled)
        };
        Self { pipelines: program.passes().map(pipeline).collect(), layout }
    }
}
