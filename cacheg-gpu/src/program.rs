//! WGSL for a plan, put together from its stages' texts.

use std::fmt::Write as _;

use crate::recording::Pass;
use cacheg_core::{Dtype, Error, Kernel, Kernels, Plan, Plane, Result, Rows, dtype_code};

const PRELUDE: &str = include_str!("wgsl/prelude.wgsl");
const TOGETHER: &str = include_str!("wgsl/decode_together.wgsl");
const ALONE: &str = include_str!("wgsl/decode_alone.wgsl");
/// Division of small integers.
pub(crate) const QUOTIENT: &str = include_str!("wgsl/quotient.wgsl");
const PUT_ELEMENT: &str = include_str!("wgsl/put_element.wgsl");
const PLAIN: &str = include_str!("wgsl/plain.wgsl");
const GRADED: &str = include_str!("wgsl/graded.wgsl");
const ONE_PASS: &str = include_str!("wgsl/one_pass.wgsl");
const TWO_PASSES: &str = include_str!("wgsl/two_passes.wgsl");
const RECONSTRUCT: &str = include_str!("wgsl/reconstruct.wgsl");
const RECONSTRUCT_ANY: &str = include_str!("wgsl/reconstruct_any.wgsl");
const ROWS: &str = include_str!("wgsl/rows.wgsl");
const RECONSTRUCT_ROWS: &str = include_str!("wgsl/reconstruct_rows.wgsl");
const KEPT: &str = include_str!("wgsl/kept.wgsl");
const PREDICT: &str = include_str!("wgsl/predict.wgsl");
const KEEP_EACH: &str = include_str!("wgsl/keep_each.wgsl");
const KEEP_ROWS: &str = include_str!("wgsl/keep_rows.wgsl");
const ROWS_WORDS: &str = include_str!("wgsl/rows_words.wgsl");
const ROWS_ELEMENTS: &str = include_str!("wgsl/rows_elements.wgsl");
const CHECK_ESCAPES: &str = include_str!("wgsl/check_escapes.wgsl");

/// Invocations of a workgroup that decodes.
pub(crate) const LANES: u32 = 32;

/// Values of a head that a workgroup works on at a time: all of WebGPU's 16 KiB of workgroup memory.
pub(crate) const ROWS_VALUES: usize = 4_096;

/// How the lanes of a stream work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Variant {
    /// By workgroup memory and barriers: WebGPU's baseline.
    Portable,
    /// By subgroups of at least 32 invocations, without barriers.
    Subgroup,
}

impl Variant {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Subgroup => "subgroup",
        }
    }
}

/// How lanes vote.
pub(crate) fn ballot(variant: Variant) -> &'static str {
    match variant {
        Variant::Portable => include_str!("wgsl/ballot_portable.wgsl"),
        Variant::Subgroup => include_str!("wgsl/ballot_subgroup.wgsl"),
    }
}

/// Channels of all references of a plane together, at most: invocations loop over them, and Mesa 22 ends those that loop more than
/// 65,535 times.
const MOST_REFERENCES: usize = 32_768;

/// Rows and columns of a plane that a workgroup predicts; as in kept.wgsl.
const PREDICT_ROWS: usize = 16;
const PREDICT_COLS: usize = 256;

/// How the values of a piece are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Some rows of a head in a workgroup.
    Rows,
    /// 1,024 of the numbers that are written: words, or values.
    Each(usize),
    /// An element for each invocation.
    Elements,
}

/// Words that a workgroup makes: 16 for each invocation, so that what it finds out first pays.
const WORDS_PER_GROUP: usize = 1_024;

impl Shape {
    /// Workgroups for a piece of that many rows.
    pub(crate) fn groups(self, plane: &Plane, rows: usize) -> usize {
        let shape = plane.shape;
        match self {
            Self::Rows => {
                let run = (ROWS_VALUES / (shape.head_dim as usize).max(1)).max(1);
                shape.heads as usize * rows.div_ceil(run)
            }
            Self::Each(bytes) => (plane.channels() * rows * bytes / 4).div_ceil(WORDS_PER_GROUP),
            Self::Elements => (plane.channels() * rows).div_ceil(64),
        }
    }
}

