//! From native order to rows and back: transposing bytes in 16 × 16 tiles.
//!
//! A tile is 16 vectors; four rounds of interleaving vector `i` with vector `i + 8` transpose it.
#![expect(unsafe_code, reason = "loads and stores of whole vectors; everything else is safe")]

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::native::Step;
use super::stream::LANES;

/// Columns of a tile.
const WIDE: usize = 32;

/// Transposes the 16 × 16 bytes in each half.
#[inline]
#[target_feature(enable = "avx2")]
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

#[inline]
#[target_feature(enable = "avx2")]
fn halves(low: &[u8; 16], high: &[u8; 16]) -> __m256i {
    // SAFETY: both are 16 bytes, loads need no alignment.
    unsafe { _mm256_loadu2_m128i(high.as_ptr().cast(), low.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut [u8; 32], value: __m256i) {
    // SAFETY: 32 bytes, stores need no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
}

/// 16 bytes from `at`; 0 behind the end.
#[inline]
fn piece(bytes: &[u8], at: usize) -> [u8; 16] {
    let bytes = bytes.get(at..).unwrap_or_default();
    if let Some(whole) = bytes.first_chunk() {
        return *whole;
    }
    let mut piece = [0; 16];
    piece[..bytes.len()].copy_from_slice(bytes);
    piece
}

/// From native order to rows: a block that begins at column `col`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn to_rows(native: &[Step], lanes: Lanes, col: usize, rows: &mut [u8]) {
    let steps = lanes.steps();
    let count = native.len() / steps;
    let starts: [usize; LANES] = lanes.starts(col);
    for step in 0..steps {
        let active = lanes.active(step);
        for from in (0..count).step_by(WIDE) {
            let width = WIDE.min(count - from);
            // Columns behind the last one are read from it and not written.
            let native_of = |i: usize| &native[(from + i.min(width - 1)) * steps + step];
            for half in 0..2 {
                let mut tile = [_mm256_setzero_si256(); 16];
                for (i, vector) in tile.iter_mut().enumerate() {
                    let (low, high) = (native_of(i), native_of(16 + i));
                    *vector = halves(&low.as_chunks().0[half], &high.as_chunks().0[half]);
                }
                let tile = transpose(tile);
                for (i, vector) in tile.into_iter().enumerate() {
                    let lane = 16 * half + i;
                    let at = starts[lane] + step * lanes.cols + from;
                    if lane >= active {
                        break;
                    }
                    if width == WIDE {
                        if let Some(to) = rows.get_mut(at..at + WIDE).and_then(|to| to.first_chunk_mut()) {
                            store(to, vector);
                        }
                    } else {
                        let mut whole = [0; WIDE];
                        store(&mut whole, vector);
                        rows[at..at + width].copy_from_slice(&whole[..width]);
                    }
                }
            }
        }
    }
}

/// From rows to native order, lanes in reverse: a block that begins at column `col`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn from_rows(rows: &[u8], lanes: Lanes, col: usize, native: &mut [Step]) {
    let steps = lanes.steps();
    let count = native.len() / steps;
    let starts: [usize; LANES] = lanes.starts(col);
    for step in 0..steps {
        let active = lanes.active(step);
        for from in (0..count).step_by(16) {
            let at = |lane: usize| starts[lane] + step * lanes.cols + from;
            let mut tile = [_mm256_setzero_si256(); 16];
            if active == LANES {
                for (i, vector) in tile.iter_mut().enumerate() {
                    *vector = halves(&piece(rows, at(31 - i)), &piece(rows, at(15 - i)));
                }
            } else {
                let piece = |lane| if lane < active { piece(rows, at(lane)) } else { [0; 16] };
                for (i, vector) in tile.iter_mut().enumerate() {
                    *vector = halves(&piece(31 - i), &piece(15 - i));
                }
            }
            for (i, vector) in transpose(tile).into_iter().enumerate().take(count - from) {
                store(&mut native[(from + i) * steps + step], vector);
            }
        }
    }
}
