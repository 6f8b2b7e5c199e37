//! Sums of `w_ts (R_sᵀ q_t)(R_sᵀ q_t)ᵀ` over queries `t` and cached tokens `s`, without a rotation for each pair.
//!
//! Rotated channels come in pairs, read as complex numbers `z = a + i b`; `R_sᵀ` multiplies the one of frequency `f` by
//! `e^(−i p f)`, `p` the position of `s`. All products of two channels follow from `z_i z_j*` and `z_i z_j`, which the
//! rotation multiplies by `e^(−i p (f_i − f_j))` and `e^(−i p (f_i + f_j))`. So products of queries are summed first, one
//! matrix product for many `t` and `s`, and turned once for each `s`.

use cacheg::core::{Pairing, Rope};
use multiversion::multiversion;

/// What products of a head's channels are called, and how positions turn them.
pub(super) struct Products {
    dim: usize,
    /// Channels of the real and the imaginary part; a channel that is alone has none. Channels that are not rotated have
    /// the frequency 0.
    pairs: Vec<(usize, Option<usize>)>,
    /// Cosine and sine of every token's position times every pair's frequency, `[tokens, pairs]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Products {
    /// For cached tokens at the positions from 0 on.
    pub(super) fn new(rope: Rope, dim: usize, tokens: usize) -> Self {
        let (start, half) = (rope.start as usize, rope.dims as usize / 2);
        let mut pairs: Vec<(usize, Option<usize>)> = (0..half)
            .map(|i| match rope.pairing {
                Pairing::Half => (start + i, Some(start + i + half)),
                Pairing::Interleaved => (start + 2 * i, Some(start + 2 * i + 1)),
            })
            .collect();
        pairs.extend((0..dim).filter(|c| !(start..start + 2 * half).contains(c)).map(|c| (c, None)));
        let mut frequencies = rope.frequencies();
        frequencies.resize(pairs.len(), 0.0);
        let angles = (0..tokens).flat_map(|token| frequencies.iter().map(move |f| token as f64 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { dim, pairs, cos, sin }
    }

    /// Numbers that stand for the products of a query's channels.
    pub(super) fn len(&self) -> usize {
        4 * self.runs()
    }

    /// Pairs of pairs, `i <= j`.
    fn runs(&self) -> usize {
        self.pairs.len() * (self.pairs.len() + 1) / 2
    }

    /// The products of one query, `[dim]`, to `out`, `[len]`.
    pub(super) fn of(&self, query: &[f32], out: &mut [f32]) {
        let z: Vec<(f32, f32)> =
            self.pairs.iter().map(|(a, b)| (query[*a], b.map_or(0.0, |b| query[b]))).collect();
        let [p_re, p_im, n_re, n_im] = quarters_mut(out);
        let mut at = 0;
        for (i, (a, b)) in z.iter().enumerate() {
            for (c, d) in &z[i..] {
                (p_re[at], p_im[at]) = (a * c + b * d, b * c - a * d);
                (n_re[at], n_im[at]) = (a * c - b * d, a * d + b * c);
                at += 1;
            }
        }
    }

    /// Turns weighted sums of products to where token `token` is and adds them to `sums`; both `[len]`.
    pub(super) fn add_turned(&self, token: usize, products: &[f32], sums: &mut [f64]) {
        let n = self.pairs.len();
        add_turned(&self.cos[token * n..][..n], &self.sin[token * n..][..n], products, sums);
    }

    /// Adds the sums as a matrix, `[dim, dim]`.
    pub(super) fn add_matrix(&self, sums: &[f64], matrix: &mut [f64]) {
        let run = self.runs();
        let mut at = 0;
        let mut add = |a: Option<usize>, b: Option<usize>, x: f64| {
            if let (Some(a), Some(b)) = (a, b) {
                matrix[a * self.dim + b] += x;
                if a != b {
                    matrix[b * self.dim + a] += x;
                }
            }
        };
        for i in 0..self.pairs.len() {
            for j in i..self.pairs.len() {
                let [p_re, p_im, n_re, n_im] = [0, 1, 2, 3].map(|quarter| sums[quarter * run + at]);
                let ((a, b), (c, d)) = (self.pairs[i], self.pairs[j]);
                add(Some(a), Some(c), (p_re + n_re) / 2.0);
                add(b, d, (p_re - n_re) / 2.0);
                add(Some(a), d, (n_im - p_im) / 2.0);
                if i != j {
                    add(b, Some(c), (n_im + p_im) / 2.0);
                }
                at += 1;
            }
        }
    }
}

fn quarters_mut<T>(values: &mut [T]) -> [&mut [T]; 4] {
    let run = values.len() / 4;
    let (a, rest) = values.split_at_mut(run);
    let (b, rest) = rest.split_at_mut(run);
    let (c, d) = rest.split_at_mut(run);
    [a, b, c, d]
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn add_turned(cos: &[f32], sin: &[f32], products: &[f32], sums: &mut [f64]) {
    let run = products.len() / 4;
    let [mut s_pr, mut s_pi, mut s_nr, mut s_ni] = quarters_mut(sums);
    let (mut p_re, mut p_im) = (&products[..run], &products[run..2 * run]);
    let (mut n_re, mut n_im) = (&products[2 * run..3 * run], &products[3 * run..]);
    for i in 0..cos.len() {
        let (ci, si) = (cos[i], sin[i]);
        let (cos, sin) = (&cos[i..], &sin[i..]);
        let len = cos.len();
        let (pr, pi, nr, ni) = (&p_re[..len], &p_im[..len], &n_re[..len], &n_im[..len]);
        let (spr, spi, snr, sni) = (&mut s_pr[..len], &mut s_pi[..len], &mut s_nr[..len], &mut s_ni[..len]);
        for j in 0..len {
            let (cj, sj) = (cos[j], sin[j]);
            let (c, s) = (ci * cj + si * sj, si * cj - ci * sj);
            spr[j] += f64::from(pr[j] * c + pi[j] * s);
            spi[j] += f64::from(pi[j] * c - pr[j] * s);
            let (c, s) = (ci * cj - si * sj, si * cj + ci * sj);
            snr[j] += f64::from(nr[j] * c + ni[j] * s);
            sni[j] += f64::from(ni[j] * c - nr[j] * s);
        }
        (p_re, p_im, n_re, n_im) = (&p_re[len..], &p_im[len..], &n_re[len..], &n_im[len..]);
        (s_pr, s_pi) = (&mut s_pr[len..], &mut s_pi[len..]);
        (s_nr, s_ni) = (&mut s_nr[len..], &mut s_ni[len..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::rope::Rotation;

    /// Against rotating every query for every token.
    #[test]
    fn products_turn_as_channels_do() {
        const TOKENS: usize = 5;
        for (pairing, start, dim) in
            [(Pairing::Half, 0, 6), (Pairing::Interleaved, 1, 9), (Pairing::Half, 2, 8)]
        {
            let rope = Rope { theta: 30.0, dims: 6, start, pairing, scaling: None };
            let products = Products::new(rope, dim, TOKENS);
            let rotation = Rotation::new(rope, 0, TOKENS).inverse();
            let mut sums = vec![0.0; products.len()];
            let mut expected = vec![0.0; dim * dim];
            for token in 0..TOKENS {
                let mut weighted = vec![0.0; products.len()];
                for t in 0..3 {
                    let query: Vec<f32> = (0..dim).map(|c| ((c * 7 + t * 3) as f32).sin()).collect();
                    let weight = (token + 2 * t + 1) as f32;
                    let mut out = vec![0.0; products.len()];
                    products.of(&query, &mut out);
                    weighted.iter_mut().zip(&out).for_each(|(sum, x)| *sum += weight * x);
                    let mut turned = query;
                    rotation.rotate(token, &mut turned, dim);
                    for (row, a) in expected.chunks_exact_mut(dim).zip(&turned) {
                        row.iter_mut().zip(&turned).for_each(|(x, b)| *x += f64::from(weight * a * b));
                    }
                }
                products.add_turned(token, &weighted, &mut sums);
            }
            let mut matrix = vec![0.0; dim * dim];
            products.add_matrix(&sums, &mut matrix);
            let worst = matrix.iter().zip(&expected).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 2e-5, "{pairing:?}: {worst}");
        }
    }
}
