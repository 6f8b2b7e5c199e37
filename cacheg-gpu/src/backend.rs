//! The backend.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use cacheg_core::{
    Backend, Chunk, Decoder, Error, KvCache, KvOut, KvViewMut, Plan, PlaneViewMut, Progress, Result,
};

use crate::device::{AdapterInfo, Device};
use crate::device_kv::DeviceKv;
use crate::engine::{Compiled, Pipelines, Results, Submitted, submit};
use crate::program::{Program, Variant};
use crate::recording::Recording;
use crate::work::{Target, Work, windows};
use crate::{GpuError, SelfTest, selftest};

/// Bytes of output of a window: enough to fill large GPUs, little beside their memory.
pub(crate) const WINDOW: usize = 32 << 20;

/// Windows that are under way at a time: one computes while the next is uploaded.
const DEPTH: usize = 2;

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
    /// Programs by their text: plans of one pipeline have the same, with parameters of their own.
    compiled: Mutex<BTreeMap<(bool, String), Arc<Compiled>>>,
}

impl Gpu {
    /// Opens the best adapter, or the best whose name contains `name`, and tests it.
    ///
    /// Adapters that compute on a CPU are taken only by name, or if [`ALLOW_CPU`](crate::ALLOW_CPU) is set.
    ///
    /// # Errors
    /// If there is none, if it cannot be opened, or if it does not compute what it should.
    pub fn open(name: Option<&str>) -> Result<Self, GpuError> {
        let device = Device::open(name)?;
        let tested = selftest::run(&device)?;
        let name = format!("gpu:{}", device.info.name);
        Ok(Self { shared: Arc::new(Shared { device, name, tested, compiled: Mutex::default() }) })
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

    pub(crate) fn open_decoder(&self, plan: Arc<Plan>) -> Result<GpuDecoder> {
        let program = Program::new(&plan, self.shared.device.variant)?;
        let compiled = self.shared.compiled(&program)?;
        let pipelines = Pipelines::new(&self.shared.device, compiled, &program)?;
        Ok(GpuDecoder { shared: self.shared.clone(), plan, program, pipelines })
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
    fn compiled(&self, program: &Program) -> Result<Arc<Compiled>, GpuError> {
        // Held while compiling: another thread would only compile the same.
        let mut known = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (program.whole_words, program.source.clone());
        if let Some(compiled) = known.get(&key) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(Compiled::new(&self.device, program)?);
        known.insert(key, compiled.clone());
        Ok(compiled)
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn supports(&self, plan: &Plan) -> Result<()> {
        Program::new(plan, self.shared.device.variant).map(drop)
    }

    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(self.open_decoder(plan)?))
    }
}

pub(crate) struct GpuDecoder {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) program: Program,
    pub(crate) pipelines: Pipelines,
}

impl Decoder for GpuDecoder {
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
        match out {
            KvOut::Host(view, row) => self.to_host(chunk, view, row, progress),
            KvOut::Device(memory, row) => {
                let kv = memory.downcast_mut::<DeviceKv>().ok_or_else(|| {
                    Error::unsupported("a GPU writes to host memory or to a `DeviceKv` of its own")
                })?;
                self.to_device(chunk, kv, row, progress)
            }
            _ => Err(Error::unsupported("a GPU writes to host memory or to a `DeviceKv` of its own")),
        }
    }
}

impl GpuDecoder {
    fn to_host(
        &self,
        chunk: &Chunk<'_>,
        view: &mut KvViewMut<'_>,
        row: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        assert!(view.planes_mut().len() == self.plan.planes().len(), "the output is of another geometry");
        assert!(row + chunk.rows() <= view.tokens(), "the chunk is outside the output");
        chunk.decode_exact(&self.plan, view, row)?;
        let row = row + self.exact_done(chunk, progress);
        let groups = all_groups(chunk);
        self.run(chunk, groups, Target::Window, None, &mut |results| {
            store(results, view.planes_mut(), row);
            progress(results.work.values);
        })
    }

    fn to_device(&self, chunk: &Chunk<'_>, kv: &DeviceKv, row: usize, progress: Progress<'_>) -> Result<()> {
        if kv.planes() != self.plan.planes() || row + chunk.rows() > kv.tokens() {
            return Err(Error::data("the KV cache on the device is of another geometry, or too short"));
        }
        let [first, last] = chunk.exact_rows();
        if first + last > 0 {
            let mut cache = KvCache::try_zeros(chunk.geometry(), chunk.rows(), 0)?;
            chunk.decode_exact(&self.plan, &mut cache.view_mut(), 0)?;
            let rows = (0..first).chain(chunk.rows() - last..chunk.rows());
            kv.write(&self.shared.device, &cache, row, rows)?;
        }
        let row = row + self.exact_done(chunk, progress);
        let target = Target::Planes { order: kv.order(), capacity: kv.tokens(), row };
        self.run(chunk, all_groups(chunk), target, Some(kv), &mut |results| progress(results.work.values))
    }

    /// How many rows at the front are exact; counts all that are.
    pub(crate) fn exact_done(&self, chunk: &Chunk<'_>, progress: Progress<'_>) -> usize {
        let [first, last] = chunk.exact_rows();
        progress((first + last) as u64 * chunk.geometry().values_per_token());
        first
    }

    /// Decodes window by window, one being uploaded while another computes; `take` gets what comes back of each.
    pub(crate) fn run(
        &self,
        chunk: &Chunk<'_>,
        groups: Range<usize>,
        target: Target,
        kv: Option<&DeviceKv>,
        take: &mut dyn FnMut(&Results<'_>),
    ) -> Result<()> {
        let Self { shared, plan, program, pipelines } = self;
        let mut under_way: VecDeque<Submitted> = VecDeque::new();
        for tiles in windows(chunk, plan, groups, WINDOW) {
            if under_way.len() == DEPTH
                && let Some(oldest) = under_way.pop_front()
            {
                oldest.finish(&shared.device, &mut *take)?;
            }
            let work = Work::new(chunk, plan, program, &tiles, target)?;
            let recording = Recording::new(program, work, kv.is_some());
            under_way.push_back(submit(&shared.device, pipelines, recording, kv, false)?);
        }
        for oldest in under_way {
            oldest.finish(&shared.device, &mut *take)?;
        }
        Ok(())
    }
}

/// All groups of planes of a chunk.
pub(crate) fn all_groups(chunk: &Chunk<'_>) -> Range<usize> {
    0..chunk.layout().groups()
}

/// Copies what came back to its planes, of which the first are given; `row` is that of the first coded row.
pub(crate) fn store(results: &Results<'_>, planes: &mut [PlaneViewMut<'_>], row: usize) {
    let Results { work, elements, .. } = results;
    for output in &work.outputs {
        let bytes = &elements[4 * output.word..4 * output.word + output.bytes];
        planes[output.plane].store_elements(row + work.rows.start, work.rows.len(), bytes);
    }
}
