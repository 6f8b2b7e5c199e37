//! Execution of programs without any GPU, by a machine whose subgroups have 32 lanes: to see variants run that no driver at
//! hand can run, to find what drivers let pass, and to count work.
//!
//! WGSL is interpreted by way of naga's IR. Workgroups run one after the other; the invocations of one run in lockstep,
//! statement by statement, in subgroups of 32 consecutive ones. Sums and products of floats are IEEE 754's.
//!
//! What must not happen is found: barriers that not all invocations reach which have not returned, and loops that do not
//! end, are errors. Counted are
//!
//! * accesses outside of arrays and buffers: reads give the last element or zero, writes go to the last element or nowhere;
//! * races: a word of workgroup memory that one invocation writes and another one touches without a `workgroupBarrier`
//!   between them; a word of a buffer that two workgroups of a dispatch touch, or two invocations of a workgroup without a
//!   `storageBarrier` between them, if one of them writes. Subgroup operations order nothing. Atomics do not race;
//! * unordered atomics: of workgroup memory, where the order in which invocations come decides what one of them reads;
//! * subgroup operations where lanes are missing that have not returned, and reads of missing lanes.
//!
//! # Instructions
//!
//! One instruction is
//!
//! * a component of an operator, a comparison, a `select`, a conversion that changes bits, or a function; for `dot`, the
//!   products and sums; for functions of packed bytes, what extracts or inserts each byte;
//! * a load or store of a scalar or vector in storage, uniform or workgroup memory, or of a scalar in an array of an
//!   invocation's own that is indexed by what is no constant;
//! * the address of an element of memory, or the choice among components, by an index that is no constant;
//! * an atomic; a subgroup operation, for each component; a barrier;
//! * an `if` or `switch`, and the beginning of each iteration of a loop. `for` and `while` also have an `if`, and so
//!   have `&&` and `||`.
//!
//! Constants, `bitcast`, the composition of vectors, structures and arrays, their components by constant index, and the
//! variables of an invocation are free: registers. So are calls, which are inlined.

mod code;
mod counts;
mod effects;
mod execute;
mod expressions;
mod lower;
mod machine;
mod mask;
mod math;
mod memory;
mod scalar;
mod spirv;
mod statements;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;

pub use counts::{BindingCounts, Counts, LoopCounts};

use crate::{GpuError, Recorded};
use machine::Machine;

/// What a recording does when it is executed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Simulated {
    /// Elements.
    pub output: Vec<u32>,
    /// What is wrong with each tile.
    pub faults: Vec<u32>,
    /// The work of each entry point.
    pub passes: BTreeMap<String, Counts>,
    /// Accesses outside of arrays and buffers.
    pub out_of_bounds: u64,
    /// Accesses of memory that others access at the same time.
    pub races: u64,
    /// Atomic accesses whose results depend on who comes first.
    pub unordered: u64,
}

/// Executes a recording. What is found and counted, and what an instruction is, is said at the module's top
/// (`cacheg-gpu/src/simulate/mod.rs`).
///
/// # Errors
/// [`GpuError::Simulator`] if a program is invalid, misplaces barriers, does not end, or has what the simulator does not know.
pub fn simulate(recorded: &Recorded) -> Result<Simulated, GpuError> {
    let mut machine = Machine::new(&recorded.source)?;
    let zeros = |words: usize| vec![0; words];
    machine.set(0, 1, recorded.payload.clone());
    machine.set(0, 2, recorded.table.clone());
    machine.set(0, 3, recorded.data.clone());
    machine.set(0, 4, zeros(recorded.scratch_words));
    machine.set(0, 5, zeros(recorded.state_words));
    machine.set(0, 6, zeros(recorded.output_words));
    machine.set(0, 7, zeros(recorded.fault_words));
    for (entry, window, groups) in &recorded.dispatches {
        machine.set(0, 0, recorded.windows[*window].clone());
        machine.dispatch(entry, *groups)?;
    }
    Ok(Simulated {
        output: machine.words(0, 6).to_vec(),
        faults: machine.words(0, 7).to_vec(),
        out_of_bounds: machine.out_of_bounds,
        races: machine.races,
        unordered: machine.unordered,
        passes: machine.passes,
    })
}
