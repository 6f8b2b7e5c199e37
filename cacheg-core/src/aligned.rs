//! Memory that begins at a cache line, so that vectors of a line's size never straddle two.

use std::ops::{Deref, DerefMut};

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

#[derive(Debug, Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer of plain values.
#[derive(Clone)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: AnyBitPattern + NoUninit> Aligned<T> {
    /// That many zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut new = Self { lines: Vec::new(), len: 0, of: std::marker::PhantomData };
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        new.lines = bytemuck::zeroed_vec(lines);
        new.len = len;
        new
    }

    /// Makes it at least that long. What it held is lost.
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeros(len);
        }
    }
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, of: std::marker::PhantomData }
    }
}

impl<T: AnyBitPattern + NoUninit> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: AnyBitPattern + NoUninit> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl<T: AnyBitPattern + NoUninit + PartialEq> PartialEq for Aligned<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{} × {}]", self.len, std::any::type_name::<T>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_line_and_grows() {
        let mut buffer = Aligned::<f32>::default();
        assert!(buffer.is_empty());
        for len in [1, 16, 17, 3] {
            buffer.grow(len);
            assert_eq!(buffer.as_ptr().addr() % 64, 0);
            buffer[len - 1] = 1.0;
        }
        assert_eq!(buffer.len(), 17);
        assert!(Aligned::<u8>::zeros(0) == Aligned::default());
        assert!(Aligned::<u8>::zeros(3) != Aligned::zeros(4));
    }
}
