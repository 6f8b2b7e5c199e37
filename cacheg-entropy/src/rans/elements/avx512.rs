//! The kernels of elements in AVX-512: 32 columns of 32 lanes at a time.
#![expect(unsafe_code, reason = "loads and stores of whole vectors; everything else is safe")]

use std::arch::x86_64::*;

use cacheg_core::{ElementSpan, ElementTable, ElementWindow, SymbolBounds};

use crate::rans::lanes::Lanes;
use crate::rans::native::Step;
use crate::rans::stream::LANES;

/// Columns of a tile.
const WIDE: usize = 32;

/// Vectors of 32 columns, of 32 lanes each.
#[repr(C, align(64))]
struct Tile([[u16; LANES]; WIDE]);

/// Whether rows of some columns are inside memory of this length, without any overflow on the way.
fn inside(len: usize, rows: usize, begin: usize, stride: usize, cols: usize) -> bool {
    let last = rows.saturating_sub(1).checked_mul(stride).and_then(|last| last.checked_add(begin));
    last.and_then(|last| last.checked_add(2 * cols)).is_some_and(|end| end <= len)
}

/// The kernel. A step at a time: looked up column by column, then transposed in four groups of 8 lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(in crate::rans) fn scatter(
    native: &[Step],
    lanes: Lanes,
    tables: &[ElementTable],
    escape: Option<u8>,
    window: &mut ElementWindow<'_>,
) -> usize {
    let (groups, rest) = tables.as_chunks::<WIDE>();
    let steps = if rest.is_empty() { lanes.steps() } else { 0 };
    let rows = lanes.row(LANES - 1) + lanes.whole;
    assert!(inside(window.bytes.len(), rows, window.begin, window.stride, tables.len()));
    let begin = window.bytes.as_mut_ptr().wrapping_add(window.begin);
    let streaming = window.streaming && begin.addr().is_multiple_of(64) && window.stride.is_multiple_of(64);
    let starts: [usize; LANES] = std::array::from_fn(|lane| lanes.row(lane) * window.stride);
    // A symbol that no alphabet of up to 32 has, where there are no escapes.
    let needle = _mm256_set1_epi8(escape.unwrap_or(u8::MAX).cast_signed());
    let mut tile = Tile([[0; LANES]; WIDE]);
    let mut escaped = 0;
    for step in 0..steps {
        let active = lanes.active(step);
        let mask = (!0u32).unbounded_shr((LANES - active) as u32);
        for (group, tables) in groups.iter().enumerate() {
            let vectors = native[group * WIDE * lanes.stride() + step..].iter().step_by(lanes.stride());
            for ((table, symbols), to) in tables.iter().zip(vectors).zip(&mut tile.0) {
                // SAFETY: 32 symbols are read, and 32 entries of a table; 64 bytes are written.
                unsafe {
                    let symbols = _mm256_loadu_si256(symbols.as_ptr().cast());
                    escaped += (_mm256_cmpeq_epi8_mask(symbols, needle) & mask).count_ones() as usize;
                    let entries = _mm512_load_si512((&raw const *table).cast());
                    let found = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(symbols), entries);
                    _mm512_store_si512(to.as_mut_ptr().cast(), found);
                }
            }
            let offset = step * window.stride + 2 * WIDE * group;
            // SAFETY: the last row of all is inside, and all of its columns.
            unsafe {
                if active == LANES {
                    put::<false>(&tile, begin.add(offset), &starts, LANES, streaming);
                } else {
                    put::<true>(&tile, begin.add(offset), &starts, active, streaming);
                }
            }
        }
    }
    if rest.is_empty() {
        escaped
    } else {
        super::scatter(0..lanes.steps(), native, lanes, tables, escape, window)
    }
}

