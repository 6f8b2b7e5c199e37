//! AVX-512: 32 lanes of u16 in one register.
//!
//! Nothing is gathered: tables of 32 entries are permuted (`vpermw`), words reach their lanes by `vpexpandw`. Both
//! that and `vpcompressw` work on registers; their memory forms are microcoded on Zen 4.
#![expect(unsafe_code, reason = "loads and stores of whole vectors, and calls behind the proof of `Avx512`")]

use std::arch::x86_64::*;
use std::ops::Range;

use cacheg_core::{ElementSpan, ElementTable, ElementWindow, SymbolBounds};

use super::elements;
use super::lanes::Lanes;
use super::level::Level;
use super::native::{CONTEXTS, DecodeRun, EncodeRun, Kernel, PLAIN, SPLIT, State, Step, words_per_step};
use super::stream::LANES;
use super::table::{DecodeTable, EncodeTable, MAX_BOUNDS};
use super::transpose;
use crate::tables::Limits;

/// The kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// `None` if the processor cannot run them.
    pub(super) fn new() -> Option<Self> {
        Level::Avx512.is_available().then_some(Self(()))
    }
}

impl Kernel for Avx512 {
    fn decode<const N: usize, const MODE: u8>(self, runs: [DecodeRun<'_, '_>; N]) -> usize {
        // SAFETY: `new` has checked the features.
        unsafe { decode::<N, MODE>(runs) }
    }

    fn decode_part<const MODE: u8>(self, run: DecodeRun<'_, '_>, active: usize) {
        // SAFETY: `new` has checked the features.
        unsafe { decode_part::<MODE>(run, active) }
    }

