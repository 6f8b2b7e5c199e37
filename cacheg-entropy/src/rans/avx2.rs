//! AVX2: 32 lanes of u16 in two registers, or as bytes in one.
//!
//! Tables of 32 entries are looked up as bytes: two `vpshufb` for the two halves of a table, and a blend. Words
//! reach their lanes, eight at a time, by shuffles from a table of 256.
//!
//! A pair of registers holds lanes 0–7 and 16–23, and 8–15 and 24–31: packing both to bytes gives lanes 0–31.
#![expect(unsafe_code, reason = "loads and stores of whole vectors, and calls behind the proof of `Avx2`")]

use std::arch::x86_64::*;
use std::ops::Range;

use super::alias::BUCKETS;
use super::lanes::Lanes;
use super::level::Level;
use super::native::{CONTEXTS, DecodeRun, EncodeRun, Kernel, PLAIN, SPLIT, State, Step, words_per_step};
use super::stream::LANES;
use super::table::{DecodeTable, EncodeTable, MAX_BOUNDS};
use super::transpose;
use crate::tables::{CONTEXT_TABLES, Limits};

/// The kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// `None` if the processor cannot run them.
    pub(super) fn new() -> Option<Self> {
        Level::Avx2.is_available().then_some(Self(()))
    }
}

impl Kernel for Avx2 {
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
        unsafe { encode::<N, MODE>(runs) }
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
        unsafe { transpose::avx2::scatter_rows(native, lanes, columns, rows) }
    }

    fn gather_rows(self, rows: &[u8], lanes: Lanes, columns: Range<usize>, native: &mut [Step]) {
        // SAFETY: `new` has checked the features.
        unsafe { transpose::avx2::gather_rows(rows, lanes, columns, native) }
    }
}

/// For each set of eight lanes the shuffle that brings words to them: byte indices, 0x80 where there is no word.
static EXPAND: [[u8; 16]; 256] = shuffles(true);

/// For each set of eight lanes the shuffle that brings their words to the front.
static COMPRESS: [[u8; 16]; 256] = shuffles(false);

const fn shuffles(expand: bool) -> [[u8; 16]; 256] {
    let mut all = [[0x80; 16]; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut word) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                let (to, from) = if expand { (lane, word) } else { (word, lane) };
                all[set][2 * to] = 2 * from as u8;
                all[set][2 * to + 1] = 2 * from as u8 + 1;
                word += 1;
            }
            lane += 1;
        }
        set += 1;
    }
    all
}

/// 32 × u16.
#[derive(Clone, Copy)]
struct Pair(__m256i, __m256i);

/// Both registers of pairs.
macro_rules! both {
    ($op:ident($a:expr)) => {{
        let a = $a;
        Pair($op(a.0), $op(a.1))
    }};
    ($op:ident::<$n:literal>($a:expr)) => {{
        let a = $a;
        Pair($op::<$n>(a.0), $op::<$n>(a.1))
    }};
    ($op:ident($a:expr, $b:expr)) => {{
        let (a, b) = ($a, $b);
        Pair($op(a.0, b.0), $op(a.1, b.1))
    }};
    ($op:ident($a:expr, $b:expr, $c:expr)) => {{
        let (a, b, c) = ($a, $b, $c);
        Pair($op(a.0, b.0, c.0), $op(a.1, b.1, c.1))
    }};
}

impl Pair {
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn zero() -> Self {
        Self::all(0)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn all(value: i16) -> Self {
        let value = _mm256_set1_epi16(value);
        Self(value, value)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn load(from: &[u16; LANES]) -> Self {
        // SAFETY: 64 bytes, loads need no alignment.
        let (a, b) = unsafe {
            (_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(16).cast()))
        };
        Self(_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn store(self, to: &mut [u16; LANES]) {
        let (a, b) = (
            _mm256_permute2x128_si256::<0x20>(self.0, self.1),
            _mm256_permute2x128_si256::<0x31>(self.0, self.1),
        );
        // SAFETY: 64 bytes, stores need no alignment.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), a);
            _mm256_storeu_si256(to.as_mut_ptr().add(16).cast(), b);
        }
    }

    /// From low and high bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn from_bytes(low: __m256i, high: __m256i) -> Self {
        Self(_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high))
    }