/// Planes that are predicted from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Predicted {
    /// Of each plane whether it has references.
    pub(crate) has_references: Vec<bool>,
    /// Whether a stage behind the prediction works on whole rows of heads.
    rows: bool,
}

impl Predicted {
    /// Workgroups that predict a piece of that many rows.
    pub(crate) fn groups(plane: &Plane, rows: usize) -> usize {
        rows.div_ceil(PREDICT_ROWS) * plane.channels().div_ceil(PREDICT_COLS)
    }

    /// How the values that are kept are made.
    pub(crate) fn shape(&self) -> Shape {
        if self.rows { Shape::Rows } else { Shape::Each(4) }
    }
}

/// A program that decodes chunks of one plan: entry points `decode` (unless the coder needs none), `predict` and `keep` (if planes are
/// predicted from others), `reconstruct` (unless `decode` does all) and `check_escapes`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Program {
    /// WGSL, for the default limits of WebGPU and no features but those of the variant. Compilers that want
    /// `enable subgroups;` for those must be given that line in front.
    pub source: String,
    /// The stages' parameters.
    pub data: Vec<u32>,
    /// Where those of each stage begin.
    pub(crate) stages: [u32; MOST_STAGES],
    /// Invocations of a run of a stream; 0 if nothing needs to be decoded before elements are made.
    pub(crate) lanes: u32,
    /// Words that a run keeps between dispatches.
    pub(crate) state: u32,
    /// Whether `decode` makes the elements too; there is no `reconstruct` then.
    pub(crate) one_pass: bool,
    /// Whether each row of each head is a number of words.
    pub(crate) whole_words: bool,
    /// Whether a stage works on whole rows of heads while elements are made.
    pub(crate) matrix: bool,
    /// Whether tokens have grades.
    pub(crate) graded: bool,
    /// If planes are predicted from others.
    pub(crate) predicted: Option<Predicted>,
}

/// Stages of a program.
pub(crate) const MOST_STAGES: usize = 16;

/// Words of workgroup memory for columns that wait to be handed over, at most: half of what WebGPU promises.
const MOST_STASH: usize = 2_048;

