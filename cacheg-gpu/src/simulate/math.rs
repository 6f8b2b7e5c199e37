//! WGSL's functions of numbers.

use naga::{MathFunction, ScalarKind};

use super::code::{Op, Reg};
use super::lower::Lowerer;
use super::scalar::{Binary, Ternary, Unary};
use super::types::unsupported;
use crate::GpuError;

impl Lowerer<'_> {
    pub(super) fn math(
        &mut self,
        fun: MathFunction,
        kind: ScalarKind,
        arguments: &[Vec<Reg>],
    ) -> Result<Vec<Reg>, GpuError> {
        match arguments {
            [a] => self.math1(fun, kind, a),
            [a, b] => self.math2(fun, kind, a, b),
            [a, b, c] => self.math3(fun, kind, &[a.clone(), b.clone(), c.clone()]),
            [a, b, offset, count] if fun == MathFunction::InsertBits => {
                let (offset, count) = (offset[0], count[0]);
                Ok(a.iter().zip(b).map(|(a, b)| self.insert_bits([*a, *b, offset, count])).collect())
            }
            _ => Err(unsupported(format!("the function {fun:?}"))),
        }
    }

    fn math1(&mut self, fun: MathFunction, kind: ScalarKind, a: &[Reg]) -> Result<Vec<Reg>, GpuError> {
        use MathFunction as M;
        use ScalarKind::{Float, Sint};
        let f = match (fun, kind) {
            (M::Abs, Float) => Unary::AbsF,
            (M::Abs, Sint) => Unary::AbsI,
            (M::Abs, _) => Unary::Same,
            (M::Sign, Float) => Unary::SignF,
            (M::Sign, _) => Unary::SignI,
            (M::Saturate, _) => Unary::Saturate,
            (M::Floor, _) => Unary::Floor,
            (M::Ceil, _) => Unary::Ceil,
            (M::Round, _) => Unary::Round,
            (M::Trunc, _) => Unary::Trunc,
            (M::Fract, _) => Unary::Fract,
            (M::Sqrt, _) => Unary::Sqrt,
            (M::InverseSqrt, _) => Unary::InverseSqrt,
            (M::Exp, _) => Unary::Exp,
            (M::Exp2, _) => Unary::Exp2,
            (M::Log, _) => Unary::Log,
            (M::Log2, _) => Unary::Log2,
            (M::Sin, _) => Unary::Sin,
            (M::Cos, _) => Unary::Cos,
            (M::CountOneBits, _) => Unary::CountOneBits,
            (M::CountLeadingZeros, _) => Unary::CountLeadingZeros,
            (M::CountTrailingZeros, _) => Unary::CountTrailingZeros,
            (M::ReverseBits, _) => Unary::ReverseBits,
            (M::FirstTrailingBit, _) => Unary::FirstTrailing,
            (M::FirstLeadingBit, Sint) => Unary::FirstLeadingI,
            (M::FirstLeadingBit, _) => Unary::FirstLeadingU,
            (M::Unpack4xU8, _) => return Ok(self.unpack(Ternary::ExtractU, a[0]).to_vec()),
            (M::Unpack4xI8, _) => return Ok(self.unpack(Ternary::ExtractI, a[0]).to_vec()),
            (M::Pack4xU8 | M::Pack4xI8, _) => {
                let eight = self.constant(8);
                let mut packed = self.constant(0);
                for (byte, value) in (0u32..).zip(a) {
                    let offset = self.constant(8 * byte);
                    packed = self.insert_bits([packed, *value, offset, eight]);
                }
                return Ok(vec![packed]);
            }
            _ => return Err(unsupported(format!("the function {fun:?}"))),
        };
        Ok(self.unary(f, a))
    }

    fn math2(
        &mut self,
        fun: MathFunction,
        kind: ScalarKind,
        a: &[Reg],
        b: &[Reg],
    ) -> Result<Vec<Reg>, GpuError> {
        use MathFunction as M;
        use ScalarKind::{Float, Sint};
        let f = match (fun, kind) {
            (M::Min, Float) => Binary::MinF,
            (M::Min, Sint) => Binary::MinI,
            (M::Min, _) => Binary::MinU,
            (M::Max, Float) => Binary::MaxF,
            (M::Max, Sint) => Binary::MaxI,
            (M::Max, _) => Binary::MaxU,
            (M::Pow, _) => Binary::Pow,
            (M::Step, _) => Binary::Step,
            (M::Ldexp, _) => Binary::Ldexp,
            (M::Dot, Float) => {
                let products = self.binary(Binary::MulF, a, b);
                return Ok(vec![self.fold(Binary::AddF, &products)]);
            }
            (M::Dot, _) => {
                let products = self.binary(Binary::Mul, a, b);
                return Ok(vec![self.fold(Binary::Add, &products)]);
            }
            (M::Dot4U8Packed | M::Dot4I8Packed, _) => {
                let extract = if fun == M::Dot4U8Packed { Ternary::ExtractU } else { Ternary::ExtractI };
                let (a, b) = (self.unpack(extract, a[0]), self.unpack(extract, b[0]));
                let products = self.binary(Binary::Mul, &a, &b);
                return Ok(vec![self.fold(Binary::Add, &products)]);
            }
            _ => return Err(unsupported(format!("the function {fun:?}"))),
        };
        Ok(self.binary(f, a, b))
    }

    fn math3(
        &mut self,
        fun: MathFunction,
        kind: ScalarKind,
        arguments: &[Vec<Reg>; 3],
    ) -> Result<Vec<Reg>, GpuError> {
        use MathFunction as M;
        use ScalarKind::{Float, Sint};
        let f = match (fun, kind) {
            (M::Clamp, Float) => Ternary::ClampF,
            (M::Clamp, Sint) => Ternary::ClampI,
            (M::Clamp, _) => Ternary::ClampU,
            (M::Fma, _) => Ternary::Fma,
            (M::Mix, _) => Ternary::Mix,
            (M::ExtractBits, Sint) => Ternary::ExtractI,
            (M::ExtractBits, _) => Ternary::ExtractU,
            _ => return Err(unsupported(format!("the function {fun:?}"))),
        };
        Ok(self.ternary(f, arguments))
    }

    fn insert_bits(&mut self, a: [Reg; 4]) -> Reg {
        let to = self.register();
        self.op(Op::InsertBits { to, a });
        to
    }

    /// The bytes of a word.
    fn unpack(&mut self, extract: Ternary, word: Reg) -> [Reg; 4] {
        let eight = self.constant(8);
        let offsets = [0, 8, 16, 24].map(|offset| self.constant(offset));
        offsets.map(|offset| self.ternary(extract, &[vec![word], vec![offset], vec![eight]])[0])
    }
}
