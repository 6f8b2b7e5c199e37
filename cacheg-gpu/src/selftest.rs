//! Whether a device computes what programs rely on; run whenever one is opened.

use bytemuck::cast_slice;
use wgpu::BufferUsages;
use wgpu::util::DeviceExt as _;

use crate::GpuError;
use crate::device::Device;
use crate::program::{QUOTIENT, Variant, ballot};

/// What a self-test has found beside that all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelfTest {
    /// Whether loops of more than 65,535 iterations run to their end. Mesa 22's llvmpipe ends them early; programs never
    /// need them.
    pub long_loops: bool,
}

const LONG: u32 = 70_000;
const SHORT: u32 = 30_000;

fn source(variant: Variant) -> String {
    [ballot(variant), QUOTIENT, include_str!("wgsl/selftest.wgsl")].concat()
}

/// Pairs of numbers whose sums and products round in every way.
fn numbers() -> Vec<u32> {
    let mut state = 0x9e37_79b9u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    // Exponents near each other's, so that sums round.
    let mut number = || next() & 0x807f_ffff | (118 + next() % 18) << 23;
    (0..64).map(|_| number()).collect()
}

fn expected(numbers: &[u32], loops: u32) -> Vec<u32> {
    let pairs: Vec<(f32, f32)> =
        numbers.as_chunks::<2>().0.iter().map(|[a, b]| (f32::from_bits(*a), f32::from_bits(*b))).collect();
    let mut answers: Vec<u32> = pairs.iter().map(|(a, b)| (a + b).to_bits()).collect();
    answers.extend(pairs.iter().map(|(a, b)| (a * b).to_bits()));
    answers.extend(
        (0..32u32)
            .map(|lane| (0..loops).fold(lane, |x, _| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))),
    );
    let mut votes = 0;
    answers.extend(numbers.as_chunks::<2>().0.iter().map(|[a, b]| {
        let before = votes;
        votes += a >> 4 & 1;
        before + 32 * b.leading_zeros()
    }));
    let pairs = numbers.as_chunks::<2>().0;
    answers.extend(pairs.iter().map(|[a, _]| {
        let other = (a >> 3 & 31) as usize;
        pairs[other][0] ^ (pairs[other ^ 1][1] << 1) ^ (7 * (other as u32 ^ 2))
    }));
    answers.extend(pairs.iter().map(|[a, b]| {
        let d = 1 + (a & 0x3ff);
        let n = (b & 0x3f_ffff) / d * d;
        n / d + 3 * ((n.max(1) - 1) / d)
    }));
    answers
}

/// Runs it.
///
/// # Errors
/// If anything but long loops is wrong, or the device fails.
pub(crate) fn run(device: &Device) -> Result<SelfTest, GpuError> {
    let numbers = numbers();
    let fails = |what: &str| GpuError::SelfTest { adapter: device.info.name.clone(), what: what.to_owned() };
    let short = answers(device, &numbers, SHORT)?;
    let wanted = expected(&numbers, SHORT);
    for (what, range) in [
        ("rounding of sums", 0..32),
        ("rounding of products", 32..64),
        ("loops", 64..96),
        ("votes", 96..128),
        ("entries of other lanes", 128..160),
        ("quotients", 160..192),
    ] {
        if short.get(range.clone()) != wanted.get(range) {
            return Err(fails(what));
        }
    }
    let long = answers(device, &numbers, LONG)?;
    Ok(SelfTest { long_loops: long == expected(&numbers, LONG) })
}

fn answers(device: &Device, numbers: &[u32], loops: u32) -> Result<Vec<u32>, GpuError> {
    let mut input = numbers.to_vec();
    input.push(loops);
    let staging = device.scoped(|| {
        let gpu = &device.device;
        let module = gpu.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some("self-test"),
            source: wgpu::ShaderSource::Wgsl(source(device.variant).into()),
        });
        let pipeline = gpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("self-test"),
            layout: None,
            module: &module,
            entry_point: Some("test"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let input = gpu.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("numbers"),
            contents: cast_slice(&input),
            usage: BufferUsages::STORAGE,
        });
        let buffer = |usage| {
            gpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some("answers"),
                size: 768,
                usage,
                mapped_at_creation: false,
            })
        };
        let output = buffer(BufferUsages::STORAGE | BufferUsages::COPY_SRC);
        let staging = buffer(BufferUsages::COPY_DST | BufferUsages::MAP_READ);
        let group = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("self-test"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[
                wgpu::BindGroupEntry { binding: 0, resource: input.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: output.as_entire_binding() },
            ],
        });
        let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, 768);
        let index = device.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |_| ());
        (staging, index)
    })?;
    let (staging, index) = staging;
    device.wait(index)?;
    let view = staging.get_mapped_range(..).map_err(|error| GpuError::DeviceLost(error.to_string()))?;
    Ok(cast_slice(&view).to_vec())
}