impl Program {
    /// Composes the stages of a plan, for tiles of at most so many rows: one pass has limits. (0 is for those who only want to
    /// know whether there is a program.)
    ///
    /// # Errors
    /// If a stage has no WGSL; the message names it.
    pub fn new(plan: &Plan, variant: Variant, rows: usize) -> Result<Self> {
        let kernels = plan.kernels()?;
        let (coder, lanes, state) = (&kernels.coder.1.kernel, kernels.coder.1.lanes, kernels.coder.1.state);
        // Texts do not say where parameters begin, so that plans of one pipeline have one text.
        let stages = kernels.transforms.len() + 2;
        if stages > MOST_STAGES {
            return Err(Error::unsupported(format!("{stages} stages on a GPU; {MOST_STAGES} are possible")));
        }
        let whole =
            |plane: &Plane| (plane.shape.head_dim as usize * plane.shape.dtype.size()).is_multiple_of(4);
        let whole_words = plan.planes().iter().all(whole);
        let dtype = uniform_dtype(plan);
        let together = dtype.map_or(0, |dtype| 4 / dtype.size());
        let stash = together * rows.div_ceil(4 * LANES as usize) * LANES as usize;
        let own_rows = |(number, (_, kernel)): (usize, &(String, Kernel))| match kernel.rows {
            Rows::Same => true,
            Rows::Parts => number + 1 == kernels.transforms.len(),
            _ => false,
        };
        let one_pass = kernels.coder.1.columns
            && !kernels.graded
            && lanes == LANES
            && kernels.transforms.iter().enumerate().all(own_rows)
            && whole_words
            && (1..=MOST_STASH).contains(&stash);
        let predictor = predicting_stage(&kernels.transforms, &kernels.references, plan.planes())?;
        let matrix = matrix_stage(&kernels.transforms, predictor, plan.planes())?;
        // It is behind the prediction, or else in front of it.
        let behind = predictor.zip(matrix).is_some_and(|(predictor, matrix)| matrix > predictor);
        let mut program = Self {
            source: [QUOTIENT, PRELUDE].concat(),
            data: Vec::new(),
            stages: [0; MOST_STAGES],
            lanes,
            state,
            one_pass,
            whole_words,
            matrix: matrix.is_some() && !behind,
            graded: kernels.graded,
            predicted: predictor.map(|_| Predicted {
                has_references: has_references(&kernels, plan.planes().len()),
                rows: behind,
            }),
        };
        program.line(if kernels.graded { GRADED } else { PLAIN });
        let output = if whole_words { "u32" } else { "atomic<u32>" };
        program.line(&format!("\n@group(0) @binding(6) var<storage, read_write> output: array<{output}>;\n"));
        let dtype = dtype.map_or_else(|| "piece.dtype".to_owned(), |dtype| format!("{}u", dtype_code(dtype)));
        program.line(&format!("fn piece_dtype() -> u32 {{\n    return {dtype};\n}}\n"));
        if one_pass {
            // Few sizes, so that there are few programs.
            let stash = stash.next_power_of_two();
            program
                .line(&format!("const STASH_WORDS: u32 = {stash}u;\nconst TOGETHER: u32 = {together}u;\n"));
            program.line(ONE_PASS);
            program.pipeline_row(&kernels);
        } else {
            program.line(TWO_PASSES);
        }
        if lanes > 1 {
            program.line(ballot(variant));
        }
        program.line(&format!("const STATE_WORDS: u32 = {state}u;"));
        for (number, (name, kernel)) in kernels.transforms.iter().enumerate() {
            let prefix = format!("transform{number}_");
            program.stage(number, name, &prefix, kernel);
            let next = match kernels.transforms.get(number + 1) {
                _ if predictor == Some(number + 1) => "kept_".to_owned(),
                Some(_) => format!("transform{}_", number + 1),
                None => "quantizer_".to_owned(),
            };
            program.line(&format!("fn {prefix}inner(p: Place) -> f32 {{\n    return {next}value(p);\n}}"));
        }
        if let Some(number) = predictor {
            let prefix = format!("transform{number}_");
            program.source.push_str(&[KEPT, PREDICT].concat().replace('$', &prefix));
        }
        program.stage(stages - 2, &kernels.quantizer.0, "quantizer_", &kernels.quantizer.1);
        program.stage(stages - 1, &kernels.coder.0, "coder_", coder);
        program.enter_stages(&kernels);
        let element = match (kernels.exact, kernels.transforms.is_empty()) {
            (true, _) => "quantizer_element(p)",
            (false, true) => "narrow(dtype, quantizer_value(p))",
            _ if predictor == Some(0) => "narrow(dtype, kept_value(p))",
            (false, false) => "narrow(dtype, transform0_value(p))",
        };
        program.line(&format!(
            "fn pipeline_element(p: Place, dtype: u32) -> u32 {{\n    return {element};\n}}\n"
        ));
        if !whole_words {
            program.line(PUT_ELEMENT);
        }
        program.source.push_str(match lanes {
            0 => "",
            1 => ALONE,
            LANES => TOGETHER,
            other => {
                return Err(Error::unsupported(format!(
                    "a coder of {other} lanes; 0, 1 or {LANES} are known"
                )));
            }
        });
        if let Some(number) = matrix {
            program.line(&format!("const ROWS_VALUES: u32 = {ROWS_VALUES}u;\n"));
            program.source.push_str(&ROWS.replace('$', &format!("transform{number}_")));
        }
        if program.predicted.is_some() {
            program.source.push_str(if behind { KEEP_ROWS } else { KEEP_EACH });
        }
        if program.matrix {
            program.source.push_str(RECONSTRUCT_ROWS);
            program.source.push_str(if whole_words { ROWS_WORDS } else { ROWS_ELEMENTS });
        } else if !one_pass {
            program.line(if whole_words { RECONSTRUCT } else { RECONSTRUCT_ANY });
        }
        program.source.push_str(CHECK_ESCAPES);
        Ok(program)
    }

