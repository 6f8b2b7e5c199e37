//! Matrices of any layout, read and written at the speed of slices if they are row-major, which those of the
//! engine are.

use std::ops::Range;

use cacheg_core::{Error, Result};
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, s};

/// Values to read: a loop over this trait is compiled for slices and for strided views.
pub(crate) trait Values {
    /// Some columns of one row.
    fn values(&self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &f32> + Clone;

    /// All rows, if they are one slice.
    fn flat(&self) -> Option<&[f32]> {
        None
    }
}

/// Values to write.
pub(crate) trait ValuesMut {
    /// Some columns of one row.
    fn values_mut(&mut self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &mut f32>;

    /// All rows, if they are one slice.
    fn flat_mut(&mut self) -> Option<&mut [f32]> {
        None
    }
}

/// A row-major matrix.
#[derive(Debug)]
pub(crate) struct Flat<T> {
    pub(crate) values: T,
    cols: usize,
}

impl Values for Flat<&[f32]> {
    #[inline(always)]
    fn values(&self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &f32> + Clone {
        let at = row * self.cols;
        self.values[at + cols.start..at + cols.end].iter()
    }

    fn flat(&self) -> Option<&[f32]> {
        Some(self.values)
    }
}

impl ValuesMut for Flat<&mut [f32]> {
    #[inline(always)]
    fn values_mut(&mut self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &mut f32> {
        let at = row * self.cols;
        self.values[at + cols.start..at + cols.end].iter_mut()
    }

    fn flat_mut(&mut self) -> Option<&mut [f32]> {
        Some(self.values)
    }
}

impl Values for ArrayView2<'_, f32> {
    fn values(&self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &f32> + Clone {
        self.slice(s![row, cols]).into_iter()
    }
}

impl ValuesMut for ArrayViewMut2<'_, f32> {
    fn values_mut(&mut self, row: usize, cols: Range<usize>) -> impl Iterator<Item = &mut f32> {
        self.slice_mut(s![row, cols]).into_iter()
    }
}

/// A matrix to read, sorted by layout.
#[derive(Debug)]
pub(crate) enum Matrix<'a> {
    Flat(Flat<&'a [f32]>),
    Strided(ArrayView2<'a, f32>),
}

impl<'a> Matrix<'a> {
    /// Checks the shape and looks at the layout.
    ///
    /// # Errors
    /// If `x` is not `rows × cols`, or has no columns.
    pub(crate) fn new(x: ArrayView2<'a, f32>, rows: usize, cols: usize) -> Result<Self> {
        check(x.dim(), rows, cols)?;
        Ok(match x.to_slice() {
            Some(values) => Self::Flat(Flat { values, cols }),
            None => Self::Strided(x),
        })
    }
}

/// A matrix to write to, sorted by layout.
#[derive(Debug)]
pub(crate) enum MatrixMut<'a> {
    Flat(Flat<&'a mut [f32]>),
    Strided(ArrayViewMut2<'a, f32>),
}

impl<'a> MatrixMut<'a> {
    /// As [`Matrix::new`].
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub(crate) fn new(x: ArrayViewMut2<'a, f32>, rows: usize, cols: usize) -> Result<Self> {
        check(x.dim(), rows, cols)?;
        Ok(if x.is_standard_layout() {
            Self::Flat(Flat { values: x.into_slice().unwrap_or_default(), cols })
        } else {
            Self::Strided(x)
        })
    }
}

/// `out = op(x, y)` for each element of three rows.
#[inline(always)]
pub(crate) fn combine(
    mut out: ArrayViewMut1<'_, f32>,
    x: ArrayView1<'_, f32>,
    y: ArrayView1<'_, f32>,
    op: impl Fn(f32, f32) -> f32,
) {
    if let (Some(out), Some(x), Some(y)) = (out.as_slice_mut(), x.as_slice(), y.as_slice()) {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = op(*x, *y);
        }
    } else {
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            *out = op(*x, *y);
        }
    }
}

/// Checks a matrix's shape.
///
/// # Errors
/// If it is not `rows × cols`, or has no columns.
pub(crate) fn check(dim: (usize, usize), rows: usize, cols: usize) -> Result<()> {
    if cols == 0 {
        return Err(Error::data("a plane without channels"));
    }
    if dim == (rows, cols) {
        Ok(())
    } else {
        Err(Error::data(format!("a matrix of {} × {} where {rows} × {cols} is expected", dim.0, dim.1)))
    }
}

/// Checks a buffer's length.
///
/// # Errors
/// If it is another than `want`.
pub(crate) fn check_len(what: &str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::data(format!("{got} {what} where {want} are expected"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn shapes_are_checked_and_layouts_sorted() {
        let mut x = Array2::from_shape_fn((2, 3), |(r, c)| (3 * r + c) as f32);
        assert!(matches!(Matrix::new(x.view(), 2, 3).unwrap(), Matrix::Flat(_)));
        assert!(matches!(Matrix::new(x.t(), 3, 2).unwrap(), Matrix::Strided(_)));
        assert!(Matrix::new(x.view(), 3, 2).is_err());
        assert!(matches!(MatrixMut::new(x.view_mut(), 2, 3).unwrap(), MatrixMut::Flat(_)));
        assert!(MatrixMut::new(x.view_mut().reversed_axes(), 2, 3).is_err());
        assert!(Matrix::new(Array2::zeros((0, 3)).view(), 0, 3).is_ok());
        assert!(Matrix::new(Array2::zeros((3, 0)).view(), 3, 0).is_err());
    }

    #[test]
    fn all_layouts_give_the_same_values() {
        let mut x = Array2::from_shape_fn((2, 3), |(r, c)| (3 * r + c) as f32);
        let Matrix::Flat(flat) = Matrix::new(x.view(), 2, 3).unwrap() else { panic!("row-major") };
        assert!(flat.values(1, 1..3).eq(&[4.0, 5.0]));
        assert!(x.view().values(1, 1..3).eq(&[4.0, 5.0]));
        x.view_mut().values_mut(0, 1..2).for_each(|x| *x = 9.0);
        let MatrixMut::Flat(mut flat) = MatrixMut::new(x.view_mut(), 2, 3).unwrap() else {
            panic!("row-major")
        };
        flat.values_mut(0, 0..1).for_each(|x| *x = 8.0);
        assert_eq!(x.row(0).to_vec(), [8.0, 9.0, 2.0]);
    }
}
