//! f16 by the processor's own conversion instructions.
//!
//! They agree with the portable code on every finite number within range. Everything else (infinities and NaNs,
//! whose payloads the instructions would change; values that saturate) is noticed, and that run done again by the
//! portable code.
#![expect(unsafe_code, reason = "loads and stores of whole vectors behind slices' bounds; calls behind detection")]

use std::arch::x86_64::*;

use super::{Runs, Store};

/// Widens `runs.count` runs of f16. Whether all values are certainly finite; `None` if the processor cannot.
pub(super) fn widen(
    bytes: &[u8],
    out: &mut [f32],
    runs: Runs,
    portable: fn(&[u8], &mut [f32]),
) -> Option<bool> {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
        // SAFETY: the features are there.
        Some(unsafe { widen_avx512(bytes, out, runs, portable) })
    } else if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: the features are there.
        Some(unsafe { widen_f16c(bytes, out, runs, portable) })
    } else {
        None
    }
}

/// Narrows `runs.count` runs to f16; `false` if the processor cannot.
pub(super) fn narrow(
    values: &[f32],
    bytes: &mut [u8],
    runs: Runs,
    store: Store,
    portable: fn(&[f32], &mut [u8]),
) -> bool {
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
        let lines = bytes.as_ptr().addr() % 64 == 0 && runs.len % 32 == 0;
        // SAFETY: the features are there, and whole lines if they are to go past the cache.
        unsafe {
            if lines && store == Store::Streaming {
                stream_avx512(values, bytes, runs, portable);
            } else {
                narrow_avx512(values, bytes, runs, portable);
            }
        }
    } else if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") {
        // SAFETY: the features are there.
        unsafe { narrow_f16c(values, bytes, runs, portable) }
    } else {
        return false;
    }
    true
}

/// Makes what went past the cache visible to other threads before anything that this one writes later.
pub(super) fn fence() {
    // SAFETY: every x86-64 processor has it.
    unsafe { _mm_sfence() }
}

#[target_feature(enable = "avx512f,avx512dq")]
fn widen_avx512(bytes: &[u8], out: &mut [f32], runs: Runs, portable: fn(&[u8], &mut [f32])) -> bool {
    let mut all = true;
    for run in 0..runs.count {
        let from = &bytes[runs.bytes(run, 2)];
        // What is asked for next usually follows these runs: the processor's own prefetching would begin anew with
        // every few runs.
        for line in (0..from.len()).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(bytes.len() + line).cast());
        }
        let to = &mut out[runs.values(run)];
        let (from16, to16) = (from.as_chunks::<32>().0, to.as_chunks_mut::<16>().0);
        let mut odd = 0;
        for (from, to) in from16.iter().zip(to16) {
            // SAFETY: 32 bytes are read and 64 written; neither needs alignment.
            unsafe {
                let x = _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()));
                odd |= _mm512_fpclass_ps_mask::<NOT_FINITE>(x);
                _mm512_storeu_ps(to.as_mut_ptr(), x);
            }
        }
        let done = if odd == 0 { to.len() / 16 * 16 } else { 0 };
        if done < to.len() {
            portable(&from[2 * done..], &mut to[done..]);
            all = false;
        }
    }
    all
}

/// Classes of `vfpclassps`: quiet and signalling NaN, both infinities.
const NOT_FINITE: i32 = 0x01 | 0x08 | 0x10 | 0x80;
/// The largest finite f16. Values from 65,520 would round to infinity; the portable code saturates.
const MAX: f32 = 65_504.0;

#[target_feature(enable = "avx512f,avx512dq")]
fn narrow_avx512(values: &[f32], bytes: &mut [u8], runs: Runs, portable: fn(&[f32], &mut [u8])) {
    let max = _mm512_set1_ps(MAX);
    for run in 0..runs.count {
        let from = &values[runs.values(run)];
        let to = &mut bytes[runs.bytes(run, 2)];
        let (from16, to16) = (from.as_chunks::<16>().0, to.as_chunks_mut::<32>().0);
        let mut odd = 0;
        for (from, to) in from16.iter().zip(to16) {
            // SAFETY: 64 bytes are read and 32 written; neither needs alignment.
            unsafe {
                let x = _mm512_loadu_ps(from.as_ptr());
                odd |= _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(x), max);
                let h = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
                _mm256_storeu_si256(to.as_mut_ptr().cast(), h);
            }
        }
        let done = if odd == 0 { from.len() / 16 * 16 } else { 0 };
        if done < from.len() {
            portable(&from[done..], &mut to[2 * done..]);
        }
    }
}

