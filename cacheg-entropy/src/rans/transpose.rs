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

/// What symbols stand for: rows by AVX-512.
pub(super) mod elements {
    use cacheg_core::{ElementSpan, ElementTable, ElementWindow, SymbolBounds};

    use super::*;
    use crate::rans::elements;

    /// Vectors of 32 columns, of 32 lanes each.
    #[repr(C, align(64))]
    struct Tile([[u16; LANES]; WIDE]);

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
        let steps = if rest.is_empty() { lanes.whole } else { 0 };
        let rows = lanes.row(LANES - 1) + lanes.whole;
        assert!(window.begin + rows.saturating_sub(1) * window.stride + 2 * tables.len() <= window.bytes.len());
        let begin = window.bytes.as_mut_ptr().wrapping_add(window.begin);
        let streaming = window.streaming && begin.addr() % 64 == 0 && window.stride % 64 == 0;
        let starts: [usize; LANES] = std::array::from_fn(|lane| lanes.row(lane) * window.stride);
        // A symbol that no alphabet of up to 32 has, where there are no escapes.
        let needle = _mm256_set1_epi8(escape.unwrap_or(u8::MAX).cast_signed());
        let mut tile = Tile([[0; LANES]; WIDE]);
        let mut escaped = 0;
        for step in 0..steps {
            for (group, tables) in groups.iter().enumerate() {
                let vectors = native[group * WIDE * lanes.stride() + step..].iter().step_by(lanes.stride());
                for ((table, symbols), to) in tables.iter().zip(vectors).zip(&mut tile.0) {
                    // SAFETY: 32 symbols are read, and 32 entries of a table; 64 bytes are written.
                    unsafe {
                        let symbols = _mm256_loadu_si256(symbols.as_ptr().cast());
                        escaped += _mm256_cmpeq_epi8_mask(symbols, needle).count_ones() as usize;
                        let entries = _mm512_load_si512((&raw const *table).cast());
                        let found = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(symbols), entries);
                        _mm512_store_si512(to.as_mut_ptr().cast(), found);
                    }
                }
                let offset = step * window.stride + 2 * WIDE * group;
                for (lane, starts) in (0..LANES).step_by(8).zip(starts.as_chunks::<8>().0) {
                    for (vector, start) in transpose(&tile, lane).into_iter().zip(starts) {
                        // SAFETY: the last row of all is inside, and all of its columns. Lines are aligned if they are
                        // to be streamed.
                        unsafe {
                            let to = begin.add(start + offset);
                            if streaming {
                                _mm512_stream_si512(to.cast(), vector);
                            } else {
                                _mm512_storeu_si512(to.cast(), vector);
                            }
                        }
                    }
                }
            }
        }
        escaped + elements::scatter(steps..lanes.steps(), native, lanes, tables, escape, window)
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
        let steps = if rest.is_empty() { lanes.whole } else { 0 };
        let rows = lanes.row(LANES - 1) + lanes.whole;
        assert!(span.begin + rows.saturating_sub(1) * span.stride + 2 * bounds.len() <= span.bytes.len());
        let begin = span.bytes.as_ptr().wrapping_add(span.begin);
        let starts: [usize; LANES] = std::array::from_fn(|lane| lanes.row(LANES - 1 - lane) * span.stride);
        let top = _mm512_set1_epi16(i16::from(escape));
        let mut tile = Tile([[0; LANES]; WIDE]);
        for step in 0..steps {
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
                    let symbols = symbols(std::array::from_fn(|i| column(&tile, COLUMNS * four + i)), bounds, top);
                    for (i, symbols) in symbols.into_iter().enumerate() {
                        let col = WIDE * group + COLUMNS * four + i;
                        let to = &mut native[col * lanes.stride() + step];
                        // SAFETY: 32 bytes.
                        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbols)) }
                        let escapes = _mm512_cmpeq_epi16_mask(symbols, top);
                        if escapes != 0 {
                            for lane in (0..LANES).filter(|lane| escapes >> (LANES - 1 - lane) & 1 == 1) {
                                escaped(lanes.row(lane) + step, col);
                            }
                        }
                    }
                }
            }
        }
        elements::gather(steps..lanes.steps(), span, lanes, bounds, escape, native, escaped);
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
}
