//! Execution of workgroups: all invocations in lockstep, statement by statement.

use super::code::{Case, Code, Known, Node, Op, Reg};
use super::counts::{Counts, LoopCounts};
use super::mask::{Mask, SUBGROUP};
use super::memory::{Who, Words};
use super::types::error;
use crate::GpuError;

/// Iterations of a loop that does not end: far more than programs are allowed.
const MOST_ITERATIONS: u32 = 1 << 20;

/// A dispatch under way.
pub(super) struct Execution<'a> {
    code: &'a Code,
    pub(super) width: usize,
    /// All invocations of a workgroup.
    all: Mask,
    pub(super) registers: Vec<u32>,
    pub(super) buffers: &'a mut [Words],
    /// Workgroup memory.
    pub(super) shared: Words,
    /// Counts outside of loops, then of each loop.
    tallies: Vec<LoopCounts>,
    tally: usize,
    pub(super) counts: Counts,
    pub(super) out_of_bounds: u64,
    /// Lanes that have left loops or switches, the innermost last; that have continued; that have returned.
    breaks: Vec<Mask>,
    continues: Vec<Mask>,
    returns: Vec<Mask>,
    first: u32,
    group: u32,
    storage_epoch: u32,
    shared_epoch: u32,
}

/// What is left of a dispatch.
pub(super) struct Done {
    pub(super) counts: Counts,
    pub(super) shared: Words,
    pub(super) out_of_bounds: u64,
    /// The number of its last workgroup.
    pub(super) last: u32,
}

impl<'a> Execution<'a> {
    /// Workgroups are numbered from `first`.
    pub(super) fn new(code: &'a Code, buffers: &'a mut [Words], all: Mask, first: u32) -> Self {
        let width = (all.lanes() as usize).next_multiple_of(SUBGROUP);
        let mut registers = vec![0; code.registers as usize * width];
        for (register, bits) in &code.constants {
            registers[*register as usize * width..][..width].fill(*bits);
        }
        Self {
            code,
            width,
            all,
            registers,
            buffers,
            shared: Words::default(),
            tallies: vec![LoopCounts::default(); code.loops.len() + 1],
            tally: 0,
            counts: Counts { dispatches: 1, ..Counts::default() },
            out_of_bounds: 0,
            breaks: Vec::new(),
            continues: Vec::new(),
            returns: Vec::new(),
            first,
            group: first - 1,
            storage_epoch: 0,
            shared_epoch: 0,
        }
    }

    pub(super) fn finish(self) -> Done {
        let mut counts = self.counts;
        for tally in &self.tallies {
            counts.issued += tally.issued;
            counts.executed += tally.executed;
        }
        for (line, tally) in self.code.loops.iter().zip(self.tallies.iter().skip(1)) {
            counts.loops.entry(*line).or_default().add(tally);
        }
        counts.workgroup_memory = self.shared.counts.clone();
        Done { counts, shared: self.shared, out_of_bounds: self.out_of_bounds, last: self.group }
    }

    /// Runs one.
    pub(super) fn workgroup(&mut self, id: [u32; 3], groups: [u32; 3]) -> Result<(), GpuError> {
        self.group = self.group.checked_add(1).ok_or_else(|| error("too many workgroups"))?;
        self.counts.workgroups += 1;
        self.shared.clear(self.code.workgroup_words as usize);
        self.pass_barrier(true, true);
        let size = self.code.size;
        for (register, known) in &self.code.known {
            for (lane, to) in
                (0u32..).zip(&mut self.registers[*register as usize * self.width..][..self.width])
            {
                let local = [lane % size[0], lane / size[0] % size[1], lane / (size[0] * size[1])];
                *to = match *known {
                    Known::GroupId(axis) => id[axis as usize],
                    Known::LocalId(axis) => local[axis as usize],
                    Known::GlobalId(axis) => {
                        id[axis as usize].wrapping_mul(size[axis as usize]).wrapping_add(local[axis as usize])
                    }
                    Known::Groups(axis) => groups[axis as usize],
                    Known::GroupSize(axis) => size[axis as usize],
                    Known::LocalIndex => lane,
                    Known::SubgroupSize => SUBGROUP as u32,
                    Known::SubgroupLane => lane % SUBGROUP as u32,
                    Known::SubgroupNumber => lane / SUBGROUP as u32,
                    Known::Subgroups => (self.width / SUBGROUP) as u32,
                };
            }
        }
        self.tally = 0;
        self.nodes(&self.code.body, self.all)?;
        Ok(())
    }

    /// Invocations that have not returned from the entry point.
    pub(super) fn alive(&self) -> Mask {
        self.returns.first().map_or(self.all, |returned| self.all.without(*returned))
    }

    pub(super) fn storage_user(&self) -> Who {
        Who { first: self.first, group: self.group, epoch: self.storage_epoch, lane: 0 }
    }

    pub(super) fn shared_user(&self) -> Who {
        Who { first: self.group, group: self.group, epoch: self.shared_epoch, lane: 0 }
    }

    fn pass_barrier(&mut self, storage: bool, workgroup: bool) {
        self.storage_epoch += u32::from(storage);
        self.shared_epoch += u32::from(workgroup);
    }

    fn count(&mut self, cost: u32, mask: Mask) {
        let tally = &mut self.tallies[self.tally];
        tally.issued += u64::from(cost) * mask.subgroups();
        tally.executed += u64::from(cost) * mask.lanes();
    }

    pub(super) fn register(&self, register: Reg) -> &[u32] {
        &self.registers[register as usize * self.width..][..self.width]
    }

    /// The lanes of which a condition is true.
    fn where_true(&self, condition: Reg, mask: Mask) -> Mask {
        Mask::of(self.register(condition), mask, |word| word != 0)
    }

