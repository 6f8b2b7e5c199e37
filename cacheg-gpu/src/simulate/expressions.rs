//! Expressions: what is computed and where pointers point to.

use naga::{BinaryOperator, Expression, Handle, RelationalFunction, ScalarKind, TypeInner, UnaryOperator};

use super::code::{Address, Atomic, Bound, Memory, Op, Reg};
use super::lower::{Frame, Lowerer, Place, Value};
use super::scalar::{Binary, Ternary, Unary};
use super::types::{Layout, array_len, error, leaves, member, member_type, stride, unsupported, words};
use crate::GpuError;

impl<'m> Lowerer<'m> {
    fn inner<'a>(&'a self, frame: &Frame<'a>, handle: Handle<Expression>) -> &'a TypeInner {
        frame.info[handle].ty.inner_with(&self.module.types)
    }

    pub(super) fn kind(&self, frame: &Frame<'m>, handle: Handle<Expression>) -> Result<ScalarKind, GpuError> {
        let inner = frame.info[handle].ty.inner_with(&self.module.types);
        inner.scalar_kind().ok_or_else(|| unsupported(format!("a value of type {inner:?}")))
    }

    /// What an expression is; those that are not emitted become what they are here.
    pub(super) fn any(
        &mut self,
        frame: &mut Frame<'m>,
        handle: Handle<Expression>,
    ) -> Result<Value, GpuError> {
        if let Some(value) = &frame.values[handle.index()] {
            return Ok(value.clone());
        }
        let value = match &frame.function.expressions[handle] {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::ZeroValue(_)
            | Expression::Compose { .. }
            | Expression::Splat { .. } => Value::Registers(self.local_init(frame, handle)?),
            Expression::FunctionArgument(index) => frame.arguments[*index as usize].clone(),
            Expression::GlobalVariable(global) => Value::Place(Box::new(self.globals[global].clone())),
            Expression::LocalVariable(local) => {
                let inner = self.module.types[frame.function.local_variables[*local].ty].inner.clone();
                let base = frame.locals[local.index()];
                Value::Place(Box::new(Place { memory: None, base, offset: None, inner }))
            }
            other => return Err(unsupported(format!("the expression {other:?}"))),
        };
        Ok(value)
    }

    pub(super) fn value(
        &mut self,
        frame: &mut Frame<'m>,
        handle: Handle<Expression>,
    ) -> Result<Vec<Reg>, GpuError> {
        match self.any(frame, handle)? {
            Value::Registers(registers) => Ok(registers),
            Value::Place(_) => Err(error("a pointer where a value should be")),
        }
    }

    pub(super) fn scalar(
        &mut self,
        frame: &mut Frame<'m>,
        handle: Handle<Expression>,
    ) -> Result<Reg, GpuError> {
        match self.value(frame, handle)?.as_slice() {
            [register] => Ok(*register),
            _ => Err(error("a scalar was expected")),
        }
    }

    pub(super) fn place(
        &mut self,
        frame: &mut Frame<'m>,
        handle: Handle<Expression>,
    ) -> Result<Place, GpuError> {
        match self.any(frame, handle)? {
            Value::Place(place) => Ok(*place),
            Value::Registers(_) => Err(error("a value where a pointer should be")),
        }
    }

    /// Lowers an expression where it is evaluated.
    pub(super) fn emit(&mut self, frame: &mut Frame<'m>, handle: Handle<Expression>) -> Result<(), GpuError> {
        let value = self.expression(frame, handle)?;
        frame.values[handle.index()] = Some(value);
        Ok(())
    }

