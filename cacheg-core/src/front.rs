//! The lossy half of a plan: from rows of a plane to symbols and side information, and back.

use std::ops::Range;

use ndarray::ArrayView2;

use crate::aligned::Aligned;
use crate::kv::{describe, first_non_finite, matrix, matrix_mut};
use crate::stage::MAX_REFERENCES;
use crate::{
    Alphabet, BindCx, BoundQuantizer, BoundTransform, CLASSES, Error, Escapes, Geometry, Grader, KvView,
    Part, PartCx, Plane, Result, Role, Seen, Source, StageData, TileCx,
};

/// Values of a piece, 16 KiB of `f32`, unless a group of rows has more.
const PIECE_VALUES: usize = 1 << 12;

/// Values that a tile should have: enough that a stream's 128 bytes of final states do not count, few enough
/// that its scratch stays in a core's L2 cache.
const TARGET_VALUES: usize = 1 << 17;

/// The same where planes are predicted from others: few bits are left of a value, so that the 128 bytes weigh more.
const PREDICTED_VALUES: usize = 1 << 18;

/// Rows that are taken through all planes at a time, if planes are predicted from others: a row of numbers of a matrix is then
/// loaded for many.
pub(crate) const PREDICTED_ROWS: usize = 32;

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
    /// Whether tiles are done in pieces.
    pieces: bool,
    /// The transform that predicts planes from others, by index.
    predictor: Option<usize>,
    /// Whether rows are consecutive tokens.
    consecutive: bool,
}

/// Working memory for one plane of one tile.
#[derive(Debug, Default)]
pub(crate) struct FrontScratch {
    x: Aligned<f32>,
    y: Aligned<f32>,
    parts: [Aligned<f32>; MAX_PARTS],
    /// Symbol planes of a piece, one after the other; in the tile each is with those of other pieces.
    symbols: Vec<u8>,
    /// A row with one escape.
    row: Vec<u8>,
    escapes: Escapes,
    /// If planes are predicted from others: the same rows of every plane, as the predicting transform has given them back.
    kept: Vec<Aligned<f32>>,
}

impl Front {
    pub(crate) fn new(geometry: &Geometry, consecutive: bool) -> Self {
        let planes = geometry.planes();
        Self {
            planes,
            parts: Vec::new(),
            transforms: Vec::new(),
            quantizer: None,
            row_multiple: 1,
            pieces: false,
            predictor: None,
            consecutive,
        }
    }

    pub(crate) fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Tiles begin at multiples of this many tokens.
    pub(crate) fn row_multiple(&self) -> usize {
        self.row_multiple
    }

    pub(crate) fn bind_cx<'a>(&'a self, data: Option<&'a StageData>, source: Source) -> BindCx<'a> {
        let cx = BindCx::new(&self.planes, &self.parts, data, source);
        if self.consecutive { cx } else { cx.behind_selection() }
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
        let mut predicts = false;
        for plane in &self.planes {
            let references = transform.references(plane);
            predicts |= !references.is_empty();
            if references.len() > MAX_REFERENCES || references.iter().any(|other| *other >= plane.index) {
                return Err(
                    Error::setting("a plane can be predicted from a few planes before it").at(plane.name())
                );
            }
        }
        if predicts && self.predictor.replace(self.transforms.len()).is_some() {
            return Err(Error::setting("a second transform that predicts planes from others"));
        }
        self.transforms.push(transform);
        Ok(())
    }

    /// The number of the transform that predicts planes from others.
    pub(crate) fn predictor(&self) -> Option<usize> {
        self.predictor
    }

    /// Whether planes are predicted from others: then they are decoded in their order.
    pub(crate) fn predicts(&self) -> bool {
        self.predictor.is_some()
    }