/// # Safety
/// `bytes` must begin at a line and the runs be whole lines.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn stream_avx512(values: &[f32], bytes: &mut [u8], runs: Runs, portable: fn(&[f32], &mut [u8])) {
    let max = _mm512_set1_ps(MAX);
    for run in 0..runs.count {
        let from = &values[runs.values(run)];
        let to = &mut bytes[runs.bytes(run, 2)];
        let mut odd = 0;
        for (from, to) in from.as_chunks::<32>().0.iter().zip(to.as_chunks_mut::<64>().0) {
            // SAFETY: 128 bytes are read, without alignment, and an aligned line written.
            unsafe {
                let (a, b) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16)));
                odd |= _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(a), max);
                odd |= _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(_mm512_abs_ps(b), max);
                let a = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
                let b = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(b);
                let line = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
                _mm512_stream_si512(to.as_mut_ptr().cast(), line);
            }
        }
        if odd != 0 {
            portable(from, to);
        }
    }
}

#[target_feature(enable = "avx,f16c")]
fn widen_f16c(bytes: &[u8], out: &mut [f32], runs: Runs, portable: fn(&[u8], &mut [f32])) -> bool {
    let mut all = true;
    let max = _mm256_set1_ps(MAX);
    let sign = _mm256_set1_ps(-0.0);
    for run in 0..runs.count {
        let from = &bytes[runs.bytes(run, 2)];
        let to = &mut out[runs.values(run)];
        let (from8, to8) = (from.as_chunks::<16>().0, to.as_chunks_mut::<8>().0);
        let mut odd = _mm256_setzero_ps();
        for (from, to) in from8.iter().zip(to8) {
            // SAFETY: 16 bytes are read and 32 written; neither needs alignment.
            unsafe {
                let x = _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()));
                let large = _mm256_cmp_ps::<_CMP_NLE_UQ>(_mm256_andnot_ps(sign, x), max);
                odd = _mm256_or_ps(odd, large);
                _mm256_storeu_ps(to.as_mut_ptr(), x);
            }
        }
        let done = if _mm256_movemask_ps(odd) == 0 { to.len() / 8 * 8 } else { 0 };
        if done < to.len() {
            portable(&from[2 * done..], &mut to[done..]);
            all = false;
        }
    }
    all
}

#[target_feature(enable = "avx,f16c")]
fn narrow_f16c(values: &[f32], bytes: &mut [u8], runs: Runs, portable: fn(&[f32], &mut [u8])) {
    let max = _mm256_set1_ps(MAX);
    let sign = _mm256_set1_ps(-0.0);
    for run in 0..runs.count {
        let from = &values[runs.values(run)];
        let to = &mut bytes[runs.bytes(run, 2)];
        let (from8, to8) = (from.as_chunks::<8>().0, to.as_chunks_mut::<16>().0);
        let mut odd = _mm256_setzero_ps();
        for (from, to) in from8.iter().zip(to8) {
            // SAFETY: 32 bytes are read and 16 written; neither needs alignment.
            unsafe {
                let x = _mm256_loadu_ps(from.as_ptr());
                let large = _mm256_cmp_ps::<_CMP_NLE_UQ>(_mm256_andnot_ps(sign, x), max);
                odd = _mm256_or_ps(odd, large);
                let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
                _mm_storeu_si128(to.as_mut_ptr().cast(), h);
            }
        }
        let done = if _mm256_movemask_ps(odd) == 0 { from.len() / 8 * 8 } else { 0 };
        if done < from.len() {
            portable(&from[done..], &mut to[2 * done..]);
        }
    }
}