    fn encode<const N: usize, const MODE: u8>(self, runs: [EncodeRun<'_>; N]) {
        // SAFETY: `new` has checked the features.
        unsafe {
            encode::<N, MODE>(runs);
        }
    }

    fn encode_part<const MODE: u8>(self, run: EncodeRun<'_>, active: usize) {
        // SAFETY: `new` has checked the features.
        unsafe { encode_part::<MODE>(run, active) }
    }

    fn reverse(self, words: &mut [[u8; 2]]) {
        // SAFETY: `new` has checked the features.
        unsafe { reverse(words) }
    }

    fn scatter_rows(self, native: &[Step], lanes: Lanes, columns: Range<usize>, rows: &mut [u8]) {
        // SAFETY: `new` has checked the features.
        unsafe { transpose::avx512::scatter_rows(native, lanes, columns, rows) }
    }

    fn scatter_elements(
        self,
        native: &[Step],
        lanes: Lanes,
        tables: &[ElementTable],
        escape: Option<u8>,
        window: &mut ElementWindow<'_>,
    ) -> usize {
        // SAFETY: `new` has checked the features.
        unsafe { elements::avx512::scatter(native, lanes, tables, escape, window) }
    }

    fn gather_elements(
        self,
        span: &ElementSpan<'_>,
        lanes: Lanes,
        bounds: &[SymbolBounds],
        escape: u8,
        native: &mut [Step],
        escaped: &mut dyn FnMut(usize, usize),
    ) {
        // SAFETY: `new` has checked the features.
        unsafe { elements::avx512::gather(span, lanes, bounds, escape, native, escaped) }
    }

    fn gather_rows(self, rows: &[u8], lanes: Lanes, columns: Range<usize>, native: &mut [Step]) {
        // SAFETY: `new` has checked the features.
        unsafe { transpose::avx512::gather_rows(rows, lanes, columns, native) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn load(from: &[u16; LANES]) -> __m512i {
    // SAFETY: 64 bytes, loads need no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn store(to: &mut [u16; LANES], value: __m512i) {
    // SAFETY: 64 bytes, stores need no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
}

/// States in registers.
#[derive(Clone, Copy)]
struct Lane {
    lo: __m512i,
    hi: __m512i,
}

impl Lane {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn load(state: &State) -> Self {
        Self { lo: load(&state.lo), hi: load(&state.hi) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn store(self, state: &mut State) {
        store(&mut state.lo, self.lo);
        store(&mut state.hi, self.hi);
    }

    /// Itself, but `other` in the lanes of a mask.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn merge(self, mask: __mmask32, other: Self) -> Self {
        Self {
            lo: _mm512_mask_mov_epi16(self.lo, mask, other.lo),
            hi: _mm512_mask_mov_epi16(self.hi, mask, other.hi),
        }
    }
}

/// `x`, but in the lanes of `mask` the entries of `table` at `index`.
///
/// One instruction. LLVM would make two of the intrinsic, a permutation and a blend: here, where what counts is
/// their number, that costs a tenth of the speed. The same goes for [`merge_sum`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn merge_permuted(mut x: __m512i, mask: __mmask32, index: __m512i, table: __m512i) -> __m512i {
    // SAFETY: works on registers only, which the target features provide.
    unsafe {
        std::arch::asm!(
            "vpermw {x}{{{mask}}}, {index}, {table}",
            x = inlateout(zmm_reg) x,
            mask = in(kreg) mask,
            index = in(zmm_reg) index,
            table = in(zmm_reg) table,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}

/// `x`, but `y` in the lanes of `mask`; apart from what made `y`, which need not wait for the mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn merge(x: __m512i, mask: __mmask32, y: __m512i) -> __m512i {
    let merged;
    // SAFETY: works on registers only, which the target features provide.
    unsafe {
        std::arch::asm!(
            "vpblendmw {merged}{{{mask}}}, {x}, {y}",
            merged = lateout(zmm_reg) merged,
            x = in(zmm_reg) x,
            mask = in(kreg) mask,
            y = in(zmm_reg) y,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    merged
}

/// `x`, but `x + y` in the lanes of `mask`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn merge_sum(mut x: __m512i, mask: __mmask32, y: __m512i) -> __m512i {
    // SAFETY: works on registers only, which the target features provide.
    unsafe {
        std::arch::asm!(
            "vpaddw {x}{{{mask}}}, {x}, {y}",
            x = inlateout(zmm_reg) x,
            mask = in(kreg) mask,
            y = in(zmm_reg) y,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    x
}

/// Decodes a coded symbol in every lane. `x = f·high + offset` has its low and high halves from two 16-bit
/// multiplications; that the offset overflows the low half shows in the sum being below it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn find(x: Lane, table: &DecodeTable) -> (__m512i, Lane) {
    let bucket = _mm512_srli_epi16::<11>(x.lo);
    let r = _mm512_and_si512(x.lo, _mm512_set1_epi16(2047));
    let threshold = _mm512_permutexvar_epi16(bucket, load(&table.threshold));
    let other = _mm512_cmpge_epu16_mask(r, threshold);
    let symbol = merge_permuted(bucket, other, bucket, load(&table.alias));
    // Both frequencies that it may be, so that the multiplication does not wait for the symbol.
    let own = _mm512_permutexvar_epi16(bucket, load(&table.freq));
    let freq = merge(own, other, _mm512_permutexvar_epi16(bucket, load(&table.alias_freq)));
    let offset = merge_sum(r, other, _mm512_permutexvar_epi16(bucket, load(&table.delta)));
    let lo = _mm512_add_epi16(_mm512_mullo_epi16(freq, x.hi), offset);
    let carry = _mm512_cmplt_epu16_mask(lo, offset);
    let hi = merge_sum(_mm512_mulhi_epu16(freq, x.hi), carry, _mm512_set1_epi16(1));
    (symbol, Lane { lo, hi })
}

/// Which lanes use the tables of the second and of the third context.
#[derive(Clone, Copy)]
struct Select {
    second: __mmask32,
    third: __mmask32,
}

impl Select {
    /// Where contexts do not count.
    const NONE: Self = Self { second: 0, third: 0 };

    /// The contexts of symbols.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn new(before: __m512i, [a, b]: [__m512i; 2]) -> Self {
        Self { second: _mm512_cmpge_epu16_mask(before, a), third: _mm512_cmpge_epu16_mask(before, b) }
    }

    /// Entries of three tables: two make one of 64 entries, the third is merged.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn lookup(self, tables: [&[u16; LANES]; 3], index: __m512i) -> __m512i {
        let wide = merge_sum(index, self.second, _mm512_set1_epi16(32));
        let entries = _mm512_permutex2var_epi16(load(tables[0]), wide, load(tables[1]));
        merge_permuted(entries, self.third, index, load(tables[2]))
    }
}

/// Limits in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn spread(limits: Limits) -> [__m512i; 2] {
    limits.map(|limit| _mm512_set1_epi16(i16::from(limit)))
}

/// [`find`] with contexts. Here what counts is how many tables are looked up: thresholds and aliases share one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn find_in_context(x: Lane, tables: [&DecodeTable; 3], select: Select) -> (__m512i, Lane) {
    let bucket = _mm512_srli_epi16::<11>(x.lo);
    let low = _mm512_set1_epi16(2047);
    let r = _mm512_and_si512(x.lo, low);
    let packed = select.lookup(tables.map(|table| &table.packed), bucket);
    let delta = select.lookup(tables.map(|table| &table.delta), bucket);
    let other = _mm512_cmpge_epu16_mask(r, _mm512_and_si512(packed, low));
    let symbol = merge(bucket, other, _mm512_srli_epi16::<11>(packed));
    let freq = select.lookup(tables.map(|table| &table.freq), symbol);
    let offset = merge_sum(r, other, delta);
    let lo = _mm512_add_epi16(_mm512_mullo_epi16(freq, x.hi), offset);
    let carry = _mm512_cmplt_epu16_mask(lo, offset);
    let hi = merge_sum(_mm512_mulhi_epu16(freq, x.hi), carry, _mm512_set1_epi16(1));
    (symbol, Lane { lo, hi })
}

/// Low bits: `keep` bits of the low half stay, the others leave.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn low_bits(coded: __m512i, x: Lane, table: &DecodeTable) -> (__m512i, Lane) {
    let bits = _mm512_permutexvar_epi16(coded, load(&table.bits));
    let base = _mm512_permutexvar_epi16(coded, load(&table.base));
    let keep = _mm512_sub_epi16(_mm512_set1_epi16(16), bits);
    // Shifts by 16 give 0.
    let symbol = _mm512_add_epi16(base, _mm512_srlv_epi16(x.lo, keep));
    let stay = _mm512_srlv_epi16(_mm512_set1_epi16(-1), bits);
    // (hi << keep) | (lo & stay)
    let lo = _mm512_ternarylogic_epi32::<0xf8>(_mm512_sllv_epi16(x.hi, keep), x.lo, stay);
    (symbol, Lane { lo, hi: _mm512_srlv_epi16(x.hi, bits) })
}

/// Refills the lanes of `active`; returns how many words that took. Reads 32 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn refill(x: Lane, active: __mmask32, words: __m512i) -> (Lane, usize) {
    let empty = _mm512_mask_testn_epi16_mask(active, x.hi, x.hi);
    let hi = _mm512_mask_mov_epi16(x.hi, empty, x.lo);
    let lo = _mm512_mask_expand_epi16(x.lo, empty, words);
    (Lane { lo, hi }, empty.count_ones() as usize)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn reverse(mut words: &mut [[u8; 2]]) {
    let descending: [u16; LANES] = std::array::from_fn(|lane| (LANES - 1 - lane) as u16);
    let order = load(&descending);
    while words.len() >= 2 * LANES {
        let (first, rest) = words.split_at_mut(LANES);
        let (rest, last) = rest.split_at_mut(rest.len() - LANES);
        // SAFETY: both are 64 bytes.
        unsafe {
            let (a, b) =
                (_mm512_loadu_si512(first.as_ptr().cast()), _mm512_loadu_si512(last.as_ptr().cast()));
            _mm512_storeu_si512(first.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, b));
            _mm512_storeu_si512(last.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, a));
        }
        words = rest;
    }
    words.reverse();
}

