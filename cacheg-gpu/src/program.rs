//! WGSL for a plan, put together from its stages' texts.

use std::fmt::Write as _;

use cacheg_core::{Error, Kernel, Plan, Plane, Result};

const PRELUDE: &str = include_str!("wgsl/prelude.wgsl");
const TOGETHER: &str = include_str!("wgsl/decode_together.wgsl");
const ALONE: &str = include_str!("wgsl/decode_alone.wgsl");
const PASSES: &str = include_str!("wgsl/passes.wgsl");

/// Invocations of a workgroup that decodes.
pub(crate) const LANES: u32 = 32;

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

/// A program that decodes chunks of one plan: entry points `decode`, `reconstruct` or `reconstruct_any`, `check_escapes`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Program {
    /// WGSL, for the default limits of WebGPU and no features but those of the variant. Compilers that want
    /// `enable subgroups;` for those must be given that line in front.
    pub source: String,
    /// The stages' parameters.
    pub data: Vec<u32>,
    /// Invocations of a run of a stream; 0 if nothing needs to be decoded before elements are made.
    pub lanes: u32,
    /// Words that a run keeps between dispatches.
    pub state: u32,
    /// Whether rows of heads are whole words, so that `reconstruct` can be used; else it is `reconstruct_any`.
    pub whole_words: bool,
}

impl Program {
    /// Composes the stages of a plan.
    ///
    /// # Errors
    /// If a stage has no WGSL; the message names it.
    pub fn new(plan: &Plan, variant: Variant) -> Result<Self> {
        let kernels = plan.kernels()?;
        let (coder, lanes, state) = (&kernels.coder.1.kernel, kernels.coder.1.lanes, kernels.coder.1.state);
        // The parameters begin with where each stage's are, so that plans of one pipeline have one text.
        let stages = kernels.transforms.len() + 2;
        let whole =
            |plane: &Plane| (plane.shape.head_dim as usize * plane.shape.dtype.size()).is_multiple_of(4);
        let mut program = Self {
            source: PRELUDE.to_owned(),
            data: vec![0; stages],
            lanes,
            state,
            whole_words: plan.planes().iter().all(whole),
        };
        if lanes > 1 {
            program.line(ballot(variant));
        }
        program.line(&format!("\nconst STATE_WORDS: u32 = {state}u;"));
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
        let element = match (kernels.exact, kernels.transforms.is_empty()) {
            (true, _) => "quantizer_element(p)",
            (false, true) => "narrow(dtype, quantizer_value(p))",
            (false, false) => "narrow(dtype, transform0_value(p))",
        };
        program.line(&format!(
            "fn pipeline_element(p: Place, dtype: u32) -> u32 {{\n    return {element};\n}}\n"
        ));
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
        program.source.push_str(PASSES);
        Ok(program)
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.source, "{text}");
    }

    /// A stage's text under its own names, and its parameters.
    fn stage(&mut self, number: usize, name: &str, prefix: &str, kernel: &Kernel) {
        self.line(&format!("\n// Stage `{name}`."));
        self.line(&kernel.source.replace('$', prefix));
        // Words of 4 bytes: what a device could bind has fewer.
        self.data[number] = self.data.len() as u32;
        self.data.extend_from_slice(&kernel.data);
        self.line(&format!(
            "fn {prefix}data(index: u32) -> u32 {{\n    return data[data[{number}] + index];\n}}"
        ));
    }
}
