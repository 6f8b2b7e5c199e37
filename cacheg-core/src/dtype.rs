//! Element types of KV caches and their conversion to and from `f32`.
//!
//! Widening is exact for every bit pattern, NaN payloads included, and narrowing undoes it exactly; that is
//! what lets a lossless pipeline travel through the `f32` planes of the stage traits. Values that a lossy
//! pipeline made are rounded to nearest, ties to even; finite values beyond the range saturate, so that a
//! reconstruction never turns into an infinity that was not there.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

/// Element type of a KV tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// OCP 8-bit float, 4 exponent and 3 mantissa bits, no infinities (`e4m3fn`).
    F8E4m3,
    /// OCP 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5m2,
}

impl Dtype {
    /// All element types.
    pub const ALL: [Self; 5] = [Self::F16, Self::Bf16, Self::F32, Self::F8E4m3, Self::F8E5m2];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F8E4m3 | Self::F8E5m2 => 1,
        }
    }

    /// The largest finite value.
    pub const fn max(self) -> f32 {
        match self {
            Self::F16 => 65_504.0,
            Self::Bf16 => f32::from_bits(0x7f7f_0000),
            Self::F32 => f32::MAX,
            Self::F8E4m3 => 448.0,
            Self::F8E5m2 => 57_344.0,
        }
    }

    /// Infinity, of types with 16 bits.
    pub(crate) const fn infinity(self) -> Option<u16> {
        match self {
            Self::F16 => Some(0x7c00),
            Self::Bf16 => Some(0x7f80),
            Self::F32 | Self::F8E4m3 | Self::F8E5m2 => None,
        }
    }

    /// The value of an element of a type with 16 bits.
    pub(crate) fn value(self, element: u16) -> f32 {
        let mut value = [0.0];
        self.widen(&element.to_le_bytes(), &mut value);
        value[0]
    }

    /// The element nearest to a value, of a type with 16 bits.
    pub(crate) fn element(self, value: f32) -> u16 {
        let mut element = [0; 2];
        self.narrow(&[value], &mut element);
        u16::from_le_bytes(element)
    }

    /// Bits of one element.
    pub const fn bits(self) -> usize {
        self.size() * 8
    }

    /// Widens little-endian elements; `bytes` holds exactly `out.len()` of them.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        self.widen_runs(bytes, out, Runs::one(out.len()));
    }

    /// Narrows to little-endian elements; `bytes` holds exactly `values.len()` of them.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub fn narrow(self, values: &[f32], bytes: &mut [u8]) {
        self.narrow_runs(values, bytes, Runs::one(values.len()), Store::Cached);
    }

    /// Widens runs of elements that lie one behind the other in `bytes`. Whether all are certainly finite.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub(crate) fn widen_runs(self, bytes: &[u8], out: &mut [f32], runs: Runs) -> bool {
        assert!(bytes.len() == runs.count * runs.len * self.size(), "widen: lengths differ");
        assert!(runs.fit(out.len()), "widen: lengths differ");
        let portable = match self {
            Self::F16 => widen_f16,
            Self::Bf16 => widen_bf16,
            Self::F32 => widen_f32,
            Self::F8E4m3 => widen_e4m3,
            Self::F8E5m2 => widen_e5m2,
        };
        #[cfg(target_arch = "x86_64")]
        if self == Self::F16
            && let Some(finite) = x86::widen(bytes, out, runs, portable)
        {
            return finite;
        }
        for run in 0..runs.count {
            portable(&bytes[runs.bytes(run, self.size())], &mut out[runs.values(run)]);
        }
        false
    }

    /// Narrows runs of values to elements that lie one behind the other in `bytes`.
    ///
    /// # Panics
    /// If the lengths do not match.
    pub(crate) fn narrow_runs(self, values: &[f32], bytes: &mut [u8], runs: Runs, store: Store) {
        let _ = store;
        assert!(bytes.len() == runs.count * runs.len * self.size(), "narrow: lengths differ");
        assert!(runs.fit(values.len()), "narrow: lengths differ");
        let portable = match self {
            Self::F16 => narrow_f16,
            Self::Bf16 => narrow_bf16,
            Self::F32 => narrow_f32,
            Self::F8E4m3 => narrow_e4m3,
            Self::F8E5m2 => narrow_e5m2,
        };
        #[cfg(target_arch = "x86_64")]
        if self == Self::F16 && x86::narrow(values, bytes, runs, store, portable) {
            return;
        }
        for run in 0..runs.count {
            portable(&values[runs.values(run)], &mut bytes[runs.bytes(run, self.size())]);
        }
    }
}

