//! How far two KV caches are apart.

use cacheg_core::{Error, KvView, Plane, Result};
use rayon::prelude::*;
use serde::Serialize;

/// Differences of one plane or of many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Largest absolute error; NaN where one cache has a NaN that the other has not.
    pub max_error: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean square of the first cache over mean squared error, dB; infinite for equal caches.
    pub snr_db: f64,
    /// Cosine between the caches as vectors; 0 if just one of them is zero, NaN if an error is not finite.
    pub cosine: f64,
}

/// The sums that differences come from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    values: f64,
    max: f64,
    error: f64,
    a: f64,
    b: f64,
    product: f64,
}

impl Sums {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            max: if self.max.is_nan() || other.max.is_nan() { f64::NAN } else { self.max.max(other.max) },
            error: self.error + other.error,
            a: self.a + other.a,
            b: self.b + other.b,
            product: self.product + other.product,
        }
    }

    fn add(&mut self, a: f32, b: f32) {
        // Equal bits are equal, whatever they mean.
        let equal = a.to_bits() == b.to_bits();
        let (x, y) = (f64::from(a), f64::from(b));
        let error = if equal { 0.0 } else { (x - y).abs() };
        self.values += 1.0;
        self.max = if error > self.max || error.is_nan() { error } else { self.max };
        self.error += error * error;
        if x.is_finite() && y.is_finite() {
            self.a += x * x;
            self.b += y * y;
            self.product += x * y;
        }
    }

    /// The differences.
    pub fn difference(&self) -> Difference {
        let cosine = match (self.a * self.b).sqrt() {
            _ if self.max.is_nan() || self.max.is_infinite() => f64::NAN,
            // Two zero vectors are the same; one has no direction.
            0.0 => f64::from(u8::from(self.error == 0.0)),
            norms => self.product / norms,
        };
        Difference {
            max_error: self.max,
            rmse: (self.error / self.values.max(1.0)).sqrt(),
            snr_db: if self.error == 0.0 { f64::INFINITY } else { 10.0 * (self.a / self.error).log10() },
            cosine,
        }
    }
}

/// Compares two caches of the same shape, plane by plane.
///
/// # Errors
/// If tokens, layers, heads or widths differ, or if other tokens were dropped. Element types and RoPE may.
pub fn planes(a: &KvView<'_>, b: &KvView<'_>) -> Result<Vec<Sums>> {
    let shape = |p: &Plane| (p.layer, p.kind, p.shape.heads, p.shape.head_dim);
    let same = a.planes().len() == b.planes().len()
        && a.planes().iter().zip(b.planes()).all(|(p, q)| shape(p) == shape(q));
    if !same {
        return Err(Error::data("the KV caches have different layers, heads or widths"));
    }
    // A cache with all of its tokens is the same with and without saying so.
    let whole =
        |view: &KvView<'_>| view.kept().is_none_or(|kept| kept.context_tokens() == view.tokens() as u64);
    let same_tokens = a.kept() == b.kept() || (whole(a) && whole(b));
    if a.tokens() != b.tokens() || !same_tokens {
        let of = |view: &KvView<'_>| match view.kept() {
            Some(kept) => format!("{} of {}", kept.tokens(), kept.context_tokens()),
            None => view.tokens().to_string(),
        };
        let why = if same_tokens {
            ""
        } else {
            ": where tokens were dropped, each head keeps its own, and rows are not the same tokens any more"
        };
        return Err(Error::data(format!("the KV caches have {} and {} tokens{why}", of(a), of(b))));
    }
    Ok(a.planes().par_iter().map(|plane| plane_sums(a, b, plane)).collect())
}

fn plane_sums(a: &KvView<'_>, b: &KvView<'_>, plane: &Plane) -> Sums {
    const ROWS: usize = 64;
    let (mut x, mut y) = (vec![0.0; ROWS * plane.channels()], vec![0.0; ROWS * plane.channels()]);
    let mut sums = Sums::default();
    for first in (0..a.tokens()).step_by(ROWS) {
        let rows = ROWS.min(a.tokens() - first);
        let len = rows * plane.channels();
        a.load(plane.index, first, rows, &mut x[..len]);
        b.load(plane.index, first, rows, &mut y[..len]);
        x[..len].iter().zip(&y[..len]).for_each(|(a, b)| sums.add(*a, *b));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(f32, f32)]) -> Difference {
        let mut sums = Sums::default();
        pairs.iter().for_each(|(a, b)| sums.add(*a, *b));
        sums.difference()
    }

    #[test]
    fn by_hand() {
        let d = of(&[(3.0, 3.0), (4.0, 2.0)]);
        assert_eq!(d.max_error, 2.0);
        assert!((d.rmse - 2f64.sqrt()).abs() < 1e-12);
        assert!((d.snr_db - 10.0 * (25.0f64 / 4.0).log10()).abs() < 1e-12);
        assert!((d.cosine - 17.0 / (25.0f64 * 13.0).sqrt()).abs() < 1e-12);
        assert_eq!(of(&[(f32::NAN, f32::NAN), (1.0, 1.0)]).max_error, 0.0);
        assert!(of(&[(f32::NAN, 1.0)]).max_error.is_nan());
        assert_eq!(of(&[(1.0, 1.0)]).snr_db, f64::INFINITY);
        assert_eq!(of(&[]).rmse, 0.0);
        assert_eq!(of(&[(1.0, 0.0)]).cosine, 0.0);
        assert_eq!(of(&[(0.0, 0.0)]).cosine, 1.0);
        assert!(of(&[(f32::NAN, 1.0), (1.0, 1.0)]).cosine.is_nan());
    }
}
