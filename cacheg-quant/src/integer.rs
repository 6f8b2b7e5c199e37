//! Products with matrices of small integers, and numbers on grids of powers of two: arithmetic that is the same on every
//! machine, whatever the order of the sums.
//!
//! All integers are modulo 2³², as signed numbers: what goes beyond (no sane data does) goes the same way everywhere, on
//! GPUs too.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;

use multiversion::multiversion;
use ndarray::ArrayView2;

/// Rows that are multiplied at a time, so that a number of the matrix is loaded for several.
const ROWS: usize = 4;

/// Rows for which a strip of the matrix stays in the fastest cache.
const BLOCK: usize = 32;

/// Columns whose sums are kept in registers at a time.
const STRIP: usize = 16;

/// Two numbers of one column for each column of a strip: those of two consecutive rows.
type Pairs = [i16; 2 * STRIP];

/// Numbers of a grid are clamped to ± this.
pub(crate) const MOST: i32 = 1 << 30;

/// A matrix of 8-bit integers.
#[derive(Debug)]
pub(crate) struct IntMatrix {
    rows: usize,
    cols: usize,
    /// Strip by strip, for every two rows (a zero row is added to an odd one).
    pairs: Vec<Pairs>,
    kernel: Kernel,
}

/// How products are computed.
#[derive(Debug, Clone, Copy)]
enum Kernel {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    X86(x86::Kernel),
}

impl IntMatrix {
    /// From its numbers, row after row.
    ///
    /// # Panics
    /// If there are not `rows · cols` of them.
    pub(crate) fn new(rows: usize, cols: usize, numbers: &[i8]) -> Self {
        assert_eq!(numbers.len(), rows * cols, "a matrix of {rows} × {cols}");
        let number = |row: usize, col: usize| {
            if row < rows && col < cols { i16::from(numbers[row * cols + col]) } else { 0 }
        };
        let mut pairs = Vec::with_capacity(cols.div_ceil(STRIP) * rows.div_ceil(2));
        for first in (0..cols).step_by(STRIP) {
            for row in (0..rows).step_by(2) {
                pairs.push(std::array::from_fn(|i| number(row + i % 2, first + i / 2)));
            }
        }
        #[cfg(target_arch = "x86_64")]
        let kernel = x86::Kernel::new().map_or(Kernel::Scalar, Kernel::X86);
        #[cfg(not(target_arch = "x86_64"))]
        let kernel = Kernel::Scalar;
        Self { rows, cols, pairs, kernel }
    }

    /// `out = x · self`, each row of `x` being as long as [`width`](Self::width) says (what is added to an odd number is 0);
    /// `out` are rows of `cols`. `narrow` are the same numbers if all of them fit into 16 bits.
    fn product(&self, x: &[i32], narrow: Option<&[i16]>, out: &mut [i32]) {
        let width = self.width();
        for (strip, pairs) in self.pairs.chunks_exact(width / 2).enumerate() {
            let first = strip * STRIP;
            let cols = STRIP.min(self.cols - first);
            for (number, out) in out.chunks_mut(ROWS * self.cols).enumerate() {
                let count = out.len() / self.cols;
                let rows = number * ROWS * width..(number * ROWS + count) * width;
                let mut sums = [[0; STRIP]; ROWS];
                match (self.kernel, narrow) {
                    #[cfg(target_arch = "x86_64")]
                    (Kernel::X86(kernel), Some(x)) => kernel.product(&x[rows], pairs, count, &mut sums),
                    _ => product(&x[rows], pairs, count, &mut sums),
                }
                for (out, sums) in out.chunks_exact_mut(self.cols).zip(&sums) {
                    out[first..first + cols].copy_from_slice(&sums[..cols]);
                }
            }
        }
    }

    /// One of its numbers; 0 where it has none.
    pub(crate) fn number(&self, row: usize, col: usize) -> i8 {
        let at = (col / STRIP) * (self.width() / 2) + row / 2;
        self.pairs.get(at).map_or(0, |pair| pair[2 * (col % STRIP) + row % 2] as i8)
    }