    /// As bytes; values above 255 become 255.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn bytes(self) -> __m256i {
        _mm256_packus_epi16(self.0, self.1)
    }

    /// Masks as bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn mask_bytes(self) -> __m256i {
        _mm256_packs_epi16(self.0, self.1)
    }

    /// Masks as bits.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn mask(self) -> u32 {
        _mm256_movemask_epi8(self.mask_bytes()) as u32
    }

    /// Where `self ≥ other`, unsigned.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn at_least(self, other: Self) -> Self {
        both!(_mm256_cmpeq_epi16(both!(_mm256_max_epu16(self, other)), self))
    }

    /// `other` where `mask`, else `self`.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn merge(self, mask: Self, other: Self) -> Self {
        both!(_mm256_blendv_epi8(self, other, mask))
    }
}

/// A table of bytes for [`lookup`].
type Bytes = [[u8; 16]; 2];

/// The low bytes of a table, and the high ones.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn split(bytes: &mut [Bytes; 2], table: &[u16; BUCKETS]) {
    // SAFETY: 64 bytes, loads need no alignment.
    let (a, b) = unsafe {
        (_mm256_loadu_si256(table.as_ptr().cast()), _mm256_loadu_si256(table.as_ptr().add(16).cast()))
    };
    let low = _mm256_set1_epi16(0xff);
    let low = _mm256_packus_epi16(_mm256_and_si256(a, low), _mm256_and_si256(b, low));
    let high = _mm256_packus_epi16(_mm256_srli_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
    for (bytes, value) in bytes.iter_mut().zip([low, high]) {
        // SAFETY: 32 bytes, stores need no alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0xd8>(value)) };
    }
}

/// Entries by index, which is below 32; `upper` has bit 4 of it as the highest bit.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn lookup(table: &Bytes, index: __m256i, upper: __m256i) -> __m256i {
    // SAFETY: 16 bytes each, loads need no alignment.
    let (a, b) =
        unsafe { (_mm_loadu_si128(table[0].as_ptr().cast()), _mm_loadu_si128(table[1].as_ptr().cast())) };
    let a = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(a), index);
    let b = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(b), index);
    _mm256_blendv_epi8(a, b, upper)
}

#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn upper(index: __m256i) -> __m256i {
    _mm256_slli_epi16::<3>(index)
}

/// Which lanes use the tables of the second and of the third context, as masks of bytes.
#[derive(Clone, Copy)]
struct Select {
    second: __m256i,
    third: __m256i,
}

impl Select {
    /// The contexts of symbols.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn new(before: __m256i, [a, b]: Limits) -> Self {
        let at_least =
            |limit: u8| _mm256_cmpeq_epi8(_mm256_max_epu8(before, _mm256_set1_epi8(limit as i8)), before);
        Self { second: at_least(a), third: at_least(b) }
    }

    /// Where contexts do not count.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn none() -> Self {
        Self { second: _mm256_setzero_si256(), third: _mm256_setzero_si256() }
    }

    /// Entries of the first table, or of those of the contexts.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn bytes<const MODE: u8>(
        self,
        tables: [&Bytes; CONTEXT_TABLES],
        index: __m256i,
        upper: __m256i,
    ) -> __m256i {
        if MODE == CONTEXTS {
            let [_, a, b, c] = tables;
            let two = _mm256_blendv_epi8(lookup(a, index, upper), lookup(b, index, upper), self.second);
            _mm256_blendv_epi8(two, lookup(c, index, upper), self.third)
        } else {
            lookup(tables[0], index, upper)
        }
    }

    /// The same for entries of two bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn words<const MODE: u8>(
        self,
        tables: [&[Bytes; 2]; CONTEXT_TABLES],
        index: __m256i,
        upper: __m256i,
    ) -> Pair {
        let [a, b, c, d] = tables;
        let low = self.bytes::<MODE>([&a[0], &b[0], &c[0], &d[0]], index, upper);
        let high = self.bytes::<MODE>([&a[1], &b[1], &c[1], &d[1]], index, upper);
        Pair::from_bytes(low, high)
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn lookup_u16(table: &[Bytes; 2], index: __m256i, upper: __m256i) -> Pair {
    Pair::from_bytes(lookup(&table[0], index, upper), lookup(&table[1], index, upper))
}

#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn load_step(from: &Step) -> __m256i {
    // SAFETY: 32 bytes, loads need no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn store_step(to: &mut Step, value: __m256i) {
    // SAFETY: 32 bytes, stores need no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) };
}

/// A mask of the lanes from `from` to `to`.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn lanes_mask(lanes: Range<usize>) -> Pair {
    Pair::load(&std::array::from_fn(|lane| if lanes.contains(&lane) { u16::MAX } else { 0 }))
}

/// States in registers.
#[derive(Clone, Copy)]
struct Lane {
    lo: Pair,
    hi: Pair,
}

