//! Statements: control flow and what has effects.

use naga::{
    AtomicFunction, Barrier, Block, CollectiveOperation, Direction, Expression, Function, GatherMode, Handle,
    ScalarKind, Span, Statement, SubgroupOperation, SwitchValue, TypeInner,
};

use super::code::{Address, Atomic, Case, Node, Op, Reg, Source};
use super::lower::{Frame, Lowerer, Place, Value};
use super::scalar::Binary;
use super::types::{Layout, leaves, unsupported, words};
use crate::GpuError;

/// Calls within calls: WGSL has no recursion, so that this is never reached by what is valid.
const DEEPEST: usize = 200;

impl<'m> Lowerer<'m> {
    /// A function's body, whose arguments are known; gives its result.
    pub(super) fn inline(&mut self, mut frame: Frame<'m>, to: &mut Vec<Node>) -> Result<Vec<Reg>, GpuError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(unsupported("so many functions within each other"));
        }
        if let Some(result) = &frame.function.result {
            let count = words(self.module, &self.module.types[result.ty].inner, Layout::Packed)?;
            frame.result = self.registers(count);
        }
        for (_, local) in frame.function.local_variables.iter() {
            let count = words(self.module, &self.module.types[local.ty].inner, Layout::Packed)?;
            let registers = self.registers(count.max(1));
            let values = match local.init {
                Some(init) => self.local_init(&frame, init)?,
                None => vec![self.constant(0); count as usize],
            };
            for (to, from) in registers.iter().zip(values) {
                self.op(Op::Assign { to: *to, from });
            }
            frame.locals.push(registers[0]);
        }
        self.flush(to)?;
        let mut body = Vec::new();
        let function: &'m Function = frame.function;
        self.block(&mut frame, &function.body, &mut body)?;
        self.depth -= 1;
        to.push(Node::Call(body));
        Ok(frame.result)
    }

    fn nested(&mut self, frame: &mut Frame<'m>, block: &'m Block) -> Result<Vec<Node>, GpuError> {
        let mut nodes = Vec::new();
        self.block(frame, block, &mut nodes)?;
        Ok(nodes)
    }

    fn block(&mut self, frame: &mut Frame<'m>, block: &'m Block, to: &mut Vec<Node>) -> Result<(), GpuError> {
        for (statement, span) in block.span_iter() {
            self.statement(frame, statement, *span, to)?;
        }
        self.flush(to)
    }

    fn statement(
        &mut self,
        frame: &mut Frame<'m>,
        statement: &'m Statement,
        span: Span,
        to: &mut Vec<Node>,
    ) -> Result<(), GpuError> {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    self.emit(frame, handle)?;
                }
            }
            Statement::Block(block) => self.block(frame, block, to)?,
            Statement::If { condition, accept, reject } => {
                let condition = self.scalar(frame, *condition)?;
                self.flush(to)?;
                let accept = self.nested(frame, accept)?;
                let reject = self.nested(frame, reject)?;
                to.push(Node::If { condition, accept, reject });
            }
            Statement::Switch { selector, cases } => {
                let selector = self.scalar(frame, *selector)?;
                self.flush(to)?;
                let mut lowered = Vec::new();
                for case in cases {
                    let (values, default) = match case.value {
                        SwitchValue::U32(value) => (vec![value], false),
                        SwitchValue::I32(value) => (vec![value.cast_unsigned()], false),
                        SwitchValue::Default => (Vec::new(), true),
                    };
                    let body = self.nested(frame, &case.body)?;
                    lowered.push(Case { values, default, body, fall_through: case.fall_through });
                }
                to.push(Node::Switch { selector, cases: lowered });
            }
            Statement::Loop { body, continuing, break_if } => {
                self.flush(to)?;
                let line = self.line(span);
                let number = self.loop_at(line);
                let body = self.nested(frame, body)?;
                let continuing = self.nested(frame, continuing)?;
                let break_if = break_if.map(|condition| self.scalar(frame, condition)).transpose()?;
                to.push(Node::Loop { number, body, continuing, break_if });
            }
            Statement::Break => self.jump(Node::Break, to)?,
            Statement::Continue => self.jump(Node::Continue, to)?,
            Statement::Return { value } => {
                if let Some(value) = value {
                    let values = self.value(frame, *value)?;
                    for (to, from) in frame.result.clone().into_iter().zip(values) {
                        self.op(Op::Assign { to, from });
                    }
                }
                self.jump(Node::Return, to)?;
            }
            Statement::ControlBarrier(flags) => self.barrier(*flags, span, to)?,
            Statement::Store { pointer, value } => {
                let place = self.place(frame, *pointer)?;
                let values = self.value(frame, *value)?;
                self.store(&place, &values)?;
            }
            Statement::Atomic { pointer, fun, value, result } => {
                self.atomic(frame, *pointer, *fun, *value, *result)?;
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.barrier(Barrier::WORK_GROUP, span, to)?;
                let place = self.place(frame, *pointer)?;
                let values = self.load(&place)?;
                frame.values[result.index()] = Some(Value::Registers(values));
                self.barrier(Barrier::WORK_GROUP, span, to)?;
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|argument| self.any(frame, *argument));
                let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
                self.flush(to)?;
                let callee = &self.module.functions[*function];
                let inner = Frame::new(callee, &self.info[*function], arguments);
                let values = self.inline(inner, to)?;
                if let Some(result) = result {
                    frame.values[result.index()] = Some(Value::Registers(values));
                }
            }
            Statement::SubgroupBallot { result, predicate } => {
                let vote = match predicate {
                    Some(predicate) => self.scalar(frame, *predicate)?,
                    None => self.constant(1),
                };
                let zero = self.constant(0);
                let register = self.register();
                self.op(Op::Ballot { to: register, vote });
                frame.values[result.index()] = Some(Value::Registers(vec![register, zero, zero, zero]));
            }
            Statement::SubgroupGather { mode, argument, result } => {
                let from = self.value(frame, *argument)?;
                let mut lane = |handle| self.scalar(frame, handle);
                let source = match *mode {
                    GatherMode::BroadcastFirst => Source::First,
                    GatherMode::Broadcast(lanes) | GatherMode::Shuffle(lanes) => Source::Lane(lane(lanes)?),
                    GatherMode::ShuffleDown(delta) => Source::Down(lane(delta)?),
                    GatherMode::ShuffleUp(delta) => Source::Up(lane(delta)?),
                    GatherMode::ShuffleXor(mask) => Source::Xor(lane(mask)?),
                    GatherMode::QuadBroadcast(lanes) => Source::QuadLane(lane(lanes)?),
                    GatherMode::QuadSwap(Direction::X) => Source::QuadXor(1),
                    GatherMode::QuadSwap(Direction::Y) => Source::QuadXor(2),
                    GatherMode::QuadSwap(Direction::Diagonal) => Source::QuadXor(3),
                };
                let registers = self.registers(from.len() as u32);
                if let Some(first) = registers.first() {
                    self.op(Op::Gather { to: *first, from, source });
                }
                frame.values[result.index()] = Some(Value::Registers(registers));
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                self.collective(frame, *op, *collective_op, *argument, *result)?;
            }
            other => {
                let text = format!("{other:?}");
                let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
                return Err(unsupported(format!("line {}: the statement {name}", self.line(span))));
            }
        }
        Ok(())
    }

    fn jump(&mut self, node: Node, to: &mut Vec<Node>) -> Result<(), GpuError> {
        self.flush(to)?;
        to.push(node);
        Ok(())
    }

    fn barrier(&mut self, flags: Barrier, span: Span, to: &mut Vec<Node>) -> Result<(), GpuError> {
        if flags.intersects(Barrier::SUB_GROUP | Barrier::TEXTURE) {
            return Err(unsupported(format!("the barrier {flags:?}")));
        }
        let line = self.line(span);
        let storage = flags.contains(Barrier::STORAGE);
        self.jump(Node::Barrier { storage, workgroup: flags.contains(Barrier::WORK_GROUP), line }, to)
    }

    /// Writes a value.
    fn store(&mut self, place: &Place, values: &[Reg]) -> Result<(), GpuError> {
        if let (TypeInner::Atomic(_), Some(memory), [value]) = (&place.inner, place.memory, values) {
            let at = Address { base: place.base, offset: place.offset };
            let (f, to) = (Atomic::Store, self.registers(2)[0]);
            self.op(Op::Atomic { memory, at, f, to, value: *value, compare: *value, used: false });
            return Ok(());
        }
        let mut parts = Vec::new();
        leaves(self.module, &place.inner, place.layout(), 0, &mut parts)?;
        let mut values = values.iter();
        for part in parts {
            let from: Vec<Reg> = values.by_ref().take(part.count as usize).copied().collect();
            let base = place.base + part.at;
            match (place.memory, place.offset) {
                (Some(memory), offset) => self.op(Op::Store { memory, at: Address { base, offset }, from }),
                (None, Some(offset)) => {
                    for (base, from) in (base..).zip(from) {
                        self.op(Op::StoreLocal { base, offset, from });
                    }
                }
                (None, None) => {
                    for (to, from) in (base..).zip(from) {
                        self.op(Op::Assign { to, from });
                    }
                }
            }
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        frame: &mut Frame<'m>,
        pointer: Handle<Expression>,
        fun: AtomicFunction,
        value: Handle<Expression>,
        result: Option<Handle<Expression>>,
    ) -> Result<(), GpuError> {
        let place = self.place(frame, pointer)?;
        let TypeInner::Atomic(scalar) = place.inner else {
            return Err(unsupported("an atomic operation on what is not atomic"));
        };
        let Some(memory) = place.memory else {
            return Err(unsupported("an atomic operation on an invocation's own memory"));
        };
        let signed = scalar.kind == ScalarKind::Sint;
        let value = self.scalar(frame, value)?;
        let mut compare = value;
        let f = match fun {
            AtomicFunction::Add => Atomic::Update(Binary::Add),
            AtomicFunction::Subtract => Atomic::Update(Binary::Sub),
            AtomicFunction::And => Atomic::Update(Binary::And),
            AtomicFunction::InclusiveOr => Atomic::Update(Binary::Or),
            AtomicFunction::ExclusiveOr => Atomic::Update(Binary::Xor),
            AtomicFunction::Min => Atomic::Update(if signed { Binary::MinI } else { Binary::MinU }),
            AtomicFunction::Max => Atomic::Update(if signed { Binary::MaxI } else { Binary::MaxU }),
            AtomicFunction::Exchange { compare: None } => Atomic::Exchange,
            AtomicFunction::Exchange { compare: Some(with) } => {
                compare = self.scalar(frame, with)?;
                Atomic::CompareExchange
            }
        };
        if scalar.kind == ScalarKind::Float {
            return Err(unsupported("an atomic float"));
        }
        let registers = self.registers(2);
        let at = Address { base: place.base, offset: place.offset };
        // The front end always makes a result.
        let used = result.is_some_and(|result| frame.info[result].ref_count > 0);
        self.op(Op::Atomic { memory, at, f, to: registers[0], value, compare, used });
        if let Some(result) = result {
            let count = if f == Atomic::CompareExchange { 2 } else { 1 };
            frame.values[result.index()] = Some(Value::Registers(registers[..count].to_vec()));
        }
        Ok(())
    }

    fn collective(
        &mut self,
        frame: &mut Frame<'m>,
        op: SubgroupOperation,
        scan: CollectiveOperation,
        argument: Handle<Expression>,
        result: Handle<Expression>,
    ) -> Result<(), GpuError> {
        use ScalarKind::{Float, Sint};
        let from = self.value(frame, argument)?;
        let kind = self.kind(frame, argument)?;
        let one = 1f32.to_bits();
        let (f, neutral) = match (op, kind) {
            (SubgroupOperation::Add, Float) => (Binary::AddF, 0),
            (SubgroupOperation::Add, _) => (Binary::Add, 0),
            (SubgroupOperation::Mul, Float) => (Binary::MulF, one),
            (SubgroupOperation::Mul, _) => (Binary::Mul, 1),
            (SubgroupOperation::Min, Float) => (Binary::MinF, f32::INFINITY.to_bits()),
            (SubgroupOperation::Min, Sint) => (Binary::MinI, i32::MAX.cast_unsigned()),
            (SubgroupOperation::Min, _) => (Binary::MinU, u32::MAX),
            (SubgroupOperation::Max, Float) => (Binary::MaxF, f32::NEG_INFINITY.to_bits()),
            (SubgroupOperation::Max, Sint) => (Binary::MaxI, i32::MIN.cast_unsigned()),
            (SubgroupOperation::Max, _) => (Binary::MaxU, 0),
            (SubgroupOperation::All, _) => (Binary::And, 1),
            (SubgroupOperation::And, _) => (Binary::And, u32::MAX),
            (SubgroupOperation::Any | SubgroupOperation::Or, _) => (Binary::Or, 0),
            (SubgroupOperation::Xor, _) => (Binary::Xor, 0),
        };
        let registers = self.registers(from.len() as u32);
        for (to, from) in registers.iter().zip(from) {
            self.op(Op::Collective { to: *to, from, f, neutral, scan });
        }
        frame.values[result.index()] = Some(Value::Registers(registers));
        Ok(())
    }
}
