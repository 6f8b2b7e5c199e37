//! What is counted.

use std::collections::BTreeMap;

/// The work of an entry point, over all its dispatches. What an instruction is: see [`simulate`](super::simulate).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Dispatches.
    pub dispatches: u64,
    /// Workgroups.
    pub workgroups: u64,
    /// Instructions, once for each subgroup that has at least one active lane.
    pub issued: u64,
    /// Instructions, once for each active lane.
    pub executed: u64,
    /// Barriers, once for each workgroup.
    pub barriers: u64,
    /// Subgroup operations, once for each subgroup.
    pub subgroup_ops: u64,
    /// Those of them, and those reads of other lanes, where a lane that has not returned was missing.
    pub divergent_subgroup_ops: u64,
    /// The share of each loop, by the line it begins in.
    pub loops: BTreeMap<u32, LoopCounts>,
    /// The traffic of each buffer, by group and binding.
    pub bindings: BTreeMap<(u32, u32), BindingCounts>,
    /// The traffic of workgroup memory; distinct words are counted for each workgroup.
    pub workgroup_memory: BindingCounts,
}

/// What is issued in a loop's body, but not in a loop inside of it. Functions that are called belong to the loop that calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoopCounts {
    /// Iterations, once for each subgroup.
    pub iterations: u64,
    /// Instructions, once for each subgroup.
    pub issued: u64,
    /// Instructions, once for each active lane.
    pub executed: u64,
}

/// Accesses of a buffer. A vector is one access.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BindingCounts {
    /// Loads, once for each active lane; atomics count as loads and stores.
    pub loads: u64,
    /// Stores, once for each active lane.
    pub stores: u64,
    /// Bytes that were loaded, with repeats.
    pub bytes_loaded: u64,
    /// Bytes that were stored, with repeats.
    pub bytes_stored: u64,
    /// Bytes of the words that were loaded at all in a dispatch: the traffic that is left if caches catch all repeats.
    pub distinct_read: u64,
    /// Bytes of the words that were stored at all in a dispatch.
    pub distinct_written: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.dispatches += other.dispatches;
        self.workgroups += other.workgroups;
        self.issued += other.issued;
        self.executed += other.executed;
        self.barriers += other.barriers;
        self.subgroup_ops += other.subgroup_ops;
        self.divergent_subgroup_ops += other.divergent_subgroup_ops;
        for (line, counts) in &other.loops {
            self.loops.entry(*line).or_default().add(counts);
        }
        for (binding, counts) in &other.bindings {
            self.bindings.entry(*binding).or_default().add(counts);
        }
        self.workgroup_memory.add(&other.workgroup_memory);
    }
}

impl LoopCounts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.iterations += other.iterations;
        self.issued += other.issued;
        self.executed += other.executed;
    }
}

impl BindingCounts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.loads += other.loads;
        self.stores += other.stores;
        self.bytes_loaded += other.bytes_loaded;
        self.bytes_stored += other.bytes_stored;
        self.distinct_read += other.distinct_read;
        self.distinct_written += other.distinct_written;
    }
}