impl Lane {
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn load(state: &State) -> Self {
        Self { lo: Pair::load(&state.lo), hi: Pair::load(&state.hi) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn store(self, state: &mut State) {
        self.lo.store(&mut state.lo);
        self.hi.store(&mut state.hi);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn merge(self, mask: Pair, other: Self) -> Self {
        Self { lo: self.lo.merge(mask, other.lo), hi: self.hi.merge(mask, other.hi) }
    }
}

/// A decoder's table as bytes; of some only the low or the high ones count.
struct DecodeBytes {
    threshold: [Bytes; 2],
    alias: [Bytes; 2],
    delta: [Bytes; 2],
    freq: [Bytes; 2],
    /// Only if symbols are split.
    base: [Bytes; 2],
    symbols: [Bytes; 2],
    keep: [Bytes; 2],
}

impl DecodeBytes {
    const EMPTY: Self =
        Self { threshold: NONE, alias: NONE, delta: NONE, freq: NONE, base: NONE, symbols: NONE, keep: NONE };

    /// In place: copies would cost more than the conversion.
    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn fill<const MODE: u8>(&mut self, table: &DecodeTable) {
        split(&mut self.threshold, &table.threshold);
        split(&mut self.alias, &table.alias);
        split(&mut self.delta, &table.delta);
        split(&mut self.freq, &table.freq);
        if MODE == SPLIT {
            split(&mut self.base, &table.base);
            split(&mut self.symbols, &table.symbols);
            split(&mut self.keep, &table.keep);
        }
    }
}

const NONE: [Bytes; 2] = [[[0; 16]; 2]; 2];

/// All that a column may need: one table, or that of the first step and those of the contexts.
type Tables<T> = [T; CONTEXT_TABLES];

/// A part of each.
#[inline]
fn each<T, F>(tables: &Tables<T>, part: impl Fn(&T) -> &F) -> [&F; CONTEXT_TABLES] {
    let [a, b, c, d] = tables;
    [part(a), part(b), part(c), part(d)]
}

/// Decodes a coded symbol in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn find<const MODE: u8>(x: Lane, tables: &Tables<DecodeBytes>, select: Select) -> (__m256i, Lane) {
    let bucket = both!(_mm256_srli_epi16::<11>(x.lo)).bytes();
    let up = upper(bucket);
    let r = both!(_mm256_and_si256(x.lo, Pair::all(2047)));
    let threshold = select.words::<MODE>(each(tables, |table| &table.threshold), bucket, up);
    // Both are at most 2,048: a signed comparison will do.
    let own = both!(_mm256_cmpgt_epi16(threshold, r));
    let alias = select.bytes::<MODE>(each(tables, |table| &table.alias[0]), bucket, up);
    let symbol = _mm256_blendv_epi8(alias, bucket, own.mask_bytes());
    let delta = select.words::<MODE>(each(tables, |table| &table.delta), bucket, up);
    let offset = both!(_mm256_add_epi16(r, both!(_mm256_andnot_si256(own, delta))));
    let freq = select.words::<MODE>(each(tables, |table| &table.freq), symbol, upper(symbol));
    let lo = both!(_mm256_add_epi16(both!(_mm256_mullo_epi16(freq, x.hi)), offset));
    // 1 for the carry, less 1 where there was none.
    let carry = both!(_mm256_add_epi16(lo.at_least(offset), Pair::all(1)));
    let hi = both!(_mm256_add_epi16(both!(_mm256_mulhi_epu16(freq, x.hi)), carry));
    (symbol, Lane { lo, hi })
}

/// Low bits: `keep` bits of the low half stay, the others leave. Shifts are multiplications.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn low_bits(coded: __m256i, x: Lane, table: &DecodeBytes) -> (__m256i, Lane) {
    let up = upper(coded);
    let zero = _mm256_setzero_si256();
    let keep = Pair::from_bytes(zero, lookup(&table.keep[1], coded, up));
    let stay = both!(_mm256_add_epi16(keep, Pair::all(-1)));
    let low = both!(_mm256_mulhi_epu16(x.lo, lookup_u16(&table.symbols, coded, up)));
    let symbol = _mm256_add_epi8(lookup(&table.base[0], coded, up), low.bytes());
    let whole = both!(_mm256_and_si256(x.hi, both!(_mm256_cmpeq_epi16(keep, Pair::zero()))));
    let hi = both!(_mm256_or_si256(both!(_mm256_mulhi_epu16(x.hi, keep)), whole));
    let moved = both!(_mm256_mullo_epi16(x.hi, keep));
    let lo = both!(_mm256_or_si256(moved, both!(_mm256_and_si256(x.lo, stay))));
    (symbol, Lane { lo, hi })
}

/// Refills the lanes of `active`; returns how many words that took.
///
/// # Safety
/// 32 words must be there.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn refill(x: Lane, active: Pair, words: *const [u8; 2]) -> (Lane, usize) {
    let empty = both!(_mm256_and_si256(both!(_mm256_cmpeq_epi16(x.hi, Pair::zero())), active));
    let set = empty.mask();
    let group = |index: u32| {
        let before = (set & ((1 << (8 * index)) - 1)).count_ones() as usize;
        let shuffle = &EXPAND[(set >> (8 * index) & 0xff) as usize];
        // SAFETY: at most 8 words go before each group, and 16 bytes are loaded for each.
        unsafe {
            let words = _mm_loadu_si128(words.add(before).cast());
            _mm_shuffle_epi8(words, _mm_loadu_si128(shuffle.as_ptr().cast()))
        }
    };
    let words = Pair(_mm256_set_m128i(group(2), group(0)), _mm256_set_m128i(group(3), group(1)));
    let lane = Lane { lo: x.lo.merge(empty, words), hi: x.hi.merge(empty, x.lo) };
    (lane, set.count_ones() as usize)
}

