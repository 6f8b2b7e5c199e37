//! KV caches in memory: borrowed planes over any layout in which a plane's bytes are one run.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::aligned::Aligned;
use crate::dtype::{Runs, Store};
use crate::{Dtype, ElementSpan, ElementWindow, Error, Geometry, Importance, Kept, Plane, Result};

/// Where a plane's elements are inside its bytes; the head's channels are always neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// `[heads, tokens, head_dim]`: what engines and our files use.
    HeadMajor,
    /// `[tokens, heads, head_dim]`: LMCache blobs.
    TokenMajor,
}

impl Order {
    /// Element offset of the head's row of one token.
    fn offset(self, plane: &Plane, tokens: usize, head: usize, token: usize) -> usize {
        let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
        match self {
            Self::HeadMajor => (head * tokens + token) * dim,
            Self::TokenMajor => (token * heads + head) * dim,
        }
    }

    /// Columns of the rows from `first` as runs of neighbours: the columns, the byte where they begin, the bytes from one
    /// row to the next.
    fn spans(
        self,
        plane: &Plane,
        tokens: usize,
        first: usize,
        cols: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, usize, usize)> {
        let (dim, size) = (plane.shape.head_dim as usize, plane.shape.dtype.size());
        let stride = self.offset(plane, tokens, 0, 1) * size;
        let heads = if cols.is_empty() { 0..0 } else { cols.start / dim..cols.end.div_ceil(dim) };
        heads.map(move |head| {
            let (from, to) = (cols.start.max(head * dim), cols.end.min((head + 1) * dim));
            (from..to, (self.offset(plane, tokens, head, first) + from - head * dim) * size, stride)
        })
    }

    /// Rows `first .. first + rows` of a plane of `tokens` tokens as runs of neighbours: where they begin in the
    /// rows' values, their bytes in the plane.
    fn runs(
        self,
        plane: &Plane,
        tokens: usize,
        first: usize,
        rows: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>, Runs)> {
        let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
        let (size, stride) = (plane.shape.dtype.size(), heads * dim);
        let (blocks, begin, runs) = match self {
            Self::HeadMajor => (heads, dim, Runs { count: rows, len: dim, stride }),
            Self::TokenMajor => (1, stride, Runs { count: 1, len: rows * stride, stride: rows * stride }),
        };
        (0..blocks).map(move |block| {
            let from = (block * tokens + first) * begin * size;
            (block * dim, from..from + runs.count * runs.len * size, runs)
        })
    }
}

/// A borrowed KV cache.
#[derive(Debug, Clone)]
pub struct KvView<'a> {
    geometry: Geometry,
    planes: Vec<Plane>,
    tokens: usize,
    first_position: u64,
    order: Order,
    bytes: Vec<&'a [u8]>,
    importance: Option<&'a Importance>,
    kept: Option<&'a Kept>,
}

impl<'a> KvView<'a> {
    /// A view of `bytes`, one slice per plane of the geometry, each holding `tokens` rows in `order`.
    /// `first_position` is the position of the first token in the model's sequence.
    ///
    /// # Errors
    /// If the number of slices or a slice's length does not fit the geometry, or positions 64 bits.
    pub fn new(
        geometry: Geometry,
        tokens: usize,
        first_position: u64,
        order: Order,
        bytes: Vec<&'a [u8]>,
    ) -> Result<Self> {
        let planes = geometry.planes();
        check_lengths(&planes, tokens, bytes.iter().map(|b| b.len()))?;
        if first_position.checked_add(tokens as u64).is_none() {
            return Err(Error::data("positions beyond 64 bits"));
        }
        Ok(Self { geometry, planes, tokens, first_position, order, bytes, importance: None, kept: None })
    }

    /// The same, with what is known of how much attention its tokens got, if anything is.
    ///
    /// # Errors
    /// If that is of another number of tokens, layers or heads.
    pub fn with_importance(self, importance: impl Into<Option<&'a Importance>>) -> Result<Self> {
        let importance = importance.into();
        importance.map_or(Ok(()), |importance| importance.check(&self.geometry, self.tokens))?;
        Ok(Self { importance, ..self })
    }

