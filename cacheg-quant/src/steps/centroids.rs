//! Where in its cell a symbol's value lies, by class: what was seen, drawn towards a Laplacian where that is little.

use cacheg_core::{CLASS_OF_ONE, CLASSES};

use super::octaves::Steps;

/// Cells that are told apart: `|q|` = 1, 2, 3 and more.
pub(super) const CELLS: usize = 3;

/// Most that a centroid may be: within the cell.
pub(super) const MOST: u8 = 127;

/// A Laplacian counts as much as so many values.
const PRIOR: f64 = 32.0;

/// Sums over the values of one class.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cells {
    /// How many there are, by cell.
    count: [f64; CELLS],
    /// What they are nearer to 0 than `|q|`, in steps, by cell.
    shift: [f64; CELLS],
}

impl Cells {
    /// Adds `count` values whose magnitudes are spread evenly between two, given in steps.
    pub(super) fn add(&mut self, low: f64, high: f64, count: f64, steps: Steps) {
        let reach = f64::from(steps.reach());
        let density = count / (high - low);
        let mut cell = (low + 0.5).floor();
        // At most as many rounds as there are cells.
        while cell <= reach && cell - 0.5 < high {
            let (from, to) = (low.max(cell - 0.5), high.min(cell + 0.5));
            if cell >= 1.0 && to > from {
                let (index, own) = ((cell as usize).min(CELLS) - 1, density * (to - from));
                self.count[index] += own;
                self.shift[index] += own * (cell - f64::midpoint(from, to));
            }
            cell += 1.0;
        }
    }

    /// 256ths of a step by which values of a class are nearer to 0 than `|q|` steps.
    pub(super) fn centroids(&self, class: usize) -> [u8; CELLS] {
        let prior = PRIOR * laplacian(class);
        std::array::from_fn(|cell| {
            let shift = (self.shift[cell] + prior) / (self.count[cell] + PRIOR);
            (256.0 * shift).round().clamp(0.0, f64::from(MOST)) as u8
        })
    }
}

/// The shift, in steps, of a Laplacian of a class: the same in all cells, as its tail is like itself.
fn laplacian(class: usize) -> f64 {
    debug_assert!(class < CLASSES);
    let quarters = class as f64 - f64::from(CLASS_OF_ONE);
    // Decay in steps.
    let decay = (quarters / 4.0).exp2() / std::f64::consts::SQRT_2;
    0.5 - decay + 1.0 / (1.0 / decay).exp_m1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_spreads_and_cut_cells() {
        let steps = Steps::new(1.0, 15);
        let mut cells = Cells::default();
        // Cells 1 and 2 evenly, the lower half of cell 3.
        cells.add(0.5, 3.0, 250.0, steps);
        assert_eq!(cells.count, [100.0, 100.0, 50.0]);
        assert!(cells.shift[0].abs() < 1e-9 && (cells.shift[2] - 50.0 * 0.25).abs() < 1e-9);
        // Nothing of cell 0, nor beyond reach, however wide.
        let mut cells = Cells::default();
        cells.add(0.0, 0.25, 9.0, steps);
        cells.add(15.5, 1e300, 9.0, steps);
        assert_eq!(cells.count, [0.0; CELLS]);
        cells.add(0.0, 1e6, 1e6, steps);
        assert!((cells.count[2] - 13.0).abs() < 1e-6, "{:?}", cells.count);
    }

    #[test]
    fn the_prior_is_a_laplacians() {
        // Fine steps leave values in the middle, coarse ones at the lower end.
        let d = |class| Cells::default().centroids(class);
        assert_eq!(d(95), [0; CELLS]);
        assert_eq!(d(0), [MOST; CELLS]);
        let shifts: Vec<u8> = (0..CLASSES).map(|class| d(class)[0]).collect();
        assert!(shifts.is_sorted_by(|a, b| a >= b), "{shifts:?}");
        // σ of one step: ½ − 1/√2 + 1/(e^√2 − 1).
        assert!((laplacian(40) - 0.113_7).abs() < 1e-3, "{}", laplacian(40));
    }

    #[test]
    fn what_was_seen_outweighs_the_prior() {
        let mut cells = Cells::default();
        cells.add(0.74, 0.76, 1e6, Steps::new(1.0, 15));
        assert_eq!(cells.centroids(40)[0], 64);
        // Values far out of the middle, and beyond it.
        let mut cells = Cells::default();
        cells.add(1.3, 1.4, 1e6, Steps::new(1.0, 15));
        assert_eq!(cells.centroids(40)[0], 0);
    }
}