/// Decodes a symbol in every lane.
///
/// # Safety
/// There must be 32 words, 64 if symbols are split.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn step<const MODE: u8>(
    lane: &mut Lane,
    active: Pair,
    tables: &Tables<DecodeBytes>,
    select: Select,
    words: &mut *const [u8; 2],
) -> __m256i {
    let (mut symbol, x) = find::<MODE>(*lane, tables, select);
    // SAFETY: the caller's promise; no more words are used than there are lanes.
    unsafe {
        let (x, used) = refill(x, active, *words);
        *words = words.add(used);
        *lane = x;
    }
    if MODE == SPLIT {
        (symbol, *lane) = low_bits(symbol, *lane, &tables[0]);
        // SAFETY: as above.
        unsafe {
            let (x, used) = refill(*lane, active, *words);
            *words = words.add(used);
            *lane = x;
        }
    }
    symbol
}

/// The same behind a step with these symbols.
///
/// # Safety
/// As for [`step`].
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn step_after<const MODE: u8>(
    before: Option<&Step>,
    limits: Limits,
    lane: &mut Lane,
    active: Pair,
    tables: &Tables<DecodeBytes>,
    words: &mut *const [u8; 2],
) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        match before {
            Some(before) if MODE == CONTEXTS => {
                step::<CONTEXTS>(lane, active, tables, Select::new(load_step(before), limits), words)
            }
            // The first step has a table of its own.
            None if MODE == CONTEXTS => step::<PLAIN>(lane, active, tables, Select::none(), words),
            _ => step::<MODE>(lane, active, tables, Select::none(), words),
        }
    }
}

