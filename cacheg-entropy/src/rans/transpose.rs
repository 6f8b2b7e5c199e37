//! From native order to rows and back: transposing bytes in 16 × 16 tiles.
//!
//! A tile is 16 vectors; four rounds of interleaving vector `i` with vector `i + 8` transpose it.
#![expect(unsafe_code, reason = "loads and stores of whole vectors; everything else is safe")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::lanes::Lanes;
use super::native::Step;
use super::stream::LANES;

/// Columns of a tile.
const WIDE: usize = 32;

/// Does something for `i` from 0 to 15.
macro_rules! each_of_16 {
    ($i:ident, $body:block) => { each_of_16!($i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    ($i:ident, $body:block, $($at:literal)+) => { $( { let $i = $at; $body } )+ };
}

/// The same code for several sets of registers: AVX-512 VL has twice as many.
macro_rules! transposing {
    ($name:ident, $features:literal) => {
        pub(super) mod $name {
            use super::*;

            /// Transposes the 16 × 16 bytes in each half.
            #[inline]
            #[target_feature(enable = $features)]
            fn transpose(mut tile: [__m256i; 16]) -> [__m256i; 16] {
                for _ in 0..4 {
                    let from = tile;
                    for i in 0..8 {
                        tile[2 * i] = _mm256_unpacklo_epi8(from[i], from[i + 8]);
                        tile[2 * i + 1] = _mm256_unpackhi_epi8(from[i], from[i + 8]);
                    }
                }
                tile
            }

            /// 16 vectors, transposed. `at` is called for each in turn: the indices of the 16 bytes of both halves.
            ///
            /// # Safety
            /// They must be inside `bytes`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn load(bytes: &[u8], mut at: impl FnMut(usize) -> (usize, usize)) -> [__m256i; 16] {
                let mut tile = [_mm256_setzero_si256(); 16];
                // Not a loop: that would go through memory.
                each_of_16!(i, {
                    // SAFETY: the caller's promise.
                    tile[i] = unsafe {
                        let (low, high) = at(i);
                        let low = _mm_loadu_si128(bytes.as_ptr().add(low).cast());
                        let high = _mm_loadu_si128(bytes.as_ptr().add(high).cast());
                        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
                    };
                });
                transpose(tile)
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn store(to: &mut [u8; WIDE], value: __m256i) {
                // SAFETY: 32 bytes, stores need no alignment.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
            }

            /// From native order to rows: a block that begins at column `col`.
            #[inline]
            #[target_feature(enable = $features)]
            pub(in crate::rans) fn scatter_rows(
                native: &[Step],
                lanes: Lanes,
                columns: Range<usize>,
                rows: &mut [u8],
            ) {
                let (steps, stride, count) = (lanes.steps(), lanes.stride(), columns.len());
                assert!(stride >= steps && native.len() >= (count - 1) * stride + steps);
                assert!(columns.end <= lanes.cols);
                assert!(lanes.more < LANES && (lanes.whole * LANES + lanes.more) * lanes.cols <= rows.len());
                let starts: [usize; LANES] = lanes.starts(columns.start);
                for step in 0..steps {
                    let active = lanes.active(step);
                    // Halves outside: what is written to one row at a time should be whole lines of the cache.
                    for half in 0..2 {
                        for from in (0..count).step_by(WIDE) {
                            let width = WIDE.min(count - from);
                            let bytes = native.as_flattened();
                            // Columns behind the last one are read from it and not written.
                            let at =
                                |i: usize| ((from + i.min(width - 1)) * stride + step) * LANES + 16 * half;
                            let mut next = (from * stride + step) * LANES + 16 * half;
                            // SAFETY: columns are below `count` and steps below `steps`.
                            let tile = unsafe {
                                if width == WIDE {
                                    load(bytes, |_| {
                                        // Additions: multiplications would all be done, in vectors.
                                        let low = next;
                                        next += stride * LANES;
                                        (low, low + 16 * stride * LANES)
                                    })
                                } else {
                                    load(bytes, |i| (at(i), at(16 + i)))
                                }
                            };
                            let starts = &starts[16 * half..16 * half + 16];
                            let offset = step * lanes.cols + from;
                            if active == LANES && width == WIDE {
                                for (vector, start) in tile.into_iter().zip(starts) {
                                    // SAFETY: the columns end before `cols`, and the rows of active lanes before the last.
                                    unsafe {
                                        _mm256_storeu_si256(
                                            rows.as_mut_ptr().add(start + offset).cast(),
                                            vector,
                                        )
                                    };
                                }
                            } else {
                                let active = active.saturating_sub(16 * half);
                                for (vector, start) in tile.into_iter().zip(starts).take(active) {
                                    let mut whole = [0; WIDE];
                                    store(&mut whole, vector);
                                    rows[start + offset..][..width].copy_from_slice(&whole[..width]);
                                }
                            }
                        }
                    }
                }
            }

            /// From rows to native order, lanes in reverse: a block that begins at column `col`.
            #[inline]
            #[target_feature(enable = $features)]
            pub(in crate::rans) fn gather_rows(
                rows: &[u8],
                lanes: Lanes,
                columns: Range<usize>,
                native: &mut [Step],
            ) {
                let (steps, stride, count) = (lanes.steps(), lanes.stride(), columns.len());
                assert!(stride >= steps && native.len() >= (count - 1) * stride + steps);
                assert!(columns.end <= lanes.cols);
                assert!(lanes.more < LANES && (lanes.whole * LANES + lanes.more) * lanes.cols <= rows.len());
                let starts: [usize; LANES] = lanes.starts(columns.start);
                for step in 0..steps {
                    let active = lanes.active(step);
                    for from in (0..count).step_by(16) {
                        let offset = step * lanes.cols + from;
                        let width = 16.min(count - from);
                        let tile = if active == LANES && width == 16 {
                            // SAFETY: the columns end before `cols`, and the rows of active lanes before the last.
                            unsafe { load(rows, |i| (starts[31 - i] + offset, starts[15 - i] + offset)) }
                        } else {
                            let mut pieces = [0; 16 * LANES];
                            for (piece, start) in
                                pieces.as_chunks_mut::<16>().0.iter_mut().zip(&starts[..active])
                            {
                                piece[..width].copy_from_slice(&rows[start + offset..][..width]);
                            }
                            // SAFETY: 32 pieces of 16 bytes.
                            unsafe { load(&pieces, |i| (16 * (31 - i), 16 * (15 - i))) }
                        };
                        for (i, vector) in tile.into_iter().enumerate().take(width) {
                            store(&mut native[(from + i) * stride + step], vector);
                        }
                    }
                }
            }
        }
    };
}

transposing!(avx2, "avx2");
transposing!(avx512, "avx2,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2");
