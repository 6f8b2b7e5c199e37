//! Operations of which it matters who is active: memory, atomics, and what lanes tell each other.

use naga::CollectiveOperation;

use super::code::{Address, Atomic, Bound, Memory, Op, Reg, Source};
use super::execute::Execution;
use super::mask::{Mask, SUBGROUP};
use super::memory::{Kind, Who, Words};
use super::scalar::{Binary, assign, insert_bits};

/// What lanes read that is nobody's: hopefully no one's expected result.
const NOBODYS: u32 = 0xdead_beef;

impl Execution<'_> {
    pub(super) fn effect(&mut self, op: &Op, mask: Mask) {
        match op {
            Op::Unary { .. } | Op::Binary { .. } | Op::Ternary { .. } | Op::Copy { .. } => {}
            Op::Assign { to, from } => {
                let width = self.width;
                let [to, from] = [to, from].map(|register| {
                    let start = *register as usize * width;
                    start..start + width
                });
                // A register that is assigned to itself stays as it is.
                if let Ok([to, from]) = self.registers.get_disjoint_mut([to, from]) {
                    assign(to, from, mask);
                }
            }
            Op::InsertBits { to, a } => {
                let (to, before) = self.split(*to);
                let [a, b, offset, count] = a.map(|register| before.get(register));
                for (lane, to) in to.iter_mut().enumerate() {
                    *to = insert_bits(a[lane], b[lane], offset[lane], count[lane]);
                }
            }
            Op::Index { to, before, index, stride, bound } => {
                self.index(*to, *before, *index, *stride, *bound, mask);
            }
            Op::Pick { to, index, from } => {
                let last = from.len() - 1;
                let (to, before) = self.split(*to);
                let mut outside = 0;
                for lane in mask.each() {
                    let index = before.get(*index)[lane] as usize;
                    outside += u64::from(index > last);
                    to[lane] = before.get(from[index.min(last)])[lane];
                }
                self.out_of_bounds += outside;
            }
            Op::LoadLocal { to, base, offset } => {
                let (to, before) = self.split(*to);
                for lane in mask.each() {
                    to[lane] = before.get(base + before.get(*offset)[lane])[lane];
                }
            }
            Op::StoreLocal { base, offset, from } => {
                for lane in mask.each() {
                    let (offset, value) = (self.register(*offset)[lane], self.register(*from)[lane]);
                    self.registers[(base + offset) as usize * self.width + lane] = value;
                }
            }
            Op::Load { memory, at, to, count } => self.load(*memory, *at, *to, *count, mask),
            Op::Store { memory, at, from } => self.store(*memory, *at, from, mask),
            Op::Atomic { memory, at, f, to, value, compare, used } => {
                self.atomic(*memory, *at, *f, [*to, *value, *compare], *used, mask);
            }
            Op::ArrayLength { to, buffer, from, stride } => {
                let len = self.buffers[*buffer].words.len() as u32;
                let len = len.saturating_sub(*from) / (*stride).max(1);
                self.split(*to).0.fill(len);
            }
            Op::Ballot { to, vote } => {
                self.together(mask);
                let votes = Mask::of(self.register(*vote), mask, |word| word != 0);
                for (to, votes) in self.split(*to).0.chunks_mut(SUBGROUP).zip(votes.0) {
                    to.fill(votes);
                }
            }
            Op::Gather { to, from, source } => self.gather(*to, from, *source, mask),
            Op::Collective { to, from, f, neutral, scan } => {
                self.collective(*to, *from, *f, *neutral, *scan, mask);
            }
        }
    }

    /// Counts a subgroup operation.
    fn together(&mut self, mask: Mask) {
        self.counts.subgroup_ops += mask.subgroups();
        let alive = self.alive();
        let missing = mask.0.iter().zip(alive.0).filter(|(here, all)| **here != 0 && **here != *all).count();
        self.counts.divergent_subgroup_ops += missing as u64;
    }

    fn index(&mut self, to: Reg, before: Option<Reg>, index: Reg, stride: u32, bound: Bound, mask: Mask) {
        let len = match bound {
            Bound::Fixed(len) => len,
            Bound::Runtime { buffer, from } => {
                (self.buffers[buffer].words.len() as u32).saturating_sub(from) / stride.max(1)
            }
        };
        let last = len.saturating_sub(1);
        let (to, registers) = self.split(to);
        let indices = registers.get(index);
        for (to, index) in to.iter_mut().zip(indices) {
            *to = (*index).min(last).wrapping_mul(stride);
        }
        if let Some(before) = before {
            for (to, before) in to.iter_mut().zip(registers.get(before)) {
                *to = to.wrapping_add(*before);
            }
        }
        // Of an empty array, the access itself is counted.
        let outside = Mask::of(indices, mask, |index| index > last);
        self.out_of_bounds += outside.lanes();
    }

    /// A memory and who is about to touch it.
    fn memory(&mut self, memory: Memory) -> (&mut Words, Who, &[u32], usize) {
        let who = match memory {
            Memory::Workgroup => self.shared_user(),
            Memory::Buffer(_) => self.storage_user(),
        };
        let words = match memory {
            Memory::Workgroup => &mut self.shared,
            Memory::Buffer(number) => &mut self.buffers[number],
        };
        (words, who, &self.registers, self.width)
    }

    fn load(&mut self, memory: Memory, at: Address, to: Reg, count: u32, mask: Mask) {
        let (lanes, width) = (mask.lanes(), self.width);
        let mut who = match memory {
            Memory::Workgroup => self.shared_user(),
            Memory::Buffer(_) => self.storage_user(),
        };
        let words = match memory {
            Memory::Workgroup => &mut self.shared,
            Memory::Buffer(number) => &mut self.buffers[number],
        };
        words.counts.loads += lanes;
        words.counts.bytes_loaded += lanes * u64::from(count) * 4;
        let (before, rest) = self.registers.split_at_mut(to as usize * width);
        for lane in mask.each() {
            let offset = at.offset.map_or(0, |offset| before[offset as usize * width + lane]);
            who.lane = lane as u16;
            for component in 0..count {
                let word = words.read(at.base.wrapping_add(offset).wrapping_add(component), who);
                rest[component as usize * width + lane] = word;
            }
        }
    }

    fn store(&mut self, memory: Memory, at: Address, from: &[Reg], mask: Mask) {
        let (words, mut who, registers, width) = self.memory(memory);
        let lanes = mask.lanes();
        words.counts.stores += lanes;
        words.counts.bytes_stored += lanes * from.len() as u64 * 4;
        for lane in mask.each() {
            let offset = at.offset.map_or(0, |offset| registers[offset as usize * width + lane]);
            who.lane = lane as u16;
            for (component, from) in (0u32..).zip(from) {
                let value = registers[*from as usize * width + lane];
                words.write(at.base.wrapping_add(offset).wrapping_add(component), value, who);
            }
        }
    }

    fn atomic(
        &mut self,
        memory: Memory,
        at: Address,
        f: Atomic,
        [to, value, compare]: [Reg; 3],
        used: bool,
        mask: Mask,
    ) {
        let kind = match f {
            Atomic::Load => Kind::Load,
            Atomic::Store => Kind::Store,
            _ if used => Kind::Fetch,
            Atomic::Exchange => Kind::Store,
            Atomic::CompareExchange => Kind::Fetch,
            Atomic::Update(_) => Kind::Update,
        };
        for lane in mask.each() {
            let (words, mut who, registers, width) = self.memory(memory);
            let get = |register: Reg| registers[register as usize * width + lane];
            who.lane = lane as u16;
            let address = at.base.wrapping_add(at.offset.map_or(0, get));
            let (value, compare) = (get(value), get(compare));
            let old = words.atomic(address, kind, who, |old| match f {
                Atomic::Load => None,
                Atomic::Store | Atomic::Exchange => Some(value),
                Atomic::CompareExchange => (old == compare).then_some(value),
                Atomic::Update(f) => Some(f.of(old, value)),
            });
            self.registers[to as usize * width + lane] = old;
            self.registers[(to as usize + 1) * width + lane] = u32::from(old == compare);
        }
    }

    fn gather(&mut self, to: Reg, from: &[Reg], source: Source, mask: Mask) {
        self.together(mask);
        let mut missing = 0;
        for lane in mask.each() {
            let (first, own) = (lane - lane % SUBGROUP, (lane % SUBGROUP) as u32);
            let get = |register: Reg| self.register(register)[lane];
            let other = match source {
                Source::First => mask.0[lane / SUBGROUP].trailing_zeros(),
                Source::Lane(other) => get(other),
                Source::Up(delta) => own.wrapping_sub(get(delta)),
                Source::Down(delta) => own.wrapping_add(get(delta)),
                Source::Xor(bits) => own ^ get(bits),
                Source::QuadLane(other) => own & !3 | get(other) & 3,
                Source::QuadXor(bits) => own ^ bits,
            };
            let there = other < SUBGROUP as u32;
            let active = there && mask.0[lane / SUBGROUP] >> other & 1 == 1;
            // Beyond the subgroup is nobody's; who reads there has to throw it away.
            missing += u64::from(there && !active);
            for (to, from) in (to..).zip(from) {
                let value = if active { self.register(*from)[first + other as usize] } else { NOBODYS };
                self.registers[to as usize * self.width + lane] = value;
            }
        }
        self.counts.divergent_subgroup_ops += missing;
    }

    fn collective(
        &mut self,
        to: Reg,
        from: Reg,
        f: Binary,
        neutral: u32,
        scan: CollectiveOperation,
        mask: Mask,
    ) {
        self.together(mask);
        let mut sums = [neutral; super::mask::SUBGROUPS];
        let (to, before) = self.split(to);
        let from = before.get(from);
        for lane in mask.each() {
            let sum = &mut sums[lane / SUBGROUP];
            let next = f.of(*sum, from[lane]);
            to[lane] = if scan == CollectiveOperation::ExclusiveScan { *sum } else { next };
            *sum = next;
        }
        if scan == CollectiveOperation::Reduce {
            for lane in mask.each() {
                to[lane] = sums[lane / SUBGROUP];
            }
        }
    }
}
