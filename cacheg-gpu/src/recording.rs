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
    /// Predicts a plane from those before it.
    Predict,
    /// Makes values of a plane from which others are predicted.
    Keep,
    /// Makes elements.
    Reconstruct,
    /// Checks that escapes have symbols.
    CheckEscapes,
}

impl Pass {
    /// The entry point's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Predict => "predict",
            Self::Keep => "keep",
            Self::Reconstruct => "reconstruct",
            Self::CheckEscapes => "check_escapes",
        }
    }
}

/// One dispatch. Each sees what those before it have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dispatch {
    pub(crate) pass: Pass,
    /// Which of the windows it reads.
    pub(crate) window: usize,
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
    pub(crate) fn new(program: &Program, work: Work) -> Self {
        let mut recording = Self { windows: Vec::new(), dispatches: Vec::new(), work };
        let window = recording.work.window;
        if program.lanes > 0 {
            let groups =
                if program.lanes == LANES { window.run_count } else { window.run_count.div_ceil(LANES) };
            for round in 0..recording.work.rounds {
                recording.dispatch(Pass::Decode, Window { round, ..window }, groups, 1);
            }
        }
        let Work { groups, predict_groups, keep_groups, .. } = recording.work;
        if let Some(predicted) = &program.predicted {
            // All planes have as many pieces.
            let each = window.piece_count / (predicted.has_references.len() as u32).max(1);
            for (plane, has_references) in (0..).zip(&predicted.has_references) {
                let pieces = plane * each..(plane + 1) * each;
                if *has_references {
                    recording.pieces(Pass::Predict, predict_groups, pieces.clone());
                }
                recording.pieces(Pass::Keep, keep_groups, pieces);
            }
        }
        if !program.one_pass {
            recording.pieces(Pass::Reconstruct, groups, 0..window.piece_count);
        }
        recording.dispatch(Pass::CheckEscapes, window, window.escape_count.div_ceil(64), 1);
        recording
    }

    /// A pass over some pieces.
    fn pieces(&mut self, pass: Pass, groups: usize, pieces: Range<u32>) {
        let (groups, window) = (u32::try_from(groups).unwrap_or(u32::MAX), self.work.window);
        for first_piece in pieces.clone().step_by(DEEPEST as usize) {
            let deep = (pieces.end - first_piece).min(DEEPEST);
            self.dispatch(pass, Window { first_piece, ..window }, groups, deep);
        }
    }

    fn dispatch(&mut self, pass: Pass, window: Window, groups: u32, deep: u32) {
        if groups == 0 || deep == 0 {
            return;
        }
        let groups = [groups.min(PER_ROW), groups.div_ceil(PER_ROW), deep];
        if self.windows.last() != Some(&window) {
            self.windows.push(window);
        }
        self.dispatches.push(Dispatch { pass, window: self.windows.len() - 1, groups });
    }
}

#[cfg(test)]
mod tests {
    use cacheg_core::testkit::models;
    use cacheg_core::{Chunk, Encoder, KvCache, Limits, Pipeline, Registry};

    use super::*;
    use crate::program::Variant;
    use crate::windows::Windows;

    fn recordings(spec: &str, chunks: usize, tokens: usize, most: usize) -> Vec<Recording> {
        let registry =
            Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied()).unwrap();
        let geometry = &models().unwrap()[0].geometry;
        let cache = KvCache::from_fn(geometry, tokens, |_, token, channel| (token % 13 + channel) as f32);
        let encoder = Encoder::new(Pipeline::parse(&registry, spec).unwrap(), geometry, None).unwrap();
        let bytes = encoder.encode(&cache.view(), 0..tokens, &|_| ()).unwrap().to_vec();
        let chunk = Chunk::parse(&bytes, &Limits::default()).unwrap();
        let plan = chunk.bind(&registry, None).unwrap();
        let program = Program::new(&plan, Variant::Portable, chunk.layout().rows).unwrap();
        let (chunks, groups) = (vec![&chunk; chunks], 0..chunk.layout().groups());
        let mut windows = Windows::new(&chunks, &plan, &program, groups, most, None);
        let next = || windows.next().unwrap().map(|(work, _)| Recording::new(&program, work));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn runs_are_cut_into_rounds_and_each_is_short() {
        let recordings = recordings("bins|range", 1, 9_000, 1 << 30);
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
        let all = recordings("uniform|raw", 1, 20_000, 1 << 30);
        assert_eq!(all.len(), 1);
        assert!(all[0].dispatches.iter().all(|dispatch| dispatch.pass == Pass::Reconstruct));
        // 6,667 rows of 8 words, 1,024 words to a group.
        assert_eq!(all[0].dispatches.iter().map(|d| d.groups).collect::<Vec<_>>(), [[53, 1, 18]]);
        let values = |recordings: &[Recording]| recordings.iter().map(|r| r.work.values).sum::<u64>();
        // Six tiles, three, two, one, which no window can be smaller than.
        for (most, windows) in [(1_310_000, 3), (652_000, 6), (450_000, 9), (1, 18)] {
            let cut = recordings("uniform|raw", 1, 20_000, most);
            assert_eq!(cut.len(), windows, "{most}");
            assert!(cut.iter().all(|r| 4 * r.work.output_words <= most.max(6_667 * 32)), "{most}");
            assert_eq!(values(&cut), values(&all), "{most}");
        }
    }

    #[test]
    fn chunks_share_windows() {
        // Of 6 planes × 100 rows × 32 bytes.
        let one = recordings("mean|bins(step=0.3)|rans", 5, 100, 1 << 30);
        assert_eq!(one.len(), 1);
        let decode = one[0].dispatches[0].groups;
        let tiles = recordings("mean|bins(step=0.3)|rans", 1, 100, 1 << 30)[0].dispatches[0].groups[0];
        assert_eq!(decode, [5 * tiles, 1, 1]);
        // Room is counted as if tiles had 128 rows.
        let some = recordings("mean|bins(step=0.3)|rans", 5, 100, 2 * 6 * 128 * 32);
        assert_eq!(some.iter().map(|r| r.work.values).collect::<Vec<_>>(), [19_200, 19_200, 9_600]);
    }
}