    /// By plane those that it is predicted from; empty if none is.
    pub(crate) fn references(&self) -> Vec<Vec<usize>> {
        let Some(predictor) = self.predictor else { return Vec::new() };
        self.planes.iter().map(|plane| self.transforms[predictor].references(plane).to_vec()).collect()
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
                let classes = quantizer.classes(plane, part, index);
                let legal = classes.iter().all(|class| usize::from(*class) < CLASSES);
                if !legal || !(classes.is_empty() || classes.len() == part.cols) {
                    let why = format!("a quantizer's classes are one for each column, below {CLASSES}");
                    return Err(Error::setting(why).at(plane.name()));
                }
                part.classes = classes;
                part.grades = quantizer.grades();
            }
        }
        self.align(quantizer.row_multiple())?;
        // Escapes are listed in the order of the tile's symbols: only one symbol plane may have any, of a part that
        // has no other.
        let escapes = |part: &Part| part.alphabets.iter().any(|alphabet| alphabet.escape);
        let in_order = |parts: &Vec<Part>| {
            let mut escaping = parts.iter().filter(|part| escapes(part));
            escaping.next().is_none_or(|part| part.alphabets.len() == 1) && escaping.next().is_none()
        };
        // A quantizer's groups of rows are rows of its parts, which are not the tile's if there are several.
        let same_rows = quantizer.row_multiple() == 1 || self.parts.iter().all(|parts| parts.len() == 1);
        self.pieces = quantizer.independent_rows()
            && same_rows
            && self.transforms.iter().all(|transform| transform.independent_rows())
            && self.parts.iter().all(in_order);
        let one = |parts: &Vec<Part>| parts.len() == 1 && parts[0].alphabets.len() == 1;
        let simple = self.pieces && self.parts.iter().all(one) && self.row_multiple == 1;
        if self.predicts() && !simple {
            return Err(Error::setting(
                "a pipeline that predicts planes from others codes row by row, in one part",
            ));
        }
        if quantizer.grader().is_some() {
            self.check_grades()?;
            if !simple {
                return Err(Error::setting("grades take stages that code row by row"));
            }
        }
        self.quantizer = Some(quantizer);
        Ok(())
    }

    /// Refuses grades where they cannot be told, or not be shared.
    pub(crate) fn check_grades(&self) -> Result<()> {
        if !self.consecutive {
            return Err(Error::setting("tokens that a selection has left cannot be graded"));
        }
        // No parts yet while transforms are calibrated.
        let whole = self.parts.iter().all(|parts| parts.len() == 1);
        let heads = |a: &Plane, b: &Plane| a.layer != b.layer || a.shape.heads == b.shape.heads;
        let equal = self.planes.iter().zip(self.planes.iter().skip(1)).all(|(a, b)| heads(a, b));
        if equal && whole {
            return Ok(());
        }
        Err(Error::setting("grades take one part, and keys and values with as many heads"))
    }

    /// What gives tokens grades, if something does.
    pub(crate) fn grader(&self) -> Option<&dyn Grader> {
        self.quantizer.as_ref().and_then(|quantizer| quantizer.grader())
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

    /// The stages, transforms first.
    pub(crate) fn stages(&self) -> (&[Box<dyn BoundTransform>], Option<&dyn BoundQuantizer>) {
        (&self.transforms, self.quantizer.as_deref())
    }

    /// Whether every bit comes back.
    pub(crate) fn exact(&self) -> bool {
        self.quantizer.as_ref().is_some_and(|quantizer| quantizer.exact())
            && self.transforms.iter().all(|transform| transform.exact())
    }

    /// Whether an element depends on nothing but its symbol and its channel, and both are small enough for tables.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.pieces
            && self.quantizer.as_ref().is_some_and(|quantizer| quantizer.pointwise())
            && self.transforms.iter().all(|transform| transform.pointwise())
            && self.planes.iter().all(|plane| {
                plane.shape.dtype.size() == 2 && self.alphabet(plane).is_some_and(|a| a.size <= 32)
            })
    }

    /// The alphabet of a plane that has only one.
    pub(crate) fn alphabet(&self, plane: &Plane) -> Option<Alphabet> {
        match self.parts.get(plane.index)?.as_slice() {
            [Part { alphabets, .. }] if alphabets.len() == 1 => alphabets.first().copied(),
            _ => None,
        }
    }

    /// The symbols of values, of a pointwise pipeline; escapes are left out.
    pub(crate) fn symbols_of(
        &self,
        plane: &Plane,
        values: &[f32],
        scratch: &mut FrontScratch,
        symbols: &mut [u8],
    ) -> Result<()> {
        let cols = plane.channels();
        let piece = self.piece(plane, values.len() / cols).max(1) * cols;
        for (values, symbols) in values.chunks(piece).zip(symbols.chunks_mut(piece)) {
            let rows = values.len() / cols;
            let tile = TileCx::new(plane, 0, rows, 0);
            self.reserve_rows(plane, rows, scratch);
            scratch.x[..values.len()].copy_from_slice(values);
            self.transform(&tile, self.transforms.len().saturating_sub(1), scratch)?;
            let cx = PartCx::new(0, Role::Whole, rows, cols);
            self.forward_part(&tile, &cx, scratch)?;
            scratch.escapes.clear();
            let part = matrix(&scratch.parts[0][..values.len()], rows, cols);
            let quantizer = self.quantizer()?;
            quantizer.quantize(&tile, &cx, part, symbols, &mut [], &mut scratch.escapes.writer(0))?;
        }
        Ok(())
    }

    /// The value of an escape, of a pointwise pipeline.
    pub(crate) fn escaped(
        &self,
        plane: &Plane,
        channel: usize,
        value: i32,
        scratch: &mut FrontScratch,
    ) -> Result<f32> {
        let escape = self.alphabet(plane).map_or(0, |alphabet| (alphabet.size - 1) as u8);
        let mut row = std::mem::take(&mut scratch.row);
        row.clear();
        row.resize(plane.channels(), 0);
        row[channel] = escape;
        let mut escapes = std::mem::take(&mut scratch.escapes);
        escapes.clear();
        escapes.push(channel as u32, value);
        let mut from = Coded { symbols: &row, symbols_done: 0, side: &[], side_done: 0, escapes: &escapes };
        let mut got = 0.0;
        let result =
            self.dequantize(&TileCx::new(plane, 0, 1, 0), scratch, &mut from, &mut |_, _, values| {
                got = values[channel];
            });
        (scratch.row, scratch.escapes) = (row, escapes);
        result.map(|()| got)
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

    /// Values that a tile should have.
    pub(crate) fn tile_values(&self) -> usize {
        if self.predicts() { PREDICTED_VALUES } else { TARGET_VALUES }
    }

    /// Tokens of a piece: what is taken through all stages at a time, of a tile of that many rows.
    pub(crate) fn piece(&self, plane: &Plane, rows: usize) -> usize {
        if self.predicts() {
            PREDICTED_ROWS.min(rows)
        } else if self.pieces {
            (PIECE_VALUES / plane.channels()).max(1).next_multiple_of(self.row_multiple).min(rows)
        } else {
            rows
        }
    }

    /// Makes room for tiles of that many rows.
    pub(crate) fn reserve(&self, rows: usize, scratch: &mut FrontScratch) {
        for plane in &self.planes {
            self.reserve_rows(plane, self.piece(plane, rows), scratch);
        }
    }

    /// Makes room for that many rows of a plane at a time.
    pub(crate) fn reserve_rows(&self, plane: &Plane, rows: usize, scratch: &mut FrontScratch) {
        if self.predicts() {
            scratch.kept.resize_with(self.planes.len(), Aligned::default);
            for plane in &self.planes {
                scratch.kept[plane.index].grow(rows * plane.channels());
            }
        }
        scratch.x.grow(rows * plane.channels());
        scratch.y.grow(rows * plane.channels());
        for (cx, alphabets) in self.part_cxs(&TileCx::new(plane, 0, rows, 0)) {
            scratch.parts[cx.index].grow(cx.rows * cx.cols);
            let symbols = cx.rows * cx.cols * alphabets.len();
            if self.pieces && alphabets.len() > 1 && scratch.symbols.len() < symbols {
                scratch.symbols.resize(symbols, 0);
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
        let finite = view.load_seen(plane.index, token, rows, &mut scratch.x[..len]);
        if !finite && !self.exact() {
            check_finite(plane, token, &scratch.x[..len])?;
        }
        self.transform(tile, count, scratch)
    }

    /// Runs the first `count` transforms on `scratch.x`.
    fn transform(&self, tile: &TileCx<'_>, count: usize, scratch: &mut FrontScratch) -> Result<()> {
        let (rows, cols) = (tile.rows, tile.plane.channels());
        let len = rows * cols;
        for (index, transform) in self.transforms[..count].iter().enumerate() {
            let (x, y) =
                (matrix(&scratch.x[..len], rows, cols), matrix_mut(&mut scratch.y[..len], rows, cols));
            let mut views = [EMPTY; MAX_VIEWS];
            let count = self.reference_views(index, tile, &scratch.kept, &mut views);
            transform.forward(tile, 0, x, &unwrapped(views)[..count], y)?;
            std::mem::swap(&mut scratch.x, &mut scratch.y);
        }
        Ok(())
    }

    /// The rows that a transform is given beside its own plane's, and how many.
    fn reference_views<'k>(
        &self,
        transform: usize,
        tile: &TileCx<'_>,
        kept: &'k [Aligned<f32>],
        views: &mut [Option<ArrayView2<'k, f32>>],
    ) -> usize {
        if self.predictor != Some(transform) {
            return 0;
        }
        let references = self.transforms[transform].references(tile.plane);
        for (view, other) in views.iter_mut().zip(references) {
            let cols = self.planes[*other].channels();
            *view = Some(matrix(&kept[*other][..tile.rows * cols], tile.rows, cols));
        }
        references.len()
    }

    /// Keeps rows of the planes that a plane is predicted from, as they would be without the stages behind the prediction:
    /// for calibration. `wanted` says which, where the transform that predicts is not there yet.
    pub(crate) fn keep_references(
        &self,
        view: &KvView<'_>,
        tile: &TileCx<'_>,
        token: usize,
        wanted: &[usize],
        scratch: &mut FrontScratch,
    ) -> Result<()> {
        let (count, wanted) = match self.predictor {
            Some(predictor) => (predictor, self.transforms[predictor].references(tile.plane)),
            None => (self.transforms.len(), wanted),
        };
        scratch.kept.resize_with(self.planes.len(), Aligned::default);
        for other in wanted {
            let other = &self.planes[*other];
            let len = tile.rows * other.channels();
            self.reserve_rows(other, tile.rows, scratch);
            scratch.kept[other.index].grow(len);
            self.load(
                view,
                &TileCx::new(other, tile.first, tile.rows, tile.position),
                token,
                count,
                scratch,
            )?;
            scratch.kept[other.index][..len].copy_from_slice(&scratch.x[..len]);
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
        wanted: &[usize],
        scratch: &mut FrontScratch,
        see: &mut dyn FnMut(&PartCx, Seen<'_>) -> Result<()>,
    ) -> Result<()> {
        let (rows, cols) = (tile.rows, tile.plane.channels());
        if self.parts.is_empty() {
            self.load(view, tile, token, self.transforms.len(), scratch)?;
            let (part, x) =
                (PartCx::new(0, Role::Whole, rows, cols), matrix(&scratch.x[..rows * cols], rows, cols));
            if wanted.is_empty() {
                return see(&part, Seen::Values(x));
            }
            let of = |other: &usize| {
                let cols = self.planes[*other].channels();
                matrix(&scratch.kept[*other][..rows * cols], rows, cols)
            };
            return see(&part, Seen::Predicted(x, &wanted.iter().map(of).collect::<Vec<_>>()));
        }
        self.load(view, tile, token, self.transforms.len().saturating_sub(1), scratch)?;
        for (cx, _) in self.part_cxs(tile) {
            self.forward_part(tile, &cx, scratch)?;
            see(&cx, Seen::Values(matrix(&scratch.parts[cx.index][..cx.rows * cx.cols], cx.rows, cx.cols)))?;
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
                let mut views = [EMPTY; MAX_VIEWS];
                for (view, (part, buffer)) in views.iter_mut().zip(self.part_cxs(tile).zip(&*done)) {
                    *view = Some(matrix(&buffer[..part.0.rows * part.0.cols], part.0.rows, part.0.cols));
                }
                let (index, more) = (self.transforms.len() - 1, &mut views[cx.index..]);
                let count = cx.index + self.reference_views(index, tile, &scratch.kept, more);
                last.forward(tile, cx.index, x, &unwrapped(views)[..count], out)
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
        for piece in self.pieces_of(tile) {
            self.quantize_piece(view, tile, &piece, token, scratch, out)?;
        }
        let (symbols, side) = self.lengths(tile)?;
        out.symbols_done += symbols;
        out.side_done += side;
        Ok(())
    }

    fn quantize_piece(
        &self,
        view: &KvView<'_>,
        tile: &TileCx<'_>,
        piece: &TileCx<'_>,
        token: usize,
        scratch: &mut FrontScratch,
        out: &mut Quantized<'_>,
    ) -> Result<()> {
        let quantizer = self.quantizer()?;
        let before = piece.first - tile.first;
        self.load(view, piece, token + before, self.transforms.len().saturating_sub(1), scratch)?;
        let count = self.parts[tile.plane.index].len();
        let mut place = Place { symbols: out.symbols_done, side: out.side_done };
        for ((whole, alphabets), (cx, _)) in self.part_cxs(tile).zip(self.part_cxs(piece)) {
            self.forward_part(piece, &cx, scratch)?;
            let values = cx.rows * cx.cols;
            if quantizer.exact() && !self.exact() {
                check_range(tile.plane, &scratch.parts[cx.index][..values])?;
            }
            let own = place.take(self, quantizer, tile.plane, &whole, &cx, before, alphabets.len());
            let side_place = own.side.clone();
            let side = &mut out.side[own.side];
            let apart = own.first.len() != own.all;
            let symbols =
                if apart { &mut scratch.symbols[..own.all] } else { &mut out.symbols[own.first.clone()] };
            let escapes_from = out.escapes.items().len();
            let part = matrix(&scratch.parts[cx.index][..values], cx.rows, cx.cols);
            let base = own.first.start as u32;
            quantizer.quantize(piece, &cx, part, symbols, side, &mut out.escapes.writer(base))?;
            if cx.index + 1 < count {
                let mut reader = out.escapes.reader_from(escapes_from, base);
                let seen = matrix_mut(&mut scratch.parts[cx.index][..values], cx.rows, cx.cols);
                quantizer.dequantize(piece, &cx, symbols, side, &mut reader, seen)?;
            }
            if apart {
                for (plane, from) in scratch.symbols[..own.all].chunks_exact(values.max(1)).enumerate() {
                    let at = own.first.start + plane * whole.rows * whole.cols;
                    out.symbols[at..at + values].copy_from_slice(from);
                }
            }
            if let Some(predictor) = self.predictor {
                // What the decoder will have, for the planes that are predicted from it.
                let mut reader = out.escapes.reader_from(escapes_from, base);
                let seen = matrix_mut(&mut scratch.parts[0][..values], cx.rows, cx.cols);
                let symbols = &out.symbols[own.first.clone()];
                quantizer.dequantize(piece, &cx, symbols, &out.side[side_place], &mut reader, seen)?;
                self.undo(piece, predictor, scratch)?;
            }
        }
        Ok(())
    }

    /// One plane of one tile from symbols, piece by piece: `give` gets each piece's first row and its rows,
    /// `[tokens, channels]`.
    pub(crate) fn dequantize(
        &self,
        tile: &TileCx<'_>,
        scratch: &mut FrontScratch,
        from: &mut Coded<'_>,
        give: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        for piece in self.pieces_of(tile) {
            let values = self.dequantize_piece(tile, &piece, scratch, from)?;
            give(piece.first, piece.rows, values);
        }
        let (symbols, side) = self.lengths(tile)?;
        from.symbols_done += symbols;
        from.side_done += side;
        Ok(())
    }

    fn dequantize_piece<'s>(
        &self,
        tile: &TileCx<'_>,
        piece: &TileCx<'_>,
        scratch: &'s mut FrontScratch,
        from: &Coded<'_>,
    ) -> Result<&'s [f32]> {
        let quantizer = self.quantizer()?;
        let (rows, cols) = (piece.rows, piece.plane.channels());
        let len = rows * cols;
        let before = piece.first - tile.first;
        let mut place = Place { symbols: from.symbols_done, side: from.side_done };
        for ((whole, alphabets), (cx, _)) in self.part_cxs(tile).zip(self.part_cxs(piece)) {
            let values = cx.rows * cx.cols;
            let own = place.take(self, quantizer, tile.plane, &whole, &cx, before, alphabets.len());
            let mut reader = from.escapes.reader(own.first.start as u32, own.first.len() as u32);
            let symbols = if own.first.len() == own.all {
                &from.symbols[own.first]
            } else {
                for (plane, to) in scratch.symbols[..own.all].chunks_exact_mut(values.max(1)).enumerate() {
                    let at = own.first.start + plane * whole.rows * whole.cols;
                    to.copy_from_slice(&from.symbols[at..at + values]);
                }
                &scratch.symbols[..own.all]
            };
            let out = matrix_mut(&mut scratch.parts[cx.index][..values], cx.rows, cx.cols);
            quantizer.dequantize(piece, &cx, symbols, &from.side[own.side], &mut reader, out)?;
            reader.finish()?;
        }
        self.undo(piece, 0, scratch)?;
        Ok(if self.transforms.is_empty() { &scratch.parts[0][..len] } else { &scratch.x[..len] })
    }

    /// Undoes the transforms from the last to that of index `until`, from `scratch.parts` to `scratch.x`, and keeps what the
    /// predicting one makes.
    fn undo(&self, piece: &TileCx<'_>, until: usize, scratch: &mut FrontScratch) -> Result<()> {
        let Some((last, _)) = self.transforms.split_last() else { return Ok(()) };
        let (rows, cols) = (piece.rows, piece.plane.channels());
        let len = rows * cols;
        let mut views = [EMPTY; MAX_VIEWS];
        let count = self.parts[piece.plane.index].len();
        for (view, (cx, _)) in views.iter_mut().zip(self.part_cxs(piece)) {
            *view = Some(matrix(&scratch.parts[cx.index][..cx.rows * cx.cols], cx.rows, cx.cols));
        }
        let index = self.transforms.len() - 1;
        let count = count + self.reference_views(index, piece, &scratch.kept, &mut views[count..]);
        last.inverse(piece, &unwrapped(views)[..count], matrix_mut(&mut scratch.x[..len], rows, cols))?;
        self.keep(index, piece, scratch);
        for (index, transform) in self.transforms[..index].iter().enumerate().skip(until).rev() {
            let (x, y) =
                (matrix(&scratch.x[..len], rows, cols), matrix_mut(&mut scratch.y[..len], rows, cols));
            let mut views = [EMPTY; MAX_VIEWS];
            views[0] = Some(x);
            let count = 1 + self.reference_views(index, piece, &scratch.kept, &mut views[1..]);
            transform.inverse(piece, &unwrapped(views)[..count], y)?;
            std::mem::swap(&mut scratch.x, &mut scratch.y);
            self.keep(index, piece, scratch);
        }
        Ok(())
    }

    /// Keeps `scratch.x` for the planes that are predicted from it, if the transform that has made it is the one that does.
    fn keep(&self, transform: usize, piece: &TileCx<'_>, scratch: &mut FrontScratch) {
        if self.predictor == Some(transform) {
            let len = piece.rows * piece.plane.channels();
            scratch.kept[piece.plane.index][..len].copy_from_slice(&scratch.x[..len]);
        }
    }

    /// A tile's pieces; the tile itself if it cannot be cut.
    fn pieces_of<'t>(&self, tile: &TileCx<'t>) -> impl Iterator<Item = TileCx<'t>> + use<'t> {
        let TileCx { plane, first, rows, position, grades } = *tile;
        let heads = grades.len() / rows.max(1);
        let step = self.piece(plane, rows).max(1);
        (0..rows).step_by(step).map(move |row| {
            let rows = step.min(rows - row);
            TileCx::new(plane, first + row, rows, position.wrapping_add(row as u64))
                .with_grades(&grades[row * heads..(row + rows) * heads])
        })
    }

    /// Symbols and bytes of side information of one plane of a tile.
    pub(crate) fn lengths(&self, tile: &TileCx<'_>) -> Result<(usize, usize)> {
        let quantizer = self.quantizer()?;
        let add = |(symbols, side): (usize, usize), (cx, alphabets): (PartCx, &[Alphabet])| {
            (symbols + cx.rows * cx.cols * alphabets.len(), side + quantizer.side_len(tile.plane, &cx))
        };
        Ok(self.part_cxs(tile).fold((0, 0), add))
    }
}

/// Where the next part of a tile begins.
struct Place {
    symbols: usize,
    side: usize,
}

/// Where a piece's part is in its tile.
struct Own {
    /// Its symbols; if there are several symbol planes, and other pieces, those of the first.
    first: Range<usize>,
    /// Number of its symbols.
    all: usize,
    side: Range<usize>,
}

impl Place {
    /// Goes on to the next part.
    #[expect(clippy::too_many_arguments, reason = "all of it says where a part is; nothing else asks")]
    fn take(
        &mut self,
        front: &Front,
        quantizer: &dyn BoundQuantizer,
        plane: &Plane,
        whole: &PartCx,
        piece: &PartCx,
        before: usize,
        alphabets: usize,
    ) -> Own {
        let rows =
            |tokens| front.transforms.last().map_or(tokens, |last| last.part_rows(piece.index, tokens));
        let before = if before == 0 { 0 } else { rows(before) };
        let side_len = |rows| quantizer.side_len(plane, &PartCx { rows, ..*piece });
        let (own_side, side_before) = (side_len(piece.rows), if before == 0 { 0 } else { side_len(before) });
        let all = piece.rows * piece.cols * alphabets;
        let first = self.symbols + before * piece.cols;
        let len = if piece.rows == whole.rows { all } else { piece.rows * piece.cols };
        let own = Own {
            first: first..first + len,
            all,
            side: self.side + side_before..self.side + side_before + own_side,
        };
        self.symbols += whole.rows * whole.cols * alphabets;
        self.side += side_len(whole.rows);
        own
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

/// Most matrices that a transform is given.
const MAX_VIEWS: usize = MAX_PARTS + MAX_REFERENCES;

const EMPTY: Option<ArrayView2<'static, f32>> = None;

fn unwrapped<'a>(views: [Option<ArrayView2<'a, f32>>; MAX_VIEWS]) -> [ArrayView2<'a, f32>; MAX_VIEWS] {
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
