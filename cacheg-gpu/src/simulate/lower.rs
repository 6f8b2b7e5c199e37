//! From naga's IR to [`Code`]: calls are inlined, values become registers, and what is known by then costs nothing.

use std::collections::HashMap;

use naga::valid::{FunctionInfo, ModuleInfo};
use naga::{
    AddressSpace, Arena, BuiltIn, Expression, Function, GlobalVariable, Handle, Literal, Module, Span,
    TypeInner,
};

use super::code::{Code, Known, Memory, Node, Op, Reg};
use super::types::{Layout, error, unsupported, words};
use crate::GpuError;

/// Programs that become longer are refused.
const MOST_OPS: usize = 1 << 22;

/// Something in memory or in an invocation's registers, as a pointer says.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// `None`: registers.
    pub(super) memory: Option<Memory>,
    pub(super) base: u32,
    pub(super) offset: Option<Reg>,
    pub(super) inner: TypeInner,
}

impl Place {
    pub(super) fn layout(&self) -> Layout {
        if matches!(self.memory, Some(Memory::Buffer(_))) { Layout::Buffer } else { Layout::Packed }
    }
}

/// What an expression has become.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A register for each scalar.
    Registers(Vec<Reg>),
    Place(Box<Place>),
}

/// A function that is being inlined.
pub(super) struct Frame<'m> {
    pub(super) function: &'m Function,
    pub(super) info: &'m FunctionInfo,
    pub(super) arguments: Vec<Value>,
    pub(super) locals: Vec<Reg>,
    pub(super) values: Vec<Option<Value>>,
    pub(super) result: Vec<Reg>,
}

impl<'m> Frame<'m> {
    pub(super) fn new(function: &'m Function, info: &'m FunctionInfo, arguments: Vec<Value>) -> Self {
        let values = vec![None; function.expressions.len()];
        Self { function, info, arguments, locals: Vec::new(), values, result: Vec::new() }
    }
}

pub(super) struct Lowerer<'m> {
    pub(super) module: &'m Module,
    pub(super) info: &'m ModuleInfo,
    source: &'m str,
    pub(super) globals: HashMap<Handle<GlobalVariable>, Place>,
    constants: HashMap<u32, Reg>,
    registers: Reg,
    /// Operations that no node holds yet.
    ops: Vec<Op>,
    count: usize,
    loops: Vec<u32>,
    pub(super) depth: usize,
}

/// The buffers of a program: group and binding.
pub(super) fn buffers(module: &Module) -> Vec<(u32, u32)> {
    let mut buffers: Vec<_> = module
        .global_variables
        .iter()
        .filter_map(|(_, global)| global.binding.as_ref().map(|binding| (binding.group, binding.binding)))
        .collect();
    buffers.sort_unstable();
    buffers.dedup();
    buffers
}

/// Makes an entry point executable; the module may lack some of the buffers.
pub(super) fn lower(
    module: &Module,
    info: &ModuleInfo,
    source: &str,
    buffers: &[(u32, u32)],
    entry: &str,
) -> Result<Code, GpuError> {
    let number = module.entry_points.iter().position(|point| point.name == entry);
    let number = number.ok_or_else(|| error(format!("there is no entry point `{entry}`")))?;
    let point = &module.entry_points[number];
    if point.stage != naga::ShaderStage::Compute {
        return Err(unsupported("an entry point that is not of a compute shader"));
    }
    let mut lowerer = Lowerer {
        module,
        info,
        source,
        globals: HashMap::new(),
        constants: HashMap::new(),
        registers: 0,
        ops: Vec::new(),
        count: 0,
        loops: Vec::new(),
        depth: 0,
    };
    let mut body = Vec::new();
    let workgroup_words = lowerer.globals(buffers)?;
    let mut known = Vec::new();
    let mut arguments = Vec::new();
    for argument in &point.function.arguments {
        let mut registers = Vec::new();
        match (&argument.binding, &module.types[argument.ty].inner) {
            (Some(binding), inner) => lowerer.known(binding, inner, &mut known, &mut registers)?,
            (None, TypeInner::Struct { members, .. }) => {
                for member in members {
                    let binding = member.binding.as_ref().ok_or_else(|| unsupported("an unbound member"))?;
                    let inner = &module.types[member.ty].inner;
                    lowerer.known(binding, inner, &mut known, &mut registers)?;
                }
            }
            (None, inner) => return Err(unsupported(format!("an argument of type {inner:?}"))),
        }
        arguments.push(Value::Registers(registers));
    }
    let frame = Frame::new(&point.function, info.get_entry_point(number), arguments);
    lowerer.inline(frame, &mut body)?;
    let constants = lowerer.constants.iter().map(|(bits, register)| (*register, *bits)).collect();
    Ok(Code {
        size: point.workgroup_size,
        registers: lowerer.registers,
        constants,
        known,
        workgroup_words,
        body,
        loops: lowerer.loops,
    })
}

impl<'m> Lowerer<'m> {
    pub(super) fn registers(&mut self, count: u32) -> Vec<Reg> {
        (0..count).map(|_| self.register()).collect()
    }

    pub(super) fn register(&mut self) -> Reg {
        self.registers += 1;
        self.registers - 1
    }

    /// A register of these bits. To be asked for before the registers of results.
    pub(super) fn constant(&mut self, bits: u32) -> Reg {
        if let Some(register) = self.constants.get(&bits) {
            return *register;
        }
        let register = self.register();
        self.constants.insert(bits, register);
        register
    }

    pub(super) fn op(&mut self, op: Op) {
        self.count += 1;
        self.ops.push(op);
    }

