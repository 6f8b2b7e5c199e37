//! Recordings for other WebGPU implementations: everything they need, as plain data.

use cacheg_core::{Chunk, Order, Plan, Result};

use crate::program::{Program, Variant};
use crate::recording::Recording;
use crate::windows::{Elsewhere, Windows, tile_rows};
use crate::work::{PlaneTarget, Work};

/// What decodes a chunk on any implementation of WebGPU.
///
/// Group 0 has eight buffers: 0 the uniform window of a dispatch; read-only storage 1 `payload`, 2 `table`, 3 `data`;
/// storage 4 of `scratch_words`, 5 of `state_words`, 6 of `output_words` and 7 of `fault_words` words, all zeros at first.
/// Dispatches follow each other; then 7 must hold zeros and 6 the planes, one after the other, `[heads, tokens, head_dim]`, each
/// at a multiple of four bytes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recorded {
    /// WGSL.
    pub source: String,
    /// The stages' parameters.
    pub data: Vec<u32>,
    /// Coded tiles.
    pub payload: Vec<u32>,
    /// Records.
    pub table: Vec<u32>,
    /// Words of symbols.
    pub scratch_words: usize,
    /// Words of states.
    pub state_words: usize,
    /// Words of elements.
    pub output_words: usize,
    /// Words of faults.
    pub fault_words: usize,
    /// Contents of the uniform buffer, for each window; they must be aligned as uniform offsets are.
    pub windows: Vec<Vec<u32>>,
    /// Entry point, number of the window, workgroups.
    pub dispatches: Vec<(&'static str, usize, [u32; 3])>,
}

impl Recorded {
    /// Records decoding a chunk as one window; exact tokens are not part of it.
    ///
    /// # Errors
    /// If a stage has no WGSL, or a tile is corrupt.
    pub fn new(chunk: &Chunk<'_>, plan: &Plan, variant: Variant) -> Result<Self> {
        let program = Program::new(plan, variant, tile_rows(chunk))?;
        let (chunks, layout) = ([chunk], chunk.layout());
        let mut output_words = 0;
        let mut targets = Vec::new();
        for plane in plan.planes() {
            targets.push(PlaneTarget { word: output_words, capacity: layout.tokens, row: 0 });
            output_words += (plane.channels() * plane.shape.dtype.size() * layout.tokens).div_ceil(4);
        }
        let elsewhere =
            Elsewhere { order: Order::HeadMajor, buffer: &|_| 0, target: &|plane| targets[plane] };
        let groups = 0..layout.groups();
        let mut windows = Windows::new(&chunks, plan, &program, groups, usize::MAX, Some(elsewhere));
        let work = match windows.next()? {
            Some((work, _)) => work,
            None => Work::empty(plan, &program)?,
        };
        drop(windows);
        let Recording { work, windows, dispatches } = Recording::new(&program, work);
        Ok(Self {
            source: program.source,
            data: program.data,
            payload: work.payload,
            table: work.table,
            scratch_words: work.scratch_words,
            state_words: work.state_words,
            output_words,
            fault_words: work.tiles.len(),
            windows: windows
                .iter()
                .map(|window| bytemuck::cast_slice(std::slice::from_ref(window)).to_vec())
                .collect(),
            dispatches: dispatches.iter().map(|d| (d.pass.name(), d.window, d.groups)).collect(),
        })
    }
}
