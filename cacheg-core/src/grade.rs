//! Grades: finer steps for tokens of a head that matter more, coarser ones for the others.
//!
//! Later tokens attend to few of those that are cached, so that an error in most of them hardly changes anything. A
//! quantizer that knows which has a [`Grader`]: it gives each token of each KV head of each layer a number below
//! [`GRADES`], which keys and values share. A chunk carries the grades; coders are told each run of symbols by its grade.

use std::ops::Range;

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::importance::kv_heads;
use crate::kv::matrix;
use crate::{Error, Geometry, Importance, KvView, Plane, Result, ResultExt};

/// Grades are below this.
pub const GRADES: usize = 16;

/// The grade of tokens that get the step of their head.
pub const GRADE_OF_ONE: u8 = 10;

/// Chooses grades when a chunk is encoded or a codec calibrated, and codes them.
pub trait Grader: Send + Sync {
    /// Grades the tokens of one layer: `[tokens, heads]`, each below [`GRADES`].
    ///
    /// # Errors
    /// If what it goes by is not there.
    fn grade(&self, layer: &GradeCx<'_>, grades: &mut [u8]) -> Result<()>;

    /// Codes one layer's grades, `[tokens, heads]`.
    fn pack(&self, heads: usize, grades: &[u8]) -> Vec<u8>;

    /// Reads what [`pack`](Self::pack) wrote, all of `bytes`.
    ///
    /// # Errors
    /// If the bytes are corrupt.
    fn unpack(&self, heads: usize, bytes: &[u8], grades: &mut [u8]) -> Result<()>;
}

/// One layer of the tokens to grade.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct GradeCx<'a> {
    /// Index of the layer.
    pub layer: usize,
    /// Its planes, and of each the tokens' rows: `[tokens, channels]`, as cached (after RoPE). Not always finite.
    pub planes: &'a [(&'a Plane, ArrayView2<'a, f32>)],
    /// Index of the first token in the KV cache.
    pub first: usize,
    /// Tokens of the KV cache.
    pub context: usize,
    /// Position of the first token in the model's sequence.
    pub position: u64,
    /// How much attention the KV cache's tokens got, if that is known.
    pub importance: Option<&'a Importance>,
    /// To be added to what grades are rounded from: for fewer bits (below 0) or more than is usual.
    pub shift: f64,
}

/// The grades of a chunk's coded rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Grades {
    rows: usize,
    /// By layer: KV heads, and where its grades begin. Empty if nothing is graded.
    layers: Vec<(usize, usize)>,
    /// By layer `[rows, heads]`.
    values: Vec<u8>,
}