#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn decode<const N: usize, const MODE: u8>(mut runs: [DecodeRun<'_, '_>; N]) -> usize {
    let (columns, steps, part) = (runs[0].columns.len(), runs[0].steps, runs[0].more > 0);
    let all = Pair::all(-1);
    let mut lanes = [Lane { lo: all, hi: all }; N];
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
        last[i] = run.words[run.words.len() - needed..].as_ptr();
    }
    let mut tables = [const { [const { DecodeBytes::EMPTY }; CONTEXT_TABLES] }; N];
    let mut column = 0;
    while column < columns && (0..N).all(|i| words[i] <= last[i]) {
        let limits: [Limits; N] = std::array::from_fn(|i| runs[i].limits::<MODE>(column));
        for i in 0..N {
            for (to, from) in tables[i].iter_mut().zip(runs[i].tables::<MODE>(column)) {
                to.fill::<MODE>(from);
            }
        }
        for step in 0..steps {
            for i in 0..N {
                let at = column * runs[i].stride + step;
                // SAFETY: there are words for all steps of the column, and `out` has all of them.
                unsafe {
                    let before = match step {
                        _ if MODE != CONTEXTS => None,
                        0 => runs[i].before.as_ref(),
                        _ => Some(runs[i].out.get_unchecked(at - 1)),
                    };
                    let symbols =
                        step_after::<MODE>(before, limits[i], &mut lanes[i], all, &tables[i], &mut words[i]);
                    store_step(runs[i].out.get_unchecked_mut(at), symbols);
                }
            }
        }
        for i in 0..if part { N } else { 0 } {
            let at = column * runs[i].stride + steps;
            let (before, mask) = (lanes[i], lanes_mask(0..runs[i].more));
            // SAFETY: there are words for this step as well, its item in `out`, and whole steps before it.
            unsafe {
                let last = Some(runs[i].out.get_unchecked(at - 1));
                let symbols =
                    step_after::<MODE>(last, limits[i], &mut lanes[i], mask, &tables[i], &mut words[i]);
                let symbols = _mm256_and_si256(symbols, mask.mask_bytes());
                store_step(runs[i].out.get_unchecked_mut(at), symbols);
            }
            lanes[i] = before.merge(mask, lanes[i]);
        }
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

#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn decode_part<const MODE: u8>(run: DecodeRun<'_, '_>, active: usize) {
    let mut tables = [const { DecodeBytes::EMPTY }; CONTEXT_TABLES];
    for (to, from) in tables.iter_mut().zip(run.tables::<MODE>(0)) {
        to.fill::<MODE>(from);
    }
    let limits = run.limits::<MODE>(0);
    let mask = lanes_mask(0..active);
    let before = Lane::load(run.state);
    let mut x = before;
    assert!(run.words.len() >= words_per_step(MODE));
    let mut words = run.words.as_ptr();
    // SAFETY: just checked.
    let symbols =
        unsafe { step_after::<MODE>(run.before.as_ref(), limits, &mut x, mask, &tables, &mut words) };
    // SAFETY: both point into the same words.
    let used = unsafe { words.offset_from(run.words.as_ptr()) };
    *run.words = &run.words[used as usize..];
    before.merge(mask, x).store(run.state);
    store_step(&mut run.out[0], _mm256_and_si256(symbols, mask.mask_bytes()));
}

/// An encoder's table as bytes; of some only the low or the high ones count.
struct EncodeBytes {
    freq: [Bytes; 2],
    reciprocal_low: [Bytes; 2],
    reciprocal_high: [Bytes; 2],
    threshold: [Bytes; 2],
    place: [Bytes; 2],
    cell: [Bytes; 2],
    bounds: [[Bytes; 2]; MAX_BOUNDS],
    pieces: [Bytes; 2],
    shift: [Bytes; 2],
    /// Only if symbols are split.
    symbols: [Bytes; 2],
    keep: [Bytes; 2],
}

impl EncodeBytes {
    const EMPTY: Self = Self {
        freq: NONE,
        reciprocal_low: NONE,
        reciprocal_high: NONE,
        threshold: NONE,
        place: NONE,
        cell: NONE,
        bounds: [NONE; MAX_BOUNDS],
        pieces: NONE,
        shift: NONE,
        symbols: NONE,
        keep: NONE,
    };

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn fill<const MODE: u8>(&mut self, table: &EncodeTable, most: usize) {
        split(&mut self.freq, &table.freq);
        split(&mut self.reciprocal_low, &table.reciprocal_low);
        split(&mut self.reciprocal_high, &table.reciprocal_high);
        split(&mut self.threshold, &table.threshold);
        split(&mut self.place, &table.place);
        split(&mut self.shift, &table.shift);
        if most <= MAX_BOUNDS {
            split(&mut self.cell, &table.cell);
            for (to, from) in self.bounds.iter_mut().zip(&table.bounds).take(most) {
                split(to, from);
            }
        } else {
            split(&mut self.pieces, &table.pieces);
        }
        if MODE == SPLIT {
            split(&mut self.symbols, &table.symbols);
            split(&mut self.keep, &table.keep);
        }
    }
}

/// Takes words out of the lanes where `x` would overflow, and writes them.
///
/// # Safety
/// There must be room for 32 words.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn spill(x: Lane, full: Pair, room: *mut [u8; 2]) -> (Lane, usize) {
    let set = full.mask();
    let groups = [
        _mm256_castsi256_si128(x.lo.0),
        _mm256_castsi256_si128(x.lo.1),
        _mm256_extracti128_si256::<1>(x.lo.0),
        _mm256_extracti128_si256::<1>(x.lo.1),
    ];
    for (index, group) in groups.into_iter().enumerate() {
        let before = (set & ((1 << (8 * index)) - 1)).count_ones() as usize;
        let shuffle = &COMPRESS[(set >> (8 * index) & 0xff) as usize];
        // SAFETY: at most 8 words go before each group, and 16 bytes are stored for each.
        unsafe {
            let words = _mm_shuffle_epi8(group, _mm_loadu_si128(shuffle.as_ptr().cast()));
            _mm_storeu_si128(room.add(before).cast(), words);
        }
    }
    let lane = Lane { lo: x.lo.merge(full, x.hi), hi: both!(_mm256_andnot_si256(full, x.hi)) };
    (lane, set.count_ones() as usize)
}

