//! Coders at every level, and what they code.

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Coder, DecodeJob, Dtype, EncodeJob, Geometry, LayerGroup, Part, PartCx,
    Plane, Role, Seen, Segment, Shape, Source, TileCx,
};
use cacheg_entropy::Scope;
use cacheg_entropy::rans::{Level, Rans, RansSettings};

/// Pseudo-random numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Kinds of distributions: flat, all but one symbol rare, peaks of several widths.
fn symbol(random: &mut Random, size: u16, kind: u64) -> u8 {
    let size = u64::from(size);
    let value = match kind {
        0 => random.below(size),
        1 if random.below(300) > 0 => 0,
        2 if random.below(300) > 0 => size - 1,
        1 | 2 => random.below(size),
        kind => {
            let width = 1 + size * (kind - 2) / 12;
            let noise = (random.below(width) + random.below(width) + random.below(width)) / 3;
            (size / 2 + noise).saturating_sub(width / 2).min(size - 1)
        }
    };
    value as u8
}

/// One coder at every level that this machine has, the scalar one first.
pub(crate) struct Coders {
    pub(crate) bounds: Vec<(Level, Box<dyn BoundCoder>)>,
}

impl Coders {
    /// Channels of all kinds of distributions.
    pub(crate) fn new(scope: Scope, contexts: u8, size: u16, cols: usize, random: &mut Random) -> Self {
        let rans = Rans::new(RansSettings { tables: scope, contexts, ..RansSettings::default() }).unwrap();
        let shape = Some(Shape { heads: 1, head_dim: cols as u32, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
        let planes: Vec<Plane> = Geometry::new([layer]).unwrap().planes().into_iter().take(1).collect();
        let mut part = Part::new(Role::Whole, cols);
        part.alphabets.push(Alphabet { size, escape: false });
        let parts = vec![vec![part]];
        let cx = BindCx::new(&planes, &parts, None, Source::Profile);
        let calibrator = rans.calibrator(&cx).unwrap();
        let mut accumulator = calibrator.accumulator(&planes[0]);
        let symbols = symbols(random, size, 400, cols);
        let part = PartCx::new(0, Role::Whole, 400, cols);
        accumulator.observe(&TileCx::new(&planes[0], 0, 400, 0), &part, Seen::Symbols(0, &symbols)).unwrap();
        let data = calibrator.finish(vec![accumulator.finish().unwrap()]).unwrap();
        let cx = BindCx::new(&planes, &parts, Some(&data), Source::Profile);
        let levels = Level::ALL.into_iter().filter(|level| level.is_available());
        Self { bounds: levels.map(|level| (level, rans.bind_at(&cx, level).unwrap())).collect() }
    }

    /// Encodes and decodes tiles in one batch at every level.
    pub(crate) fn check(&self, tiles: &[(Segment, Vec<u8>)]) -> Vec<Vec<u8>> {
        let segments: Vec<[Segment; 1]> = tiles.iter().map(|(segment, _)| [*segment]).collect();
        let mut reference: Option<Vec<Vec<u8>>> = None;
        for (level, bound) in &self.bounds {
            let mut scratch = bound.scratch();
            let mut outs: Vec<Vec<u8>> = segments.iter().map(|s| vec![0xa5; bound.max_len(s)]).collect();
            let mut jobs: Vec<EncodeJob<'_>> = segments
                .iter()
                .zip(tiles)
                .zip(&mut outs)
                .map(|((segments, (_, symbols)), out)| EncodeJob::new(segments, symbols, out))
                .collect();
            bound.encode_batch(&mut jobs, &mut scratch);
            let lens: Vec<usize> = jobs.into_iter().map(|job| job.result.unwrap()).collect();
            outs.iter_mut().zip(lens).for_each(|(out, len)| out.truncate(len));
            let reference = reference.get_or_insert_with(|| outs.clone());
            assert!(*reference == outs, "{level:?}");
            let mut backs: Vec<Vec<u8>> = tiles.iter().map(|(_, s)| vec![0x5a; s.len()]).collect();
            let mut jobs: Vec<DecodeJob<'_>> = segments
                .iter()
                .zip(&outs)
                .zip(&mut backs)
                .map(|((segments, bytes), back)| DecodeJob::new(segments, bytes, back))
                .collect();
            bound.decode_batch(&mut jobs, &mut scratch);
            assert!(jobs.into_iter().all(|job| job.result.is_ok()), "{level:?}");
            assert!(backs.iter().zip(tiles).all(|(back, (_, symbols))| back == symbols), "{level:?}");
        }
        reference.unwrap()
    }

    /// Decodes streams of one shape, good or bad, in one batch at every level.
    pub(crate) fn verdicts(&self, segment: Segment, streams: &[Vec<u8>]) {
        let segments = [segment];
        let mut reference = None;
        for (level, bound) in &self.bounds {
            let mut backs = vec![vec![0; segment.len()]; streams.len()];
            let mut jobs: Vec<DecodeJob<'_>> =
                streams.iter().zip(&mut backs).map(|(b, back)| DecodeJob::new(&segments, b, back)).collect();
            bound.decode_batch(&mut jobs, &mut bound.scratch());
            let results: Vec<Result<(), String>> =
                jobs.into_iter().map(|job| job.result.map_err(|error| error.to_string())).collect();
            let good: Vec<_> =
                results.into_iter().zip(backs).map(|(result, back)| result.map(|()| back)).collect();
            let reference = reference.get_or_insert_with(|| good.clone());
            assert!(*reference == good, "{level:?}");
        }
    }
}

/// Channels of all kinds; in every second one half of the symbols are as they were before.
pub(crate) fn symbols(random: &mut Random, size: u16, rows: usize, cols: usize) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::with_capacity(rows * cols);
    for i in 0..rows * cols {
        let same = i >= cols && i % cols % 2 == 1 && random.below(2) == 0;
        let next = if same { all[i - cols] } else { symbol(random, size, (i % cols) as u64 % 9) };
        all.push(next);
    }
    all
}

/// Numbers of contexts that make a difference.
pub(crate) fn contexts(size: u16) -> &'static [u8] {
    if size <= 32 { &[1, 3] } else { &[1] }
}

pub(crate) fn segment(size: u16, rows: usize, cols: usize) -> Segment {
    Segment::new(0, 0, 0, rows, cols, Alphabet { size, escape: false })
}
