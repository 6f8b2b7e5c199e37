//! The lossy half of a plan: from rows of a plane to symbols and side information, and back.

use ndarray::ArrayView2;

use crate::kv::{describe, first_non_finite, matrix, matrix_mut};
use crate::{
    Alphabet, BindCx, BoundQuantizer, BoundTransform, Error, Escapes, Geometry, KvView, Part, PartCx, Plane,
    Result, Role, Source, StageData, TileCx,
};

/// Most parts of one plane.
pub(crate) const MAX_PARTS: usize = 4;

/// Bound transforms and, once known, the quantizer.
pub(crate) struct Front {
    planes: Vec<Plane>,
    /// Of each plane; empty until the transforms are complete.
    parts: Vec<Vec<Part>>,
    transforms: Vec<Box<dyn BoundTransform>>,
    quantizer: Option<Box<dyn BoundQuantizer>>,
    row_multiple: usize,
}

/// Working memory for one plane of one tile.
#[derive(Debug, Default)]
pub(crate) struct FrontScratch {
    x: Vec<f32>,
    y: Vec<f32>,
    parts: [Vec<f32>; MAX_PARTS],
}

impl Front {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let planes = geometry.planes();
        Self { planes, parts: Vec::new(), transforms: Vec::new(), quantizer: None, row_multiple: 1 }
    }

    pub(crate) fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Tiles begin at multiples of this many tokens.
    pub(crate) fn row_multiple(&self) -> usize {
        self.row_multiple
    }

    pub(crate) fn bind_cx<'a>(&'a self, data: Option<&'a StageData>, source: Source) -> BindCx<'a> {
        BindCx::new(&self.planes, &self.parts, data, source)
    }

    /// Refuses a further transform behind one that makes parts.
    pub(crate) fn check_can_follow(&self) -> Result<()> {
        let several = |t: &dyn BoundTransform| self.planes.iter().any(|plane| t.parts(plane).len() != 1);
        if self.transforms.last().is_some_and(|last| several(&**last)) {
            return Err(Error::setting("no transform can follow one that splits planes into parts"));
        }
        Ok(())
    }

    pub(crate) fn push_transform(&mut self, transform: Box<dyn BoundTransform>) -> Result<()> {
        self.align(transform.row_multiple())?;
        self.transforms.push(transform);
        Ok(())
    }

    /// All transforms are there: asks the last one for the parts.
    pub(crate) fn split_parts(&mut self) -> Result<()> {
        for plane in &self.planes {
            let parts = match self.transforms.last() {
                Some(last) => last.parts(plane),
                None => vec![Part::new(Role::Whole, plane.channels())],
            };
            if parts.is_empty() || parts.len() > MAX_PARTS {
                return Err(Error::setting(format!("{} parts; 1 to {MAX_PARTS} are possible", parts.len())));
            }
            self.parts.push(parts);
        }
        Ok(())
    }

    pub(crate) fn set_quantizer(&mut self, quantizer: Box<dyn BoundQuantizer>) -> Result<()> {
        for (plane, parts) in self.planes.iter().zip(&mut self.parts) {
            for (index, part) in parts.iter_mut().enumerate() {
                let alphabets = quantizer.alphabets(plane, part, index);
                if alphabets.is_empty() || alphabets.iter().any(|a| !(2..=256).contains(&a.size)) {
                    return Err(Error::setting("alphabets have 2 to 256 symbols").at(plane.name()));
                }
                if alphabets.iter().any(|a| a.escape) && !quantizer.escapes() {
                    return Err(Error::setting("a quantizer that escapes must say so").at(plane.name()));
                }
                part.alphabets = alphabets;
            }
        }
        self.align(quantizer.row_multiple())?;
        self.quantizer = Some(quantizer);
        Ok(())
    }

    fn align(&mut self, multiple: usize) -> Result<()> {
        let (mut a, mut b) = (self.row_multiple, multiple);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let least = (self.row_multiple / a.max(1))
            .checked_mul(multiple)
            .filter(|least| (1..=1 << 16).contains(least));
        self.row_multiple =
            least.ok_or_else(|| Error::setting("the stages' groups of tokens do not fit together"))?;
        Ok(())
    }

    pub(crate) fn quantizer(&self) -> Result<&dyn BoundQuantizer> {
        self.quantizer.as_deref().ok_or_else(|| Error::setting("no quantizer"))
    }

    /// Whether every bit comes back.
    fn exact(&self) -> bool {
        self.quantizer.as_ref().is_some_and(|quantizer| quantizer.exact())
            && self.transforms.iter().all(|transform| transform.exact())
    }

    pub(crate) fn escapes(&self) -> bool {
        self.quantizer.as_ref().is_some_and(|quantizer| quantizer.escapes())
    }

    /// The parts of a plane in a tile.
    pub(crate) fn part_cxs<'a>(
        &'a self,
        tile: &TileCx<'a>,
    ) -> impl Iterator<Item = (PartCx, &'a [Alphabet])> + 'a {
        let (plane, rows) = (tile.plane, tile.rows);
        // No parts yet while transforms are calibrated.
        let parts = self.parts.get(plane.index).map_or(&[][..], Vec::as_slice);
        parts.iter().enumerate().map(move |(index, part)| {
            let rows = self.transforms.last().map_or(rows, |last| last.part_rows(index, rows));
            (PartCx::new(index, part.role, rows, part.cols), part.alphabets.as_slice())
        })
    }

    /// Makes room for tiles of that many rows.
    pub(crate) fn reserve(&self, rows: usize, scratch: &mut FrontScratch) {
        let grow = |buffer: &mut Vec<f32>, len: usize| {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        };
        for plane in &self.planes {
            grow(&mut scratch.x, rows * plane.channels());
            grow(&mut scratch.y, rows * plane.channels());
            for (cx, _) in self.part_cxs(&TileCx::new(plane, 0, rows, 0)) {
                grow(&mut scratch.parts[cx.index], cx.rows * cx.cols);
            }
        }
    }

    /// Loads rows and runs the first `count` transforms (all but the last at most); they are in `scratch.x`.
    fn load(
        &self,
        view: &KvView<'_>,
        tile: &TileCx<'_>,
        token: usize,
        count: usize,
        scratch: &mut FrontScratch,
    ) -> Result<()> {
        let (plane, rows, cols) = (tile.plane, tile.rows, tile.plane.channels());
        let len = rows * cols;
        view.load(plane.index, token, rows, &mut scratch.x[..len]);
        if !self.exact() {
            check_finite(plane, token, &scratch.x[..len])?;
        }
        for transform in &self.transforms[..count] {
            let (x, y) =
                (matrix(&scratch.x[..len], rows, cols), matrix_mut(&mut scratch.y[..len], rows, cols));
            transform.forward(tile, 0, x, &[], y)?;
            std::mem::swap(&mut scratch.x, &mut scratch.y);
        }
        Ok(())
    }

    /// Shows what the next stage would see as input: whole planes to transforms, parts to a quantizer.
    /// Earlier parts are taken as exact, since nothing has quantised them yet.
    pub(crate) fn observe_values(
        &self,
        view: &KvView<'_>,
        tile: &TileCx<'_>,
        token: usize,
        scratch: &mut FrontScratch,
        see: &mut dyn FnMut(&PartCx, ArrayView2<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        let (rows, cols) = (tile.rows, tile.plane.channels());
        if self.parts.is_empty() {
            self.load(view, tile, token, self.transforms.len(), scratch)?;
            return see(
                &PartCx::new(0, Role::Whole, rows, cols),
                matrix(&scratch.x[..rows * cols], rows, cols),
            );
        }
        self.load(view, tile, token, self.transforms.len().saturating_sub(1), scratch)?;
        for (cx, _) in self.part_cxs(tile) {
            self.forward_part(tile, &cx, scratch)?;
            see(&cx, matrix(&scratch.parts[cx.index][..cx.rows * cx.cols], cx.rows, cx.cols))?;
        }
        Ok(())
    }

    /// One part by the last transform, from `scratch.x` and the earlier `scratch.parts`.
    fn forward_part(&self, tile: &TileCx<'_>, cx: &PartCx, scratch: &mut FrontScratch) -> Result<()> {
        let (rows, cols) = (tile.rows, tile.plane.channels());
        let x = matrix(&scratch.x[..rows * cols], rows, cols);
        let (done, rest) = scratch.parts.split_at_mut(cx.index);
        let mut out = matrix_mut(&mut rest[0][..cx.rows * cx.cols], cx.rows, cx.cols);
        match self.transforms.last() {
            None => {
                out.assign(&x);
                Ok(())
            }
            Some(last) => {
                let mut views = [EMPTY; MAX_PARTS];
                for (view, (part, buffer)) in views.iter_mut().zip(self.part_cxs(tile).zip(&*done)) {
                    *view = Some(matrix(&buffer[..part.0.rows * part.0.cols], part.0.rows, part.0.cols));
                }
                last.forward(tile, cx.index, x, &unwrapped(views)[..cx.index], out)
            }
        }
    }

    /// One plane of one tile to symbols; `token` is the tile's first token in the view.
    pub(crate) fn quantize(
        &self,
        view: &KvView<'_>,
        tile: &TileCx<'_>,
        token: usize,
        scratch: &mut FrontScratch,
        out: &mut Quantized<'_>,
    ) -> Result<()> {
        let quantizer = self.quantizer()?;
        self.load(view, tile, token, self.transforms.len().saturating_sub(1), scratch)?;
        let count = self.parts[tile.plane.index].len();
        for (cx, alphabets) in self.part_cxs(tile) {
            self.forward_part(tile, &cx, scratch)?;
            let values = cx.rows * cx.cols;
            if quantizer.exact() && !self.exact() {
                check_range(tile.plane, &scratch.parts[cx.index][..values])?;
            }
            let base = out.symbols_done;
            let symbols = &mut out.symbols[base..base + values * alphabets.len()];
            out.symbols_done += symbols.len();
            let side = &mut out.side[out.side_done..][..quantizer.side_len(tile.plane, &cx)];
            out.side_done += side.len();
            let part = matrix(&scratch.parts[cx.index][..values], cx.rows, cx.cols);
            quantizer.quantize(tile, &cx, part, symbols, side, &mut out.escapes.writer(base as u32))?;
            if cx.index + 1 < count {
                let mut reader = out.escapes.reader(base as u32, symbols.len() as u32);
                let seen = matrix_mut(&mut scratch.parts[cx.index][..values], cx.rows, cx.cols);
                quantizer.dequantize(tile, &cx, symbols, side, &mut reader, seen)?;
            }
        }
        Ok(())
    }

    /// One plane of one tile from symbols; returns the rows, `[tokens, channels]`.
    pub(crate) fn dequantize<'s>(
        &self,
        tile: &TileCx<'_>,
        scratch: &'s mut FrontScratch,
        from: &mut Coded<'_>,
    ) -> Result<&'s [f32]> {
        let quantizer = self.quantizer()?;
        let (rows, cols) = (tile.rows, tile.plane.channels());
        let len = rows * cols;
        let count = self.parts[tile.plane.index].len();
        for (cx, alphabets) in self.part_cxs(tile) {
            let values = cx.rows * cx.cols;
            let base = from.symbols_done;
            let symbols = &from.symbols[base..base + values * alphabets.len()];
            from.symbols_done += symbols.len();
            let side = &from.side[from.side_done..][..quantizer.side_len(tile.plane, &cx)];
            from.side_done += side.len();
            let mut reader = from.escapes.reader(base as u32, symbols.len() as u32);
            let out = matrix_mut(&mut scratch.parts[cx.index][..values], cx.rows, cx.cols);
            quantizer.dequantize(tile, &cx, symbols, side, &mut reader, out)?;
            reader.finish()?;
        }
        let Some((last, others)) = self.transforms.split_last() else {
            return Ok(&scratch.parts[0][..len]);
        };
        let mut views = [EMPTY; MAX_PARTS];
        for (view, (cx, _)) in views.iter_mut().zip(self.part_cxs(tile)) {
            *view = Some(matrix(&scratch.parts[cx.index][..cx.rows * cx.cols], cx.rows, cx.cols));
        }
        last.inverse(tile, &unwrapped(views)[..count], matrix_mut(&mut scratch.x[..len], rows, cols))?;
        for transform in others.iter().rev() {
            let (x, y) =
                (matrix(&scratch.x[..len], rows, cols), matrix_mut(&mut scratch.y[..len], rows, cols));
            transform.inverse(tile, &[x], y)?;
            std::mem::swap(&mut scratch.x, &mut scratch.y);
        }
        Ok(&scratch.x[..len])
    }
}