impl Grades {
    /// Room for grades, all 0.
    fn zeros(geometry: &Geometry, rows: usize) -> Self {
        let mut layers = Vec::new();
        let mut len = 0;
        for heads in kv_heads(geometry) {
            layers.push((heads as usize, len));
            len += heads as usize * rows;
        }
        Self { rows, layers, values: vec![0; len] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Of some rows of a layer, `[rows, heads]`; nothing if nothing is graded.
    pub(crate) fn of(&self, layer: usize, rows: Range<usize>) -> &[u8] {
        match self.layers.get(layer) {
            Some((heads, begin)) => &self.values[begin + rows.start * heads..begin + rows.end * heads],
            None => &[],
        }
    }

    /// Each layer's, to be written.
    fn layers_mut(&mut self) -> Vec<(usize, &mut [u8])> {
        let mut rest = self.values.as_mut_slice();
        let mut all = Vec::with_capacity(self.layers.len());
        for (heads, _) in &self.layers {
            let (own, others) = rest.split_at_mut(heads * self.rows);
            all.push((*heads, own));
            rest = others;
        }
        all
    }

    /// Grades rows of a view, `shift` above what is usual.
    pub(crate) fn choose(
        grader: Option<&dyn Grader>,
        planes: &[Plane],
        view: &KvView<'_>,
        range: &Range<usize>,
        shift: f64,
    ) -> Result<Self> {
        let Some(grader) = grader else { return Ok(Self::default()) };
        let mut grades = Self::zeros(view.geometry(), range.len());
        let rows = range.len();
        let one = |(layer, (_, grades)): (usize, (usize, &mut [u8]))| {
            let planes: Vec<&Plane> = planes.iter().filter(|plane| plane.layer as usize == layer).collect();
            let load = |plane: &&Plane| {
                let mut values = vec![0.0; rows * plane.channels()];
                view.load(plane.index, range.start, rows, &mut values);
                values
            };
            let values: Vec<Vec<f32>> = planes.iter().map(load).collect();
            let matrices = planes.iter().zip(&values).map(|(p, v)| (*p, matrix(v, rows, p.channels())));
            let cx = GradeCx {
                layer,
                planes: &matrices.collect::<Vec<_>>(),
                first: range.start,
                context: view.tokens(),
                position: view.first_position() + range.start as u64,
                importance: view.importance(),
                shift,
            };
            grader.grade(&cx, grades).at(|| format!("layer {layer}"))?;
            if grades.iter().all(|grade| usize::from(*grade) < GRADES) {
                return Ok(());
            }
            Err(Error::data(format!("grades are below {GRADES}")).at(format!("layer {layer}")))
        };
        grades.layers_mut().into_par_iter().enumerate().try_for_each(one)?;
        Ok(grades)
    }

    /// As a chunk carries them: `FORMAT.md`, section 2.
    pub(crate) fn pack(&self, grader: &dyn Grader) -> Vec<u8> {
        let pack = |(heads, begin): &(usize, usize)| {
            grader.pack(*heads, &self.values[*begin..begin + heads * self.rows])
        };
        let layers: Vec<Vec<u8>> = self.layers.par_iter().map(pack).collect();
        let lengths = layers.iter().flat_map(|bytes| (bytes.len() as u32).to_le_bytes());
        lengths.chain(layers.iter().flatten().copied()).collect()
    }

    /// Reads what [`pack`](Self::pack) wrote.
    pub(crate) fn unpack(
        grader: &dyn Grader,
        geometry: &Geometry,
        rows: usize,
        bytes: &[u8],
    ) -> Result<Self> {
        let mut grades = Self::zeros(geometry, rows);
        let layers = grades.layers_mut();
        let short = || Error::corrupt("grades of another length");
        let (lengths, mut rest) = bytes.split_at_checked(4 * layers.len()).ok_or_else(short)?;
        let mut parts = Vec::with_capacity(layers.len());
        for (length, (heads, grades)) in lengths.as_chunks::<4>().0.iter().zip(layers) {
            let (own, others) =
                rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
            parts.push((heads, own, grades));
            rest = others;
        }
        if !rest.is_empty() {
            return Err(short());
        }
        let one = |(layer, (heads, bytes, grades)): (usize, (usize, &[u8], &mut [u8]))| {
            grader.unpack(heads, bytes, grades).at(|| format!("grades of layer {layer}"))?;
            let legal = grades.iter().all(|grade| usize::from(*grade) < GRADES);
            if legal { Ok(()) } else { Err(Error::corrupt(format!("a grade of {GRADES} or more"))) }
        };
        parts.into_par_iter().enumerate().try_for_each(one)?;
        Ok(grades)
    }
}

/// The coded rows of a chunk: where the first one is in the model's sequence, and their grades.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodedRows<'a> {
    pub(crate) position: u64,
    pub(crate) grades: &'a Grades,
}

static NONE: Grades = Grades { rows: 0, layers: Vec::new(), values: Vec::new() };

impl CodedRows<'static> {
    /// Rows without grades, the first at that position.
    pub(crate) fn ungraded(position: u64) -> Self {
        Self { position, grades: &NONE }
    }
}
