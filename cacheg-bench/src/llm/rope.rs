//! Rotary position embedding, with the frequencies of [`Rope`], which the codecs use to undo it.

use cacheg::core::{Pairing, Rope};

/// Cosines and sines of some consecutive positions.
pub(crate) struct Rotation {
    rope: Rope,
    /// `[tokens, dims / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Of the positions `first .. first + tokens`.
    pub(crate) fn new(rope: Rope, first: u64, tokens: usize) -> Self {
        let frequencies = rope.frequencies();
        let angles = (0..tokens).flat_map(|token| {
            frequencies.iter().map(move |frequency| (first + token as u64) as f64 * frequency)
        });
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { rope, cos, sin }
    }

    /// The one that undoes it.
    pub(crate) fn inverse(mut self) -> Self {
        self.sin.iter_mut().for_each(|sin| *sin = -*sin);
        self
    }

    /// Rotates the heads of one token's row: `row` is `[heads, head_dim]`.
    pub(crate) fn rotate(&self, token: usize, row: &mut [f32], head_dim: usize) {
        let half = self.rope.dims as usize / 2;
        let (cos, sin) = (&self.cos[token * half..][..half], &self.sin[token * half..][..half]);
        for head in row.chunks_exact_mut(head_dim) {
            let rotated = &mut head[self.rope.start as usize..][..2 * half];
            match self.rope.pairing {
                Pairing::Half => {
                    let (low, high) = rotated.split_at_mut(half);
                    for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
                Pairing::Interleaved => {
                    for ((pair, cos), sin) in rotated.chunks_exact_mut(2).zip(cos).zip(sin) {
                        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_is_unchanged_and_pairings_are_permutations() {
        let rope = |pairing| Rope { theta: 1e4, dims: 4, start: 0, pairing, scaling: None };
        let mut row = [1.0, 2.0, 3.0, 4.0];
        Rotation::new(rope(Pairing::Half), 0, 1).rotate(0, &mut row, 4);
        assert_eq!(row, [1.0, 2.0, 3.0, 4.0]);
        let mut half = [1.0, 2.0, 3.0, 4.0];
        Rotation::new(rope(Pairing::Half), 6, 2).rotate(1, &mut half, 4);
        let mut interleaved = [1.0, 3.0, 2.0, 4.0];
        Rotation::new(rope(Pairing::Interleaved), 7, 1).rotate(0, &mut interleaved, 4);
        assert_eq!(half, [interleaved[0], interleaved[2], interleaved[1], interleaved[3]]);
        let (sin, cos) = 7f32.sin_cos();
        assert!((half[0] - (cos - 3.0 * sin)).abs() < 1e-6 && (half[2] - (3.0 * cos + sin)).abs() < 1e-6);
    }
}