/// Loads 32 words.
///
/// An instruction of its own: as an intrinsic it would become the memory operand of `vpexpandw`, which on Zen 4 is
/// microcoded.
///
/// # Safety
/// 64 bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn fetch(from: *const [u8; 2]) -> __m512i {
    let words;
    // SAFETY: the caller's promise; nothing but the register changes.
    unsafe {
        std::arch::asm!(
            "vmovdqu64 {words}, zmmword ptr [{from}]",
            words = lateout(zmm_reg) words,
            from = in(reg) from,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    words
}

/// Tables of a column.
#[derive(Clone, Copy)]
struct Column<'t> {
    /// One, or that of the first step and those of the contexts.
    tables: &'t [DecodeTable],
    limits: [__m512i; 2],
    /// Symbols of the step before.
    before: __m512i,
}

impl<'t> Column<'t> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
    fn new<const MODE: u8>(run: &DecodeRun<'t, '_>, column: usize) -> Self {
        let (tables, zero) = (run.tables::<MODE>(column), _mm512_setzero_si512());
        if MODE == CONTEXTS {
            let before = run.before.as_ref().map_or(zero, |before| widen(before));
            Self { tables, limits: spread(run.limits[column]), before }
        } else {
            Self { tables, limits: [zero; 2], before: zero }
        }
    }
}

/// Does something for each of `N` streams, at most 4. Not a loop: LLVM would not unroll long ones, and states would
/// be in memory.
macro_rules! each_stream {
    ($i:ident < $n:ident, $body:block) => { each_stream!($i < $n, $body, 0 1 2 3) };
    ($i:ident < $n:ident, $body:block, $($at:literal)+) => { $( if $at < $n { let $i = $at; $body } )+ };
}

