//! Matrices in all memory layouts that stages may be handed, and comparisons down to the bit.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::suite::ensure;
use super::{Check, Random};

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    RowMajor,
    ColumnMajor,
    /// With gaps between rows and between columns.
    Gaps,
    /// Backwards in both directions.
    Reversed,
}

impl Lie {
    /// All but the usual one.
    pub(crate) const UNUSUAL: [Self; 3] = [Self::ColumnMajor, Self::Gaps, Self::Reversed];
}

/// What buffers hold before a stage writes to them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poison {
    pub(crate) value: f32,
    pub(crate) byte: u8,
}

/// A NaN, which spreads, and a plausible value, which does not show: results must agree under both.
pub(crate) const POISONS: [Poison; 2] =
    [Poison { value: f32::NAN, byte: 0xff }, Poison { value: -97.25, byte: 0x01 }];

/// A matrix and the memory it lies in.
#[derive(Debug)]
pub(crate) struct Grid {
    store: Array2<f32>,
    lie: Lie,
}

impl Grid {
    /// Full of poison.
    pub(crate) fn poisoned(lie: Lie, rows: usize, cols: usize, poison: Poison) -> Self {
        let shape = match lie {
            Lie::RowMajor | Lie::Reversed => (rows, cols),
            Lie::ColumnMajor => (cols, rows),
            Lie::Gaps => (2 * rows + 1, 3 * cols + 1),
        };
        Self { store: Array2::from_elem(shape, poison.value), lie }
    }

    /// A copy of `values`.
    pub(crate) fn of(lie: Lie, values: &Array2<f32>) -> Self {
        let mut grid = Self::poisoned(lie, values.nrows(), values.ncols(), POISONS[0]);
        grid.view_mut().assign(values);
        grid
    }

    pub(crate) fn view(&self) -> ArrayView2<'_, f32> {
        match self.lie {
            Lie::RowMajor => self.store.view(),
            Lie::ColumnMajor => self.store.t(),
            Lie::Gaps => self.store.slice(s![1..;2, 1..;3]),
            Lie::Reversed => self.store.slice(s![..;-1, ..;-1]),
        }
    }

    pub(crate) fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        match self.lie {
            Lie::RowMajor => self.store.view_mut(),
            Lie::ColumnMajor => self.store.view_mut().reversed_axes(),
            Lie::Gaps => self.store.slice_mut(s![1..;2, 1..;3]),
            Lie::Reversed => self.store.slice_mut(s![..;-1, ..;-1]),
        }
    }

    pub(crate) fn to_array(&self) -> Array2<f32> {
        self.view().to_owned()
    }
}

/// Fails at the first value whose bits differ.
pub(crate) fn same_bits(what: &str, want: &Array2<f32>, got: &Array2<f32>) -> Check {
    ensure(want.dim() == got.dim(), || format!("{what}: shape {:?}, not {:?}", got.dim(), want.dim()))?;
    for ((at, want), got) in want.indexed_iter().zip(got) {
        ensure(want.to_bits() == got.to_bits(), || {
            format!(
                "{what}: {got} ({:#010x}) at {at:?}, not {want} ({:#010x})",
                got.to_bits(),
                want.to_bits()
            )
        })?;
    }
    Ok(())
}

/// Fails at the first byte that differs.
pub(crate) fn same_bytes(what: &str, want: &[u8], got: &[u8]) -> Check {
    ensure(want.len() == got.len(), || format!("{what}: {} bytes, not {}", got.len(), want.len()))?;
    match want.iter().zip(got).position(|(want, got)| want != got) {
        None => Ok(()),
        Some(at) => ensure(false, || format!("{what}: byte {at} is {}, not {}", got[at], want[at])),
    }
}

/// The largest magnitude; 0 of nothing.
pub(crate) fn largest(values: &Array2<f32>) -> f32 {
    values.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

/// `values` as a lossy coder might give them back.
pub(crate) fn perturb(values: &Array2<f32>, by: f32, random: &mut Random) -> Array2<f32> {
    values.mapv(|x| x + by * (1.0 + random.below(8) as f32) / 8.0)
}