/// Puts the low bits of a symbol into the states.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn put_low_bits(symbol: Pair, x: Lane, keep: Pair, symbols: Pair) -> Lane {
    let stay = both!(_mm256_add_epi16(keep, Pair::all(-1)));
    let low = both!(_mm256_mulhi_epu16(x.lo, symbols));
    let hi = both!(_mm256_or_si256(both!(_mm256_mullo_epi16(x.hi, symbols)), low));
    let put = both!(_mm256_mullo_epi16(symbol, keep));
    let lo = both!(_mm256_or_si256(put, both!(_mm256_and_si256(x.lo, stay))));
    Lane { lo, hi }
}

/// Quotients by reciprocal, right or one too low.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn estimate(lo: __m256i, hi: __m256i, low: __m256i, high: __m256i) -> __m256i {
    let zero = _mm256_setzero_si256();
    let scale = _mm256_set1_ps(65_536.0);
    // Rounded once, as a conversion of u32 would be.
    let convert = |lo, hi| _mm256_fmadd_ps(_mm256_cvtepi32_ps(hi), scale, _mm256_cvtepi32_ps(lo));
    let a = convert(_mm256_unpacklo_epi16(lo, zero), _mm256_unpacklo_epi16(hi, zero));
    let b = convert(_mm256_unpackhi_epi16(lo, zero), _mm256_unpackhi_epi16(hi, zero));
    let a = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high)));
    let b = _mm256_mul_ps(b, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high)));
    _mm256_packus_epi32(_mm256_cvttps_epi32(a), _mm256_cvttps_epi32(b))
}

/// The inverse of [`find`], after [`spill`]. As for AVX-512.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn put<const MODE: u8, const WIDE: bool>(
    symbol: __m256i,
    freq: Pair,
    x: Lane,
    column: &Column<'_>,
    select: Select,
) -> Lane {
    let (up, tables) = (upper(symbol), &column.bytes);
    let low = select.words::<MODE>(each(tables, |table| &table.reciprocal_low), symbol, up);
    let high = select.words::<MODE>(each(tables, |table| &table.reciprocal_high), symbol, up);
    let q = Pair(estimate(x.lo.0, x.hi.0, low.0, high.0), estimate(x.lo.1, x.hi.1, low.1, high.1));
    let product = both!(_mm256_mullo_epi16(q, freq));
    let r = both!(_mm256_sub_epi16(x.lo, product));
    let mut fix = r.at_least(freq);
    if WIDE {
        // Bit 16 of the remainder: 1 for the borrow, less 1 where there was none.
        let borrow = both!(_mm256_add_epi16(x.lo.at_least(product), Pair::all(1)));
        let high = both!(_mm256_sub_epi16(x.hi, both!(_mm256_mulhi_epu16(q, freq))));
        let same = both!(_mm256_cmpeq_epi16(high, borrow));
        fix = both!(_mm256_or_si256(fix, both!(_mm256_xor_si256(same, Pair::all(-1)))));
    }
    let q = both!(_mm256_sub_epi16(q, fix));
    let r = both!(_mm256_sub_epi16(r, both!(_mm256_and_si256(fix, freq))));
    // The slot of offset r: in the own bucket, or in a piece of another one.
    let threshold = select.words::<MODE>(each(tables, |table| &table.threshold), symbol, up);
    let other = both!(_mm256_cmpeq_epi16(both!(_mm256_subs_epu16(threshold, r)), Pair::zero()));
    let place = select.words::<MODE>(each(tables, |table| &table.place), symbol, up);
    let place = both!(_mm256_add_epi16(r, place));
    let piece = if column.most <= MAX_BOUNDS {
        let cell = both!(_mm256_srli_epi16::<11>(place)).bytes();
        let up = upper(cell);
        let mut piece = select.bytes::<MODE>(each(tables, |table| &table.cell[0]), cell, up);
        for i in 0..column.most {
            let bounds = select.words::<MODE>(each(tables, |table| &table.bounds[i]), cell, up);
            piece = _mm256_sub_epi8(piece, place.at_least(bounds).mask_bytes());
        }
        piece
    } else {
        search::<MODE>(place, tables, select)
    };
    let shift = select.words::<MODE>(each(tables, |table| &table.shift), piece, upper(piece));
    let own = Pair::from_bytes(_mm256_setzero_si256(), upper(symbol));
    let lo = both!(_mm256_add_epi16(r, own.merge(other, shift)));
    Lane { lo, hi: q }
}