    /// The same, marked as what is left of a context, if it is: row `i` of a head is its `i`-th kept token.
    ///
    /// # Errors
    /// If the number of rows, the heads or the first position differ.
    pub fn with_kept(self, kept: impl Into<Option<&'a Kept>>) -> Result<Self> {
        let kept = kept.into();
        kept.map_or(Ok(()), |kept| kept.check(&self.geometry, self.tokens, self.first_position))?;
        Ok(Self { kept, ..self })
    }

    /// How much attention the tokens got, if that is known.
    pub fn importance(&self) -> Option<&'a Importance> {
        self.importance
    }

    /// Which tokens are left, if some may have been dropped.
    pub fn kept(&self) -> Option<&'a Kept> {
        self.kept
    }

    /// Refuses rows that are not consecutive tokens.
    pub(crate) fn check_consecutive(&self) -> Result<()> {
        let Some(kept) = self.kept.filter(|kept| kept.context_tokens() != kept.tokens() as u64) else {
            return Ok(());
        };
        Err(Error::data(format!(
            "tokens were dropped from this KV cache ({} of {} are left in each head), and where they were would be lost; \
             take the whole one",
            kept.tokens(),
            kept.context_tokens()
        )))
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The planes of the geometry.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Position of the first token in the model's sequence.
    pub fn first_position(&self) -> u64 {
        self.first_position
    }

    /// The order of a plane's elements.
    pub fn order(&self) -> Order {
        self.order
    }

    /// A plane's bytes.
    pub fn plane_bytes(&self, plane: usize) -> &'a [u8] {
        self.bytes[plane]
    }

    /// Widens rows `first .. first + rows` of a plane into `out`, `[rows, channels]`, row-major.
    ///
    /// # Panics
    /// If the range or the length of `out` is not the plane's.
    pub fn load(&self, plane: usize, first: usize, rows: usize, out: &mut [f32]) {
        self.load_seen(plane, first, rows, out);
    }

    /// As [`load`](Self::load). Whether all values are certainly finite.
    pub(crate) fn load_seen(&self, plane: usize, first: usize, rows: usize, out: &mut [f32]) -> bool {
        let p = &self.planes[plane];
        let channels = p.channels();
        assert!(first + rows <= self.tokens && out.len() == rows * channels, "load: outside the plane");
        if rows == 0 {
            return true;
        }
        let runs = self.order.runs(p, self.tokens, first, rows);
        runs.fold(true, |finite, (at, bytes, runs)| {
            p.shape.dtype.widen_runs(&self.bytes[plane][bytes], &mut out[at..], runs) && finite
        })
    }
}

