//! What calibration needs of linear algebra, by `nalgebra`. Decoders need none of it.

use nalgebra::{Cholesky, DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2};

fn there(matrix: &Array2<f64>) -> DMatrix<f64> {
    DMatrix::from_fn(matrix.nrows(), matrix.ncols(), |row, col| matrix[[row, col]])
}

fn back(matrix: &DMatrix<f64>) -> Array2<f64> {
    Array2::from_shape_fn(matrix.shape(), |place| matrix[place])
}

/// Eigenvalues, the largest first, and eigenvectors (columns) of a symmetric matrix of finite numbers.
pub(crate) fn eigen(matrix: &Array2<f64>) -> (Array1<f64>, Array2<f64>) {
    let found = SymmetricEigen::new(there(matrix));
    let mut order: Vec<usize> = (0..matrix.nrows()).collect();
    order.sort_by(|i, j| found.eigenvalues[*j].total_cmp(&found.eigenvalues[*i]));
    let values = order.iter().map(|i| found.eigenvalues[*i]).collect();
    let vectors = Array2::from_shape_fn(matrix.dim(), |(row, col)| found.eigenvectors[(row, order[col])]);
    (values, vectors)
}

/// The inverse; `None` if there is none.
pub(crate) fn inverse(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    there(matrix).try_inverse().map(|inverse| back(&inverse)).filter(|x| x.iter().all(|x| x.is_finite()))
}

/// `X` with `a · X = b`, for a symmetric, positive definite `a`; `None` if it is not.
pub(crate) fn solve(a: &Array2<f64>, b: &Array2<f64>) -> Option<Array2<f64>> {
    Some(back(&Cholesky::new(there(a))?.solve(&there(b)))).filter(|x| x.iter().all(|x| x.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symmetric(n: usize) -> Array2<f64> {
        let x = Array2::from_shape_fn((n, n), |(i, j)| ((i * 31 + j * 17 + i * j) % 23) as f64 - 11.0);
        x.dot(&x.t())
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        for n in [1, 2, 3, 16, 65] {
            let a = symmetric(n);
            let (values, vectors) = eigen(&a);
            let rebuilt = vectors.dot(&Array2::from_diag(&values)).dot(&vectors.t());
            let scale = a.iter().fold(1.0f64, |most, x| most.max(x.abs()));
            assert!((&rebuilt - &a).iter().all(|x| x.abs() < 1e-10 * scale), "{n}");
            assert!((&vectors.t().dot(&vectors) - &Array2::<f64>::eye(n)).iter().all(|x| x.abs() < 1e-12));
            assert!(values.windows(2).into_iter().all(|pair| pair[0] >= pair[1]), "{n}");
        }
        // All alike, and nothing at all.
        assert_eq!(eigen(&Array2::eye(4)).0, Array1::<f64>::ones(4));
        assert_eq!(eigen(&Array2::zeros((4, 4))).0, Array1::<f64>::zeros(4));
    }

    #[test]
    fn inverses_and_solutions() {
        for n in [1, 2, 7, 64] {
            let a = symmetric(n) + Array2::<f64>::eye(n);
            let product = a.dot(&inverse(&a).unwrap());
            assert!((&product - &Array2::<f64>::eye(n)).iter().all(|x| x.abs() < 1e-6), "{n}");
            let b = Array2::from_shape_fn((n, 3), |(i, j)| (i + 2 * j) as f64);
            assert!((&a.dot(&solve(&a, &b).unwrap()) - &b).iter().all(|x| x.abs() < 1e-6), "{n}");
        }
        assert!(inverse(&Array2::zeros((3, 3))).is_none());
        assert!(inverse(&Array2::ones((2, 2))).is_none());
        assert!(inverse(&Array2::from_elem((2, 2), f64::NAN)).is_none());
        assert!(solve(&-Array2::<f64>::eye(2), &Array2::eye(2)).is_none());
    }
}