    /// Executes nodes; gives the lanes that reach their end.
    fn nodes(&mut self, nodes: &'a [Node], mut mask: Mask) -> Result<Mask, GpuError> {
        for node in nodes {
            if mask.is_empty() {
                break;
            }
            mask = self.node(node, mask)?;
        }
        Ok(mask)
    }

    fn node(&mut self, node: &'a Node, mask: Mask) -> Result<Mask, GpuError> {
        match node {
            Node::Straight { ops, cost } => {
                self.count(*cost, mask);
                for op in ops {
                    self.op(op, mask);
                }
                Ok(mask)
            }
            Node::If { condition, accept, reject } => {
                self.count(1, mask);
                let yes = self.where_true(*condition, mask);
                let accepted = self.nodes(accept, yes)?;
                Ok(self.nodes(reject, mask.without(yes))?.or(accepted))
            }
            Node::Switch { selector, cases } => {
                self.count(1, mask);
                self.switch(*selector, cases, mask)
            }
            Node::Loop { number, body, continuing, break_if } => {
                let outer = std::mem::replace(&mut self.tally, number + 1);
                let mut active = mask;
                self.breaks.push(Mask::default());
                let mut iterations = 0;
                while !active.is_empty() {
                    iterations += 1;
                    if iterations > MOST_ITERATIONS {
                        let line = self.code.loops[*number];
                        return Err(error(format!("line {line}: a loop that does not end")));
                    }
                    self.count(1, active);
                    self.tallies[self.tally].iterations += active.subgroups();
                    self.continues.push(Mask::default());
                    active = self.nodes(body, active)?;
                    active = active.or(self.continues.pop().unwrap_or_default());
                    active = self.nodes(continuing, active)?;
                    if let Some(condition) = break_if {
                        let yes = self.where_true(*condition, active);
                        self.leave(yes);
                        active = active.without(yes);
                    }
                }
                self.tally = outer;
                Ok(self.breaks.pop().unwrap_or_default())
            }
            Node::Call(body) => {
                self.returns.push(Mask::default());
                let reached = self.nodes(body, mask)?;
                Ok(self.returns.pop().unwrap_or_default().or(reached))
            }
            Node::Break => {
                self.leave(mask);
                Ok(Mask::default())
            }
            Node::Continue => {
                if let Some(continued) = self.continues.last_mut() {
                    *continued = continued.or(mask);
                }
                Ok(Mask::default())
            }
            Node::Return => {
                if let Some(returned) = self.returns.last_mut() {
                    *returned = returned.or(mask);
                }
                Ok(Mask::default())
            }
            Node::Barrier { storage, workgroup, line } => {
                let alive = self.alive();
                if mask != alive {
                    let (here, all) = (mask.lanes(), alive.lanes());
                    return Err(error(format!("line {line}: {here} of {all} invocations are at a barrier")));
                }
                self.count(1, mask);
                self.counts.barriers += 1;
                self.pass_barrier(*storage, *workgroup);
                Ok(mask)
            }
        }
    }

    fn leave(&mut self, mask: Mask) {
        if let Some(left) = self.breaks.last_mut() {
            *left = left.or(mask);
        }
    }

    fn switch(&mut self, selector: Reg, cases: &'a [Case], mask: Mask) -> Result<Mask, GpuError> {
        let others = Mask::of(self.register(selector), mask, |word| {
            !cases.iter().any(|case| case.values.contains(&word))
        });
        // Which lanes go to which case, before any of them is executed.
        let chosen: Vec<Mask> = cases
            .iter()
            .map(|case| {
                let own = Mask::of(self.register(selector), mask, |word| case.values.contains(&word));
                if case.default { own.or(others) } else { own }
            })
            .collect();
        self.breaks.push(Mask::default());
        let (mut falling, mut done) = (Mask::default(), Mask::default());
        let any_default = cases.iter().any(|case| case.default);
        for (case, own) in cases.iter().zip(chosen) {
            let reached = self.nodes(&case.body, own.or(falling))?;
            falling = if case.fall_through { reached } else { Mask::default() };
            done = if case.fall_through { done } else { done.or(reached) };
        }
        let done = done.or(falling).or(self.breaks.pop().unwrap_or_default());
        Ok(if any_default { done } else { done.or(others) })
    }

    /// A result's register, and those before it.
    pub(super) fn split(&mut self, to: Reg) -> (&mut [u32], Before<'_>) {
        let (before, rest) = self.registers.split_at_mut(to as usize * self.width);
        (&mut rest[..self.width], Before { registers: before, width: self.width })
    }
}

/// Registers that a result may depend on.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    registers: &'a [u32],
    width: usize,
}

impl<'a> Before<'a> {
    pub(super) fn get(self, register: Reg) -> &'a [u32] {
        &self.registers[register as usize * self.width..][..self.width]
    }
}

impl Execution<'_> {
    fn op(&mut self, op: &Op, mask: Mask) {
        match op {
            Op::Unary { f, to, a } => {
                let (to, before) = self.split(*to);
                f.apply(to, [before.get(*a)]);
            }
            Op::Binary { f, to, a, b } => {
                let (to, before) = self.split(*to);
                f.apply(to, [before.get(*a), before.get(*b)]);
            }
            Op::Ternary { f, to, a, b, c } => {
                let (to, before) = self.split(*to);
                f.apply(to, [before.get(*a), before.get(*b), before.get(*c)]);
            }
            Op::Copy { to, from } => {
                let (to, before) = self.split(*to);
                to.copy_from_slice(before.get(*from));
            }
            _ => self.effect(op, mask),
        }
    }
}