/// The piece of a place, by binary search: for tables with many pieces in one cell, which are rare.
#[inline(never)]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn search<const MODE: u8>(place: Pair, tables: &Tables<EncodeBytes>, select: Select) -> __m256i {
    let mut piece = _mm256_setzero_si256();
    for bit in [16, 8, 4, 2, 1] {
        let next = _mm256_or_si256(piece, _mm256_set1_epi8(bit));
        let begin = select.words::<MODE>(each(tables, |table| &table.pieces), next, upper(next));
        let above = place.at_least(begin);
        piece = _mm256_blendv_epi8(piece, next, above.mask_bytes());
    }
    piece
}

/// Coded symbols.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn coded(symbols: &Step, table: &EncodeTable) -> __m256i {
    let mut coded = [0u8; LANES];
    for (coded, symbol) in coded.iter_mut().zip(symbols) {
        *coded = table.coded[usize::from(*symbol)];
    }
    load_step(&coded)
}

/// What a column is encoded by.
struct Column<'t> {
    /// One table, or that of the first step and those of the contexts.
    tables: &'t [EncodeTable],
    bytes: Tables<EncodeBytes>,
    limits: Limits,
    /// Bounds that count, more if there are too many for `bounds`.
    most: usize,
}

impl<'t> Column<'t> {
    const EMPTY: Self =
        Self { tables: &[], bytes: [const { EncodeBytes::EMPTY }; CONTEXT_TABLES], limits: [0; 2], most: 0 };

    #[inline]
    #[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
    fn fill<const MODE: u8>(&mut self, run: &EncodeRun<'t>, column: usize) {
        self.tables = run.tables::<MODE>(column);
        self.limits = run.limits::<MODE>(column);
        self.most = self.tables.iter().map(|table| usize::from(table.most)).max().unwrap_or(0);
        for (bytes, table) in self.bytes.iter_mut().zip(self.tables) {
            bytes.fill::<MODE>(table, self.most);
        }
    }
}

/// Encodes a symbol in every lane.
///
/// # Safety
/// There must be room for 32 words, 64 if symbols are split.
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn encode_step<const MODE: u8, const WIDE: bool>(
    lane: &mut Lane,
    active: Pair,
    symbols: &Step,
    column: &Column<'_>,
    select: Select,
    room: &mut *mut [u8; 2],
) {
    let mut symbol = load_step(symbols);
    if MODE == SPLIT {
        let (zero, bytes) = (_mm256_setzero_si256(), &column.bytes[0]);
        let whole = Pair::from_bytes(symbol, zero);
        symbol = coded(symbols, &column.tables[0]);
        let up = upper(symbol);
        let keep = Pair::from_bytes(zero, lookup(&bytes.keep[1], symbol, up));
        // 0 stands for 65,536: nothing is moved there.
        let none = both!(_mm256_cmpeq_epi16(keep, Pair::zero()));
        let full = both!(_mm256_andnot_si256(none, lane.hi.at_least(keep)));
        // SAFETY: the caller's promise.
        unsafe {
            let (x, count) = spill(*lane, both!(_mm256_and_si256(full, active)), *room);
            *room = room.add(count);
            *lane = put_low_bits(whole, x, keep, lookup_u16(&bytes.symbols, symbol, up));
        }
    }
    let freq = select.words::<MODE>(each(&column.bytes, |table| &table.freq), symbol, upper(symbol));
    let full = both!(_mm256_and_si256(lane.hi.at_least(freq), active));
    // SAFETY: the caller's promise.
    unsafe {
        let (x, count) = spill(*lane, full, *room);
        *room = room.add(count);
        *lane = put::<MODE, WIDE>(symbol, freq, x, column, select);
    }
}

/// The same behind a step with these symbols.
///
/// # Safety
/// As for [`encode_step`].
#[inline]
#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
unsafe fn encode_after<const MODE: u8, const WIDE: bool>(
    before: Option<&Step>,
    lane: &mut Lane,
    active: Pair,
    symbols: &Step,
    column: &Column<'_>,
    room: &mut *mut [u8; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match before {
            Some(before) if MODE == CONTEXTS => {
                let select = Select::new(load_step(before), column.limits);
                encode_step::<CONTEXTS, WIDE>(lane, active, symbols, column, select, room);
            }
            // The first step has a table of its own.
            None if MODE == CONTEXTS => {
                encode_step::<PLAIN, WIDE>(lane, active, symbols, column, Select::none(), room);
            }
            _ => encode_step::<MODE, WIDE>(lane, active, symbols, column, Select::none(), room),
        }
    }
}