impl KvView<'_> {
    /// Copies some tokens of each head of a plane, counted from `first`, to `out`, `[heads, tokens, head_dim]`.
    ///
    /// # Panics
    /// If the tokens or the length of `out` are not the plane's.
    pub(crate) fn gather(&self, plane: usize, first: usize, sets: &[Vec<u32>], out: &mut [u8]) {
        let (p, bytes) = (&self.planes[plane], self.bytes[plane]);
        let (size, len) = (p.shape.dtype.size(), p.shape.head_dim as usize * p.shape.dtype.size());
        let rows =
            sets.iter().enumerate().flat_map(|(head, set)| set.iter().map(move |token| (head, *token)));
        for ((head, token), out) in rows.zip(out.chunks_exact_mut(len)) {
            let at = self.order.offset(p, self.tokens, head, first + token as usize) * size;
            out.copy_from_slice(&bytes[at..at + len]);
        }
    }

    /// A chunk's kept rows of one plane, gathered in `bytes`; the other planes have none.
    pub(crate) fn of_one_plane<'b>(
        &self,
        plane: usize,
        first: usize,
        rows: usize,
        bytes: &'b [u8],
    ) -> KvView<'b> {
        let mut all: Vec<&[u8]> = vec![&[]; self.planes.len()];
        all[plane] = bytes;
        KvView {
            geometry: self.geometry.clone(),
            planes: self.planes.clone(),
            tokens: rows,
            first_position: self.first_position + first as u64,
            order: Order::HeadMajor,
            bytes: all,
            importance: None,
            kept: None,
        }
    }

    /// Calls `read` with spans of some channels of a plane's rows from `first`; its elements have 16 bits. Whoever reads
    /// begins with the last channels and goes on with another plane, if there is one.
    pub(crate) fn spans(
        &self,
        plane: usize,
        first: usize,
        cols: Range<usize>,
        then: usize,
        read: &mut dyn FnMut(&ElementSpan<'_>),
    ) {
        let of = |plane: usize, cols| self.order.spans(&self.planes[plane], self.tokens, first, cols);
        let before = cols.start.saturating_sub(cols.len());
        let next = if before < cols.start {
            of(plane, before..cols.start).next().and_then(|(_, begin, _)| self.bytes[plane].get(begin..))
        } else if let Some(then_plane) = self.planes.get(then) {
            let channels = then_plane.channels();
            let last = of(then, channels.saturating_sub(cols.len())..channels).next();
            last.and_then(|(_, begin, _)| self.bytes[then].get(begin..))
        } else {
            None
        };
        for (cols, begin, stride) in of(plane, cols) {
            read(&ElementSpan::new(cols, self.bytes[plane], begin, stride, next.unwrap_or_default()));
        }
    }
}

/// A KV cache to be filled.
#[derive(Debug)]
pub struct KvViewMut<'a> {
    planes: Vec<PlaneViewMut<'a>>,
    tokens: usize,
}

/// One plane of a [`KvViewMut`]; planes can be filled from several threads.
#[derive(Debug)]
pub struct PlaneViewMut<'a> {
    plane: Plane,
    tokens: usize,
    order: Order,
    bytes: &'a mut [u8],
}

impl<'a> KvViewMut<'a> {
    /// A view to write to, as [`KvView::new`].
    ///
    /// # Errors
    /// If the number of slices or a slice's length does not fit the geometry.
    pub fn new(geometry: &Geometry, tokens: usize, order: Order, bytes: Vec<&'a mut [u8]>) -> Result<Self> {
        let planes = geometry.planes();
        check_lengths(&planes, tokens, bytes.iter().map(|b| b.len()))?;
        let planes =
            planes.into_iter().zip(bytes).map(|(plane, bytes)| PlaneViewMut { plane, tokens, order, bytes });
        Ok(Self { planes: planes.collect(), tokens })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The planes, apart.
    pub fn planes_mut(&mut self) -> &mut [PlaneViewMut<'a>] {
        &mut self.planes
    }
}

impl PlaneViewMut<'_> {
    /// Which plane this is.
    pub fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Narrows `values`, `[rows, channels]`, row-major, into rows `first .. first + rows`.
    ///
    /// # Panics
    /// If the range or the number of values is not the plane's.
    pub fn store(&mut self, first: usize, rows: usize, values: &[f32]) {
        self.store_by(Store::Cached, first, rows, values);
    }

    /// Copies elements, `[heads, rows, head_dim]`, to rows `first .. first + rows`.
    ///
    /// # Panics
    /// If the range or the number of bytes is not the plane's.
    pub fn store_elements(&mut self, first: usize, rows: usize, bytes: &[u8]) {
        let (channels, size) = (self.plane.channels(), self.plane.shape.dtype.size());
        assert!(
            first + rows <= self.tokens && bytes.len() == rows * channels * size,
            "store: outside the plane"
        );
        if rows == 0 {
            return;
        }
        let len = self.plane.shape.head_dim as usize * size;
        for (head, bytes) in bytes.chunks_exact(rows * len).enumerate() {
            for (row, bytes) in bytes.chunks_exact(len).enumerate() {
                let at = self.order.offset(&self.plane, self.tokens, head, first + row) * size;
                self.bytes[at..at + len].copy_from_slice(bytes);
            }
        }
    }

