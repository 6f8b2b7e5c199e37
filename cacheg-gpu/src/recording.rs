//! What a device is told to do, as a list: made without any, and executed by `engine`.

use std::ops::Range;

use crate::program::{LANES, Program};
use crate::work::{Window, Work};

/// Workgroups side by side; `PER_ROW` in prelude.wgsl.
const PER_ROW: u32 = 32_768;

/// Workgroups of a dispatch in each direction, at most.
const DEEPEST: u32 = 65_535;

/// Entry points of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Undoes the entropy coding.
    Decode,
    /// Makes elements.
    Reconstruct,
    /// Checks that escapes have symbols.
    CheckEscapes,
}

/// One dispatch. Each sees what those before it have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) pass: Pass,
    /// Which of the windows it reads.
    pub(crate) window: usize,
    /// Which of the planes' buffers it writes; `None` for that of all planes.
    pub(crate) plane: Option<usize>,
    pub(crate) groups: [u32; 3],
}

/// Some work and all dispatches that do it.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) work: Work,
    pub(crate) windows: Vec<Window>,
    pub(crate) dispatches: Vec<Dispatch>,
}

impl Recording {
    /// Records work whose planes go to one buffer, or each to its own.
    pub(crate) fn new(program: &Program, work: Work, apart: bool) -> Self {
        let mut recording = Self { windows: Vec::new(), dispatches: Vec::new(), work };
        let window = recording.work.window;
        if program.lanes > 0 {
            let groups =
                if program.lanes == LANES { window.run_count } else { window.run_count.div_ceil(LANES) };
            for round in 0..recording.work.rounds {
                recording.dispatch(Pass::Decode, Window { round, ..window }, None, groups, 1);
            }
        }
        // Planes of more words than one binding can have are refused before anything is executed.
        let groups = |words: usize| u32::try_from(words.div_ceil(64)).unwrap_or(u32::MAX);
        let tile_groups = groups(recording.work.tile_words);
        if !program.whole_words {
            let groups = groups(recording.work.plane_words);
            recording.dispatch(Pass::Reconstruct, window, None, groups, window.plane_count);
        } else if apart {
            for plane in 0..window.plane_count {
                let first = plane * window.blocks;
                recording.reconstruct(first..first + window.blocks, Some(plane as usize), tile_groups);
            }
        } else {
            recording.reconstruct(0..window.plane_count * window.blocks, None, tile_groups);
        }
        recording.dispatch(Pass::CheckEscapes, window, None, window.escape_count.div_ceil(64), 1);
        recording
    }

    /// Elements of planes of tiles, in as many dispatches as it takes.
    fn reconstruct(&mut self, planes_of_tiles: Range<u32>, plane: Option<usize>, groups: u32) {
        for first in planes_of_tiles.clone().step_by(DEEPEST as usize) {
            let window = Window { plane_offset: first, ..self.work.window };
            let deep = (planes_of_tiles.end - first).min(DEEPEST);
            self.dispatch(Pass::Reconstruct, window, plane, groups, deep);
        }
    }

    fn dispatch(&mut self, pass: Pass, window: Window, plane: Option<usize>, groups: u32, deep: u32) {
        if groups == 0 || deep == 0 {
            return;
        }
        let groups = [groups.min(PER_ROW), groups.div_ceil(PER_ROW), deep];
        if self.windows.last() != Some(&window) {
            self.windows.push(window);
        }
        self.dispatches.push(Dispatch { pass, window: self.windows.len() - 1, plane, groups });
    }
}

#[cfg(test)]
mod tests {
    use cacheg_core::testkit::models;
    use cacheg_core::{Chunk, Encoder, KvCache, Limits, Order, Pipeline, Registry};

    use super::*;
    use crate::program::Variant;
    use crate::work::{Target, windows};

    fn recordings(spec: &str, tokens: usize, most: usize, apart: bool) -> Vec<Recording> {
        let registry =
            Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap();
        let geometry = &models().unwrap()[0].geometry;
        let cache = KvCache::from_fn(geometry, tokens, |_, token, channel| (token % 13 + channel) as f32);
        let encoder = Encoder::new(Pipeline::parse(&registry, spec).unwrap(), geometry, None).unwrap();
        let bytes = encoder.encode(&cache.view(), 0..tokens, &|_| ()).unwrap().to_vec();
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&registry, None).unwrap();
        let program = Program::new(&plan, Variant::Portable).unwrap();
        let target = if apart {
            Target::Planes { order: Order::HeadMajor, capacity: tokens, row: 0 }
        } else {
            Target::Window
        };
        let record = |tiles| {
            let work = Work::new(&chunk, &plan, &program, &tiles, target).unwrap();
            Recording::new(&program, work, apart)
        };
        let groups = crate::backend::all_groups(&chunk);
        windows(&chunk, &plan, groups, most).into_iter().map(record).collect()
    }

    #[test]
    fn runs_are_cut_into_rounds_and_each_is_short() {
        let recordings = recordings("bins|range", 9_000, 1 << 30, false);
        assert_eq!(recordings.len(), 1);
        let rounds = recordings[0].dispatches.iter().filter(|dispatch| dispatch.pass == Pass::Decode).count();
        // 72,000 symbols of ten iterations each.
        assert!(rounds > 20 && rounds == recordings[0].work.rounds as usize, "{rounds}");
        let seen: Vec<u32> = recordings[0].windows.iter().map(|window| window.round).collect();
        assert_eq!(seen, (0..rounds as u32).chain([0]).collect::<Vec<_>>());
    }

    #[test]
    fn windows_hold_what_they_are_asked_to() {
        // Six planes of 20,000 rows of 32 bytes, each in three tiles of at most 6,667 rows.
        let all = recordings("uniform|raw", 20_000, 1 << 30, false);
        assert_eq!(all.len(), 1);
        assert!(all[0].dispatches.iter().all(|dispatch| dispatch.pass == Pass::Reconstruct));
        // 6,667 rows of 8 words, 64 words to a group.
        assert_eq!(all[0].dispatches.iter().map(|d| d.groups).collect::<Vec<_>>(), [[834, 1, 18]]);
        let values = |recordings: &[Recording]| recordings.iter().map(|r| r.work.values).sum::<u64>();
        // Two planes, one plane, two of its tiles, one tile, which no window can be smaller than.
        for (most, windows) in [(1_300_000, 3), (640_000, 6), (450_000, 12), (1, 18)] {
            let cut = recordings("uniform|raw", 20_000, most, false);
            assert_eq!(cut.len(), windows, "{most}");
            assert!(cut.iter().all(|r| 4 * r.work.output_words <= most.max(6_667 * 32)), "{most}");
            assert_eq!(values(&cut), values(&all), "{most}");
        }
    }

    #[test]
    fn planes_apart_have_a_dispatch_each() {
        let apart = recordings("uniform|raw", 100, 1 << 30, true);
        let planes: Vec<_> = apart[0].dispatches.iter().map(|dispatch| dispatch.plane).collect();
        assert_eq!(planes, (0..6).map(Some).collect::<Vec<_>>());
        assert!(apart[0].dispatches.iter().all(|dispatch| dispatch.groups[2] == 1));
    }
}