/// Decodes a symbol in every lane.
///
/// # Safety
/// There must be 32 words, 64 if symbols are split.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn step<const MODE: u8>(
    lane: &mut Lane,
    column: &mut Column<'_>,
    words: &mut *const [u8; 2],
) -> __m512i {
    let (mut symbol, x) = find_symbol::<MODE>(*lane, column);
    // SAFETY: the caller's promise; no more words are used than there are lanes.
    let (x, used) = unsafe { refill(x, !0, fetch(*words)) };
    // SAFETY: as above.
    *words = unsafe { words.add(used) };
    *lane = x;
    if MODE == SPLIT {
        (symbol, *lane) = low_bits(symbol, x, &column.tables[0]);
        // SAFETY: as above.
        let (x, used) = unsafe { refill(*lane, !0, fetch(*words)) };
        // SAFETY: as above.
        *words = unsafe { words.add(used) };
        *lane = x;
    }
    symbol
}

/// Decodes a coded symbol by the tables that are meant.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn find_symbol<const MODE: u8>(x: Lane, column: &mut Column<'_>) -> (__m512i, Lane) {
    let found = if MODE == CONTEXTS {
        let tables = [&column.tables[1], &column.tables[2], &column.tables[3]];
        find_in_context(x, tables, Select::new(column.before, column.limits))
    } else {
        find(x, &column.tables[0])
    };
    column.before = found.0;
    found
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn decode<const N: usize, const MODE: u8>(mut runs: [DecodeRun<'_, '_>; N]) -> usize {
    let columns = runs[0].columns.len();
    let (steps, part) = (runs[0].steps, runs[0].more > 0);
    let zero = _mm512_setzero_si512();
    let mut lanes = [Lane { lo: zero, hi: zero }; N];
    let mut words = [std::ptr::null::<[u8; 2]>(); N];
    let mut last = words;
    for i in 0..N {
        let run = &mut runs[i];
        let all = run.all_steps();
        let needed = all * words_per_step(MODE);
        assert!(run.columns.len() == columns && run.steps == steps && run.words.len() >= needed);
        assert!(run.stride >= all && run.out.len() >= (columns - 1) * run.stride + all);
        assert!(if part { run.more > 0 && steps > 0 } else { run.more == 0 });
        lanes[i] = Lane::load(run.state);
        words[i] = run.words.as_ptr();
        // A column may begin with its words here at the latest.
        last[i] = &raw const run.words[run.words.len() - needed..] as *const [u8; 2];
    }
    let mut column = 0;
    while column < columns && (0..N).all(|i| words[i] <= last[i]) {
        // Slices would be checked, and as parts of `runs` reborrowed.
        let mut out: [*mut Step; N] =
            std::array::from_fn(|i| runs[i].out.as_mut_ptr().wrapping_add(column * runs[i].stride));
        // SAFETY: there are words for a column, and all columns have their `steps` in `out`.
        unsafe { decode_column::<N, MODE>(&runs, column, &mut lanes, &mut words, &mut out) };
        column += 1;
    }
    for i in 0..N {
        let run = &mut runs[i];
        lanes[i].store(run.state);
        // SAFETY: both point into the same words.
        let used = unsafe { words[i].offset_from(run.words.as_ptr()) };
        *run.words = &run.words[used as usize..];
    }
    column
}