/// How elements are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// As usual.
    Cached,
    /// Past the cache where that is possible: for more than a cache can hold, since a line need not be read before
    /// it is written. [`fence`] must follow before other threads look.
    Streaming,
}

/// Ends [`Store::Streaming`].
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    x86::fence();
}

/// Runs of values: in elements one behind the other, in `f32` at a distance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs {
    /// How many.
    pub(crate) count: usize,
    /// Values of each.
    pub(crate) len: usize,
    /// From the first value of one to the first of the next.
    pub(crate) stride: usize,
}

impl Runs {
    fn one(len: usize) -> Self {
        Self { count: 1, len, stride: len }
    }

    fn fit(self, values: usize) -> bool {
        self.count == 0 || (self.count - 1) * self.stride + self.len <= values
    }

    fn values(self, run: usize) -> Range<usize> {
        run * self.stride..run * self.stride + self.len
    }

    fn bytes(self, run: usize, size: usize) -> Range<usize> {
        run * self.len * size..(run + 1) * self.len * size
    }
}

fn widen_f16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f32::from_bits(f16_to_f32(u16::from_le_bytes(*b)));
    }
}

fn narrow_f16(values: &[f32], bytes: &mut [u8]) {
    for (v, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
        *b = (f32_to_ieee::<5, 10>(v.to_bits()) as u16).to_le_bytes();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn widen_bf16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn narrow_bf16(values: &[f32], bytes: &mut [u8]) {
    for (v, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
        *b = f32_to_bf16(v.to_bits()).to_le_bytes();
    }
}

fn widen_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *o = f32::from_bits(u32::from_le_bytes(*b));
    }
}

fn narrow_f32(values: &[f32], bytes: &mut [u8]) {
    for (v, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *b = v.to_bits().to_le_bytes();
    }
}

fn widen_e4m3(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = f32::from_bits(E4M3[usize::from(*b)]);
    }
}

fn narrow_e4m3(values: &[f32], bytes: &mut [u8]) {
    for (v, b) in values.iter().zip(bytes) {
        *b = f32_to_e4m3(v.to_bits());
    }
}

fn widen_e5m2(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = f32::from_bits(f16_to_f32(u16::from(*b) << 8));
    }
}

fn narrow_e5m2(values: &[f32], bytes: &mut [u8]) {
    for (v, b) in values.iter().zip(bytes) {
        *b = f32_to_ieee::<5, 2>(v.to_bits()) as u8;
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F8E4m3 => "f8_e4m3",
            Self::F8E5m2 => "f8_e5m2",
        })
    }
}

const fn f16_to_f32(h: u16) -> u32 {
    let sign = (h as u32 & 0x8000) << 16;
    let magnitude = h as u32 & 0x7fff;
    if magnitude >= 0x7c00 {
        return sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13;
    }
    // Moves the exponent bias by a multiplication, which also normalises subnormals; exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    sign | scaled.to_bits()
}