    /// As [`store`](Self::store), in this way.
    pub(crate) fn store_by(&mut self, store: Store, first: usize, rows: usize, values: &[f32]) {
        let channels = self.plane.channels();
        assert!(first + rows <= self.tokens && values.len() == rows * channels, "store: outside the plane");
        if rows == 0 {
            return;
        }
        for (at, bytes, runs) in self.order.runs(&self.plane, self.tokens, first, rows) {
            self.plane.shape.dtype.narrow_runs(&values[at..], &mut self.bytes[bytes], runs, store);
        }
    }
}

impl PlaneViewMut<'_> {
    /// Calls `write` with windows on some channels of the rows from `first`.
    ///
    /// # Panics
    /// If its elements do not have 16 bits.
    pub(crate) fn windows(
        &mut self,
        first: usize,
        cols: Range<usize>,
        store: Store,
        write: &mut dyn FnMut(&mut ElementWindow<'_>),
    ) {
        assert!(self.plane.shape.dtype.size() == 2, "windows: elements of another size");
        for (cols, begin, stride) in self.order.spans(&self.plane, self.tokens, first, cols) {
            let streaming = store == Store::Streaming;
            write(&mut ElementWindow::new(cols, self.bytes, begin, stride, streaming));
        }
    }

    /// The two bytes of one element.
    pub(crate) fn element(&mut self, row: usize, channel: usize) -> &mut [u8] {
        let (dim, size) = (self.plane.shape.head_dim as usize, self.plane.shape.dtype.size());
        let at = self.order.offset(&self.plane, self.tokens, channel / dim, row) + channel % dim;
        &mut self.bytes[at * size..(at + 1) * size]
    }
}

fn check_lengths(
    planes: &[Plane],
    tokens: usize,
    lengths: impl ExactSizeIterator<Item = usize>,
) -> Result<()> {
    if lengths.len() != planes.len() {
        return Err(Error::data(format!("{} planes given, {} expected", lengths.len(), planes.len())));
    }
    for (plane, length) in planes.iter().zip(lengths) {
        let want =
            plane.channels().checked_mul(plane.shape.dtype.size()).and_then(|row| row.checked_mul(tokens));
        if want != Some(length) {
            return Err(Error::data(format!("{length} bytes for {tokens} tokens")).at(plane.name()));
        }
    }
    Ok(())
}

/// An owned KV cache, head-major.
#[derive(Debug, Clone, PartialEq)]
pub struct KvCache {
    geometry: Geometry,
    tokens: usize,
    first_position: u64,
    planes: Vec<Aligned<u8>>,
}

impl KvCache {
    /// A cache of zeros.
    pub fn zeros(geometry: &Geometry, tokens: usize, first_position: u64) -> Self {
        let bytes = |plane: &Plane| Aligned::zeros(plane.channels() * plane.shape.dtype.size() * tokens);
        let planes = geometry.planes().iter().map(bytes).collect();
        Self { geometry: geometry.clone(), tokens, first_position, planes }
    }