/// # Safety
/// There must be 32 words for each step, 64 if symbols are split, and room for its symbols.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn decode_column<const N: usize, const MODE: u8>(
    runs: &[DecodeRun<'_, '_>; N],
    column: usize,
    lanes: &mut [Lane; N],
    words: &mut [*const [u8; 2]; N],
    out: &mut [*mut Step; N],
) {
    // Not a closure: that would not be inlined everywhere.
    let mut columns = [Column::new::<MODE>(&runs[0], column); N];
    for i in 1..N {
        columns[i] = Column::new::<MODE>(&runs[i], column);
    }
    let mut steps = runs[0].steps;
    if MODE == CONTEXTS {
        // The first step has a table of its own, unless there was one before.
        for i in 0..N {
            // SAFETY: there are words for all steps and room for their symbols.
            unsafe {
                let symbol = match runs[i].before {
                    None => step::<PLAIN>(&mut lanes[i], &mut columns[i], &mut words[i]),
                    Some(_) => step::<CONTEXTS>(&mut lanes[i], &mut columns[i], &mut words[i]),
                };
                _mm256_storeu_si256(out[i].cast(), _mm512_cvtepi16_epi8(symbol));
                out[i] = out[i].add(1);
            }
        }
        steps -= 1;
    }
    // Two steps' symbols fill a register of bytes: packing works by halves of 128 bits, their order is mended.
    let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    for _ in 0..steps / 2 {
        let mut first = [_mm512_setzero_si512(); N];
        each_stream!(i < N, {
            // SAFETY: a step takes at most 32 words, 64 if symbols are split; there were as many for each step.
            first[i] = unsafe { step::<MODE>(&mut lanes[i], &mut columns[i], &mut words[i]) };
        });
        each_stream!(i < N, {
            // SAFETY: as above; `out` has one item for each step.
            unsafe {
                let second = step::<MODE>(&mut lanes[i], &mut columns[i], &mut words[i]);
                let both = _mm512_permutexvar_epi64(order, _mm512_packus_epi16(first[i], second));
                _mm512_storeu_si512(out[i].cast(), both);
                out[i] = out[i].add(2);
            }
        });
    }
    if steps % 2 == 1 {
        for i in 0..N {
            // SAFETY: as above; this is the last of the steps.
            unsafe {
                let symbol = step::<MODE>(&mut lanes[i], &mut columns[i], &mut words[i]);
                _mm256_storeu_si256(out[i].cast(), _mm512_cvtepi16_epi8(symbol));
                out[i] = out[i].add(1);
            }
        }
    }
    if runs[0].more > 0 {
        each_stream!(i < N, {
            let mask = first_lanes(runs[i].more);
            // SAFETY: there are words for this step as well, and it has its item in `out`.
            unsafe {
                let symbol = step_part::<MODE>(&mut lanes[i], mask, &mut columns[i], &mut words[i]);
                _mm256_storeu_si256(out[i].cast(), _mm512_cvtepi16_epi8(symbol));
            }
        });
    }
}

/// So many lanes, the first ones.
#[inline]
fn first_lanes(active: usize) -> __mmask32 {
    (!0u32).unbounded_shr(32 - active as u32)
}

/// [`step`] in the lanes of a mask; the others' symbols are 0.
///
/// # Safety
/// As for [`step`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn step_part<const MODE: u8>(
    lane: &mut Lane,
    active: __mmask32,
    column: &mut Column<'_>,
    words: &mut *const [u8; 2],
) -> __m512i {
    let before = *lane;
    let (mut symbol, x) = find_symbol::<MODE>(before, column);
    // SAFETY: the caller's promise; no more words are used than there are lanes.
    let (mut x, used) = unsafe { refill(x, active, fetch(*words)) };
    // SAFETY: as above.
    *words = unsafe { words.add(used) };
    if MODE == SPLIT {
        let (whole, y) = low_bits(symbol, x, &column.tables[0]);
        symbol = whole;
        // SAFETY: as above.
        let (y, used) = unsafe { refill(y, active, fetch(*words)) };
        // SAFETY: as above.
        *words = unsafe { words.add(used) };
        x = y;
    }
    *lane = before.merge(active, x);
    _mm512_maskz_mov_epi16(active, symbol)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn decode_part<const MODE: u8>(run: DecodeRun<'_, '_>, active: usize) {
    let mask = first_lanes(active);
    let mut column = Column::new::<MODE>(&run, 0);
    let mut lane = Lane::load(run.state);
    assert!(run.words.len() >= words_per_step(MODE));
    let mut words = run.words.as_ptr();
    // SAFETY: just checked; at the end both point into the same words.
    let (symbol, used) = unsafe {
        let symbol = match run.before {
            None if MODE == CONTEXTS => step_part::<PLAIN>(&mut lane, mask, &mut column, &mut words),
            _ => step_part::<MODE>(&mut lane, mask, &mut column, &mut words),
        };
        (symbol, words.offset_from(run.words.as_ptr()))
    };
    *run.words = &run.words[used as usize..];
    lane.store(run.state);
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(run.out[0].as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbol)) };
}

/// Takes words out of the lanes where `x` would overflow; returns the words in front and their number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn spill(x: Lane, active: __mmask32, freq: __m512i) -> (Lane, __m512i, usize) {
    let full = _mm512_mask_cmpge_epu16_mask(active, x.hi, freq);
    let words = _mm512_maskz_compress_epi16(full, x.lo);
    let lo = _mm512_mask_mov_epi16(x.lo, full, x.hi);
    let hi = _mm512_maskz_mov_epi16(!full, x.hi);
    (Lane { lo, hi }, words, full.count_ones() as usize)
}