#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn encode<const N: usize, const MODE: u8>(mut runs: [EncodeRun<'_>; N]) {
    let (columns, steps, part) = (runs[0].columns.len(), runs[0].steps, runs[0].more > 0);
    let all = Pair::all(-1);
    let mut lanes = [Lane { lo: all, hi: all }; N];
    let mut room = [std::ptr::null_mut::<[u8; 2]>(); N];
    for i in 0..N {
        let run = &mut runs[i];
        let all = run.all_steps();
        assert!(run.columns.len() == columns && run.steps == steps && run.stride >= all);
        assert!(run.symbols.len() >= (columns - 1) * run.stride + all);
        assert!(if part { run.more > 0 && steps > 0 } else { run.more == 0 });
        assert!(run.room.len() >= run.words(MODE));
        lanes[i] = Lane::load(run.state);
        room[i] = run.room.as_mut_ptr();
    }
    let mut filled = [const { Column::EMPTY }; N];
    for column in (0..columns).rev() {
        for i in 0..N {
            filled[i].fill::<MODE>(&runs[i], column);
        }
        let wide = filled.iter().flat_map(|column| column.tables).any(|table| table.wide);
        for i in 0..if part { N } else { 0 } {
            let (before, mask) = (lanes[i], lanes_mask(LANES - runs[i].more..LANES));
            // SAFETY: there are whole steps before this one. Vectors may reach into what they have room for; they
            // come next.
            unsafe {
                let at = column * runs[i].stride + steps;
                let (symbols, last) =
                    (runs[i].symbols.get_unchecked(at), runs[i].symbols.get_unchecked(at - 1));
                let (lane, room) = (&mut lanes[i], &mut room[i]);
                encode_after::<MODE, true>(Some(last), lane, mask, symbols, &filled[i], room);
            }
            lanes[i] = before.merge(mask, lanes[i]);
        }
        for step in (0..steps).rev() {
            for i in 0..N {
                // SAFETY: all columns have `steps` symbols and room for as many words as they can need.
                unsafe {
                    let at = column * runs[i].stride + step;
                    let symbols = runs[i].symbols.get_unchecked(at);
                    let before = match step {
                        _ if MODE != CONTEXTS => None,
                        0 => runs[i].before.as_ref(),
                        _ => Some(runs[i].symbols.get_unchecked(at - 1)),
                    };
                    let (lane, room) = (&mut lanes[i], &mut room[i]);
                    if wide {
                        encode_after::<MODE, true>(before, lane, all, symbols, &filled[i], room);
                    } else {
                        encode_after::<MODE, false>(before, lane, all, symbols, &filled[i], room);
                    }
                }
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

#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn encode_part<const MODE: u8>(run: EncodeRun<'_>, active: usize) {
    let mut column = Column::EMPTY;
    column.fill::<MODE>(&run, 0);
    let mask = lanes_mask(LANES - active..LANES);
    let before = Lane::load(run.state);
    let mut x = before;
    // There may be less room than vectors need.
    let mut words = [[0; 2]; 2 * LANES];
    let mut room = words.as_mut_ptr();
    // SAFETY: `words` has room.
    let count = unsafe {
        encode_after::<MODE, true>(run.before.as_ref(), &mut x, mask, &run.symbols[0], &column, &mut room);
        room.offset_from(words.as_ptr()) as usize
    };
    run.room[..count].copy_from_slice(&words[..count]);
    *run.written += count;
    before.merge(mask, x).store(run.state);
}

#[target_feature(enable = "avx2,fma,popcnt,bmi1,bmi2")]
fn reverse(mut words: &mut [[u8; 2]]) {
    let order = _mm256_setr_epi8(
        14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1, //
        14, 15, 12, 13, 10, 11, 8, 9, 6, 7, 4, 5, 2, 3, 0, 1,
    );
    let turn = |words| _mm256_permute4x64_epi64::<0x4e>(_mm256_shuffle_epi8(words, order));
    while words.len() >= LANES {
        let (first, rest) = words.split_at_mut(LANES / 2);
        let (rest, last) = rest.split_at_mut(rest.len() - LANES / 2);
        // SAFETY: both are 32 bytes.
        unsafe {
            let (a, b) =
                (_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(last.as_ptr().cast()));
            _mm256_storeu_si256(first.as_mut_ptr().cast(), turn(b));
            _mm256_storeu_si256(last.as_mut_ptr().cast(), turn(a));
        }
        words = rest;
    }
    words.reverse();
}