/// f32 bits to an IEEE-like format with `E` exponent and `M` mantissa bits: nearest even, finite values
/// saturate, NaN payloads keep their top bits.
const fn f32_to_ieee<const E: u32, const M: u32>(x: u32) -> u32 {
    let sign = (x >> 31) << (E + M);
    let a = x & 0x7fff_ffff;
    let inf = ((1 << E) - 1) << M;
    if a > 0x7f80_0000 {
        let payload = (a >> (23 - M)) & ((1 << M) - 1);
        return sign | inf | if payload == 0 { 1 } else { payload };
    }
    if a == 0x7f80_0000 {
        return sign | inf;
    }
    let bias = (1 << (E - 1)) - 1;
    let min_normal = (127 - bias + 1) << 23;
    let magnitude = if a < min_normal {
        // Adding a power of two whose last mantissa bit is the smallest subnormal rounds in the addition.
        let magic = (127 - bias + 1 + 23 - M) << 23;
        (f32::from_bits(a) + f32::from_bits(magic)).to_bits() - magic
    } else {
        let drop = 23 - M;
        let rounded = (a + (1 << (drop - 1)) - 1 + ((a >> drop) & 1)) >> drop;
        rounded - ((127 - bias) << M)
    };
    sign | if magnitude >= inf { inf - 1 } else { magnitude }
}

const fn f32_to_bf16(x: u32) -> u16 {
    let a = x & 0x7fff_ffff;
    let sign = (x >> 16) as u16 & 0x8000;
    if a > 0x7f80_0000 {
        let top = (a >> 16) as u16;
        return sign | if top & 0x7f == 0 { top | 1 } else { top };
    }
    if a == 0x7f80_0000 {
        return sign | 0x7f80;
    }
    let rounded = ((a + 0x7fff + ((a >> 16) & 1)) >> 16) as u16;
    sign | if rounded >= 0x7f80 { 0x7f7f } else { rounded }
}

const fn f32_to_e4m3(x: u32) -> u8 {
    let sign = (x >> 24) as u8 & 0x80;
    let a = x & 0x7fff_ffff;
    if a > 0x7f80_0000 {
        return sign | 0x7f;
    }
    // The top exponent holds numbers up to 448 = 0x7e here, where an IEEE format has its infinity.
    if a >= 0x43e0_0000 {
        return sign | 0x7e;
    }
    // With one more exponent bit in the target the infinity of `f32_to_ieee` is out of the way.
    let magnitude = {
        let min_normal = (127 - 6) << 23;
        if a < min_normal {
            let magic = (127 - 6 + 20) << 23;
            (f32::from_bits(a) + f32::from_bits(magic)).to_bits() - magic
        } else {
            ((a + 0x7_ffff + ((a >> 20) & 1)) >> 20) - ((127 - 7) << 3)
        }
    };
    sign | if magnitude > 0x7e { 0x7e } else { magnitude as u8 }
}

