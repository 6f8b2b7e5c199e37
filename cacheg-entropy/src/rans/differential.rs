//! All levels side by side, for tests and fuzzing.

mod elements;

use cacheg_core::{
    Alphabet, BindCx, BoundCoder, Coder, DecodeJob, Dtype, EncodeJob, Geometry, LayerGroup, Part, PartCx,
    Plane, Result, Role, Seen, Segment, Shape, Source, StageData, TileCx,
};

use self::elements::{Heads, check_decoding, check_encoding};
use super::{Level, Rans, RansSettings};
use crate::tables::Scope;

/// A model of one plane with two symbol planes.
struct Case {
    rans: Rans,
    planes: Vec<Plane>,
    parts: Vec<Vec<Part>>,
    data: StageData,
}

impl Case {
    fn new(
        scope: Scope,
        contexts: u8,
        alphabets: [Alphabet; 2],
        cols: usize,
        training: [&[u8]; 2],
    ) -> Result<Self> {
        let settings = RansSettings { tables: scope, classes: 3, contexts, ..RansSettings::default() };
        let rans = Rans::new(settings)?;
        let shape = Some(Shape { heads: 1, head_dim: cols as u32, dtype: Dtype::F16 });
        let layer = LayerGroup { repeat: 1, key: shape, value: None, latent: None, rope: None };
        let planes: Vec<Plane> = Geometry::new([layer])?.planes().into_iter().take(1).collect();
        let mut part = Part::new(Role::Whole, cols);
        part.alphabets.extend(alphabets);
        let parts = vec![vec![part]];
        let cx = BindCx::new(&planes, &parts, None, Source::Profile);
        let calibrator = rans.calibrator(&cx).ok_or_else(|| cacheg_core::Error::data("impossible tables"))?;
        let mut accumulator = calibrator.accumulator(&planes[0]);
        for (index, symbols) in training.into_iter().enumerate() {
            let rows = symbols.len() / cols;
            let seen = Seen::Symbols(index, &symbols[..rows * cols]);
            let part = PartCx::new(0, Role::Whole, rows, cols);
            accumulator.observe(&TileCx::new(&planes[0], 0, rows, 0), &part, seen)?;
        }
        let data = calibrator.finish(vec![accumulator.finish()?])?;
        Ok(Self { rans, planes, parts, data })
    }

    fn bind(&self, level: Level) -> Result<Box<dyn BoundCoder>> {
        let cx = BindCx::new(&self.planes, &self.parts, Some(&self.data), Source::Profile);
        self.rans.bind_at(&cx, level)
    }
}

/// What a level made of streams: symbols of good ones, words about the others.
type Verdicts<T> = Vec<std::result::Result<T, String>>;

fn encode(bound: &dyn BoundCoder, tiles: &[(Vec<Segment>, Vec<u8>)]) -> Verdicts<Vec<u8>> {
    let mut outs: Vec<Vec<u8>> = tiles.iter().map(|(s, _)| vec![0xa5; bound.max_len(s)]).collect();
    let mut jobs: Vec<EncodeJob<'_>> =
        tiles.iter().zip(&mut outs).map(|((s, symbols), out)| EncodeJob::new(s, symbols, out)).collect();
    bound.encode_batch(&mut jobs, &mut bound.scratch());
    let results: Vec<_> = jobs.into_iter().map(|job| job.result.map_err(|e| e.to_string())).collect();
    results.into_iter().zip(outs).map(|(len, out)| len.map(|len| out[..len].to_vec())).collect()
}

fn decode(
    bound: &dyn BoundCoder,
    tiles: &[(Vec<Segment>, Vec<u8>)],
    streams: &[Vec<u8>],
) -> Verdicts<Vec<u8>> {
    let mut backs: Vec<Vec<u8>> = tiles.iter().map(|(_, symbols)| vec![0x5a; symbols.len()]).collect();
    let mut jobs: Vec<DecodeJob<'_>> = tiles
        .iter()
        .zip(streams)
        .zip(&mut backs)
        .map(|(((s, _), bytes), back)| DecodeJob::new(s, bytes, back))
        .collect();
    bound.decode_batch(&mut jobs, &mut bound.scratch());
    let results: Vec<_> = jobs.into_iter().map(|job| job.result.map_err(|e| e.to_string())).collect();
    results.into_iter().zip(backs).map(|(result, back)| result.map(|()| back)).collect()
}

