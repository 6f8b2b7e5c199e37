//! What GPUs could make of a program: a model from data sheets, never a measurement.

use super::counts::Totals;

/// A GPU as its data sheet has it.
pub(super) struct Sheet {
    pub(super) name: &'static str,
    /// Schedulers, each of which issues one instruction of 32 lanes per cycle.
    schedulers: f64,
    /// Hz.
    clock: f64,
    /// Bytes per second.
    bandwidth: f64,
}

/// Of several vendors and sizes: boost clocks and memory bandwidths of NVIDIA's, AMD's and Apple's data sheets.
pub(super) const SHEETS: [Sheet; 4] = [
    Sheet { name: "H100 SXM", schedulers: 132.0 * 4.0, clock: 1.83e9, bandwidth: 3.35e12 },
    Sheet { name: "RTX 4090", schedulers: 128.0 * 4.0, clock: 2.52e9, bandwidth: 1.008e12 },
    Sheet { name: "RX 7900 XTX", schedulers: 96.0 * 2.0, clock: 2.5e9, bandwidth: 0.96e12 },
    Sheet { name: "M2 Max", schedulers: 38.0 * 4.0, clock: 1.4e9, bandwidth: 0.4e12 },
];

/// Cycles until an instruction can use what the one before it has computed: a scheduler needs as many subgroups to be busy.
const LATENCY: f64 = 5.0;

impl Sheet {
    /// Bytes of elements per second, at most: where each instruction counts as one cycle, repeated loads are caught by caches, and
    /// `subgroups` are there to be run.
    pub(super) fn bound(&self, totals: &Totals, subgroups: f64) -> f64 {
        let moving = totals.moved / self.bandwidth;
        let busy = self.schedulers.min(subgroups / LATENCY);
        let computing = totals.issued / (busy * self.clock);
        totals.elements / moving.max(computing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_instructions_and_streams_bound() {
        let gpu = Sheet { name: "", schedulers: 10.0, clock: 1e9, bandwidth: 1e9 };
        let totals = |issued, moved| Totals { issued, moved, elements: 1e6 };
        // A millisecond of moving; of computing with all schedulers; with two of them.
        assert_eq!(gpu.bound(&totals(0.0, 1e6), 1e9), 1e9);
        assert_eq!(gpu.bound(&totals(1e7, 0.0), 1e9), 1e9);
        assert_eq!(gpu.bound(&totals(1e7, 0.0), 10.0), 2e8);
    }
}
