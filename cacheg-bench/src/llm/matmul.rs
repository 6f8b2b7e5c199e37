//! Products of small matrices in slices, by the `gemm` crate that candle uses too, on the calling thread.
#![allow(unsafe_code, reason = "gemm takes pointers; lengths are checked here")]

/// `out = a · b`, or `out += a · b`: `[m, k] · [k, n]`, all row-major and dense.
///
/// With `m >= 2`, a row of the result does not depend on how many rows there are: see [`super::linear`].
pub(super) fn matmul(out: &mut [f32], add: bool, a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) {
    assert!(
        out.len() == m * n && a.len() == m * k && b.len() == k * n,
        "matmul: lengths are not the shapes'"
    );
    // SAFETY: every element m × n, m × k, k × n that the strides reach is inside its slice, as just checked, and
    // `out` is borrowed mutably, so overlaps nothing.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            1,
            n as isize,
            if add { 1.0f32 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_and_added() {
        let mut out = [1.0; 4];
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        matmul(&mut out, false, &a, &b, (2, 3, 2));
        assert_eq!(out, [4.0, 5.0, 10.0, 11.0]);
        matmul(&mut out, true, &a, &b, (2, 3, 2));
        assert_eq!(out, [8.0, 10.0, 20.0, 22.0]);
    }
}