const E4M3: [u32; 256] = {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        let sign = (code as u32 & 0x80) << 24;
        let magnitude = code as u32 & 0x7f;
        table[code] = sign
            | if magnitude == 0x7f {
                0x7fc0_0000
            } else {
                (f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23)).to_bits()
            };
        code += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(dtype: Dtype, code: u32) -> (f32, u32) {
        let bytes = code.to_le_bytes();
        let mut wide = [0.0];
        dtype.widen(&bytes[..dtype.size()], &mut wide);
        let mut back = [0; 4];
        dtype.narrow(&wide, &mut back[..dtype.size()]);
        (wide[0], u32::from_le_bytes(back))
    }

    #[test]
    fn every_bit_pattern_survives() {
        for dtype in Dtype::ALL {
            let codes: Vec<u32> = match dtype {
                Dtype::F32 => (0..=u32::MAX).step_by(65_537).collect(),
                _ => (0..1u32 << dtype.bits()).collect(),
            };
            for code in codes {
                assert_eq!(round_trip(dtype, code).1, code, "{dtype} {code:#x}");
            }
        }
    }

    /// Runs of all lengths and strides, with odd values anywhere, against the portable code.
    #[test]
    fn runs_agree_with_single_values() {
        let mut state = 7u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let odd = [f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, -65_520.0, 65_519.9, 1e30, 3e-8, -0.0];
        for dtype in Dtype::ALL {
            for len in (0..70).chain([128, 200]) {
                let runs = Runs { count: 3, len, stride: len + len % 3 };
                let mut values: Vec<f32> = (0..3 * runs.stride)
                    .map(|_| (random() as i32 as f32) * 2f32.powi(-20 - (random() % 30) as i32))
                    .collect();
                for _ in 0..random() % 3 {
                    if let Some(value) = values.get_mut(random() as usize % (3 * len).max(1)) {
                        *value = odd[random() as usize % odd.len()];
                    }
                }
                let mut bytes = vec![0; 3 * len * dtype.size()];
                dtype.narrow_runs(&values, &mut bytes, runs, Store::Cached);
                let mut back = vec![f32::NAN; values.len()];
                dtype.widen_runs(&bytes, &mut back, runs);
                let portable = |value: f32| -> u32 {
                    match dtype {
                        Dtype::F16 => f32_to_ieee::<5, 10>(value.to_bits()),
                        Dtype::Bf16 => u32::from(f32_to_bf16(value.to_bits())),
                        Dtype::F32 => value.to_bits(),
                        Dtype::F8E4m3 => u32::from(f32_to_e4m3(value.to_bits())),
                        Dtype::F8E5m2 => f32_to_ieee::<5, 2>(value.to_bits()),
                    }
                };
                for run in 0..3 {
                    let codes = bytes[runs.bytes(run, dtype.size())].chunks(dtype.size());
                    for ((value, code), wide) in
                        values[runs.values(run)].iter().zip(codes).zip(&back[runs.values(run)])
                    {
                        let mut four = [0; 4];
                        four[..code.len()].copy_from_slice(code);
                        assert_eq!(u32::from_le_bytes(four), portable(*value), "{dtype} {value:e}");
                        let again = portable(*wide);
                        assert_eq!(again, portable(*value), "{dtype} {value:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(round_trip(Dtype::F16, 0x3c00).0, 1.0);
        assert_eq!(round_trip(Dtype::F16, 0x0001).0, 2f32.powi(-24));
        assert_eq!(round_trip(Dtype::F16, 0xfbff).0, -65504.0);
        assert_eq!(round_trip(Dtype::F8E4m3, 0x7e).0, 448.0);
        assert_eq!(round_trip(Dtype::F8E4m3, 0x01).0, 2f32.powi(-9));
        assert_eq!(round_trip(Dtype::F8E5m2, 0x7b).0, 57344.0);
        assert_eq!(round_trip(Dtype::Bf16, 0x3f80).0, 1.0);
    }

    /// Nearest even, checked against a search over all codes.
    #[test]
    fn rounds_to_nearest_even_and_saturates() {
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F8E4m3, Dtype::F8E5m2] {
            let mut finite: Vec<(f64, u32)> = (0..1u32 << (dtype.bits() - 1))
                .map(|code| (f64::from(round_trip(dtype, code).0), code))
                .filter(|(value, _)| value.is_finite())
                .collect();
            finite.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut state = 1u32;
            let edges = finite.windows(2).map(|w| ((w[0].0 + w[1].0) / 2.0) as f32);
            let random = (0..20_000).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(state & 0x7fff_ffff)
            });
            for x in edges.chain(random).filter(|x| x.is_finite()) {
                let mut bytes = [0; 4];
                dtype.narrow(&[x], &mut bytes[..dtype.size()]);
                let got = u32::from_le_bytes(bytes);
                let after = finite.partition_point(|(value, _)| *value < f64::from(x));
                let want = match (after.checked_sub(1).map(|i| finite[i]), finite.get(after)) {
                    (None, Some(high)) => high.1,
                    (Some(low), None) => low.1,
                    (Some(low), Some(high)) => {
                        let (down, up) = (f64::from(x) - low.0, high.0 - f64::from(x));
                        if down < up || (down == up && low.1 % 2 == 0) { low.1 } else { high.1 }
                    }
                    (None, None) => unreachable!("there are finite codes"),
                };
                assert_eq!(got, want, "{dtype} {x:e}");
            }
        }
    }
}