    /// As [`zeros`](Self::zeros), but a cache that memory does not suffice for is an error.
    ///
    /// # Errors
    /// If the system refuses so much memory.
    pub fn try_zeros(geometry: &Geometry, tokens: usize, first_position: u64) -> Result<Self> {
        let bytes =
            geometry.bytes_per_token().checked_mul(tokens as u64).and_then(|n| usize::try_from(n).ok());
        // Asked for and given back: zeroed allocations cannot fail softly, and zeroing by hand would touch
        // all of it on one thread.
        if bytes.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            return Err(Error::limit(format!(
                "no memory for {tokens} tokens of {} bytes",
                geometry.bytes_per_token()
            )));
        }
        Ok(Self::zeros(geometry, tokens, first_position))
    }

    /// A cache of `values(plane, token, channel)`, narrowed to each plane's element type.
    pub fn from_fn(
        geometry: &Geometry,
        tokens: usize,
        mut values: impl FnMut(&Plane, usize, usize) -> f32,
    ) -> Self {
        let mut cache = Self::zeros(geometry, tokens, 0);
        let mut view = cache.view_mut();
        let mut row = Vec::new();
        for plane in view.planes_mut() {
            for token in 0..tokens {
                row.clear();
                row.extend((0..plane.plane.channels()).map(|channel| values(&plane.plane, token, channel)));
                plane.store(token, 1, &row);
            }
        }
        cache
    }

    /// A copy of the tokens `first .. first + tokens` of a view.
    ///
    /// # Panics
    /// If the range is outside the view.
    pub fn copy_of(view: &KvView<'_>, first: usize, tokens: usize) -> Self {
        let position = view.first_position() + first as u64;
        let mut cache = Self::zeros(view.geometry(), tokens, position);
        let mut row = Vec::new();
        for (index, plane) in cache.view_mut().planes_mut().iter_mut().enumerate() {
            row.resize(plane.plane.channels(), 0.0);
            for token in 0..tokens {
                view.load(index, first + token, 1, &mut row);
                plane.store(token, 1, &row);
            }
        }
        cache
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The model's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A plane's bytes, `[heads, tokens, head_dim]`.
    pub fn plane_bytes(&self, plane: usize) -> &[u8] {
        &self.planes[plane]
    }

    /// Borrows it.
    pub fn view(&self) -> KvView<'_> {
        KvView {
            geometry: self.geometry.clone(),
            planes: self.geometry.planes(),
            tokens: self.tokens,
            first_position: self.first_position,
            order: Order::HeadMajor,
            bytes: self.planes.iter().map(|plane| &**plane).collect(),
            importance: None,
            kept: None,
        }
    }

    /// The bytes of all planes.
    pub(crate) fn planes_bytes_mut(&mut self) -> &mut [Aligned<u8>] {
        &mut self.planes
    }

    /// Borrows it for writing.
    pub fn view_mut(&mut self) -> KvViewMut<'_> {
        let planes = self.geometry.planes().into_iter().zip(&mut self.planes).map(|(plane, bytes)| {
            PlaneViewMut { plane, tokens: self.tokens, order: Order::HeadMajor, bytes }
        });
        KvViewMut { planes: planes.collect(), tokens: self.tokens }
    }
}

/// Index of the first value that is not finite.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Branch-free first, as it is in the path of every encode: an all-ones exponent is not finite.
    let bad = values.iter().fold(false, |bad, v| bad | (v.to_bits() & 0x7f80_0000 == 0x7f80_0000));
    if bad { values.iter().position(|v| !v.is_finite()) } else { None }
}

/// `values` as a matrix.
pub(crate) fn matrix(values: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    debug_assert_eq!(values.len(), rows * cols, "matrix: lengths differ");
    #[expect(clippy::expect_used, reason = "the callers size their scratch by the same shapes")]
    ArrayView2::from_shape((rows, cols), values).expect("scratch holds rows × cols")
}

/// `values` as a matrix to write to.
pub(crate) fn matrix_mut(values: &mut [f32], rows: usize, cols: usize) -> ArrayViewMut2<'_, f32> {
    debug_assert_eq!(values.len(), rows * cols, "matrix_mut: lengths differ");
    #[expect(clippy::expect_used, reason = "the callers size their scratch by the same shapes")]
    ArrayViewMut2::from_shape((rows, cols), values).expect("scratch holds rows × cols")
}

/// What a value of this type can hold, for messages.
pub(crate) fn describe(dtype: Dtype, value: f32) -> String {
    if value.is_nan() { format!("NaN ({dtype})") } else { format!("{value} ({dtype})") }
}