    /// Rows and columns.
    pub(crate) fn dim(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Numbers of a row that is multiplied: as many as the matrix has rows, rounded up to even.
    pub(crate) fn width(&self) -> usize {
        self.rows.next_multiple_of(2)
    }
}

/// The reference.
fn product(x: &[i32], pairs: &[Pairs], count: usize, sums: &mut [[i32; STRIP]; ROWS]) {
    let width = 2 * pairs.len();
    for (x, sums) in x.chunks_exact(width).zip(&mut sums[..count]) {
        for (x, pair) in x.as_chunks::<2>().0.iter().zip(pairs) {
            for (sum, pair) in sums.iter_mut().zip(pair.as_chunks::<2>().0) {
                *sum = sum
                    .wrapping_add(x[0].wrapping_mul(i32::from(pair[0])))
                    .wrapping_add(x[1].wrapping_mul(i32::from(pair[1])));
            }
        }
    }
}

/// `2^exponent`, which must be that of a normal number.
pub(crate) fn power(exponent: i32) -> f32 {
    debug_assert!((-126..=127).contains(&exponent));
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// A value to a number of a grid: see [`to_grid`]. NaN, which nobody has, becomes 0.
#[inline(always)]
pub(crate) fn grid_of(x: f32, scale: f32, most: f32) -> i32 {
    (x * scale).clamp(-most, most).round_ties_even() as i32
}

/// Values to numbers of grids: rounded to the nearest, ties to even, after multiplication by powers of two, one for each
/// column; at most ± `most`. Whether all fit into 16 bits.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub(crate) fn to_grid(x: &[f32], scale: &[f32], most: i32, out: &mut [i32]) -> bool {
    let most = most as f32;
    let mut wide = 0;
    for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
        let y = grid_of(*x, *scale, most);
        wide |= (y + (1 << 15)) >> 16;
        *out = y;
    }
    wide == 0
}

/// The same for numbers that fit into 16 bits.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub(crate) fn narrow_to(x: &[i32], out: &mut [i16]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = *x as i16;
    }
}

/// A number of a grid as a value: those of more than 24 bits lose the last 8.
#[inline(always)]
pub(crate) fn value(x: i32, unit: f32) -> f32 {
    let kept = if (-(1 << 24)..=1 << 24).contains(&x) { x } else { x & !0xff };
    kept as f32 * unit
}

/// The same of a row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
pub(crate) fn from_grid(x: &[i32], unit: f32, out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = value(*x, unit);
    }
}

/// Some of the columns of what is multiplied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// All rows.
    pub(crate) from: ArrayView2<'a, f32>,
    /// What each column is multiplied by to be an integer: powers of two.
    pub(crate) scales: &'a [f32],
}

/// Integers of some rows.
#[derive(Debug, Default)]
struct Scratch {
    wide: Vec<i32>,
    narrow: Vec<i16>,
    row: Vec<f32>,
    sums: Vec<i32>,
}

thread_local! {
    // A thread's; grows to what the largest matrix needs.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Multiplies rows, which are those of all `columns` side by side, by a matrix, and gives each row's number and sums. Integers are at
/// most ± `most`. Does not allocate, but for the first time in a thread.
pub(crate) fn multiply_rows<'a>(
    matrix: &IntMatrix,
    rows: usize,
    columns: impl Iterator<Item = Columns<'a>> + Clone,
    most: i32,
    mut give: impl FnMut(usize, &[i32]),
) {
    let width = matrix.width();
    SCRATCH.with_borrow_mut(|Scratch { wide, narrow, row: strided, sums }| {
        wide.resize(BLOCK * width, 0);
        narrow.resize(BLOCK * width, 0);
        sums.resize(BLOCK * matrix.cols, 0);
        for first in (0..rows).step_by(BLOCK) {
            let count = BLOCK.min(rows - first);
            let mut fits = true;
            for (row, wide) in wide.chunks_exact_mut(width.max(1)).take(count).enumerate() {
                let mut rest = wide;
                for Columns { from, scales } in columns.clone() {
                    let (own, others) = rest.split_at_mut(scales.len());
                    rest = others;
                    let from = from.row(first + row);
                    let from = if let Some(from) = from.to_slice() {
                        from
                    } else {
                        strided.clear();
                        strided.extend(from);
                        &*strided
                    };
                    fits &= to_grid(from, scales, most, own);
                }
                rest.fill(0);
            }
            let x = &wide[..count * width];
            let narrow = fits.then(|| {
                narrow_to(x, &mut narrow[..x.len()]);
                &narrow[..x.len()]
            });
            let sums = &mut sums[..count * matrix.cols];
            matrix.product(x, narrow, sums);
            for (row, sums) in sums.chunks_exact(matrix.cols).enumerate() {
                give(first + row, sums);
            }
        }
    });
}

/// The 8-bit integers that stand best for numbers, and the power of two that they are multiples of: `x ≈ n · 2^-shift`,
/// the largest of them between 64 and 127.
pub(crate) fn to_bytes(x: impl Iterator<Item = f64> + Clone, out: &mut Vec<i8>) -> i8 {
    let most = x.clone().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut shift: i8 = 0;
    if most > 0.0 && most.is_finite() {
        // Numbers of normal profiles are far from both ends.
        while shift < SHIFTS && most * power_f64(shift + 1) <= 127.0 {
            shift += 1;
        }
        while shift > -SHIFTS && most * power_f64(shift) > 127.0 {
            shift -= 1;
        }
    }
    out.extend(x.map(|x| (x * power_f64(shift)).round_ties_even().clamp(-127.0, 127.0) as i8));
    shift
}

/// Shifts are between ± this.
pub(crate) const SHIFTS: i8 = 60;

fn power_f64(exponent: i8) -> f64 {
    f64::from(exponent).exp2()
}

#[cfg(test)]
mod tests;
