//! Runs programs on a device.

use std::sync::mpsc;
use std::time::Duration;

use bytemuck::{bytes_of, cast_slice};
use wgpu::BufferUsages;

use crate::GpuError;
use crate::compiled::Pipelines;
use crate::device::{Device, PATIENCE};
use crate::error::fault;
use crate::recording::{Pass, Recording};
use crate::slot::Slot;
use crate::work::{TileName, Window, Work};

/// Called once the results of a window are there; not before somebody waits for the device or polls it.
pub(crate) type Done = Box<dyn FnOnce(Result<(), GpuError>) + Send>;

/// Work that is under way.
#[derive(Debug)]
pub(crate) struct Submitted {
    work: Work,
    slot: Slot,
    staging: wgpu::Buffer,
    index: wgpu::SubmissionIndex,
    verdict: mpsc::Receiver<Result<(), GpuError>>,
    /// Bytes of elements that come back, in front of the faults.
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

/// Where elements go.
pub(crate) enum Target<'a> {
    /// They come back.
    Host,
    /// To this buffer.
    Buffer(&'a wgpu::Buffer),
    /// To several, by copies of what would come back.
    Copies(Vec<Copy<'a>>),
}

/// Bytes that are copied to a buffer.
pub(crate) struct Copy<'a> {
    pub(crate) from: u64,
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) to: u64,
    pub(crate) size: u64,
}

/// Executes a recording in these buffers: sends it and returns while it runs. If that fails, `done` is never called.
pub(crate) fn submit(
    device: &Device,
    pipelines: &Pipelines,
    recording: Recording,
    slot: Slot,
    target: Target<'_>,
    timed: bool,
    done: Option<Done>,
) -> Result<Submitted, GpuError> {
    let work = &recording.work;
    for (what, words) in [
        ("coded tiles", work.payload.len()),
        ("records", work.table.len()),
        ("symbols, and values that others are predicted from,", work.scratch_words),
        ("states", work.state_words),
        ("elements and verdicts", work.output_words + work.tiles.len() + 2),
    ] {
        device.check_binding(what, 4 * words as u64)?;
    }
    let timed = timed && device.info.timestamps;
    // Results are mapped later: a device that refuses this must not tell anyone that it is done.
    let (mut work, slot, staging, index, timed, back) =
        device.scoped(|| execute(device, pipelines, recording, slot, target, timed))?;
    let (sender, verdict) = mpsc::channel();
    let (mapped, tiles) = (staging.clone(), std::mem::take(&mut work.tiles));
    staging.map_async(wgpu::MapMode::Read, .., move |result| {
        let verdict = match result {
            Ok(()) => judge(&mapped, back, &tiles),
            Err(error) => Err(GpuError::DeviceLost(format!("its memory cannot be read: {error}"))),
        };
        if let Some(done) = done {
            done(verdict.clone());
        }
        // Whoever asked may have gone.
        let _ = sender.send(verdict);
    });
    Ok(Submitted { work, slot, staging, index, verdict, output: back, timed })
}

/// Work that was submitted, its buffers, that of the results, the submission, what was timed, and bytes that come back.
type Executed = (Work, Slot, wgpu::Buffer, wgpu::SubmissionIndex, Option<(Vec<Pass>, u64)>, u64);

