//! A machine with programs and buffers: what dispatches work on, and what they leave behind.

use std::collections::BTreeMap;

use naga::back::PipelineConstants;
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

use super::code::Code;
use super::counts::Counts;
use super::execute::Execution;
use super::lower::{buffers, lower};
use super::mask::{Mask, SUBGROUP, SUBGROUPS};
use super::memory::Words;
use super::types::error;
use crate::GpuError;

pub(crate) struct Machine {
    source: String,
    module: Module,
    info: ModuleInfo,
    /// Group and binding of each buffer.
    bindings: Vec<(u32, u32)>,
    buffers: Vec<Words>,
    code: BTreeMap<String, Code>,
    /// Workgroups so far.
    groups: u32,
    pub(crate) passes: BTreeMap<String, Counts>,
    pub(crate) out_of_bounds: u64,
    pub(crate) races: u64,
    pub(crate) unordered: u64,
}

impl Machine {
    /// Compiles WGSL.
    ///
    /// # Errors
    /// If it is not valid.
    pub(crate) fn new(source: &str) -> Result<Self, GpuError> {
        let module = naga::front::wgsl::parse_str(source);
        let module = module.map_err(|failed| error(failed.emit_to_string(source)))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP);
        let info = validator.validate(&module).map_err(|failed| error(failed.emit_to_string(source)))?;
        let bindings = buffers(&module);
        Ok(Self {
            source: source.to_owned(),
            buffers: vec![Words::default(); bindings.len()],
            bindings,
            module,
            info,
            code: BTreeMap::new(),
            groups: 0,
            passes: BTreeMap::new(),
            out_of_bounds: 0,
            races: 0,
            unordered: 0,
        })
    }

    /// Gives a buffer its contents; those that the program does not have are ignored.
    pub(crate) fn set(&mut self, group: u32, binding: u32, words: Vec<u32>) {
        if let Ok(number) = self.bindings.binary_search(&(group, binding)) {
            self.buffers[number] = Words::new(words);
        }
    }

    /// A buffer's contents.
    pub(crate) fn words(&self, group: u32, binding: u32) -> &[u32] {
        self.bindings.binary_search(&(group, binding)).map_or(&[], |number| &self.buffers[number].words)
    }

    /// Runs workgroups one after the other.
    ///
    /// # Errors
    /// What programs must not do, and what is not supported.
    pub(crate) fn dispatch(&mut self, entry: &str, groups: [u32; 3]) -> Result<(), GpuError> {
        if !self.code.contains_key(entry) {
            let lower = |module, info| lower(module, info, &self.source, &self.bindings, entry);
            let code = if self.module.overrides.is_empty() {
                lower(&self.module, &self.info)?
            } else {
                let (point, constants) = (Some((ShaderStage::Compute, entry)), PipelineConstants::default());
                let (module, info) = process_overrides(&self.module, &self.info, point, &constants)
                    .map_err(|failed| error(failed.to_string()))?;
                lower(&module, &info)?
            };
            self.code.insert(entry.to_owned(), code);
        }
        let Some(code) = self.code.get(entry) else { return Ok(()) };
        let invocations = code.size.iter().try_fold(1u32, |product, size| product.checked_mul(*size));
        let invocations = invocations.filter(|count| *count as usize <= SUBGROUP * SUBGROUPS);
        let invocations = invocations.ok_or_else(|| error("a workgroup of more than 256 invocations"))?;
        let first = self.groups + 1;
        let mut execution = Execution::new(code, &mut self.buffers, Mask::first(invocations as usize), first);
        for z in 0..groups[2] {
            for y in 0..groups[1] {
                for x in 0..groups[0] {
                    execution
                        .workgroup([x, y, z], groups)
                        .map_err(|failed| error(format!("`{entry}`, workgroup {:?}: {failed}", [x, y, z])))?;
                }
            }
        }
        let done = execution.finish();
        self.groups = done.last;
        let pass = self.passes.entry(entry.to_owned()).or_default();
        pass.add(&done.counts);
        self.out_of_bounds += done.out_of_bounds;
        self.races += done.shared.races;
        self.unordered += done.shared.unordered;
        self.out_of_bounds += done.shared.out_of_bounds;
        for (binding, buffer) in self.bindings.iter().zip(&mut self.buffers) {
            pass.bindings.entry(*binding).or_default().add(&std::mem::take(&mut buffer.counts));
            self.out_of_bounds += std::mem::take(&mut buffer.out_of_bounds);
            self.races += std::mem::take(&mut buffer.races);
            // Workgroups may take turns in any order: that is what atomics of buffers are for.
            buffer.unordered = 0;
        }
        Ok(())
    }
}