    /// Its entry points.
    pub(crate) fn passes(&self) -> impl Iterator<Item = Pass> {
        let predicted = self.predicted.as_ref();
        let passes = [
            (Pass::Decode, self.lanes > 0),
            (Pass::Predict, predicted.is_some_and(|predicted| predicted.has_references.contains(&true))),
            (Pass::Keep, predicted.is_some()),
            (Pass::Reconstruct, !self.one_pass),
            (Pass::CheckEscapes, true),
        ];
        passes.into_iter().filter_map(|(pass, there)| there.then_some(pass))
    }

    /// How elements are made of a plane's values.
    pub(crate) fn shape(&self, plane: &Plane) -> Shape {
        match (self.matrix, self.whole_words) {
            (true, _) => Shape::Rows,
            (false, true) => Shape::Each(plane.shape.dtype.size()),
            (false, false) => Shape::Elements,
        }
    }

    /// Tells the stages that want to know it which plane comes.
    fn enter_stages(&mut self, kernels: &Kernels) {
        let transforms = kernels.transforms.iter().enumerate();
        let transforms = transforms.map(|(number, (_, kernel))| (format!("transform{number}_"), kernel));
        let stages = transforms.chain([("quantizer_".to_owned(), &kernels.quantizer.1)]);
        let calls: String = stages
            .filter(|(_, kernel)| kernel.source.contains("fn $enter("))
            .map(|(prefix, _)| format!("    {prefix}enter(plane);\n"))
            .collect();
        self.line(&format!("fn enter_stages(plane: u32) {{\n{calls}}}\n"));
    }

    /// The output's row for a row of a part: only the last transform makes parts.
    fn pipeline_row(&mut self, kernels: &Kernels) {
        let row = match kernels.transforms.iter().enumerate().next_back() {
            Some((number, (_, kernel))) if kernel.rows == Rows::Parts => {
                format!("transform{number}_row(part, row)")
            }
            _ => "row".to_owned(),
        };
        self.line(&format!("fn pipeline_row(part: u32, row: u32) -> u32 {{\n    return {row};\n}}\n"));
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.source, "{text}");
    }

    /// A stage's text under its own names, and its parameters.
    fn stage(&mut self, number: usize, name: &str, prefix: &str, kernel: &Kernel) {
        self.line(&format!("\n// Stage `{name}`."));
        self.line(&kernel.source.replace('$', prefix));
        // Words of 4 bytes: what a device could bind has fewer.
        self.stages[number] = self.data.len() as u32;
        self.data.extend_from_slice(&kernel.data);
        self.line(&format!(
            "fn {prefix}data(index: u32) -> u32 {{\n    return data[window.stages[{}][{}] + index];\n}}",
            number / 4,
            number % 4,
        ));
    }
}

/// The element type, if all planes have the same.
fn uniform_dtype(plan: &Plan) -> Option<Dtype> {
    let mut dtypes = plan.planes().iter().map(|plane| plane.shape.dtype);
    let first = dtypes.next()?;
    dtypes.all(|dtype| dtype == first).then_some(first)
}

/// Of each plane whether it is predicted from others.
fn has_references(kernels: &Kernels, planes: usize) -> Vec<bool> {
    let of = |plane| kernels.references.get(plane).is_some_and(|others: &Vec<usize>| !others.is_empty());
    (0..planes).map(of).collect()
}

/// The number of the stage that predicts planes from others, if there is one.
fn predicting_stage(
    transforms: &[(String, Kernel)],
    references: &[Vec<usize>],
    planes: &[Plane],
) -> Result<Option<usize>> {
    let found = transforms.iter().position(|(_, kernel)| kernel.rows == Rows::References);
    if found.is_some() == references.is_empty() {
        return Err(Error::unsupported("WGSL that does not say what planes are predicted from"));
    }
    let Some(number) = found else { return Ok(None) };
    let name = &transforms[number].0;
    let width = |others: &Vec<usize>| others.iter().map(|other| planes[*other].channels()).sum();
    let widest: usize = references.iter().map(width).max().unwrap_or(0);
    if widest > MOST_REFERENCES {
        return Err(Error::unsupported(format!(
            "`{name}` from planes of {widest} channels together; {MOST_REFERENCES} are possible on a GPU"
        )));
    }
    Ok(Some(number))
}

