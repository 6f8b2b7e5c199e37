//! Programs as they are executed: entry points with everything inlined, whose values are numbered registers.

use naga::CollectiveOperation;

use super::scalar::{Binary, Ternary, Unary};

/// The number of a register: a word for each invocation. An operation's result has a higher number than its operands.
pub(crate) type Reg = u32;

/// Memory that invocations share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Workgroup,
    /// One of the program's buffers.
    Buffer(usize),
}

/// A word of memory: a constant, and what an invocation has computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: u32,
    pub(crate) offset: Option<Reg>,
}

/// How many elements an index may choose from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    Fixed(u32),
    /// As many as the buffer has room for, from this word on.
    Runtime {
        buffer: usize,
        from: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Load,
    Store,
    Exchange,
    CompareExchange,
    /// With what it is combined by.
    Update(Binary),
}

/// Which lane a lane reads from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    First,
    Lane(Reg),
    Up(Reg),
    Down(Reg),
    Xor(Reg),
    QuadLane(Reg),
    QuadXor(u32),
}

/// What does not change which lanes are active.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Unary {
        f: Unary,
        to: Reg,
        a: Reg,
    },
    Binary {
        f: Binary,
        to: Reg,
        a: Reg,
        b: Reg,
    },
    Ternary {
        f: Ternary,
        to: Reg,
        a: Reg,
        b: Reg,
        c: Reg,
    },
    InsertBits {
        to: Reg,
        a: [Reg; 4],
    },
    /// To a register for each load of a variable, which may change.
    Copy {
        to: Reg,
        from: Reg,
    },
    /// To a variable.
    Assign {
        to: Reg,
        from: Reg,
    },
    /// A word offset: that before and `stride` for each element.
    Index {
        to: Reg,
        before: Option<Reg>,
        index: Reg,
        stride: u32,
        bound: Bound,
    },
    /// One of several values.
    Pick {
        to: Reg,
        index: Reg,
        from: Vec<Reg>,
    },
    /// One of an invocation's own registers.
    LoadLocal {
        to: Reg,
        base: Reg,
        offset: Reg,
    },
    StoreLocal {
        base: Reg,
        offset: Reg,
        from: Reg,
    },
    Load {
        memory: Memory,
        at: Address,
        to: Reg,
        count: u32,
    },
    Store {
        memory: Memory,
        at: Address,
        from: Vec<Reg>,
    },
    /// `exchanged` is behind `to`. Whether the result is used.
    Atomic {
        memory: Memory,
        at: Address,
        f: Atomic,
        to: Reg,
        value: Reg,
        compare: Reg,
        used: bool,
    },
    ArrayLength {
        to: Reg,
        buffer: usize,
        from: u32,
        stride: u32,
    },
    Ballot {
        to: Reg,
        vote: Reg,
    },
    Gather {
        to: Reg,
        from: Vec<Reg>,
        source: Source,
    },
    Collective {
        to: Reg,
        from: Reg,
        f: Binary,
        neutral: u32,
        scan: CollectiveOperation,
    },
}

impl Op {
    /// Instructions that it counts as.
    pub(crate) fn cost(&self) -> u32 {
        match self {
            Self::Copy { .. } | Self::Assign { .. } => 0,
            Self::Gather { from, .. } => from.len() as u32,
            _ => 1,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) values: Vec<u32>,
    pub(crate) default: bool,
    pub(crate) body: Vec<Node>,
    pub(crate) fall_through: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// With the instructions that they count as.
    Straight {
        ops: Vec<Op>,
        cost: u32,
    },
    If {
        condition: Reg,
        accept: Vec<Node>,
        reject: Vec<Node>,
    },
    Switch {
        selector: Reg,
        cases: Vec<Case>,
    },
    Loop {
        number: usize,
        body: Vec<Node>,
        continuing: Vec<Node>,
        break_if: Option<Reg>,
    },
    /// A function's body: where returning ends.
    Call(Vec<Node>),
    Break,
    Continue,
    Return,
    Barrier {
        storage: bool,
        workgroup: bool,
        line: u32,
    },
}

/// What invocations know of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    GroupId(u32),
    LocalId(u32),
    GlobalId(u32),
    Groups(u32),
    LocalIndex,
    SubgroupSize,
    SubgroupLane,
    SubgroupNumber,
    Subgroups,
    GroupSize(u32),
}

/// An entry point.
#[derive(Debug, Clone)]
pub(crate) struct Code {
    pub(crate) size: [u32; 3],
    pub(crate) registers: u32,
    pub(crate) constants: Vec<(Reg, u32)>,
    pub(crate) known: Vec<(Reg, Known)>,
    pub(crate) workgroup_words: u32,
    pub(crate) body: Vec<Node>,
    /// The lines that loops begin in.
    pub(crate) loops: Vec<u32>,
}
