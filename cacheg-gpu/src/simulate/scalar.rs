//! Scalar functions, applied to all lanes of a register at once.
//!
//! All registers hold bits. Inactive lanes compute too; nothing here can fail.

use super::mask::{Mask, SUBGROUP};

macro_rules! functions {
    ($(#[$doc:meta])* $name:ident, $apply:ident, $count:literal; $($variant:ident => $value:expr;)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $name {
            /// For each lane.
            pub(crate) fn apply(self, to: &mut [u32], from: [&[u32]; $count]) {
                match self {
                    $(Self::$variant => $apply(to, from, $value)),+
                }
            }
        }
    };
}

fn map1(to: &mut [u32], [a]: [&[u32]; 1], f: impl Fn(u32) -> u32) {
    for (to, a) in to.iter_mut().zip(a) {
        *to = f(*a);
    }
}

fn map2(to: &mut [u32], [a, b]: [&[u32]; 2], f: impl Fn(u32, u32) -> u32) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = f(*a, *b);
    }
}

fn map3(to: &mut [u32], [a, b, c]: [&[u32]; 3], f: impl Fn(u32, u32, u32) -> u32) {
    for (((to, a), b), c) in to.iter_mut().zip(a).zip(b).zip(c) {
        *to = f(*a, *b, *c);
    }
}

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn i(bits: u32) -> i32 {
    bits.cast_signed()
}

fn float(g: impl Fn(f32) -> f32) -> impl Fn(u32) -> u32 {
    move |a| g(f(a)).to_bits()
}

fn float2(g: impl Fn(f32, f32) -> f32) -> impl Fn(u32, u32) -> u32 {
    move |a, b| g(f(a), f(b)).to_bits()
}

fn is(g: impl Fn(f32, f32) -> bool) -> impl Fn(u32, u32) -> u32 {
    move |a, b| u32::from(g(f(a), f(b)))
}

fn signed(g: impl Fn(i32, i32) -> i32) -> impl Fn(u32, u32) -> u32 {
    move |a, b| g(i(a), i(b)).cast_unsigned()
}

/// Offset and count of a bit field, within the word.
fn field(offset: u32, count: u32) -> (u32, u32) {
    let offset = offset.min(32);
    (offset, count.min(32 - offset))
}

/// As many low bits.
fn low(count: u32) -> u32 {
    1u32.checked_shl(count).unwrap_or(0).wrapping_sub(1)
}

functions! {
    /// Of one argument.
    Unary, map1, 1;
    Same => |a| a;
    NegI => |a: u32| a.wrapping_neg();
    NegF => |a| a ^ 0x8000_0000;
    NotB => |a| a ^ 1;
    Not => |a: u32| !a;
    AbsI => |a| i(a).unsigned_abs();
    AbsF => |a| a & 0x7fff_ffff;
    SignI => |a| i(a).signum().cast_unsigned();
    SignF => float(|a| if a > 0.0 { 1.0 } else if a < 0.0 { -1.0 } else { 0.0 });
    Floor => float(f32::floor);
    Ceil => float(f32::ceil);
    Round => float(f32::round_ties_even);
    Trunc => float(f32::trunc);
    Fract => float(|a| a - a.floor());
    Sqrt => float(f32::sqrt);
    InverseSqrt => float(|a| 1.0 / a.sqrt());
    Exp => float(f32::exp);
    Exp2 => float(f32::exp2);
    Log => float(f32::ln);
    Log2 => float(f32::log2);
    Sin => float(f32::sin);
    Cos => float(f32::cos);
    Saturate => float(|a| a.clamp(0.0, 1.0));
    CountOneBits => |a: u32| a.count_ones();
    CountLeadingZeros => |a: u32| a.leading_zeros();
    CountTrailingZeros => |a: u32| a.trailing_zeros();
    ReverseBits => |a: u32| a.reverse_bits();
    FirstLeadingU => |a: u32| 31u32.wrapping_sub(a.leading_zeros());
    FirstLeadingI => |a: u32| 31u32.wrapping_sub((if i(a) < 0 { !a } else { a }).leading_zeros());
    FirstTrailing => |a: u32| if a == 0 { u32::MAX } else { a.trailing_zeros() };
    UToF => |a| (a as f32).to_bits();
    IToF => |a| (i(a) as f32).to_bits();
    BToF => |a| (a as f32).to_bits();
    FToU => |a| f(a) as u32;
    FToI => |a| (f(a) as i32).cast_unsigned();
    ToB => |a| u32::from(a != 0);
    FToB => |a| u32::from(f(a) != 0.0);
    IsNan => |a| u32::from(f(a).is_nan());
    IsInf => |a| u32::from(f(a).is_infinite());
}