fn execute(
    device: &Device,
    pipelines: &Pipelines,
    recording: Recording,
    mut slot: Slot,
    target: Target<'_>,
    timed: bool,
) -> Executed {
    let (gpu, queue, compiled) = (&device.device, &device.queue, &pipelines.compiled);
    let Recording { mut work, windows, dispatches } = recording;
    let words = |words: usize| 4 * words as u64;
    let sent = BufferUsages::STORAGE | BufferUsages::COPY_DST;
    let kept = sent | BufferUsages::COPY_SRC;
    let payload = slot.payload.get(gpu, "coded tiles", words(work.payload.len()), sent);
    let table = slot.table.get(gpu, "records", words(work.table.len()), sent);
    let scratch = slot.scratch.get(gpu, "symbols", words(work.scratch_words), sent);
    let states = slot.states.get(gpu, "states", words(work.state_words), sent);
    let faults_size = words(work.tiles.len());
    let faults = slot.faults.get(gpu, "faults", faults_size, kept);
    // What follows begins where memory can be mapped.
    let output_size = words(work.output_words).next_multiple_of(8);
    let output = match &target {
        Target::Buffer(target) => (*target).clone(),
        _ => slot.output.get(gpu, "elements", output_size, kept),
    };
    queue.write_buffer(&payload, 0, cast_slice(&work.payload));
    queue.write_buffer(&table, 0, cast_slice(&work.table));
    // They are on their way.
    (work.payload, work.table) = (Vec::new(), Vec::new());

    let stride = (size_of::<Window>() as u64)
        .next_multiple_of(u64::from(gpu.limits().min_uniform_buffer_offset_alignment));
    let mut uniforms = vec![0u8; (stride as usize) * windows.len().max(1)];
    for (window, bytes) in windows.iter().zip(uniforms.chunks_exact_mut(stride as usize)) {
        bytes[..size_of::<Window>()].copy_from_slice(bytes_of(window));
    }
    let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
    let uniform = slot.windows.get(gpu, "windows", uniforms.len() as u64, usage);
    queue.write_buffer(&uniform, 0, &uniforms);
    let window = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer: &uniform,
        offset: 0,
        size: wgpu::BufferSize::new(size_of::<Window>() as u64),
    });
    let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: window }];
    let buffers = [&payload, &table, &pipelines.data, &scratch, &states, &output, &faults];
    entries.extend(
        (1..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }),
    );
    let bound = gpu.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("cacheg"),
        layout: &compiled.layout,
        entries: &entries,
    });

    let queries = (dispatches.len() as u32 * 2).min(wgpu::QUERY_SET_MAX_QUERIES);
    let times = timed.then(|| {
        let set = gpu.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count: queries,
        });
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        (set, slot.times.get(gpu, "times", u64::from(queries) * 8, usage))
    });
    let mut passes = Vec::new();
    let mut encoder = gpu.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    // What is not simply written: faults and marks are found, words that tiles share are put together.
    encoder.clear_buffer(&faults, 0, None);
    let marks = words(work.window.marks as usize);
    if marks < words(work.scratch_words) {
        encoder.clear_buffer(&scratch, marks, Some(words(work.scratch_words) - marks));
    }
    if work.zeros && output_size > 0 {
        encoder.clear_buffer(&output, 0, Some(output_size));
    }
    for (number, dispatch) in (0u32..).zip(&dispatches) {
        let Some(pipeline) = compiled.pipeline(dispatch.pass) else { continue };
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
        pass.set_bind_group(0, &bound, &[offset]);
        let [x, y, z] = dispatch.groups;
        pass.dispatch_workgroups(x, y, z);
    }

    let back = match target {
        Target::Host => output_size,
        Target::Buffer(_) => 0,
        Target::Copies(copies) => {
            for Copy { from, buffer, to, size } in copies {
                encoder.copy_buffer_to_buffer(&output, from, buffer, to, size);
            }
            0
        }
    };
    let times_size = times.as_ref().map_or(0, |_| u64::from(queries) * 8);
    let times_at = (back + faults_size).next_multiple_of(8);
    let size = times_at + times_size;
    let staging = slot.staging.get(gpu, "results", size, BufferUsages::COPY_DST | BufferUsages::MAP_READ);
    if let Some((set, times)) = &times {
        encoder.resolve_query_set(set, 0..queries, times, 0);
        encoder.copy_buffer_to_buffer(times, 0, &staging, times_at, times_size);
    }
    if back > 0 {
        encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, back);
    }
    encoder.copy_buffer_to_buffer(&faults, 0, &staging, back, faults_size);
    let index = queue.submit([encoder.finish()]);
    let timed = times.map(|_| (passes, times_at));
    (work, slot, staging, index, timed, back)
}

/// What the faults say, which come behind so many bytes of output.
fn judge(results: &wgpu::Buffer, output: u64, tiles: &[TileName]) -> Result<(), GpuError> {
    if tiles.is_empty() {
        return Ok(());
    }
    let range = output..output + 4 * tiles.len() as u64;
    let view = results.get_mapped_range(range).map_err(|error| GpuError::DeviceLost(error.to_string()))?;
    let faults: &[u32] = cast_slice(&view);
    match faults.iter().zip(tiles).enumerate().find(|(_, (bits, _))| **bits != 0) {
        None => Ok(()),
        Some((index, (bits, tile))) => {
            Err(GpuError::Corrupt { index, tile: tile.to_string(), reason: fault(*bits) })
        }
    }
}

impl Submitted {
    /// Waits until the work is done.
    pub(crate) fn wait(&self, device: &Device) -> Result<(), GpuError> {
        device.wait(self.index.clone())
    }

    /// Waits for the results and hands them to `take`; gives the buffers back.
    pub(crate) fn finish(self, device: &Device, take: impl FnOnce(&Results<'_>)) -> Result<Slot, GpuError> {
        self.wait(device)?;
        let Self { work, slot, staging, verdict, output, timed, .. } = self;
        // Another thread that waits may be the one that is just about to say so.
        verdict.recv_timeout(PATIENCE).map_err(|_| GpuError::Timeout { seconds: PATIENCE.as_secs() })??;
        let lost = |error: wgpu::MapRangeError| GpuError::DeviceLost(error.to_string());
        let mut passes = Vec::new();
        if let Some((timed, at)) = timed {
            let view = staging.get_mapped_range(at..at + 16 * timed.len() as u64).map_err(lost)?;
            let ticks: &[u64] = cast_slice(&view);
            let period = f64::from(device.queue.get_timestamp_period());
            passes.extend(timed.into_iter().zip(ticks.as_chunks::<2>().0).map(|(pass, [from, to])| {
                let nanoseconds = to.saturating_sub(*from) as f64 * period;
                (pass, Duration::from_nanos(nanoseconds as u64))
            }));
        }
        if output > 0 {
            let view = staging.get_mapped_range(0..output).map_err(lost)?;
            take(&Results { work: &work, elements: &view, passes });
        } else {
            take(&Results { work: &work, elements: &[], passes });
        }
        staging.unmap();
        Ok(slot)
    }
}