/// Stores the rows of 32 columns; if it is a `PART`, those of the first lanes only.
///
/// # Safety
/// `to` must be valid for 64 bytes from each active lane's start, in lines if they are to be streamed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn put<const PART: bool>(
    tile: &Tile,
    to: *mut u8,
    starts: &[usize; LANES],
    active: usize,
    streaming: bool,
) {
    for (lane, starts) in (0..LANES).step_by(8).zip(starts.as_chunks::<8>().0) {
        for (i, (vector, start)) in transpose(tile, lane).into_iter().zip(starts).enumerate() {
            if PART && lane + i >= active {
                return;
            }
            // SAFETY: the caller's promise.
            unsafe {
                let to = to.add(*start);
                if streaming {
                    _mm512_stream_si512(to.cast(), vector);
                } else {
                    _mm512_storeu_si512(to.cast(), vector);
                }
            }
        }
    }
}

/// Lanes `lane .. lane + 8` of 32 columns: vector `i` has theirs of columns `i`, `8 + i`, `16 + i` and `24 + i`,
/// which three rounds of interleaving vector `i` with vector `i + 4` transpose.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn transpose(tile: &Tile, lane: usize) -> [__m512i; 8] {
    let mut vectors = [_mm512_setzero_si512(); 8];
    for (i, vector) in vectors.iter_mut().enumerate() {
        let part = |column: usize| {
            let lanes = &tile.0[column][lane..lane + 8];
            // SAFETY: 8 lanes, 16 bytes.
            unsafe { _mm_load_si128(lanes.as_ptr().cast()) }
        };
        *vector = join(|at| part(8 * at + i));
    }
    interleave(&mut vectors);
    vectors
}

/// Four parts, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn join(part: impl Fn(usize) -> __m128i) -> __m512i {
    let one = _mm512_castsi128_si512(part(0));
    let two = _mm512_mask_broadcast_i32x4(one, 0x00f0, part(1));
    let three = _mm512_mask_broadcast_i32x4(two, 0x0f00, part(2));
    _mm512_mask_broadcast_i32x4(three, 0xf000, part(3))
}

/// Transposes 8 × 8 lanes in each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn interleave(vectors: &mut [__m512i; 8]) {
    for _ in 0..3 {
        let from = *vectors;
        for i in 0..4 {
            vectors[2 * i] = _mm512_unpacklo_epi16(from[i], from[i + 4]);
            vectors[2 * i + 1] = _mm512_unpackhi_epi16(from[i], from[i + 4]);
        }
    }
}

/// The kernel of the other direction. A step at a time: rows are transposed in four groups of 8 lanes, then the
/// symbols of each column are found by bisection, in all lanes at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(in crate::rans) fn gather(
    span: &ElementSpan<'_>,
    lanes: Lanes,
    bounds: &[SymbolBounds],
    escape: u8,
    native: &mut [Step],
    escaped: &mut dyn FnMut(usize, usize),
) {
    let (groups, rest) = bounds.as_chunks::<WIDE>();
    let steps = if rest.is_empty() { lanes.steps() } else { 0 };
    let rows = lanes.row(LANES - 1) + lanes.whole;
    assert!(inside(span.bytes.len(), rows, span.begin, span.stride, bounds.len()));
    let begin = span.bytes.as_ptr().wrapping_add(span.begin);
    let start = |lane: usize| lanes.row(LANES - 1 - lane) * span.stride;
    let starts: [usize; LANES] = std::array::from_fn(start);
    // Lanes that are idle in the last step, the first ones here, read what the last one reads.
    let part: [usize; LANES] = std::array::from_fn(|lane| start(lane.max(LANES - lanes.more.max(1))));
    let top = _mm512_set1_epi16(i16::from(escape));
    let mut tile = Tile([[0; LANES]; WIDE]);
    for step in 0..steps {
        let active = lanes.active(step);
        let mask = (!0u32).unbounded_shl((LANES - active) as u32);
        let starts = if active == LANES { &starts } else { &part };
        for (group, bounds) in groups.iter().enumerate() {
            let offset = step * span.stride + 2 * WIDE * group;
            for (at, starts) in starts.as_chunks::<8>().0.iter().enumerate() {
                let mut vectors = [_mm512_setzero_si512(); 8];
                for (vector, start) in vectors.iter_mut().zip(starts) {
                    // SAFETY: the last row of all is inside, and all of its columns.
                    *vector = unsafe { _mm512_loadu_si512(begin.add(start + offset).cast()) };
                }
                interleave(&mut vectors);
                // Vector `i` now has 8 lanes of columns `i`, `8 + i`, `16 + i` and `24 + i`.
                for (vector, to) in vectors.into_iter().zip(&mut tile.0[8 * at..]) {
                    // SAFETY: 64 bytes.
                    unsafe { _mm512_store_si512(to.as_mut_ptr().cast(), vector) }
                }
            }
            for (four, bounds) in bounds.as_chunks::<COLUMNS>().0.iter().enumerate() {
                let symbols =
                    symbols(std::array::from_fn(|i| column(&tile, COLUMNS * four + i)), bounds, top);
                for (i, symbols) in symbols.into_iter().enumerate() {
                    let col = WIDE * group + COLUMNS * four + i;
                    let to = &mut native[col * lanes.stride() + step];
                    // SAFETY: 32 bytes.
                    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbols)) }
                    let escapes = _mm512_cmpeq_epi16_mask(symbols, top) & mask;
                    if escapes != 0 {
                        for lane in (0..LANES).filter(|lane| escapes >> (LANES - 1 - lane) & 1 == 1) {
                            escaped(lanes.row(lane) + step, col);
                        }
                    }
                }
            }
        }
    }
    if !rest.is_empty() {
        super::gather(0..lanes.steps(), span, lanes, bounds, escape, native, escaped);
    }
}

