//! Decoding one window after the other, with a clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cacheg_core::{Chunk, KvViewMut, Plan, Result};

use crate::Gpu;
use crate::decoder::store;
use crate::engine::{Target, submit};
use crate::recording::{Pass, Recording};
use crate::slot::Slot;
use crate::windows::Windows;

/// Where the time of decoding a chunk goes. Nothing overlaps here: a decoder is faster than the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// Host: checksums, escapes, records.
    pub prepare: Duration,
    /// Host: buffers, uploads, commands.
    pub submit: Duration,
    /// Until the device was done.
    pub device: Duration,
    /// Host: mapping memory and copying elements to their planes.
    pub read: Duration,
    /// Of `device`: undoing the entropy coding, where the device can tell.
    pub decode: Option<Duration>,
    /// Of `device`: making elements, where the device can tell.
    pub reconstruct: Option<Duration>,
    /// Bytes that were uploaded.
    pub uploaded: u64,
    /// Bytes of symbols that one pass wrote and the next read.
    pub scratch: u64,
    /// Bytes that came back.
    pub downloaded: u64,
    /// Dispatches.
    pub dispatches: usize,
    /// Whether the entropy decoder makes the elements too.
    pub one_pass: bool,
}

impl Gpu {
    /// Decodes a chunk step by step into `view`, the chunk's first token at row 0.
    ///
    /// # Errors
    /// As decoding.
    pub fn measure(&self, plan: Arc<Plan>, chunk: &Chunk<'_>, view: &mut KvViewMut<'_>) -> Result<Measured> {
        let mut decoder = self.open_decoder(plan)?;
        chunk.decode_exact(&decoder.plan, view, 0)?;
        let (row, device) = (chunk.exact_rows()[0], self.device());
        let chunks = [chunk];
        let program = decoder.program(&chunks)?;
        let (program, pipelines) = &*program;
        let mut measured = Measured { one_pass: program.one_pass, ..Measured::default() };
        let mut timed = [Duration::ZERO; 2];
        let groups = 0..chunk.layout().groups();
        let mut slot = Slot::default();
        let mut windows = Windows::new(&chunks, &decoder.plan, program, groups, self.window(), None);
        loop {
            let start = Instant::now();
            let Some((work, _)) = windows.next()? else { break };
            measured.uploaded += 4 * (work.payload.len() + work.table.len()) as u64;
            measured.scratch += 4 * work.scratch_words as u64;
            measured.downloaded += 4 * work.output_words as u64;
            let recording = Recording::new(program, work);
            measured.dispatches += recording.dispatches.len();
            let prepared = Instant::now();
            let submitted = submit(device, pipelines, recording, slot, Target::Host, true, None)?;
            let sent = Instant::now();
            submitted.wait(device)?;
            let done = Instant::now();
            slot = submitted.finish(device, |results| {
                for (pass, time) in &results.passes {
                    timed[usize::from(*pass != Pass::Decode)] += *time;
                }
                store(results, view.planes_mut(), &[row]);
            })?;
            measured.prepare += prepared - start;
            measured.submit += sent - prepared;
            measured.device += done - sent;
            measured.read += done.elapsed();
        }
        if self.info().timestamps {
            (measured.decode, measured.reconstruct) = (Some(timed[0]), Some(timed[1]));
        }
        Ok(measured)
    }
}