/// Where a tile's symbols and side information go, plane after plane.
pub(crate) struct Quantized<'a> {
    pub(crate) symbols: &'a mut [u8],
    pub(crate) symbols_done: usize,
    pub(crate) side: &'a mut [u8],
    pub(crate) side_done: usize,
    pub(crate) escapes: &'a mut Escapes,
}

/// Where they come from.
pub(crate) struct Coded<'a> {
    pub(crate) symbols: &'a [u8],
    pub(crate) symbols_done: usize,
    pub(crate) side: &'a [u8],
    pub(crate) side_done: usize,
    pub(crate) escapes: &'a Escapes,
}

const EMPTY: Option<ArrayView2<'static, f32>> = None;

fn unwrapped<'a>(views: [Option<ArrayView2<'a, f32>>; MAX_PARTS]) -> [ArrayView2<'a, f32>; MAX_PARTS] {
    views.map(|view| view.unwrap_or_else(|| matrix(&[], 0, 0)))
}

/// A quantizer that keeps elements as they are would clamp what a transform has driven out of their range.
fn check_range(plane: &Plane, part: &[f32]) -> Result<()> {
    let max = plane.shape.dtype.max();
    // Not `>`: a NaN is out of range, too.
    if part.iter().all(|x| x.abs() <= max) {
        return Ok(());
    }
    Err(Error::data(format!("the transforms lead to values beyond the range of {}", plane.shape.dtype)))
}

fn check_finite(plane: &Plane, token: usize, rows: &[f32]) -> Result<()> {
    let Some(index) = first_non_finite(rows) else { return Ok(()) };
    let (row, channel) = (index / plane.channels(), index % plane.channels());
    let dim = plane.shape.head_dim as usize;
    Err(Error::data(format!(
        "{} at head {}, token {}, channel {}: lossy pipelines code finite values only; the `lossless` preset \
         carries it exactly",
        describe(plane.shape.dtype, rows[index]),
        channel / dim,
        token + row,
        channel % dim
    )))
}
