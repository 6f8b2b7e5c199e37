//! What memory allows: copying the f16 values that decoding would write, and making them from symbols that are
//! there already.

use std::rc::Rc;

use cacheg::core::Dtype;

use super::race::{Entrant, Family, Work, Write};
use super::symbols::{Order, Symbols};

/// Both references; `values` are the f16 values.
pub(crate) fn entrants(symbols: &Symbols, values: &Rc<[u8]>) -> Vec<Entrant> {
    let source = Rc::clone(values);
    let rows: Vec<(usize, f32)> = symbols
        .streams
        .iter()
        .flat_map(|stream| &stream.tiles)
        .flat_map(|tile| std::iter::repeat_n(tile.segment.cols, tile.segment.rows))
        .zip(symbols.steps.iter().copied())
        .collect();
    let (all, center) = (symbols.all(Order::Token).to_vec(), symbols.center());
    let copy = move |out: &mut [u8]| out.copy_from_slice(&source);
    let dequantize = move |out: &mut [u8]| {
        let (mut rest, mut out) = (all.as_slice(), out);
        for (cols, step) in &rows {
            let (own, more) = rest.split_at(*cols);
            let (to, more_out) = std::mem::take(&mut out).split_at_mut(cols * 2);
            (rest, out) = (more, more_out);
            dequantize_row(own, center, *step, to);
        }
    };
    let entrant = |name: &str, run: Write| Entrant {
        name: name.to_owned(),
        family: Family::Reference,
        work: Work::Reference(run),
    };
    vec![
        entrant("memcpy of the f16 values", Box::new(copy)),
        entrant("plain dequantise u8 to f16", Box::new(dequantize)),
    ]
}

/// `(symbol − center) · step` as f16.
fn dequantize_row(symbols: &[u8], center: f32, step: f32, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has both.
        #[expect(unsafe_code, reason = "calls a function for processors that have AVX2 and F16C")]
        unsafe {
            x86::dequantize_row(symbols, center, step, out);
        }
        return;
    }
    portable(symbols, center, step, out);
}

fn portable(symbols: &[u8], center: f32, step: f32, out: &mut [u8]) {
    for (symbol, out) in symbols.iter().zip(out.as_chunks_mut::<2>().0) {
        Dtype::F16.narrow(&[(f32::from(*symbol) - center) * step], out);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_FROUND_TO_NEAREST_INT, _mm_cvtsi64_si128, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
        _mm256_cvtps_ph, _mm256_mul_ps, _mm256_set1_ps, _mm256_sub_ps,
    };

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn dequantize_row(symbols: &[u8], center: f32, step: f32, out: &mut [u8]) {
        let (blocks, rest) = symbols.as_chunks::<8>();
        let (to, rest_to) = out.as_chunks_mut::<16>();
        let (center_8, step_8) = (_mm256_set1_ps(center), _mm256_set1_ps(step));
        for (block, to) in blocks.iter().zip(&mut *to) {
            let eight = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*block)));
            let values = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(eight), center_8), step_8);
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            // SAFETY: both are 16 bytes of plain numbers; on x86 the first element comes first.
            #[expect(unsafe_code, reason = "a vector of numbers as its bytes")]
            let bytes = unsafe { std::mem::transmute::<std::arch::x86_64::__m128i, [u8; 16]>(halves) };
            *to = bytes;
        }
        // Rows that are no multiple of 8: the rest of `out` begins behind the last whole block.
        if !rest.is_empty() {
            super::portable(rest, center, step, rest_to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_round_alike() {
        let symbols: Vec<u8> = (0..=30).collect();
        for step in [0.0, 0.01, 0.37, 123.4] {
            let (mut a, mut b) = (vec![0; 62], vec![0; 62]);
            dequantize_row(&symbols, 15.0, step, &mut a);
            portable(&symbols, 15.0, step, &mut b);
            assert_eq!(a, b);
        }
    }
}
