//! How far a decoded chunk is from what was encoded.

use std::ops::Range;

use cacheg_core::{KvCache, KvView};
use rayon::prelude::*;

/// The name of [`nmse`] in manifests.
pub const NMSE: &str = "nmse";

/// Mean over planes of the squared error over the squares of the values; of planes that are zero, 0 or 1.
///
/// `rows` are those of `original` that `decoded` is of.
///
/// # Panics
/// If the geometries differ or the rows are outside of the view.
pub fn nmse(original: &KvView<'_>, rows: Range<usize>, decoded: &KvCache) -> f64 {
    const ROWS: usize = 64;
    let decoded = decoded.view();
    let planes = original.planes();
    assert!(planes.len() == decoded.planes().len() && rows.len() == decoded.tokens(), "nmse: other shapes");
    let of = |index: usize| {
        let channels = planes[index].channels();
        let (mut a, mut b) = (vec![0f32; ROWS * channels], vec![0f32; ROWS * channels]);
        let (mut error, mut square) = (0f64, 0f64);
        for first in (0..rows.len()).step_by(ROWS) {
            let count = ROWS.min(rows.len() - first);
            let len = count * channels;
            original.load(index, rows.start + first, count, &mut a[..len]);
            decoded.load(index, first, count, &mut b[..len]);
            for (a, b) in a[..len].iter().zip(&b[..len]) {
                // Equal bits are equal, NaN too.
                if a.to_bits() != b.to_bits() {
                    error += f64::from(a - b).powi(2);
                }
                square += f64::from(*a).powi(2);
            }
        }
        // NaN and infinity have no distance; a manifest needs a number.
        match error / square {
            _ if error == 0.0 => 0.0,
            share if share.is_finite() => share,
            _ => 1.0,
        }
    };
    let shares: Vec<f64> = (0..planes.len()).into_par_iter().map(of).collect();
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}
