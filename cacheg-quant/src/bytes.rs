//! `bytes`: the elements' own bytes as symbols; nothing is lost.
//!
//! The values are narrowed back to the plane's element type, and byte `b` of all elements (0 is the least
//! significant) makes symbol plane `b`, alphabet 256. Sign, exponent and mantissa then have statistics of their
//! own, as in byte-shuffling filters (Blosc's shuffle; ZipNN, arXiv 2411.05239, byte grouping).
//!
//! Exact, NaN payloads included, if the transform is (`identity`). After others it rounds to the element type:
//! nearest, ties to even, finite values beyond the range saturate. No settings, no side information, no data.
//!
//! ```
//! let stages = cacheg_core::spec::parse("bytes")?;
//! let cacheg_core::Build::Quantizer(build) = cacheg_quant::bytes::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.name(), "bytes");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::ops::Range;
use std::sync::Arc;

use cacheg_core::{
    Alphabet, BindCx, BoundQuantizer, Build, Dtype, EscapeReader, EscapeWriter, Kernel, Part, PartCx, Plane,
    Plugin, Quantizer, Result, Stage, TileCx, config, dtype_code, settings,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::Value;

use crate::rows::{Matrix, MatrixMut, Values, ValuesMut, check_len};
use crate::settings::NoSettings;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "bytes",
    version: 1,
    origin: "cacheg-quant",
    summary: "the elements' bytes as symbol planes, nothing lost",
    usage: "bytes",
    build: Build::Quantizer(build),
};

fn build(value: &Value) -> Result<Arc<dyn Quantizer>> {
    settings::<NoSettings>(PLUGIN.name, value)?;
    Ok(Arc::new(Bytes))
}

#[derive(Debug)]
struct Bytes;

impl Stage for Bytes {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&NoSettings {})
    }
}

impl Quantizer for Bytes {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundQuantizer>> {
        Ok(Box::new(Self))
    }
}

/// Elements converted at a time, on the stack.
const BLOCK: usize = 128;

impl BoundQuantizer for Bytes {
    fn independent_rows(&self) -> bool {
        true
    }

    fn alphabets(&self, plane: &Plane, _: &Part, _: usize) -> Vec<Alphabet> {
        vec![Alphabet { size: 256, escape: false }; plane.shape.dtype.size()]
    }

    fn side_len(&self, _: &Plane, _: &PartCx) -> usize {
        0
    }

    fn exact(&self) -> bool {
        true
    }

    fn kernel(&self, planes: &[Plane]) -> Option<Kernel> {
        let of = |plane: &Plane| [plane.shape.dtype.size() as u32, dtype_code(plane.shape.dtype)];
        Some(Kernel::new(include_str!("bytes.wgsl"), planes.iter().flat_map(of).collect()))
    }

    fn quantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        x: ArrayView2<'_, f32>,
        symbols: &mut [u8],
        side: &mut [u8],
        _: &mut EscapeWriter<'_>,
    ) -> Result<()> {
        let dtype = tile.plane.shape.dtype;
        check_len("symbols", symbols.len(), x.len() * dtype.size())?;
        check_len("bytes of side information", side.len(), 0)?;
        match Matrix::new(x, part.rows, part.cols)? {
            Matrix::Flat(x) => split(dtype, &x, part, symbols),
            Matrix::Strided(x) => split(dtype, &x, part, symbols),
        }
    }

    fn dequantize(
        &self,
        tile: &TileCx<'_>,
        part: &PartCx,
        symbols: &[u8],
        side: &[u8],
        _: &mut EscapeReader<'_>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let dtype = tile.plane.shape.dtype;
        check_len("symbols", symbols.len(), out.len() * dtype.size())?;
        check_len("bytes of side information", side.len(), 0)?;
        match MatrixMut::new(out, part.rows, part.cols)? {
            MatrixMut::Flat(mut out) => join(dtype, symbols, part, &mut out),
            MatrixMut::Strided(mut out) => join(dtype, symbols, part, &mut out),
        }
    }
}

/// Element types may be added to core before this stage knows them.
fn unknown_size(dtype: Dtype) -> cacheg_core::Error {
    cacheg_core::Error::unsupported(format!("`bytes` on elements of {} bytes ({dtype})", dtype.size()))
}

fn split(dtype: Dtype, x: &impl Values, part: &PartCx, symbols: &mut [u8]) -> Result<()> {
    match dtype.size() {
        1 => split_sized::<1>(dtype, x, part, symbols),
        2 => split_sized::<2>(dtype, x, part, symbols),
        4 => split_sized::<4>(dtype, x, part, symbols),
        _ => return Err(unknown_size(dtype)),
    }
    Ok(())
}

