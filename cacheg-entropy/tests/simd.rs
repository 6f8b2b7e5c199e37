//! Every level of `rans` against the scalar one: the same bytes, symbols and verdicts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Coder, DecodeJob, Dtype, EncodeJob, Geometry, LayerGroup, Part, PartCx,
    Plane, Role, Seen, Segment, Shape, Source, TileCx,
};
use cacheg_entropy::Scope;
use cacheg_entropy::rans::{Level, Rans, RansSettings, differential};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> u64 {
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
struct Coders {
    bounds: Vec<(Level, Box<dyn BoundCoder>)>,
}

impl Coders {
    /// Channels of all kinds of distributions.
    fn new(scope: Scope, contexts: u8, size: u16, cols: usize, random: &mut Random) -> Self {
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
    fn check(&self, tiles: &[(Segment, Vec<u8>)]) -> Vec<Vec<u8>> {
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
    fn verdicts(&self, segment: Segment, streams: &[Vec<u8>]) {
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
fn symbols(random: &mut Random, size: u16, rows: usize, cols: usize) -> Vec<u8> {
    let mut all: Vec<u8> = Vec::with_capacity(rows * cols);
    for i in 0..rows * cols {
        let same = i >= cols && i % cols % 2 == 1 && random.below(2) == 0;
        let next = if same { all[i - cols] } else { symbol(random, size, (i % cols) as u64 % 9) };
        all.push(next);
    }
    all
}

/// Numbers of contexts that make a difference.
fn contexts(size: u16) -> &'static [u8] {
    if size <= 32 { &[1, 3] } else { &[1] }
}

fn segment(size: u16, rows: usize, cols: usize) -> Segment {
    Segment::new(0, 0, 0, rows, cols, Alphabet { size, escape: false })
}

#[test]
fn all_alphabets() {
    let mut random = Random(1);
    for size in 2..=256 {
        for scope in [Scope::Channel, Scope::One] {
            for contexts in contexts(size) {
                let coders = Coders::new(scope, *contexts, size, 9, &mut random);
                let tiles: Vec<_> = [97, 97, 97, 97, 64]
                    .map(|rows| (segment(size, rows, 9), symbols(&mut random, size, rows, 9)))
                    .into();
                coders.check(&tiles);
            }
        }
    }
}

#[test]
fn odd_sizes() {
    let mut random = Random(2);
    for (size, contexts) in [(2, 1), (2, 3), (20, 1), (20, 3), (32, 1), (32, 3), (33, 1), (256, 1)] {
        for cols in [1, 2, 63, 64, 65, 192] {
            let coders = Coders::new(Scope::Channel, contexts, size, cols, &mut random);
            let rows = [0, 1, 31, 32, 33, 63, 64, 65, 512, 1000];
            let tiles: Vec<_> = rows
                .iter()
                .map(|rows| (segment(size, *rows, cols), symbols(&mut random, size, *rows, cols)))
                .collect();
            // Alone, as equals, and all at once.
            for tile in &tiles {
                coders.check(std::slice::from_ref(tile));
                coders.check(&vec![tile.clone(); 4]);
            }
            coders.check(&tiles);
        }
    }
}

#[test]
fn truncation_and_corruption() {
    let mut random = Random(3);
    for (size, contexts) in [(3, 1), (3, 3), (32, 1), (32, 3), (50, 1), (256, 1)] {
        for (rows, cols) in [(97, 5), (256, 3), (7, 11), (160, 66)] {
            let coders = Coders::new(Scope::Channel, contexts, size, cols, &mut random);
            let tile = (segment(size, rows, cols), symbols(&mut random, size, rows, cols));
            let stream = coders.check(std::slice::from_ref(&tile)).remove(0);
            let step = 1 + stream.len() / 700;
            let cut: Vec<Vec<u8>> =
                (0..stream.len()).step_by(step).map(|len| stream[..len].to_vec()).collect();
            coders.verdicts(tile.0, &cut);
            let corrupt = |_| {
                let mut bad = stream.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(bad.len() as u64) as usize;
                    bad[at] = random.next() as u8;
                }
                match random.below(4) {
                    0 => bad.truncate(random.below(stream.len() as u64) as usize),
                    1 => bad.extend((0..2 * random.below(80)).map(|_| random.next() as u8)),
                    _ => {}
                }
                bad
            };
            let bad: Vec<Vec<u8>> = (0..300).map(corrupt).collect();
            coders.verdicts(tile.0, &bad);
        }
    }
}

#[test]
fn symbols_of_two_alphabets_and_garbage() {
    let mut random = Random(4);
    for _ in 0..3000 {
        let len = 8 + random.below(600) as usize;
        let narrow = 1 + random.below(255);
        let input: Vec<u8> =
            (0..len).map(|i| if i < 8 { random.next() as u8 } else { random.below(narrow) as u8 }).collect();
        differential(&input);
    }
}