/// The number of the stage that works on whole rows of heads, if there is one.
fn matrix_stage(
    transforms: &[(String, Kernel)],
    predictor: Option<usize>,
    planes: &[Plane],
) -> Result<Option<usize>> {
    let mut stages = transforms.iter().enumerate().filter(|(_, (_, kernel))| kernel.rows == Rows::Matrix);
    let Some((number, (name, _))) = stages.next() else { return Ok(None) };
    if let Some((_, (other, _))) = stages.next() {
        return Err(Error::unsupported(format!(
            "`{name}` and `{other}` both work on rows of heads; on a GPU only one stage can"
        )));
    }
    let far = |kernel: &Kernel| !matches!(kernel.rows, Rows::Same | Rows::Head | Rows::References);
    // What predicts keeps all that it gives back.
    let first = predictor.filter(|predictor| *predictor < number).unwrap_or(0);
    if let Some((other, _)) = transforms[first..number].iter().find(|(_, kernel)| far(kernel)) {
        return Err(Error::unsupported(format!(
            "`{other}` may ask for more than a row of a head, and on a GPU `{name}` gives no more"
        )));
    }
    let widest = planes.iter().map(|plane| plane.shape.head_dim).max().unwrap_or(0);
    if widest as usize > ROWS_VALUES {
        return Err(Error::unsupported(format!(
            "`{name}` of heads of {widest} channels; a GPU has room for {ROWS_VALUES}"
        )));
    }
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_are_too_wide_are_refused() {
        let shape = Some(cacheg_core::Shape { heads: 1, head_dim: 9_000, dtype: Dtype::F16 });
        let layers =
            cacheg_core::LayerGroup { repeat: 3, key: shape, value: shape, latent: None, rope: None };
        let planes = cacheg_core::Geometry::new([layers]).unwrap().planes();
        let stages = [("foresees".to_owned(), Kernel::new("", Vec::new()).with_rows(Rows::References))];
        let found = |stages, references: &[Vec<usize>]| predicting_stage(stages, references, &planes);
        assert_eq!(found(&stages, &[vec![], vec![0], vec![0, 1, 1]]).unwrap(), Some(0));
        assert_eq!(found(&[], &[]).unwrap(), None);
        let refused = |stages, references: &[Vec<usize>]| found(stages, references).unwrap_err().to_string();
        let message = refused(&stages, &[vec![], vec![0, 1, 2, 3]]);
        assert!(message.contains("`foresees` from planes of 36000 channels together"), "{message}");
        assert!(refused(&[], &[vec![], vec![0]]).contains("does not say"));
        assert!(refused(&stages, &[]).contains("does not say"));
    }

    #[test]
    fn only_what_looks_at_a_row_of_a_head_may_be_in_front() {
        let stage = |name: &str, rows| (name.to_owned(), Kernel::new("", Vec::new()).with_rows(rows));
        let stages = [
            stage("mean", Rows::Same),
            stage("turns", Rows::Head),
            stage("matrix", Rows::Matrix),
            stage("anchors", Rows::Parts),
        ];
        assert_eq!(matrix_stage(&stages, None, &[]).unwrap(), Some(2));
        assert_eq!(matrix_stage(&stages[3..], None, &[]).unwrap(), None);
        let [_, turns, matrix, anchors] = stages;
        let between = [turns.clone(), anchors.clone(), matrix.clone()];
        let message = matrix_stage(&between, None, &[]).unwrap_err().to_string();
        assert!(message.contains("`anchors` may ask for more"), "{message}");
        // In front of what keeps its values anything may be.
        let predicted = [anchors, turns, stage("foresees", Rows::References), matrix];
        assert_eq!(matrix_stage(&predicted, Some(2), &[]).unwrap(), Some(3));
    }
}