    /// Ends a run of operations that have the same active lanes.
    pub(super) fn flush(&mut self, to: &mut Vec<Node>) -> Result<(), GpuError> {
        if self.count > MOST_OPS {
            return Err(unsupported("a program of so many operations"));
        }
        if !self.ops.is_empty() {
            let ops = std::mem::take(&mut self.ops);
            let cost = ops.iter().map(Op::cost).sum();
            to.push(Node::Straight { ops, cost });
        }
        Ok(())
    }

    pub(super) fn line(&self, span: Span) -> u32 {
        if span.is_defined() { span.location(self.source).line_number } else { 0 }
    }

    /// The number of the loop at this line. Copies of a loop are one.
    pub(super) fn loop_at(&mut self, line: u32) -> usize {
        self.loops.iter().position(|known| *known == line).unwrap_or_else(|| {
            self.loops.push(line);
            self.loops.len() - 1
        })
    }

    /// Places all variables of the module; gives words of workgroup memory.
    fn globals(&mut self, buffers: &[(u32, u32)]) -> Result<u32, GpuError> {
        let mut workgroup = 0;
        for (handle, global) in self.module.global_variables.iter() {
            let inner = &self.module.types[global.ty].inner;
            let (memory, base) = match global.space {
                AddressSpace::Private => {
                    let count = words(self.module, inner, Layout::Packed)?;
                    let registers = self.registers(count.max(1));
                    let values = match global.init {
                        Some(init) => self.global_constant(init)?,
                        None => vec![self.constant(0); count as usize],
                    };
                    for (to, from) in registers.iter().zip(values) {
                        self.op(Op::Assign { to: *to, from });
                    }
                    (None, registers[0])
                }
                AddressSpace::WorkGroup => {
                    workgroup += words(self.module, inner, Layout::Packed)?;
                    let base = workgroup - words(self.module, inner, Layout::Packed)?;
                    (Some(Memory::Workgroup), base)
                }
                AddressSpace::Uniform | AddressSpace::Storage { .. } => {
                    let binding = global.binding.as_ref();
                    let binding = binding.map(|binding| (binding.group, binding.binding));
                    let number = binding.and_then(|binding| buffers.binary_search(&binding).ok());
                    let number = number.ok_or_else(|| unsupported("a buffer without a binding"))?;
                    (Some(Memory::Buffer(number)), 0)
                }
                other => return Err(unsupported(format!("the address space {other:?}"))),
            };
            self.globals.insert(handle, Place { memory, base, offset: None, inner: inner.clone() });
        }
        Ok(workgroup)
    }

    /// Registers of what the machine says.
    fn known(
        &mut self,
        binding: &naga::Binding,
        inner: &TypeInner,
        known: &mut Vec<(Reg, Known)>,
        registers: &mut Vec<Reg>,
    ) -> Result<(), GpuError> {
        let naga::Binding::BuiltIn(builtin) = binding else {
            return Err(unsupported("an argument that is not built in"));
        };
        for component in 0..words(self.module, inner, Layout::Packed)? {
            let what = match builtin {
                BuiltIn::WorkGroupId => Known::GroupId(component),
                BuiltIn::LocalInvocationId => Known::LocalId(component),
                BuiltIn::GlobalInvocationId => Known::GlobalId(component),
                BuiltIn::NumWorkGroups => Known::Groups(component),
                BuiltIn::WorkGroupSize => Known::GroupSize(component),
                BuiltIn::LocalInvocationIndex => Known::LocalIndex,
                BuiltIn::SubgroupSize => Known::SubgroupSize,
                BuiltIn::SubgroupInvocationId => Known::SubgroupLane,
                BuiltIn::SubgroupId => Known::SubgroupNumber,
                BuiltIn::NumSubgroups => Known::Subgroups,
                other => return Err(unsupported(format!("the builtin {other:?}"))),
            };
            let register = self.register();
            known.push((register, what));
            registers.push(register);
        }
        Ok(())
    }

    pub(super) fn literal(&mut self, literal: Literal) -> Result<Reg, GpuError> {
        let bits = match literal {
            Literal::U32(value) => value,
            Literal::I32(value) => value.cast_unsigned(),
            Literal::F32(value) => value.to_bits(),
            Literal::Bool(value) => value.into(),
            other => return Err(unsupported(format!("the literal {other:?}"))),
        };
        Ok(self.constant(bits))
    }

    pub(super) fn global_constant(&mut self, handle: Handle<Expression>) -> Result<Vec<Reg>, GpuError> {
        let module = self.module;
        self.constant_in(&module.global_expressions, handle)
    }

    /// Constants, which naga has evaluated.
    fn constant_in(
        &mut self,
        arena: &'m Arena<Expression>,
        handle: Handle<Expression>,
    ) -> Result<Vec<Reg>, GpuError> {
        match &arena[handle] {
            Expression::Literal(literal) => Ok(vec![self.literal(*literal)?]),
            Expression::Constant(constant) => self.global_constant(self.module.constants[*constant].init),
            Expression::ZeroValue(ty) => {
                let count = words(self.module, &self.module.types[*ty].inner, Layout::Packed)?;
                Ok(vec![self.constant(0); count as usize])
            }
            Expression::Compose { components, .. } => {
                let mut all = Vec::new();
                for component in components {
                    all.extend(self.constant_in(arena, *component)?);
                }
                Ok(all)
            }
            Expression::Splat { size, value } => {
                let value = self.constant_in(arena, *value)?;
                Ok(value.repeat(u32::from(*size) as usize))
            }
            other => Err(unsupported(format!("the constant expression {other:?}"))),
        }
    }

    pub(super) fn local_init(
        &mut self,
        frame: &Frame<'m>,
        init: Handle<Expression>,
    ) -> Result<Vec<Reg>, GpuError> {
        self.constant_in(&frame.function.expressions, init)
    }
}
