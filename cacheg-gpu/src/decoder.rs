//! Decoding chunks of one plan.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cacheg_core::{
    Chunk, Decoder, Error, KvCache, KvOut, KvViewMut, Order, Plan, PlaneViewMut, Progress, Result,
};

use crate::GpuError;
use crate::backend::Shared;
use crate::compiled::Pipelines;
use crate::device_kv::DeviceKv;
use crate::engine::{Done, Results, Submitted, submit};
use crate::program::Program;
use crate::recording::Recording;
use crate::slot::Slot;
use crate::work::{Planes, Share, Work, windows};

/// Decodes chunks of one plan on a GPU.
#[derive(Debug)]
pub struct GpuDecoder {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Arc<Plan>,
    /// By the rows of tiles, as far as programs differ.
    programs: BTreeMap<usize, Arc<(Program, Pipelines)>>,
    /// What is under way, the oldest first.
    under_way: VecDeque<Submitted>,
    /// Buffers of work that is done.
    slots: Vec<Slot>,
}

/// A window's results are wanted.
type Take<'a> = &'a mut dyn FnMut(&Results<'_>);

impl GpuDecoder {
    pub(crate) fn new(shared: Arc<Shared>, plan: Arc<Plan>) -> Result<Self> {
        // What it cannot do is to be known now.
        Program::new(&plan, shared.device.variant, 0)?;
        Ok(Self { shared, plan, programs: BTreeMap::new(), under_way: VecDeque::new(), slots: Vec::new() })
    }

    /// The program for tiles of so many rows.
    pub(crate) fn program(&mut self, rows: usize) -> Result<Arc<(Program, Pipelines)>> {
        let class = rows.next_power_of_two();
        if let Some(program) = self.programs.get(&class) {
            return Ok(program.clone());
        }
        let program = Program::new(&self.plan, self.shared.device.variant, class)?;
        let compiled = self.shared.compiled(&program)?;
        let pipelines = Pipelines::new(&self.shared.device, compiled, &program)?;
        Ok(self.programs.entry(class).or_insert(Arc::new((program, pipelines))).clone())
    }

    /// Starts decoding a chunk into a KV cache on the device, the chunk's first token at `row`, and returns while it runs. Once it is
    /// done, `done` is told, by whoever waits for the device or polls it: [`finish`](Self::finish),
    /// [`poll`](Self::poll), any other decoder of this device, or the program's own `wgpu::Device::poll`. Commands that are submitted to the device's
    /// queue later see what was decoded, so that nobody needs to wait to use it, but for the verdict.
    ///
    /// Waits for the oldest window if as many as [`Options::depth`](crate::Options::depth) are under way.
    ///
    /// # Errors
    /// If that, an earlier one, fails; or if this chunk cannot be decoded there. `done` is not called then.
    pub fn start(
        &mut self,
        chunk: &Chunk<'_>,
        kv: &DeviceKv,
        row: usize,
        done: impl FnOnce(Result<(), GpuError>) + Send + 'static,
    ) -> Result<()> {
        if kv.planes() != self.plan.planes() || row + chunk.rows() > kv.tokens() {
            return Err(Error::data("the KV cache on the device is of another geometry, or too short"));
        }
        if !kv.gpu().is(&self.shared) {
            return Err(Error::data("the KV cache is in the memory of another device"));
        }
        let [first, last] = chunk.exact_rows();
        if first + last > 0 {
            let mut cache = KvCache::try_zeros(chunk.geometry(), chunk.rows(), 0)?;
            chunk.decode_exact(&self.plan, &mut cache.view_mut(), 0)?;
            let rows = (0..first).chain(chunk.rows() - last..chunk.rows());
            kv.write(&self.shared.device, &cache, row, rows)?;
        }
        let coded = |plane: usize| kv.target(plane, row + first);
        let groups = 0..chunk.layout().groups();
        let shares =
            windows(&[chunk], &self.plan, groups, self.shared.window(), &|plane| kv.buffer_of(plane))?;
        let told = Told::new(shares.len(), done);
        for shares in shares {
            let work = self.work(&[chunk], &shares, Some(&coded), kv.order())?;
            let first_plane = shares.first().map_or(0, |share| share.tiles.planes(chunk.layout()).start);
            let target = kv.buffers().get(kv.buffer_of(first_plane));
            let told = told.clone();
            self.send(work, target, Some(Box::new(move |verdict| told.tell(verdict))), &mut |_| ())?;
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
        self.finish_with(&mut |_| ())
    }

    fn finish_with(&mut self, take: Take<'_>) -> Result<(), GpuError> {
        let mut first = Ok(());
        while let Some(oldest) = self.under_way.pop_front() {
            // All of them, so that nothing is left over for the next chunk.
            let done = oldest.finish(&self.shared.device, &mut *take);
            first = first.and(done.map(|slot| self.slots.push(slot)));
        }
        first
    }

    /// The records of a window.
    fn work(
        &mut self,
        chunks: &[&Chunk<'_>],
        shares: &[Share],
        planes: Planes<'_>,
        order: Order,
    ) -> Result<(Arc<(Program, Pipelines)>, Work)> {
        let rows = shares.iter().map(|share| chunks[share.chunk].layout().rows).max().unwrap_or(0);
        let program = self.program(rows)?;
        let mut work = Work::default();
        for share in shares {
            work.add((share.chunk, chunks[share.chunk]), &self.plan, &program.0, &share.tiles, planes)?;
        }
        work.close(&program.0, order)?;
        Ok((program, work))
    }

    /// Submits a window, after the oldest one if there is no room.
    fn send(
        &mut self,
        (program, work): (Arc<(Program, Pipelines)>, Work),
        target: Option<&wgpu::Buffer>,
        done: Option<Done>,
        take: Take<'_>,
    ) -> Result<(), GpuError> {
        let (program, pipelines) = &*program;
        let device = &self.shared.device;
        if self.under_way.len() >= self.shared.depth()
            && let Some(oldest) = self.under_way.pop_front()
        {
            self.slots.push(oldest.finish(device, take)?);
        }
        let slot = self.slots.pop().unwrap_or_default();
        let recording = Recording::new(program, work);
        self.under_way.push_back(submit(device, pipelines, recording, slot, target, false, done)?);
        Ok(())
    }

    /// Decodes some groups of planes of chunks window by window, one being uploaded while another computes; `take` gets what
    /// comes back of each.
    pub(crate) fn run(&mut self, chunks: &[&Chunk<'_>], groups: Range<usize>, take: Take<'_>) -> Result<()> {
        let shares = windows(chunks, &self.plan, groups, self.shared.window(), &|_| 0)?;
        let sent = shares.iter().try_for_each(|shares| {
            let work = self.work(chunks, shares, None, Order::HeadMajor)?;
            Ok(self.send(work, None, None, &mut *take)?)
        });
        match sent {
            Ok(()) => Ok(self.finish_with(take)?),
            Err(error) => {
                // What is under way is of no use any more.
                let _ = self.finish_with(&mut |_| ());
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
            chunk.decode_exact(&self.plan, view, *row)?;
            exact_done(chunk, progress);
        }
        let rows: Vec<usize> = chunks.iter().map(|(chunk, row)| row + chunk.exact_rows()[0]).collect();
        // Coded alike is not cut alike: the last chunk may be shorter.
        let mut rest = chunks;
        let mut begin = 0;
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
                let started = self.start(chunk, kv, row, |_| ());
                let finished = self.finish();
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

/// Somebody who is told once, when all windows of a chunk are done.
struct Told<F> {
    state: Mutex<(usize, Result<(), GpuError>, Option<F>)>,
}

impl<F: FnOnce(Result<(), GpuError>)> Told<F> {
    fn new(windows: usize, done: F) -> Arc<Self> {
        if windows == 0 {
            // Nothing is coded: an empty chunk, or all of its tokens are exact.
            done(Ok(()));
            return Arc::new(Self { state: Mutex::new((0, Ok(()), None)) });
        }
        Arc::new(Self { state: Mutex::new((windows, Ok(()), Some(done))) })
    }

    fn tell(&self, verdict: Result<(), GpuError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        if state.1.is_ok() {
            state.1 = verdict;
        }
        if state.0 == 0 {
            let (done, verdict) = (state.2.take(), state.1.clone());
            drop(state);
            if let Some(done) = done {
                done(verdict);
            }
        }
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
