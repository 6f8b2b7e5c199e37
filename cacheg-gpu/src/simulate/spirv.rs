//! How long programs are once they are compiled.

use naga::back::spv;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::{GpuError, Recorded};

impl Recorded {
    /// Instructions in the functions of the program as SPIR-V, all of its entry points together.
    ///
    /// # Errors
    /// [`GpuError::Simulator`] if the program is invalid.
    pub fn spirv_instructions(&self) -> Result<usize, GpuError> {
        let fails = |what: String| GpuError::Simulator(what);
        let module = naga::front::wgsl::parse_str(&self.source)
            .map_err(|error| fails(error.emit_to_string(&self.source)))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP);
        let info = validator.validate(&module).map_err(|error| fails(format!("{error:?}")))?;
        let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
        let words =
            spv::write_vec(&module, &info, &options, None).map_err(|error| fails(error.to_string()))?;
        Ok(in_functions(&words))
    }
}

/// Instructions from the first function on.
fn in_functions(words: &[u32]) -> usize {
    const HEADER: usize = 5;
    const FUNCTION: u32 = 54;
    let (mut at, mut count) = (HEADER, 0);
    while let Some(word) = words.get(at) {
        if count > 0 || word & 0xffff == FUNCTION {
            count += 1;
        }
        at += (word >> 16).max(1) as usize;
    }
    count
}