fn join(dtype: Dtype, symbols: &[u8], part: &PartCx, out: &mut impl ValuesMut) -> Result<()> {
    match dtype.size() {
        1 => join_sized::<1>(dtype, symbols, part, out),
        2 => join_sized::<2>(dtype, symbols, part, out),
        4 => join_sized::<4>(dtype, symbols, part, out),
        _ => return Err(unknown_size(dtype)),
    }
    Ok(())
}

/// Runs `f` on runs of at most [`BLOCK`] values: their row, columns, and the number of the first.
fn blocks(part: &PartCx, mut f: impl FnMut(usize, Range<usize>, usize)) {
    for row in 0..part.rows {
        for first in (0..part.cols).step_by(BLOCK) {
            f(row, first..part.cols.min(first + BLOCK), row * part.cols + first);
        }
    }
}

fn split_sized<const SIZE: usize>(dtype: Dtype, x: &impl Values, part: &PartCx, symbols: &mut [u8]) {
    let mut wide = [0.0; BLOCK];
    let mut narrow = [[0; SIZE]; BLOCK];
    blocks(part, |row, cols, at| {
        let len = cols.len();
        wide.iter_mut().zip(x.values(row, cols)).for_each(|(to, from)| *to = *from);
        dtype.narrow(&wide[..len], narrow[..len].as_flattened_mut());
        for byte in 0..SIZE {
            let at = at + byte * part.rows * part.cols;
            let plane = &mut symbols[at..at + len];
            plane.iter_mut().zip(&narrow).for_each(|(symbol, element)| *symbol = element[byte]);
        }
    });
}

fn join_sized<const SIZE: usize>(dtype: Dtype, symbols: &[u8], part: &PartCx, out: &mut impl ValuesMut) {
    let mut wide = [0.0; BLOCK];
    let mut narrow = [[0; SIZE]; BLOCK];
    blocks(part, |row, cols, at| {
        let len = cols.len();
        for byte in 0..SIZE {
            let at = at + byte * part.rows * part.cols;
            let plane = &symbols[at..at + len];
            narrow.iter_mut().zip(plane).for_each(|(element, symbol)| element[byte] = *symbol);
        }
        dtype.widen(narrow[..len].as_flattened(), &mut wide[..len]);
        out.values_mut(row, cols).zip(&wide).for_each(|(to, from)| *to = *from);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use cacheg_core::Role;
    use ndarray::{Array2, array};

    #[test]
    fn every_bit_of_every_type_survives() {
        for dtype in Dtype::ALL {
            let planes = planes_of(1, 1, 16, dtype);
            let bound = bind_quantizer("bytes", &planes, Role::Whole, None);
            let alphabets = bound.alphabets(&planes[0], &Part::new(Role::Whole, 16), 0);
            assert_eq!(alphabets.len(), dtype.size());
            assert!(bound.exact() && !bound.escapes());
            for rows in [0, 1, 37] {
                let mut rng = Rng(5);
                let bytes: Vec<u8> = (0..rows * 16 * dtype.size()).map(|_| rng.bits() as u8).collect();
                let mut x = Array2::zeros((rows, 16));
                dtype.widen(&bytes, x.as_slice_mut().unwrap());
                let y = round_trip(&*bound, &planes[0], Role::Whole, &x);
                let mut back = vec![0; bytes.len()];
                dtype.narrow(y.as_slice().unwrap(), &mut back);
                assert_eq!(back, bytes, "{dtype}");
            }
        }
    }

    #[test]
    fn planes_are_in_order_of_significance() {
        let planes = planes(1, 1, 2);
        let bound = bind_quantizer("bytes", &planes, Role::Whole, None);
        let coded = quantize(&*bound, &planes[0], Role::Whole, &array![[1.0, -2.0 - 1.0 / 512.0]]).unwrap();
        assert_eq!(coded.symbols, [0x00, 0x01, 0x3c, 0xc0]);
    }

    #[test]
    fn too_large_values_saturate() {
        let planes = planes(1, 1, 2);
        let bound = bind_quantizer("bytes", &planes, Role::Whole, None);
        let y = round_trip(&*bound, &planes[0], Role::Whole, &array![[1e9, -1e9]]);
        assert_eq!(y, array![[65504.0, -65504.0]]);
    }
}
