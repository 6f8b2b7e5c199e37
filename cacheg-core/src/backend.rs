//! Where chunks are decoded: one trait for CPUs and GPUs.

use std::sync::Arc;

use crate::{Chunk, Error, KvViewMut, Plan, Progress, Result, ResultExt as _};

/// A device that can decode.
pub trait Backend: Send + Sync {
    /// Its name for messages and `--device`.
    fn name(&self) -> &str;

    /// Whether it can decode what this plan encodes.
    ///
    /// # Errors
    /// If it cannot; the message says why.
    fn supports(&self, plan: &Plan) -> Result<()>;

    /// A decoder for chunks of this plan.
    ///
    /// # Errors
    /// If the backend does not support the plan or the device fails.
    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>>;
}

/// Decodes chunks of one plan.
pub trait Decoder: Send {
    /// Decodes a chunk into the rows of `out` from `row`. Values done are counted on `progress`.
    ///
    /// # Errors
    /// If the chunk is corrupt or the device fails; `out` then holds rubbish.
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()>;

    /// Decodes chunks to host memory, the first token of each at its row. A device may do several at a time.
    ///
    /// # Errors
    /// If a chunk is corrupt or the device fails; `out` then holds rubbish.
    fn decode_all(
        &mut self,
        chunks: &[(&Chunk<'_>, usize)],
        out: &mut KvViewMut<'_>,
        progress: Progress<'_>,
    ) -> Result<()> {
        chunks.iter().try_for_each(|(chunk, row)| {
            self.decode(chunk, KvOut::Host(&mut *out, *row), progress).at(|| chunk.to_string())
        })
    }
}

/// Where decoded values go.
#[derive(Debug)]
#[non_exhaustive]
pub enum KvOut<'o, 'v> {
    /// To host memory, the chunk's first token at this row.
    Host(&'o mut KvViewMut<'v>, usize),
    /// To memory of the backend's own kind, which it knows, the chunk's first token at this row.
    Device(&'o mut dyn std::any::Any, usize),
}

/// Decodes on the CPU's cores.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn supports(&self, _: &Plan) -> Result<()> {
        Ok(())
    }

    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(CpuDecoder { plan }))
    }
}

struct CpuDecoder {
    plan: Arc<Plan>,
}

impl Decoder for CpuDecoder {
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
        match out {
            KvOut::Host(view, row) => chunk.decode(&self.plan, view, row, progress),
            KvOut::Device(..) => Err(Error::unsupported("the CPU writes to host memory only")),
        }
    }
}