    fn expression(&mut self, frame: &mut Frame<'m>, handle: Handle<Expression>) -> Result<Value, GpuError> {
        let function = frame.function;
        let registers = match &function.expressions[handle] {
            Expression::Compose { components, .. } => {
                let mut all = Vec::new();
                for component in components {
                    all.extend(self.value(frame, *component)?);
                }
                all
            }
            Expression::Access { base, index } => return self.access(frame, *base, *index),
            Expression::AccessIndex { base, index } => match self.any(frame, *base)? {
                Value::Place(mut place) => {
                    place.base += member(self.module, &place.inner, *index, place.layout())?;
                    place.inner = member_type(self.module, &place.inner, *index)?;
                    return Ok(Value::Place(place));
                }
                Value::Registers(registers) => {
                    let inner = self.inner(frame, *base);
                    let first = member(self.module, inner, *index, Layout::Packed)? as usize;
                    let part = member_type(self.module, inner, *index)?;
                    let count = words(self.module, &part, Layout::Packed)? as usize;
                    registers[first..first + count].to_vec()
                }
            },
            Expression::Splat { size, value } => self.value(frame, *value)?.repeat(u32::from(*size) as usize),
            Expression::Swizzle { size, vector, pattern } => {
                let vector = self.value(frame, *vector)?;
                let pattern = pattern.iter().take(u32::from(*size) as usize);
                pattern.map(|component| vector[*component as usize]).collect()
            }
            Expression::Load { pointer } => {
                let place = self.place(frame, *pointer)?;
                self.load(&place)?
            }
            Expression::Unary { op, expr } => {
                let f = match (op, self.kind(frame, *expr)?) {
                    (UnaryOperator::Negate, ScalarKind::Float) => Unary::NegF,
                    (UnaryOperator::Negate, _) => Unary::NegI,
                    (UnaryOperator::LogicalNot, _) => Unary::NotB,
                    (UnaryOperator::BitwiseNot, _) => Unary::Not,
                };
                let arguments = self.value(frame, *expr)?;
                self.unary(f, &arguments)
            }
            Expression::Binary { op, left, right } => {
                let kind = self.kind(frame, *left)?;
                let (left, right) = (self.value(frame, *left)?, self.value(frame, *right)?);
                self.operator(*op, kind, left, right)
            }
            Expression::Select { condition, accept, reject } => {
                let arguments = [
                    self.value(frame, *reject)?,
                    self.value(frame, *accept)?,
                    self.value(frame, *condition)?,
                ];
                self.ternary(Ternary::Select, &arguments)
            }
            Expression::Relational { fun, argument } => {
                let arguments = self.value(frame, *argument)?;
                match fun {
                    RelationalFunction::All => vec![self.fold(Binary::And, &arguments)],
                    RelationalFunction::Any => vec![self.fold(Binary::Or, &arguments)],
                    RelationalFunction::IsNan => self.unary(Unary::IsNan, &arguments),
                    RelationalFunction::IsInf => self.unary(Unary::IsInf, &arguments),
                }
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let kind = self.kind(frame, *arg)?;
                let mut arguments = Vec::new();
                for argument in [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten() {
                    arguments.push(self.value(frame, argument)?);
                }
                self.math(*fun, kind, &arguments)?
            }
            Expression::As { expr, kind, convert } => {
                let from = self.kind(frame, *expr)?;
                let arguments = self.value(frame, *expr)?;
                match convert {
                    None => arguments,
                    Some(4 | 1) => self.cast(from, *kind, &arguments)?,
                    Some(width) => return Err(unsupported(format!("a scalar of {width} bytes"))),
                }
            }
            Expression::ArrayLength(pointer) => {
                let place = self.place(frame, *pointer)?;
                let (Some(Memory::Buffer(buffer)), None) = (place.memory, place.offset) else {
                    return Err(unsupported("the length of an array that is not in a buffer"));
                };
                let stride = stride(self.module, &place.inner, Layout::Buffer)?;
                let to = self.register();
                self.op(Op::ArrayLength { to, buffer, from: place.base, stride });
                vec![to]
            }
            _ => return self.any(frame, handle),
        };
        Ok(Value::Registers(registers))
    }

    fn access(
        &mut self,
        frame: &mut Frame<'m>,
        base: Handle<Expression>,
        index: Handle<Expression>,
    ) -> Result<Value, GpuError> {
        let index = self.scalar(frame, index)?;
        match self.any(frame, base)? {
            Value::Place(mut place) => {
                let layout = place.layout();
                let stride = stride(self.module, &place.inner, layout)?;
                let len = match &place.inner {
                    TypeInner::Array { size, .. } => array_len(*size)?,
                    TypeInner::Vector { size, .. } => Some(u32::from(*size)),
                    other => return Err(unsupported(format!("an index of {other:?}"))),
                };
                let bound = match (len, place.memory) {
                    (Some(len), _) => Bound::Fixed(len),
                    (None, Some(Memory::Buffer(buffer))) => Bound::Runtime { buffer, from: place.base },
                    (None, _) => return Err(unsupported("an array without a length outside of buffers")),
                };
                let to = self.register();
                self.op(Op::Index { to, before: place.offset, index, stride, bound });
                place.offset = Some(to);
                place.inner = member_type(self.module, &place.inner, 0)?;
                Ok(Value::Place(place))
            }
            Value::Registers(registers) => {
                let part = member_type(self.module, self.inner(frame, base), 0)?;
                let count = words(self.module, &part, Layout::Packed)? as usize;
                let mut all = Vec::new();
                for component in 0..count {
                    let from = registers.iter().skip(component).step_by(count).copied().collect();
                    let to = self.register();
                    self.op(Op::Pick { to, index, from });
                    all.push(to);
                }
                Ok(Value::Registers(all))
            }
        }
    }

    /// Reads a value.
    pub(super) fn load(&mut self, place: &Place) -> Result<Vec<Reg>, GpuError> {
        if let (TypeInner::Atomic(_), Some(memory)) = (&place.inner, place.memory) {
            let at = Address { base: place.base, offset: place.offset };
            let zero = self.constant(0);
            let (f, to) = (Atomic::Load, self.registers(2)[0]);
            self.op(Op::Atomic { memory, at, f, to, value: zero, compare: zero, used: true });
            return Ok(vec![to]);
        }
        let mut parts = Vec::new();
        leaves(self.module, &place.inner, place.layout(), 0, &mut parts)?;
        let mut all = Vec::new();
        for part in parts {
            let base = place.base + part.at;
            let registers = self.registers(part.count);
            match (place.memory, place.offset) {
                (Some(memory), offset) => {
                    let at = Address { base, offset };
                    self.op(Op::Load { memory, at, to: registers[0], count: part.count });
                }
                (None, Some(offset)) => {
                    for (base, to) in (base..).zip(&registers) {
                        self.op(Op::LoadLocal { to: *to, base, offset });
                    }
                }
                (None, None) => {
                    for (from, to) in (base..).zip(&registers) {
                        self.op(Op::Copy { to: *to, from });
                    }
                }
            }
            all.extend(registers);
        }
        Ok(all)
    }

    pub(super) fn unary(&mut self, f: Unary, arguments: &[Reg]) -> Vec<Reg> {
        let mut each = |a: &Reg| {
            let to = self.register();
            self.op(Op::Unary { f, to, a: *a });
            to
        };
        arguments.iter().map(&mut each).collect()
    }

    /// For each component; scalars are those of all components.
    pub(super) fn binary(&mut self, f: Binary, left: &[Reg], right: &[Reg]) -> Vec<Reg> {
        let count = left.len().max(right.len());
        let mut each = |component| {
            let to = self.register();
            self.op(Op::Binary { f, to, a: part(left, component), b: part(right, component) });
            to
        };
        (0..count).map(&mut each).collect()
    }

    pub(super) fn ternary(&mut self, f: Ternary, arguments: &[Vec<Reg>; 3]) -> Vec<Reg> {
        let count = arguments.iter().map(Vec::len).max().unwrap_or(0);
        let mut each = |component| {
            let [a, b, c] = [0, 1, 2].map(|argument| part(&arguments[argument], component));
            let to = self.register();
            self.op(Op::Ternary { f, to, a, b, c });
            to
        };
        (0..count).map(&mut each).collect()
    }

    /// From the first component to the last.
    pub(super) fn fold(&mut self, f: Binary, arguments: &[Reg]) -> Reg {
        let mut result = arguments.first().copied().unwrap_or_default();
        for argument in arguments.iter().skip(1) {
            result = self.binary(f, &[result], &[*argument])[0];
        }
        result
    }

    fn operator(
        &mut self,
        op: BinaryOperator,
        kind: ScalarKind,
        left: Vec<Reg>,
        right: Vec<Reg>,
    ) -> Vec<Reg> {
        use BinaryOperator as O;
        use ScalarKind::{Float, Sint};
        let (left, right) =
            if matches!(op, O::Greater | O::GreaterEqual) { (right, left) } else { (left, right) };
        let f = match (op, kind) {
            (O::Add, Float) => Binary::AddF,
            (O::Add, _) => Binary::Add,
            (O::Subtract, Float) => Binary::SubF,
            (O::Subtract, _) => Binary::Sub,
            (O::Multiply, Float) => Binary::MulF,
            (O::Multiply, _) => Binary::Mul,
            (O::Divide, Float) => Binary::DivF,
            (O::Divide, Sint) => Binary::DivI,
            (O::Divide, _) => Binary::DivU,
            (O::Modulo, Float) => Binary::RemF,
            (O::Modulo, Sint) => Binary::RemI,
            (O::Modulo, _) => Binary::RemU,
            (O::Equal, Float) => Binary::EqualF,
            (O::Equal, _) => Binary::Equal,
            (O::NotEqual, Float) => Binary::NotEqualF,
            (O::NotEqual, _) => Binary::NotEqual,
            (O::Less | O::Greater, Float) => Binary::LessF,
            (O::Less | O::Greater, Sint) => Binary::LessI,
            (O::Less | O::Greater, _) => Binary::LessU,
            (O::LessEqual | O::GreaterEqual, Float) => Binary::LessEqualF,
            (O::LessEqual | O::GreaterEqual, Sint) => Binary::LessEqualI,
            (O::LessEqual | O::GreaterEqual, _) => Binary::LessEqualU,
            (O::And | O::LogicalAnd, _) => Binary::And,
            (O::InclusiveOr | O::LogicalOr, _) => Binary::Or,
            (O::ExclusiveOr, _) => Binary::Xor,
            (O::ShiftLeft, _) => Binary::ShiftLeft,
            (O::ShiftRight, Sint) => Binary::ShiftRightI,
            (O::ShiftRight, _) => Binary::ShiftRightU,
        };
        self.binary(f, &left, &right)
    }

    fn cast(&mut self, from: ScalarKind, to: ScalarKind, arguments: &[Reg]) -> Result<Vec<Reg>, GpuError> {
        use ScalarKind::{Bool, Float, Sint, Uint};
        let f = match (from, to) {
            (Uint, Float) => Unary::UToF,
            (Sint, Float) => Unary::IToF,
            (Bool, Float) => Unary::BToF,
            (Float, Uint) => Unary::FToU,
            (Float, Sint) => Unary::FToI,
            (Float, Bool) => Unary::FToB,
            (Uint | Sint, Bool) => Unary::ToB,
            (Bool, Uint | Sint) => Unary::Same,
            // No conversion, or none of the bits.
            (Uint | Sint, Uint | Sint) | (Float, Float) | (Bool, Bool) => return Ok(arguments.to_vec()),
            _ => return Err(unsupported(format!("a cast from {from:?} to {to:?}"))),
        };
        Ok(self.unary(f, arguments))
    }
}

/// A component; scalars have but one.
fn part(registers: &[Reg], component: usize) -> Reg {
    registers.get(component).or_else(|| registers.last()).copied().unwrap_or_default()
}
