//! The backend.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cacheg_core::{Backend, Chunk, Decoder, Error, KvOut, KvViewMut, Order, Plan, Progress, Result};

use crate::device::{AdapterInfo, Device};
use crate::engine::{Compiled, Pipelines, Submitted, submit};
use crate::program::Program;
use crate::work::{Tiles, Work, windows};
use crate::{GpuError, SelfTest, selftest};

/// Bytes of output of a window: enough to fill large GPUs, little beside their memory.
const WINDOW: usize = 32 << 20;

/// Windows that are under way at a time: one computes while the next is uploaded.
const DEPTH: usize = 2;

/// Decodes on a GPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    device: Device,
    name: String,
    tested: SelfTest,
    /// Programs by their text: plans of one pipeline have the same, with parameters of their own.
    compiled: Mutex<BTreeMap<String, Arc<Compiled>>>,
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

    /// What its self-test has found.
    pub fn tested(&self) -> SelfTest {
        self.shared.tested
    }
}

impl Shared {
    fn compiled(&self, program: &Program) -> Result<Arc<Compiled>, GpuError> {
        // Held while compiling: another thread would only compile the same.
        let mut known = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = known.get(&program.source) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(Compiled::new(&self.device, program)?);
        known.insert(program.source.clone(), compiled.clone());
        Ok(compiled)
    }
}

impl Backend for Gpu {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn supports(&self, plan: &Plan) -> Result<()> {
        Program::new(plan).map(drop)
    }

    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
        let program = Program::new(&plan)?;
        let compiled = self.shared.compiled(&program)?;
        let pipelines = Pipelines::new(&self.shared.device, compiled, &program)?;
        Ok(Box::new(GpuDecoder { shared: self.shared.clone(), plan, program, pipelines }))
    }
}

struct GpuDecoder {
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    program: Program,
    pipelines: Pipelines,
}

impl Decoder for GpuDecoder {
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
        let KvOut::Host(view, row) = out else {
            return Err(Error::unsupported("this backend writes to host memory"));
        };
        chunk.decode_exact(&self.plan, view, row)?;
        let [first, last] = chunk.exact_rows();
        progress((first + last) as u64 * chunk.geometry().values_per_token());
        let mut under_way: VecDeque<(Work, Submitted)> = VecDeque::new();
        for tiles in windows(chunk, &self.plan, WINDOW) {
            if under_way.len() == DEPTH
                && let Some(oldest) = under_way.pop_front()
            {
                self.finish(oldest, view, row + first, progress)?;
            }
            under_way.push_back(self.submit(chunk, &tiles)?);
        }
        for oldest in under_way {
            self.finish(oldest, view, row + first, progress)?;
        }
        Ok(())
    }
}

impl GpuDecoder {
    fn submit(&self, chunk: &Chunk<'_>, tiles: &Tiles) -> Result<(Work, Submitted)> {
        let mut work = Work::new(chunk, &self.plan, &self.program, tiles, Order::HeadMajor)?;
        let submitted = submit(&self.shared.device, &self.program, &self.pipelines, &work)?;
        // They are on the device now.
        work.payload = Vec::new();
        work.table = Vec::new();
        Ok((work, submitted))
    }

    fn finish(
        &self,
        (work, submitted): (Work, Submitted),
        view: &mut KvViewMut<'_>,
        row: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        submitted.finish(&self.shared.device, |bytes| {
            for output in &work.outputs {
                let bytes = &bytes[4 * output.word..4 * output.word + output.bytes];
                let plane = &mut view.planes_mut()[output.plane];
                plane.store_elements(row + work.rows.start, work.rows.len(), bytes);
            }
        })?;
        progress(work.values);
        Ok(())
    }
}
