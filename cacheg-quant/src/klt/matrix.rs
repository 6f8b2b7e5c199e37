//! What calibration needs of linear algebra: symmetric eigenvectors and inverses, of matrices as large as heads are wide.

use ndarray::{Array1, Array2};

/// Sweeps over all pairs; ten are enough for any matrix that has been tried.
const SWEEPS: usize = 64;

/// Eigenvalues, the largest first, and eigenvectors (columns) of a symmetric matrix, by Jacobi's rotations (Golub and
/// Van Loan, "Matrix computations", section 8.5).
pub(super) fn eigen(matrix: &Array2<f64>) -> (Array1<f64>, Array2<f64>) {
    let n = matrix.nrows();
    let (mut a, mut vectors) = (matrix.clone(), Array2::<f64>::eye(n));
    let size: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 = a.indexed_iter().filter(|((i, j), _)| i != j).map(|(_, x)| x * x).sum();
        if off <= 1e-26 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[[p, q]] != 0.0 {
                    let (c, s) = rotation(a[[p, p]], a[[p, q]], a[[q, q]]);
                    for k in 0..n {
                        let (x, y) = (a[[k, p]], a[[k, q]]);
                        (a[[k, p]], a[[k, q]]) = (c * x - s * y, s * x + c * y);
                    }
                    for k in 0..n {
                        let (x, y) = (a[[p, k]], a[[q, k]]);
                        (a[[p, k]], a[[q, k]]) = (c * x - s * y, s * x + c * y);
                        let (x, y) = (vectors[[k, p]], vectors[[k, q]]);
                        (vectors[[k, p]], vectors[[k, q]]) = (c * x - s * y, s * x + c * y);
                    }
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[[*j, *j]].total_cmp(&a[[*i, *i]]));
    let values = order.iter().map(|i| a[[*i, *i]]).collect();
    (values, Array2::from_shape_fn((n, n), |(row, col)| vectors[[row, order[col]]]))
}

/// Cosine and sine of the rotation that makes the off-diagonal element vanish.
fn rotation(app: f64, apq: f64, aqq: f64) -> (f64, f64) {
    let tau = (aqq - app) / (2.0 * apq);
    let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    (c, t * c)
}

/// The inverse, by elimination with pivots; `None` if there is none.
pub(super) fn inverse(matrix: &Array2<f64>) -> Option<Array2<f64>> {
    let n = matrix.nrows();
    let (mut a, mut inverse) = (matrix.clone(), Array2::<f64>::eye(n));
    for col in 0..n {
        let pivot = (col..n).max_by(|i, j| a[[*i, col]].abs().total_cmp(&a[[*j, col]].abs()))?;
        let value = a[[pivot, col]];
        if value == 0.0 || !value.is_finite() {
            return None;
        }
        for k in 0..n {
            a.swap([col, k], [pivot, k]);
            inverse.swap([col, k], [pivot, k]);
        }
        for k in 0..n {
            a[[col, k]] /= value;
            inverse[[col, k]] /= value;
        }
        for row in (0..n).filter(|row| *row != col) {
            let factor = a[[row, col]];
            if factor != 0.0 {
                for k in 0..n {
                    a[[row, k]] -= factor * a[[col, k]];
                    inverse[[row, k]] -= factor * inverse[[col, k]];
                }
            }
        }
    }
    Some(inverse)
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
        assert_eq!(eigen(&Array2::eye(4)).1, Array2::<f64>::eye(4));
        assert_eq!(eigen(&Array2::zeros((4, 4))).0, Array1::<f64>::zeros(4));
    }

    #[test]
    fn inverses() {
        for n in [1, 2, 7, 64] {
            let a = symmetric(n) + Array2::<f64>::eye(n);
            let product = a.dot(&inverse(&a).unwrap());
            assert!((&product - &Array2::<f64>::eye(n)).iter().all(|x| x.abs() < 1e-6), "{n}");
        }
        assert!(inverse(&Array2::zeros((3, 3))).is_none());
        assert!(inverse(&Array2::ones((2, 2))).is_none());
        assert!(inverse(&Array2::from_elem((2, 2), f64::NAN)).is_none());
    }
}
