//! Products of small matrices in slices, by the `gemm` crate that candle uses too, on the calling thread.
#![allow(unsafe_code, reason = "gemm takes pointers; lengths are checked here")]

/// A matrix in a slice, of any strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major and dense, `[values.len() / cols, cols]`.
    pub(crate) fn dense(values: &'a [T], cols: usize) -> Self {
        let rows = values.len().checked_div(cols).unwrap_or(0);
        assert_eq!(rows * cols, values.len(), "matrix: values do not fill rows");
        Self { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Some of its columns.
    pub(crate) fn columns(self, first: usize, cols: usize) -> Self {
        assert!(first + cols <= self.cols, "matrix: columns beyond the last");
        let begin = (first * self.col_stride).min(self.values.len());
        Self { values: &self.values[begin..], cols, ..self }
    }

    /// Rows as columns.
    pub(crate) fn turned(self) -> Self {
        let Self { values, rows, cols, row_stride, col_stride } = self;
        Self { values, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Elements of the slice that strides reach.
    fn reach(&self) -> usize {
        match (self.rows.checked_sub(1), self.cols.checked_sub(1)) {
            (Some(row), Some(col)) => row * self.row_stride + col * self.col_stride + 1,
            _ => 0,
        }
    }
}

/// `out = a · b`, or `out += a · b`: `[m, k] · [k, n]`, all row-major and dense.
///
/// With `m >= 2`, a row of the result does not depend on how many rows there are: see [`super::linear`].
pub(super) fn matmul(out: &mut [f32], add: bool, a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) {
    let (a, b) = (Matrix::dense(a, k), Matrix::dense(b, n));
    assert!(a.rows == m && b.rows == k, "matmul: lengths are not the shapes'");
    product(out, add, a, b);
}

/// `out = a · b`, or `out += a · b`; `out` is row-major and dense. `T` is `f32` or `f64`.
pub(crate) fn product<T: Copy + From<u8> + 'static>(
    out: &mut [T],
    add: bool,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(b.rows == k && out.len() == m * n, "product: shapes do not fit");
    assert!(a.reach() <= a.values.len() && b.reach() <= b.values.len(), "product: strides beyond the values");
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
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::from(u8::from(add)),
            T::from(1),
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

    #[test]
    fn strides() {
        // Columns 1 and 2 of [[1, 2, 3], [4, 5, 6]], turned, times themselves.
        let values = [1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0];
        let some = Matrix::dense(&values, 3).columns(1, 2);
        let mut out = [1.0; 4];
        product(&mut out, true, some.turned(), some);
        assert_eq!(out, [30.0, 37.0, 37.0, 46.0]);
        product(&mut out[..0], false, Matrix::dense(&values, 3).columns(3, 0).turned(), some);
    }
}