functions! {
    /// Of two arguments.
    Binary, map2, 2;
    Add => |a: u32, b| a.wrapping_add(b);
    Sub => |a: u32, b| a.wrapping_sub(b);
    Mul => |a: u32, b| a.wrapping_mul(b);
    DivU => |a: u32, b| a.checked_div(b).unwrap_or(a);
    DivI => signed(|a, b| if b == 0 { a } else { a.wrapping_div(b) });
    RemU => |a: u32, b| a.checked_rem(b).unwrap_or(0);
    RemI => signed(|a, b| if b == 0 { 0 } else { a.wrapping_rem(b) });
    AddF => float2(|a, b| a + b);
    SubF => float2(|a, b| a - b);
    MulF => float2(|a, b| a * b);
    DivF => float2(|a, b| a / b);
    RemF => float2(|a, b| a % b);
    Equal => |a, b| u32::from(a == b);
    NotEqual => |a, b| u32::from(a != b);
    LessU => |a, b| u32::from(a < b);
    LessI => |a, b| u32::from(i(a) < i(b));
    LessEqualU => |a, b| u32::from(a <= b);
    LessEqualI => |a, b| u32::from(i(a) <= i(b));
    EqualF => is(|a, b| a == b);
    NotEqualF => is(|a, b| a != b);
    LessF => is(|a, b| a < b);
    LessEqualF => is(|a, b| a <= b);
    And => |a, b| a & b;
    Or => |a, b| a | b;
    Xor => |a, b| a ^ b;
    ShiftLeft => |a: u32, b| a.wrapping_shl(b);
    ShiftRightU => |a: u32, b| a.wrapping_shr(b);
    ShiftRightI => |a, b| i(a).wrapping_shr(b).cast_unsigned();
    MinU => |a: u32, b| a.min(b);
    MaxU => |a: u32, b| a.max(b);
    MinI => signed(Ord::min);
    MaxI => signed(Ord::max);
    MinF => float2(f32::min);
    MaxF => float2(f32::max);
    Pow => float2(f32::powf);
    Step => float2(|edge, a| if a < edge { 0.0 } else { 1.0 });
    Ldexp => |a, b| ((f64::from(f(a)) * f64::from(i(b)).exp2()) as f32).to_bits();
}

functions! {
    /// Of three arguments.
    Ternary, map3, 3;
    // Reject, accept, condition.
    Select => |a, b, c| if c == 0 { a } else { b };
    ClampU => |a: u32, b, c| a.max(b).min(c);
    ClampI => |a, b, c| i(a).max(i(b)).min(i(c)).cast_unsigned();
    ClampF => |a, b, c| f(a).max(f(b)).min(f(c)).to_bits();
    Fma => |a, b, c| f(a).mul_add(f(b), f(c)).to_bits();
    Mix => |a, b, c| (f(a) * (1.0 - f(c)) + f(b) * f(c)).to_bits();
    ExtractU => |a: u32, b, c| {
        let (offset, count) = field(b, c);
        a.checked_shr(offset).unwrap_or(0) & low(count)
    };
    ExtractI => |a: u32, b, c| {
        let (offset, count) = field(b, c);
        if count == 0 { 0 } else { (i(a << (32 - count - offset)) >> (32 - count)).cast_unsigned() }
    };
}

impl Binary {
    /// Of one pair.
    pub(crate) fn of(self, a: u32, b: u32) -> u32 {
        let mut to = [0];
        self.apply(&mut to, [&[a], &[b]]);
        to[0]
    }
}

/// The bits of `a` with some of them from `b`.
pub(crate) fn insert_bits(a: u32, b: u32, offset: u32, count: u32) -> u32 {
    let (offset, count) = field(offset, count);
    let mask = low(count).checked_shl(offset).unwrap_or(0);
    (a & !mask) | (b.checked_shl(offset).unwrap_or(0) & mask)
}

/// Where active.
pub(crate) fn assign(to: &mut [u32], from: &[u32], mask: Mask) {
    for ((to, from), bits) in to.chunks_mut(SUBGROUP).zip(from.chunks(SUBGROUP)).zip(mask.0) {
        if bits == u32::MAX {
            to.copy_from_slice(from);
        } else if bits != 0 {
            for (lane, (to, from)) in to.iter_mut().zip(from).enumerate() {
                *to = if bits >> lane & 1 == 1 { *from } else { *to };
            }
        }
    }
}