/// Columns whose symbols are searched at a time: each search is a chain of waits.
const COLUMNS: usize = 4;

/// A column of a tile of rows that are transposed in groups of 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn column(tile: &Tile, col: usize) -> __m512i {
    join(|at| {
        let lanes = &tile.0[8 * at + col % 8][8 * (col / 8)..][..8];
        // SAFETY: 8 lanes, 16 bytes.
        unsafe { _mm_load_si128(lanes.as_ptr().cast()) }
    })
}

/// The symbols of elements of some columns: how many bounds are at or below each, by bisection.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn symbols(
    elements: [__m512i; COLUMNS],
    bounds: &[SymbolBounds; COLUMNS],
    top: __m512i,
) -> [__m512i; COLUMNS] {
    let one = _mm512_set1_epi16(1);
    let zero = _mm512_setzero_si512();
    let (mut keys, mut table, mut count) = ([zero; COLUMNS], [zero; COLUMNS], [zero; COLUMNS]);
    for i in 0..COLUMNS {
        // SAFETY: 32 bounds, aligned.
        table[i] = unsafe { _mm512_load_si512((&raw const bounds[i]).cast()) };
        let sign = _mm512_srai_epi16::<15>(elements[i]);
        // elements ^ (sign & 0x7fff)
        keys[i] = _mm512_ternarylogic_epi32::<0x78>(elements[i], sign, _mm512_set1_epi16(0x7fff));
        let above = _mm512_cmple_epi16_mask(_mm512_set1_epi16(bounds[i].0[15]), keys[i]);
        count[i] = _mm512_maskz_mov_epi16(above, _mm512_set1_epi16(16));
    }
    for half in [8, 4, 2, 1] {
        let half = _mm512_set1_epi16(half);
        for i in 0..COLUMNS {
            let probe = _mm512_add_epi16(count[i], _mm512_sub_epi16(half, one));
            let above = _mm512_cmple_epi16_mask(_mm512_permutexvar_epi16(probe, table[i]), keys[i]);
            count[i] = _mm512_mask_add_epi16(count[i], above, count[i], half);
        }
    }
    for i in 0..COLUMNS {
        // 31 at most; the last bound is still to be asked. One less is the symbol, and an escape if there is none.
        let last = _mm512_cmpgt_epi16_mask(_mm512_permutexvar_epi16(count[i], table[i]), keys[i]);
        count[i] = _mm512_min_epu16(_mm512_mask_sub_epi16(count[i], last, count[i], one), top);
    }
    count
}
