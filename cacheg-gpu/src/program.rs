//! WGSL for a plan, put together from its stages' texts.

use std::fmt::Write as _;

use cacheg_core::{Dtype, Error, Kernel, Kernels, Plan, Plane, Result, Rows, dtype_code};

const PRELUDE: &str = include_str!("wgsl/prelude.wgsl");
const TOGETHER: &str = include_str!("wgsl/decode_together.wgsl");
const ALONE: &str = include_str!("wgsl/decode_alone.wgsl");
/// Division of small integers.
pub(crate) const QUOTIENT: &str = include_str!("wgsl/quotient.wgsl");
const PUT_ELEMENT: &str = include_str!("wgsl/put_element.wgsl");
const ONE_PASS: &str = include_str!("wgsl/one_pass.wgsl");
const TWO_PASSES: &str = include_str!("wgsl/two_passes.wgsl");
const RECONSTRUCT: &str = include_str!("wgsl/reconstruct.wgsl");
const RECONSTRUCT_ANY: &str = include_str!("wgsl/reconstruct_any.wgsl");
const ROWS: &str = include_str!("wgsl/rows.wgsl");
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

/// A program that decodes chunks of one plan: entry points `decode` (unless the coder needs none), `reconstruct` (unless `decode`
/// does all) and `check_escapes`.
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
    /// Whether a stage works on whole rows of heads.
    pub(crate) matrix: bool,
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
            && lanes == LANES
            && kernels.transforms.iter().enumerate().all(own_rows)
            && whole_words
            && (1..=MOST_STASH).contains(&stash);
        let matrix = matrix_stage(&kernels.transforms, plan.planes())?;
        let mut program = Self {
            source: [QUOTIENT, PRELUDE].concat(),
            data: Vec::new(),
            stages: [0; MOST_STAGES],
            lanes,
            state,
            one_pass,
            whole_words,
            matrix: matrix.is_some(),
        };
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
                Some(_) => format!("transform{}_", number + 1),
                None => "quantizer_".to_owned(),
            };
            program.line(&format!("fn {prefix}inner(p: Place) -> f32 {{\n    return {next}value(p);\n}}"));
        }
        program.stage(stages - 2, &kernels.quantizer.0, "quantizer_", &kernels.quantizer.1);
        program.stage(stages - 1, &kernels.coder.0, "coder_", coder);
        program.enter_stages(&kernels);
        let element = match (kernels.exact, kernels.transforms.is_empty()) {
            (true, _) => "quantizer_element(p)",
            (false, true) => "narrow(dtype, quantizer_value(p))",
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
            program.source.push_str(if whole_words { ROWS_WORDS } else { ROWS_ELEMENTS });
        } else if !one_pass {
            program.line(if whole_words { RECONSTRUCT } else { RECONSTRUCT_ANY });
        }
        program.source.push_str(CHECK_ESCAPES);
        Ok(program)
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

/// The number of the stage that works on whole rows of heads, if there is one.
fn matrix_stage(transforms: &[(String, Kernel)], planes: &[Plane]) -> Result<Option<usize>> {
    let mut stages = transforms.iter().enumerate().filter(|(_, (_, kernel))| kernel.rows == Rows::Matrix);
    let Some((number, (name, _))) = stages.next() else { return Ok(None) };
    if let Some((_, (other, _))) = stages.next() {
        return Err(Error::unsupported(format!(
            "`{name}` and `{other}` both work on rows of heads; on a GPU only one stage can"
        )));
    }
    let far = |kernel: &Kernel| !matches!(kernel.rows, Rows::Same | Rows::Head);
    if let Some((other, _)) = transforms[..number].iter().find(|(_, kernel)| far(kernel)) {
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
    fn only_what_looks_at_a_row_of_a_head_may_be_in_front() {
        let stage = |name: &str, rows| (name.to_owned(), Kernel::new("", Vec::new()).with_rows(rows));
        let stages = [
            stage("mean", Rows::Same),
            stage("turns", Rows::Head),
            stage("matrix", Rows::Matrix),
            stage("anchors", Rows::Parts),
        ];
        assert_eq!(matrix_stage(&stages, &[]).unwrap(), Some(2));
        assert_eq!(matrix_stage(&stages[3..], &[]).unwrap(), None);
        let [_, turns, matrix, anchors] = stages;
        let message = matrix_stage(&[turns, anchors, matrix], &[]).unwrap_err().to_string();
        assert!(message.contains("`anchors` may ask for more"), "{message}");
    }
}
