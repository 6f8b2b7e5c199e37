//! CPU and GPU together: each decodes some planes of a chunk. Where planes are predicted from others, the GPU decodes all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cacheg_core::{Backend, Chunk, Decoder, Error, KvOut, KvViewMut, Plan, Progress, Result};

use crate::Gpu;
use crate::decoder::{GpuDecoder, exact_done, store};

/// Decodes on a GPU and on the CPU's cores at a time. How planes are divided follows the rates of both at the chunks before;
/// what comes out does not depend on it.
#[derive(Debug, Clone)]
pub struct Hybrid {
    gpu: Gpu,
    name: String,
}

impl Hybrid {
    /// With this GPU.
    pub fn new(gpu: Gpu) -> Self {
        let name = format!("hybrid:{}", gpu.info().name);
        Self { gpu, name }
    }
}

impl Backend for Hybrid {
    fn name(&self) -> &str {
        &self.name
    }

    fn supports(&self, plan: &Plan) -> Result<()> {
        self.gpu.supports(plan)
    }

    fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(HybridDecoder { gpu: self.gpu.open_decoder(plan)?, rates: Rates::default() }))
    }
}

/// Groups of planes per second of each.
#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    gpu: Option<f64>,
    cpu: Option<f64>,
}

impl Rates {
    /// How many of the groups the GPU takes: so many that both are done at the same time.
    fn split(self, groups: usize) -> usize {
        match (self.gpu, self.cpu) {
            (Some(gpu), Some(cpu)) => {
                let share = (groups as f64 * gpu / (gpu + cpu)).round() as usize;
                // Whoever gets nothing is never measured again.
                if groups > 1 { share.clamp(1, groups - 1) } else { share.min(groups) }
            }
            _ => groups.div_ceil(2),
        }
    }

    /// Takes in what was measured, half and half with what was known.
    fn learn(rate: &mut Option<f64>, groups: usize, time: Duration) {
        let seconds = time.as_secs_f64();
        if groups > 0 && seconds > 0.0 {
            let new = groups as f64 / seconds;
            *rate = Some(rate.map_or(new, |old| 0.5 * (old + new)));
        }
    }
}

struct HybridDecoder {
    gpu: GpuDecoder,
    rates: Rates,
}

impl Decoder for HybridDecoder {
    fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
        let KvOut::Host(view, row) = out else {
            return Err(Error::unsupported("CPU and GPU together write to host memory only"));
        };
        if self.gpu.plan.predicts() {
            // No plane can be decoded without those that it is predicted from.
            return self.gpu.decode(chunk, KvOut::Host(view, row), progress);
        }
        let split = self.rates.split(chunk.layout().groups());
        self.decode_split(chunk, view, row, split, progress)
    }
}

impl HybridDecoder {
    /// The GPU takes the first groups of planes, the CPU all others.
    fn decode_split(
        &mut self,
        chunk: &Chunk<'_>,
        view: &mut KvViewMut<'_>,
        row: usize,
        split: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let Self { gpu, rates } = self;
        assert!(view.planes_mut().len() == gpu.plan.planes().len(), "the output is of another geometry");
        assert!(row + chunk.rows() <= view.tokens(), "the chunk is outside the output");
        chunk.decode_exact(&gpu.plan, view, row)?;
        let first = exact_done(chunk, progress);
        let layout = *chunk.layout();
        let groups = layout.groups();
        let (own, others) = view.planes_mut().split_at_mut((split * layout.planes).min(layout.all_planes));
        let plan = gpu.plan.clone();
        let (on_gpu, on_cpu) = std::thread::scope(|scope| {
            // The GPU's share is driven by this thread; the CPU's goes to rayon's.
            let cpu = scope.spawn(|| {
                let start = Instant::now();
                let done = chunk.decode_groups(&plan, split..groups, others, row, progress);
                done.map(|()| start.elapsed())
            });
            let start = Instant::now();
            let done = gpu.run(&[chunk], 0..split, &mut |results| {
                store(results, own, &[row + first]);
                progress(results.work.values);
            });
            (done.map(|()| start.elapsed()), cpu.join())
        });
        let on_cpu = on_cpu.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Rates::learn(&mut rates.gpu, split, on_gpu?);
        Rates::learn(&mut rates.cpu, groups - split, on_cpu);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_rates() {
        let mut rates = Rates::default();
        assert_eq!((rates.split(8), rates.split(1), rates.split(0)), (4, 1, 0));
        Rates::learn(&mut rates.gpu, 6, Duration::from_millis(10));
        Rates::learn(&mut rates.cpu, 2, Duration::from_millis(10));
        assert_eq!(rates.split(8), 6);
        Rates::learn(&mut rates.gpu, 0, Duration::from_millis(10));
        assert_eq!(rates.split(8), 6);
        rates.cpu = Some(1e-9);
        assert_eq!(rates.split(8), 7);
        rates.gpu = Some(1e-12);
        assert_eq!(rates.split(8), 1);
    }
}