/// Puts the low bits of a symbol into the states.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn put_low_bits(symbol: __m512i, x: Lane, bits: __m512i) -> Lane {
    let keep = _mm512_sub_epi16(_mm512_set1_epi16(16), bits);
    // x = (x >> keep) << 16 | symbol << keep | (x & stay), shifts of 16 give 0.
    let hi = _mm512_or_si512(_mm512_sllv_epi16(x.hi, bits), _mm512_srlv_epi16(x.lo, keep));
    let stay = _mm512_srlv_epi16(_mm512_set1_epi16(-1), bits);
    let lo = _mm512_ternarylogic_epi32::<0xf8>(_mm512_sllv_epi16(symbol, keep), x.lo, stay);
    Lane { lo, hi }
}

/// Entries of an encoder's table, or of those of the contexts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn entries<const MODE: u8>(
    tables: &[EncodeTable],
    select: Select,
    field: impl Fn(&EncodeTable) -> &[u16; LANES],
    index: __m512i,
) -> __m512i {
    if MODE == CONTEXTS {
        select.lookup([field(&tables[1]), field(&tables[2]), field(&tables[3])], index)
    } else {
        _mm512_permutexvar_epi16(index, load(field(&tables[0])))
    }
}

/// The piece of a place, by binary search.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn search<const MODE: u8>(place: __m512i, tables: &[EncodeTable], select: Select) -> __m512i {
    let mut piece = _mm512_setzero_si512();
    for bit in [16, 8, 4, 2, 1] {
        let next = _mm512_add_epi16(piece, _mm512_set1_epi16(bit));
        let begin = entries::<MODE>(tables, select, |table| &table.pieces, next);
        piece = merge(piece, _mm512_cmpge_epu16_mask(place, begin), next);
    }
    piece
}

/// The inverse of [`find`], after [`spill`].
///
/// The quotient is estimated in f32 by a reciprocal that is a little too small, so that it is right or one too
/// low (see [`EncodeTable`]). The remainder is then below `2·freq`: as 16 bits it tells which of both it was,
/// unless the frequency exceeds half of all; for tables that have one (`WIDE`) bit 16 is computed too.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn put<const MODE: u8, const WIDE: bool>(
    symbol: __m512i,
    freq: __m512i,
    x: Lane,
    tables: &[EncodeTable],
    select: Select,
    most: u8,
) -> Lane {
    let one = _mm512_set1_epi16(1);
    let low = entries::<MODE>(tables, select, |table| &table.reciprocal_low, symbol);
    let high = entries::<MODE>(tables, select, |table| &table.reciprocal_high, symbol);
    let estimate = |x, reciprocal| {
        let quotient = _mm512_mul_ps(_mm512_cvtepu32_ps(x), _mm512_castsi512_ps(reciprocal));
        _mm512_cvttps_epu32(quotient)
    };
    // Unpacking and packing both go by halves of 128 bits: the order comes back.
    let q = _mm512_packus_epi32(
        estimate(_mm512_unpacklo_epi16(x.lo, x.hi), _mm512_unpacklo_epi16(low, high)),
        estimate(_mm512_unpackhi_epi16(x.lo, x.hi), _mm512_unpackhi_epi16(low, high)),
    );
    let product = _mm512_mullo_epi16(q, freq);
    let r = _mm512_sub_epi16(x.lo, product);
    let mut fix = _mm512_cmpge_epu16_mask(r, freq);
    if WIDE {
        let borrow = _mm512_cmplt_epu16_mask(x.lo, product);
        let high = _mm512_sub_epi16(x.hi, _mm512_mulhi_epu16(q, freq));
        let high = _mm512_mask_sub_epi16(high, borrow, high, one);
        fix |= _mm512_test_epi16_mask(high, high);
    }
    let q = merge_sum(q, fix, one);
    let r = merge_sum(r, fix, _mm512_sub_epi16(_mm512_setzero_si512(), freq));
    // The slot of offset r: in the own bucket, or in a piece of another one.
    let own = _mm512_cmplt_epu16_mask(r, entries::<MODE>(tables, select, |table| &table.threshold, symbol));
    let place = _mm512_add_epi16(r, entries::<MODE>(tables, select, |table| &table.place, symbol));
    let piece = if usize::from(most) <= MAX_BOUNDS {
        // All comparisons at the same time.
        let cell = _mm512_srli_epi16::<11>(place);
        let mut piece = entries::<MODE>(tables, select, |table| &table.cell, cell);
        for i in 0..usize::from(most) {
            let bounds = entries::<MODE>(tables, select, |table| &table.bounds[i], cell);
            piece = merge_sum(piece, _mm512_cmpge_epu16_mask(place, bounds), one);
        }
        piece
    } else {
        search::<MODE>(place, tables, select)
    };
    let shift = entries::<MODE>(tables, select, |table| &table.shift, piece);
    let shift = _mm512_mask_slli_epi16::<11>(shift, own, symbol);
    Lane { lo: _mm512_add_epi16(r, shift), hi: q }
}

