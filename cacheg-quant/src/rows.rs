//! Matrices as flat slices: one check in front of loops that then run on slices alone.

use cacheg_core::{Error, Result};
use ndarray::{ArrayView2, ArrayViewMut2};

/// The values of `x`, row-major.
///
/// # Errors
/// If `x` is not `rows × cols`, not row-major without gaps, or has no columns.
pub(crate) fn flat<'a>(x: &ArrayView2<'a, f32>, rows: usize, cols: usize) -> Result<&'a [f32]> {
    check(x.dim(), rows, cols)?;
    x.to_slice().ok_or_else(layout)
}

/// As [`flat`], to write to.
///
/// # Errors
/// As [`flat`].
pub(crate) fn flat_mut(x: ArrayViewMut2<'_, f32>, rows: usize, cols: usize) -> Result<&mut [f32]> {
    check(x.dim(), rows, cols)?;
    x.into_slice().ok_or_else(layout)
}

/// Checks a buffer's length.
///
/// # Errors
/// If it is another than `want`.
pub(crate) fn check_len(what: &str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::data(format!("{got} {what} where {want} are expected"))) }
}

fn check(dim: (usize, usize), rows: usize, cols: usize) -> Result<()> {
    if cols == 0 {
        return Err(Error::data("a plane without channels"));
    }
    if dim == (rows, cols) {
        Ok(())
    } else {
        Err(Error::data(format!("a matrix of {} × {} where {rows} × {cols} is expected", dim.0, dim.1)))
    }
}

fn layout() -> Error {
    Error::data("a matrix that is not row-major")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn shape_and_layout_are_checked() {
        let mut x = Array2::from_shape_fn((2, 3), |(r, c)| (3 * r + c) as f32);
        assert_eq!(flat(&x.view(), 2, 3).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(flat(&x.view(), 3, 2).is_err());
        assert!(flat(&x.t(), 3, 2).is_err());
        assert!(flat_mut(x.view_mut().reversed_axes(), 3, 2).is_err());
        assert!(flat(&Array2::zeros((0, 3)).view(), 0, 3).unwrap().is_empty());
        assert!(flat(&Array2::zeros((3, 0)).view(), 3, 0).is_err());
    }
}
