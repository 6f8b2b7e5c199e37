//! Decoding chunks of one plan.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use cacheg_core::{
    Chunk, Decoder, Error, KvCache, KvOut, KvViewMut, Plan, PlaneViewMut, Progress, Result, ResultExt as _,
};

use crate::GpuError;
use crate::backend::Shared;
use crate::compiled::Pipelines;
use crate::device_kv::DeviceKv;
use crate::engine::{Done, Results, Submitted, Target, submit};
use crate::program::Program;
use crate::recording::Recording;
use crate::slot::Slot;
use crate::told::Told;
use crate::windows::{Elsewhere, Windows, tile_rows};
use crate::work::Work;

/// Decodes chunks of one plan on a GPU.
#[derive(Debug)]
pub struct GpuDecoder {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Arc<Plan>,
    /// By the rows of tiles, as far as programs differ.
    programs: BTreeMap<usize, Arc<(Program, Pipelines)>>,
    /// What is under way, the oldest first; and whether somebody is told its verdict.
    under_way: VecDeque<(Submitted, bool)>,
    /// Buffers of work that is done.
    slots: Vec<Slot>,
    /// The first error among what was started and has been waited for.
    failed: Result<(), GpuError>,
}

/// A window's results are wanted.
type Take<'a> = &'a mut dyn FnMut(&Results<'_>);

impl GpuDecoder {
    pub(crate) fn new(shared: Arc<Shared>, plan: Arc<Plan>) -> Result<Self> {
        // What it cannot do is to be known now.
        Program::new(&plan, shared.device.variant, 0)?;
        let (programs, under_way, slots) = Default::default();
        Ok(Self { shared, plan, programs, under_way, slots, failed: Ok(()) })
    }

    /// The program for these chunks.
    pub(crate) fn program(&mut self, chunks: &[&Chunk<'_>]) -> Result<Arc<(Program, Pipelines)>> {
        let rows = chunks.iter().map(|chunk| tile_rows(chunk)).max().unwrap_or(0);
        if let Some(program) = self.programs.get(&rows) {
            return Ok(program.clone());
        }
        let program = Program::new(&self.plan, self.shared.device.variant, rows)?;
        // Programs of two passes are the same for all tiles.
        let known = self.programs.values().find(|known| known.0.source == program.source);
        let made = match known {
            Some(known) => known.clone(),
            None => {
                let compiled = self.shared.compiled(&program)?;
                let pipelines = Pipelines::new(&self.shared.device, compiled, &program)?;
                Arc::new((program, pipelines))
            }
        };
        Ok(self.programs.entry(rows).or_insert(made).clone())
    }

    /// Starts decoding a chunk into a KV cache on the device, the chunk's first token at `row`, and returns while it runs.
    ///
    /// Once it is done, `done` is told, by whoever waits for the device or polls it: [`finish`](Self::finish),
    /// [`poll`](Self::poll), this function for earlier chunks, any other decoder of this device, or the program's own
    /// `wgpu::Device::poll`. Commands that are submitted to the device's queue later see what was decoded, so that nobody
    /// needs to wait to use it, but for the verdict.
    ///
    /// Waits for the oldest window if as many as [`Options::depth`](crate::Options::depth) are under way.
    ///
    /// # Errors
    /// If this chunk cannot be decoded there; `done` is not called then. What is wrong with earlier ones is told to their own `done`, and
    /// by [`finish`](Self::finish).
    pub fn start(
        &mut self,
        chunk: &Chunk<'_>,
        kv: &DeviceKv,
        row: usize,
        done: impl FnOnce(Result<(), GpuError>) + Send + 'static,
    ) -> Result<()> {
        let fits = row.checked_add(chunk.rows()).is_some_and(|end| end <= kv.tokens());
        if kv.planes() != self.plan.planes() || chunk.geometry().planes() != self.plan.planes() || !fits {
            return Err(Error::data("the KV cache on the device is of another geometry, or too short"));
        }
        if !kv.gpu().is(&self.shared) {
            return Err(Error::data("the KV cache is in the memory of another device"));
        }
        let (chunks, groups) = ([chunk], 0..chunk.layout().groups());
        let (made, plan, most) = (self.program(&chunks)?, self.plan.clone(), self.shared.window());
        let first = row + chunk.exact_rows()[0];
        let (buffer, target) = (|plane: usize| kv.buffer_of(plane), |plane: usize| kv.target(plane, first));
        let elsewhere = Elsewhere { order: kv.order(), buffer: &buffer, target: &target };
        let mut windows = Windows::new(&chunks, &plan, &made.0, groups, most, Some(elsewhere));
        // All of them, so that nothing is written for a chunk that is found to be corrupt on the host.
        let mut all = Vec::new();
        while let Some(window) = windows.next()? {
            all.push(window);
        }
        let [first_rows, last_rows] = chunk.exact_rows();
        if first_rows + last_rows > 0 {
            let mut cache = KvCache::try_zeros(chunk.geometry(), chunk.rows(), 0)?;
            chunk.decode_exact(&self.plan, &mut cache.view_mut(), 0)?;
            let rows = (0..first_rows).chain(chunk.rows() - last_rows..chunk.rows());
            kv.write(&self.shared.device, &cache, row, rows)?;
        }
        let told = Told::new(all.len(), done);
        for (work, buffer) in all {
            let target = match buffer.and_then(|buffer| kv.buffers().get(buffer)) {
                Some(buffer) => Target::Buffer(buffer),
                None => {
                    Target::Copies(work.outputs.iter().flat_map(|output| kv.copies(output, first)).collect())
                }
            };
            let tell = told.clone();
            let sent = self.send(
                &made,
                work,
                target,
                Some(Box::new(move |verdict| tell.tell(verdict))),
                &mut |_| (),
            );
            if let Err(error) = sent {
                told.forget();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Looks for what is done, without waiting.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn poll(&self) -> Result<(), GpuError> {
        self.shared.device.poll()
    }

    /// Waits for all that was started.
    ///
    /// # Errors
    /// The first error of any of them.
    pub fn finish(&mut self) -> Result<(), GpuError> {
        let rest = self.drain(&mut |_| ());
        std::mem::replace(&mut self.failed, Ok(())).and(rest)
    }

    /// Waits for all that is under way, whatever its verdict, so that nothing is left over for the next chunk. Gives back the first
    /// error of what nobody else is told of.
    fn drain(&mut self, take: Take<'_>) -> Result<(), GpuError> {
        let mut first = Ok(());
        while !self.under_way.is_empty() {
            first = first.and(self.wait_for_oldest(&mut *take));
        }
        first
    }

    fn wait_for_oldest(&mut self, take: Take<'_>) -> Result<(), GpuError> {
        let Some((oldest, told)) = self.under_way.pop_front() else { return Ok(()) };
        match oldest.finish(&self.shared.device, take) {
            Ok(slot) => self.slots.push(slot),
            Err(error) if told => {
                if self.failed.is_ok() {
                    self.failed = Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Submits a window, after the oldest one if there is no room.
    fn send(
        &mut self,
        (program, pipelines): &(Program, Pipelines),
        work: Work,
        target: Target<'_>,
        done: Option<Done>,
        take: Take<'_>,
    ) -> Result<(), GpuError> {
        if self.under_way.len() >= self.shared.depth() {
            self.wait_for_oldest(take)?;
        }
        let (slot, told) = (self.slots.pop().unwrap_or_default(), done.is_some());
        let recording = Recording::new(program, work);
        let submitted = submit(&self.shared.device, pipelines, recording, slot, target, false, done)?;
        self.under_way.push_back((submitted, told));
        Ok(())
    }

    /// Decodes some groups of planes of chunks window by window, one being uploaded while another computes; `take` gets what
    /// comes back of each.
    pub(crate) fn run(&mut self, chunks: &[&Chunk<'_>], groups: Range<usize>, take: Take<'_>) -> Result<()> {
        // What was started before has nothing to come back.
        self.drain(&mut |_| ())?;
        let (made, plan, most) = (self.program(chunks)?, self.plan.clone(), self.shared.window());
        let mut windows = Windows::new(chunks, &plan, &made.0, groups, most, None);
        let sent = loop {
            match windows.next() {
                Ok(None) => break Ok(()),
                Ok(Some((work, _))) => {
                    if let Err(error) = self.send(&made, work, Target::Host, None, &mut *take) {
                        break Err(error.into());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        match sent {
            Ok(()) => Ok(self.drain(take)?),
            Err(error) => {
                // What is under way is of no use any more.
                let _ = self.drain(&mut |_| ());
                Err(error)
            }
        }
    }

    /// Decodes chunks, each to its row.
    fn decode_chunks(
        &mut self,
        chunks: &[(&Chunk<'_>, usize)],
        view: &mut KvViewMut<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        assert!(view.planes_mut().len() == self.plan.planes().len(), "the output is of another geometry");
        for (chunk, row) in chunks {
            assert!(row + chunk.rows() <= view.tokens(), "a chunk is outside the output");
            chunk.decode_exact(&self.plan, view, *row).at(|| chunk.to_string())?;
            exact_done(chunk, progress);
        }
        let rows: Vec<usize> = chunks.iter().map(|(chunk, row)| row + chunk.exact_rows()[0]).collect();
        // Coded alike is not cut alike: the last chunk may be shorter.
        let (mut rest, mut begin) = (chunks, 0);
        while let Some((first, _)) = rest.first() {
            let groups = first.layout().groups();
            let alike = rest.iter().take_while(|(chunk, _)| chunk.layout().groups() == groups).count();
            let together: Vec<&Chunk<'_>> = rest[..alike].iter().map(|(chunk, _)| *chunk).collect();
            let rows = &rows[begin..begin + alike];
            self.run(&together, 0..groups, &mut |results| {
                store(results, view.planes_mut(), rows);
                progress(results.work.values);
            })?;
            (rest, begin) = (&rest[alike..], begin + alike);
        }
        Ok(())
    }
}

impl Decoder for GpuDecoder {
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
        match out {
            KvOut::Host(view, row) => self.decode_chunks(&[(chunk, row)], view, progress),
            KvOut::Device(memory, row) => {
                let kv = memory.downcast_mut::<DeviceKv>().ok_or_else(|| {
                    Error::unsupported("a GPU writes to host memory or to a `DeviceKv` of its own")
                })?;
                // Not the verdicts on what was started before.
                self.drain(&mut |_| ())?;
                let earlier = std::mem::replace(&mut self.failed, Ok(()));
                let started = self.start(chunk, kv, row, |_| ());
                let finished = self.finish();
                self.failed = earlier;
                started?;
                finished?;
                progress(chunk.rows() as u64 * chunk.geometry().values_per_token());
                Ok(())
            }
            _ => Err(Error::unsupported("a GPU writes to host memory or to a `DeviceKv` of its own")),
        }
    }

    fn decode_all(
        &mut self,
        chunks: &[(&Chunk<'_>, usize)],
        out: &mut KvViewMut<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.decode_chunks(chunks, out, progress)
    }
}

/// Counts the exact rows of a chunk as done; says how many are at its front.
pub(crate) fn exact_done(chunk: &Chunk<'_>, progress: Progress<'_>) -> usize {
    let [first, last] = chunk.exact_rows();
    progress((first + last) as u64 * chunk.geometry().values_per_token());
    first
}

/// Copies what came back to its planes, of which the first are given; `rows` are those of the chunks' first coded rows.
pub(crate) fn store(results: &Results<'_>, planes: &mut [PlaneViewMut<'_>], rows: &[usize]) {
    let Results { work, elements, .. } = results;
    for output in &work.outputs {
        let bytes = &elements[4 * output.word..4 * output.word + output.bytes];
        let first = rows[output.chunk] + output.rows.start;
        planes[output.plane].store_elements(first, output.rows.len(), bytes);
    }
}