/// Coded symbols: a table of 256 bytes in four registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn coded(symbols: &Step, table: &EncodeTable) -> __m512i {
    let quarters = table.coded.as_chunks::<64>().0;
    // SAFETY: 64 bytes, loads need no alignment.
    let quarter = |i: usize| unsafe { _mm512_loadu_si512(quarters[i].as_ptr().cast()) };
    // SAFETY: 32 bytes.
    let symbols = unsafe { _mm256_loadu_si256(symbols.as_ptr().cast()) };
    let symbols = _mm512_castsi256_si512(symbols);
    let low = _mm512_permutex2var_epi8(quarter(0), symbols, quarter(1));
    let high = _mm512_permutex2var_epi8(quarter(2), symbols, quarter(3));
    let coded = _mm512_mask_blend_epi8(_mm512_movepi8_mask(symbols), low, high);
    _mm512_cvtepu8_epi16(_mm512_castsi512_si256(coded))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn widen(symbols: &Step) -> __m512i {
    // SAFETY: 32 bytes, loads need no alignment.
    _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(symbols.as_ptr().cast()) })
}

/// Encodes symbols in the lanes of `active`. `write` takes words, of which the first so many count.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn encode_step<const MODE: u8, const WIDE: bool>(
    mut x: Lane,
    active: __mmask32,
    symbols: &Step,
    tables: &[EncodeTable],
    select: Select,
    most: u8,
    mut write: impl FnMut(__m512i, usize),
) -> Lane {
    let mut symbol = widen(symbols);
    if MODE == SPLIT {
        let whole = symbol;
        symbol = coded(symbols, &tables[0]);
        let bits = _mm512_permutexvar_epi16(symbol, load(&tables[0].bits));
        // 2^(16 − bits), or 65,536 where there are none: nothing is moved there.
        let freq = _mm512_sllv_epi16(_mm512_set1_epi16(1), _mm512_sub_epi16(_mm512_set1_epi16(16), bits));
        let (y, words, count) = spill(x, _mm512_mask_test_epi16_mask(active, bits, bits), freq);
        write(words, count);
        x = put_low_bits(whole, y, bits);
    }
    let freq = entries::<MODE>(tables, select, |table| &table.freq, symbol);
    let (x, words, count) = spill(x, active, freq);
    write(words, count);
    put::<MODE, WIDE>(symbol, freq, x, tables, select, most)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn encode<const N: usize, const MODE: u8>(mut runs: [EncodeRun<'_>; N]) {
    let columns = runs[0].columns.len();
    let (steps, part) = (runs[0].steps, runs[0].more > 0);
    let zero = _mm512_setzero_si512();
    let mut lanes = [Lane { lo: zero, hi: zero }; N];
    let mut room = [std::ptr::null_mut::<[u8; 2]>(); N];
    let mut ahead = [(std::ptr::null(), 0); N];
    for i in 0..N {
        let run = &mut runs[i];
        ahead[i] = run.ahead.lines();
        let all = run.all_steps();
        assert!(run.columns.len() == columns && run.steps == steps && run.stride >= all);
        assert!(run.symbols.len() >= (columns - 1) * run.stride + all);
        assert!(if part { run.more > 0 && steps > 0 } else { run.more == 0 });
        assert!(run.room.len() >= run.words(MODE));
        lanes[i] = Lane::load(run.state);
        room[i] = run.room.as_mut_ptr();
    }
    for column in (0..columns).rev() {
        let mut wide = false;
        for run in &runs {
            for table in run.tables::<MODE>(column) {
                wide |= table.wide;
            }
        }
        // SAFETY: all columns have `steps` symbols and room for as many words as they can need.
        unsafe {
            if wide {
                encode_column::<N, MODE, true>(&runs, column, &mut lanes, &mut room, &mut ahead);
            } else {
                encode_column::<N, MODE, false>(&runs, column, &mut lanes, &mut room, &mut ahead);
            }
        }
    }
    for i in 0..N {
        let run = &mut runs[i];
        lanes[i].store(run.state);
        // SAFETY: both point into the same room.
        *run.written += unsafe { room[i].offset_from(run.room.as_ptr()) } as usize;
    }
}

/// # Safety
/// Runs must have symbols of all steps, `room` a word for each of their lanes, two if symbols are split.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
unsafe fn encode_column<const N: usize, const MODE: u8, const WIDE: bool>(
    runs: &[EncodeRun<'_>; N],
    column: usize,
    lanes: &mut [Lane; N],
    room: &mut [*mut [u8; 2]; N],
    ahead: &mut [(*const u8, usize); N],
) {
    // No closures: they would not be inlined everywhere.
    let mut tables = [runs[0].tables::<MODE>(column); N];
    let mut symbols = [std::ptr::null::<Step>(); N];
    let mut limits = [[_mm512_setzero_si512(); 2]; N];
    let mut most = [0; N];
    for i in 0..N {
        tables[i] = runs[i].tables::<MODE>(column);
        symbols[i] = runs[i].symbols.as_ptr().wrapping_add(column * runs[i].stride);
        if MODE == CONTEXTS {
            limits[i] = spread(runs[i].limits::<MODE>(column));
        }
        for table in tables[i] {
            most[i] = table.most.max(most[i]);
        }
    }
    if runs[0].more > 0 {
        let step = runs[0].steps;
        for i in 0..N {
            let mask = last_lanes(runs[i].more);
            // SAFETY: the caller's promise; there are whole steps before this one.
            let (own, before) = unsafe { (&*symbols[i].add(step), &*symbols[i].add(step - 1)) };
            let select = if MODE == CONTEXTS { Select::new(widen(before), limits[i]) } else { Select::NONE };
            let write = |words, count| {
                // SAFETY: vectors may reach into what the whole steps have room for, which come next.
                unsafe {
                    _mm512_storeu_si512(room[i].cast(), words);
                    room[i] = room[i].add(count);
                }
            };
            let x = encode_step::<MODE, WIDE>(lanes[i], mask, own, tables[i], select, most[i], write);
            lanes[i] = lanes[i].merge(mask, x);
        }
    }
    for step in (0..runs[0].steps).rev() {
        for i in 0..N {
            _mm_prefetch::<_MM_HINT_T1>(ahead[i].0.cast());
            ahead[i].0 = ahead[i].0.wrapping_add(ahead[i].1);
            // SAFETY: the caller's promise.
            let own = unsafe { &*symbols[i].add(step) };
            let write = |words, count| {
                // SAFETY: a step stores at most 32 words twice, of which there is room; so there is for all.
                unsafe {
                    _mm512_storeu_si512(room[i].cast(), words);
                    room[i] = room[i].add(count);
                }
            };
            let before = match step {
                _ if MODE != CONTEXTS => None,
                0 => runs[i].before.as_ref(),
                // SAFETY: as above.
                _ => Some(unsafe { &*symbols[i].add(step - 1) }),
            };
            lanes[i] = match before {
                Some(before) => {
                    let select = Select::new(widen(before), limits[i]);
                    encode_step::<MODE, WIDE>(lanes[i], !0, own, tables[i], select, most[i], write)
                }
                // The first step has a table of its own.
                None if MODE == CONTEXTS => {
                    encode_step::<PLAIN, WIDE>(lanes[i], !0, own, tables[i], Select::NONE, most[i], write)
                }
                None => encode_step::<MODE, WIDE>(lanes[i], !0, own, tables[i], Select::NONE, most[i], write),
            };
        }
    }
}

/// So many lanes, the last ones.
#[inline]
fn last_lanes(active: usize) -> __mmask32 {
    (!0u32).unbounded_shl(32 - active as u32)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,popcnt,bmi1,bmi2")]
fn encode_part<const MODE: u8>(run: EncodeRun<'_>, active: usize) {
    let mask = last_lanes(active);
    let tables = run.tables::<MODE>(0);
    let most = tables.iter().fold(0, |most, table| most.max(table.most));
    let limits = run.limits::<MODE>(0);
    let before = Lane::load(run.state);
    let mut room = run.room;
    let write = |words: __m512i, count: usize| {
        let mut all = [0; LANES];
        store(&mut all, words);
        let (own, rest) = std::mem::take(&mut room).split_at_mut(count);
        room = rest;
        for (to, word) in own.iter_mut().zip(all) {
            *to = word.to_le_bytes();
        }
        *run.written += count;
    };
    let symbols = &run.symbols[0];
    let x = match run.before {
        Some(own) if MODE == CONTEXTS => {
            let select = Select::new(widen(&own), spread(limits));
            encode_step::<CONTEXTS, true>(before, mask, symbols, tables, select, most, write)
        }
        _ if MODE == CONTEXTS => {
            encode_step::<PLAIN, true>(before, mask, symbols, tables, Select::NONE, most, write)
        }
        _ => encode_step::<MODE, true>(before, mask, symbols, tables, Select::NONE, most, write),
    };
    before.merge(mask, x).store(run.state);
}
