//! How values lie in memory and in registers.

use naga::{ArraySize, Handle, Module, ScalarKind, Type, TypeInner};

use crate::GpuError;

/// An error of the simulator.
pub(crate) fn error(what: impl Into<String>) -> GpuError {
    GpuError::Simulator(what.into())
}

pub(crate) fn unsupported(what: impl std::fmt::Display) -> GpuError {
    error(format!("{what} is not supported"))
}

/// Where the parts of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As WGSL has it, in words.
    Buffer,
    /// Scalars one after the other: registers, and memory that no one else sees.
    Packed,
}

/// A scalar or vector within a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Its first word.
    pub(crate) at: u32,
    /// Its components, words.
    pub(crate) count: u32,
}

pub(crate) fn check_scalar(scalar: naga::Scalar) -> Result<(), GpuError> {
    match (scalar.kind, scalar.width) {
        (ScalarKind::Bool, _) | (ScalarKind::Uint | ScalarKind::Sint | ScalarKind::Float, 4) => Ok(()),
        _ => Err(unsupported(format!("the scalar {scalar:?}"))),
    }
}

/// Elements of an array; `None` where the buffer says.
pub(crate) fn array_len(size: ArraySize) -> Result<Option<u32>, GpuError> {
    match size {
        ArraySize::Constant(len) => Ok(Some(len.get())),
        ArraySize::Dynamic => Ok(None),
        ArraySize::Pending(_) => Err(unsupported("an array whose length is an override")),
    }
}

/// Words from element to element of an array or a vector.
pub(crate) fn stride(module: &Module, inner: &TypeInner, layout: Layout) -> Result<u32, GpuError> {
    match inner {
        TypeInner::Array { stride, .. } if layout == Layout::Buffer => Ok(stride / 4),
        TypeInner::Array { base, .. } => words(module, &module.types[*base].inner, layout),
        TypeInner::Vector { .. } => Ok(1),
        other => Err(unsupported(format!("an index of {other:?}"))),
    }
}

/// Words before a member of a structure.
pub(crate) fn member(
    module: &Module,
    inner: &TypeInner,
    index: u32,
    layout: Layout,
) -> Result<u32, GpuError> {
    match inner {
        TypeInner::Struct { members, .. } => {
            let members = members.get(..=index as usize).ok_or_else(|| unsupported("a missing member"))?;
            match (layout, members) {
                (Layout::Buffer, [.., last]) => Ok(last.offset / 4),
                (Layout::Packed, [before @ .., _]) => {
                    before.iter().map(|member| words(module, &module.types[member.ty].inner, layout)).sum()
                }
                (_, []) => Ok(0),
            }
        }
        other => Ok(index * stride(module, other, layout)?),
    }
}

/// What a component is.
pub(crate) fn member_type(module: &Module, inner: &TypeInner, index: u32) -> Result<TypeInner, GpuError> {
    match inner {
        TypeInner::Struct { members, .. } => {
            let member = members.get(index as usize).ok_or_else(|| unsupported("a missing member"))?;
            Ok(module.types[member.ty].inner.clone())
        }
        TypeInner::Array { base, .. } => Ok(module.types[*base].inner.clone()),
        TypeInner::Vector { scalar, .. } => Ok(TypeInner::Scalar(*scalar)),
        other => Err(unsupported(format!("a component of {other:?}"))),
    }
}

/// Words of a value.
pub(crate) fn words(module: &Module, inner: &TypeInner, layout: Layout) -> Result<u32, GpuError> {
    match inner {
        TypeInner::Scalar(scalar) | TypeInner::Atomic(scalar) => check_scalar(*scalar).map(|()| 1),
        TypeInner::Vector { size, scalar } => check_scalar(*scalar).map(|()| u32::from(*size)),
        TypeInner::Array { size, .. } => {
            let len = array_len(*size)?.unwrap_or(0);
            let stride = stride(module, inner, layout)?;
            len.checked_mul(stride).ok_or_else(|| unsupported("an array of so many words"))
        }
        TypeInner::Struct { span, .. } if layout == Layout::Buffer => Ok(span / 4),
        TypeInner::Struct { members, .. } => {
            members.iter().map(|member| words(module, &module.types[member.ty].inner, layout)).sum()
        }
        other => Err(unsupported(format!("the type {other:?}"))),
    }
}

/// The scalars and vectors of a value, in order.
pub(crate) fn leaves(
    module: &Module,
    inner: &TypeInner,
    layout: Layout,
    at: u32,
    leaves: &mut Vec<Leaf>,
) -> Result<(), GpuError> {
    let of = |handle: Handle<Type>| &module.types[handle].inner;
    match inner {
        TypeInner::Array { base, size, .. } => {
            let len = array_len(*size)?.ok_or_else(|| unsupported("a whole array without a length"))?;
            let stride = stride(module, inner, layout)?;
            for index in 0..len {
                self::leaves(module, of(*base), layout, at + index * stride, leaves)?;
            }
        }
        TypeInner::Struct { members, .. } => {
            for (index, member) in (0u32..).zip(members) {
                let offset = self::member(module, inner, index, layout)?;
                self::leaves(module, of(member.ty), layout, at + offset, leaves)?;
            }
        }
        other => leaves.push(Leaf { at, count: words(module, other, layout)? }),
    }
    Ok(())
}
