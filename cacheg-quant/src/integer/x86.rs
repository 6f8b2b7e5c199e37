//! Products of 16-bit integers by AVX-512 or AVX2.
#![allow(
    unsafe_code,
    reason = "loads of vectors, and calls of functions that need instructions which were detected"
)]

use std::arch::x86_64::*;

use super::{Pairs, ROWS, STRIP};

/// The instructions that there are; only made if there are some.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kernel {
    Avx2,
    Avx512,
}

impl Kernel {
    pub(super) fn new() -> Option<Self> {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return Some(Self::Avx512);
        }
        is_x86_feature_detected!("avx2").then_some(Self::Avx2)
    }

    /// `count` rows of `x` by a strip; the sums of the others are rubbish.
    pub(super) fn product(self, x: &[i16], pairs: &[Pairs], count: usize, sums: &mut [[i32; STRIP]; ROWS]) {
        let width = 2 * pairs.len();
        assert!(count <= ROWS && x.len() >= count * width, "rows that are not there");
        // Rows that are not there are the first again.
        let rows = std::array::from_fn(|row| {
            let row = if row < count { row } else { 0 };
            x[row * width..(row + 1) * width].as_chunks::<2>().0
        });
        match self {
            // SAFETY: `new` has seen that the instructions are there.
            Self::Avx512 => unsafe { avx512(rows, pairs, sums) },
            // SAFETY: as above.
            Self::Avx2 => unsafe { avx2(rows, pairs, sums) },
        }
    }
}

/// Two numbers as one of 32 bits.
#[inline(always)]
fn both(x: [i16; 2]) -> i32 {
    i32::from(x[0]) & 0xffff | i32::from(x[1]) << 16
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512(rows: [&[[i16; 2]]; ROWS], pairs: &[Pairs], out: &mut [[i32; STRIP]; ROWS]) {
    let mut sums = [_mm512_setzero_si512(); ROWS];
    for (number, pair) in pairs.iter().enumerate() {
        // SAFETY: 32 numbers of 16 bits are as long as the vector; the load needs no alignment.
        let pair = unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) };
        for (sum, row) in sums.iter_mut().zip(rows) {
            let x = _mm512_set1_epi32(both(row[number]));
            *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(x, pair));
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: 16 numbers of 32 bits are as long as the vector; the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
    }
}

#[target_feature(enable = "avx2")]
fn avx2(rows: [&[[i16; 2]]; ROWS], pairs: &[Pairs], out: &mut [[i32; STRIP]; ROWS]) {
    let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
    for (number, pair) in pairs.iter().enumerate() {
        let (halves, _) = pair.as_chunks::<16>();
        for (half, pair) in halves.iter().enumerate() {
            // SAFETY: 16 numbers of 16 bits are as long as the vector; the load needs no alignment.
            let pair = unsafe { _mm256_loadu_si256(pair.as_ptr().cast()) };
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = _mm256_set1_epi32(both(row[number]));
                sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(x, pair));
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // SAFETY: 8 numbers of 32 bits are as long as the vector; the store needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
    }
}