/// Makes tables, tiles and streams of the input and compares all levels: equal bytes, equal symbols of good
/// streams and of bad ones, equal errors. The same for elements, where there are any.
///
/// # Panics
/// If levels differ, or symbols do not come back.
pub fn differential(input: &[u8]) {
    let [scope, a, b, rows, cols, count, at, flip, rest @ ..] = input else { return };
    let contexts = if scope & 4 == 0 { 1 } else { 3 };
    let (small, escape) = (scope & 8 != 0, scope & 16 != 0);
    let heads = Heads::new(flip.rotate_left(4) ^ b);
    let scope = [Scope::One, Scope::Channel, Scope::Class, Scope::Layer][usize::from(*scope % 4)];
    // With contexts the first alphabet has some.
    let most = [if contexts == 1 && !small { 255 } else { 31 }, if small { 31 } else { 255 }];
    let sizes = [2 + u16::from(*a) % most[0], 2 + u16::from(*b) % most[1]];
    let alphabets = sizes.map(|size| Alphabet { size, escape });
    let cols = 1 + usize::from(*cols) % 70;
    let symbol = |size: u16, i: usize| {
        let byte = rest.get(i % rest.len().max(1)).copied().unwrap_or(0);
        (u16::from(byte) % size) as u8
    };
    let training = sizes.map(|size| (0..cols * 8).map(|i| symbol(size, i)).collect::<Vec<u8>>());
    let Ok(case) = Case::new(scope, contexts, alphabets, cols, [&training[0], &training[1]]) else { return };
    let levels = Level::ALL.into_iter().filter(|level| level.is_available());
    let Ok(bounds) = levels.map(|level| case.bind(level)).collect::<Result<Vec<_>>>() else { return };
    let mut tiles = Vec::new();
    for tile in 0..1 + usize::from(*count) % 6 {
        // Often equal, sometimes not.
        let rows = if count & 0x80 == 0 { usize::from(*rows) } else { usize::from(*rows) * (tile + 1) % 151 };
        let segments: Vec<Segment> =
            (0..2).map(|i| Segment::new(0, 0, i, rows, cols, alphabets[i])).collect();
        let half = rows * cols;
        let symbols = (0..2 * half).map(|i| symbol(sizes[i / half.max(1) % 2], i * (tile + 1))).collect();
        tiles.push((segments, symbols));
    }
    let mut all = bounds.iter().map(|bound| encode(&**bound, &tiles));
    let Some(encoded) = all.next() else { return };
    for other in all {
        assert_eq!(encoded, other);
    }
    let streams: Vec<Vec<u8>> = encoded.into_iter().map(std::result::Result::unwrap_or_default).collect();
    for bound in &bounds {
        let back = decode(&**bound, &tiles, &streams);
        assert!(back.iter().zip(&tiles).all(|(back, (_, symbols))| back.as_ref() == Ok(symbols)));
    }
    check_decoding(&bounds, &tiles, &streams, heads);
    check_encoding(&bounds, &tiles, rest, heads);
    let mut bad = streams;
    for (tile, stream) in bad.iter_mut().enumerate() {
        let at = usize::from(*at) * (tile + 1) * 7 % stream.len().max(1);
        match flip.wrapping_add(tile as u8) % 4 {
            0 => stream.truncate(at),
            1 => stream[at..].iter_mut().zip(rest).for_each(|(to, from)| *to ^= from),
            2 if at < stream.len() => stream[at] ^= flip | 1,
            2 => stream.push(*flip),
            _ => *stream = rest.to_vec(),
        }
    }
    let mut all = bounds.iter().map(|bound| decode(&**bound, &tiles, &bad));
    let Some(decoded) = all.next() else { return };
    for other in all {
        assert_eq!(decoded, other);
    }
    check_decoding(&bounds, &tiles, &bad, heads);
    // Symbols outside their alphabets.
    for (_, symbols) in &mut tiles {
        let len = symbols.len().max(1);
        if let Some(symbol) = symbols.get_mut(usize::from(*at) * 31 % len) {
            *symbol = symbol.saturating_add(*flip);
        }
    }
    let mut all = bounds.iter().map(|bound| encode(&**bound, &tiles));
    let Some(encoded) = all.next() else { return };
    for other in all {
        assert_eq!(encoded, other);
    }
}
