//! Elements are what the tables make of symbols, and the symbols are those of the elements; wherever elements are, and
//! nothing around them is touched.

use std::ops::Range;

use cacheg_core::{
    Alphabet, BoundCoder, DecodeJob, ElementEncodeJob, ElementJob, ElementSink, ElementSource, ElementSpan,
    ElementTable, ElementWindow, EncodeJob, ErrorKind, Segment, SymbolBounds, element_key,
};
use cacheg_entropy::Scope;
use cacheg_entropy::rans::Level;

use crate::bounds::Guarded;
use crate::coders::{Coders, Random, segment, symbols};

/// What memory holds that nobody writes to.
const CANARY: u8 = 0xa5;

/// A stream's segments and their symbols.
type Tile = (Vec<Segment>, Vec<u8>);

/// Where the elements of a segment are.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Columns of a head.
    width: usize,
    /// Heads follow each other; otherwise rows do, of all heads.
    by_head: bool,
    /// Bytes between rows.
    gap: usize,
    /// Bytes before the first.
    shift: usize,
    streaming: bool,
    /// Memory ends with the last row; otherwise it begins aligned.
    at_end: bool,
}

impl Place {
    fn random(random: &mut Random) -> Self {
        let width = [1, 7, 16, 31, 32, 32, 33, 48, 64, 64, 65, 96, 128, 192][random.below(14) as usize];
        let by_head = random.below(3) > 0;
        let gap = [0, 0, 1, 2, 64, 128][random.below(6) as usize];
        let shift = [0, 0, 0, 1, 2, 32, 64][random.below(7) as usize];
        Self { width, by_head, gap, shift, streaming: random.below(2) == 0, at_end: random.below(2) == 0 }
    }

    fn stride(&self, segment: &Segment) -> usize {
        2 * if self.by_head { self.width } else { segment.cols } + self.gap
    }

    /// Some columns, head by head, and where each begins.
    fn spans(&self, segment: &Segment, cols: Range<usize>) -> Vec<(Range<usize>, usize)> {
        let stride = self.stride(segment);
        let heads = cols.start / self.width..cols.end.div_ceil(self.width);
        heads
            .map(|head| {
                let first = head * self.width;
                let from = cols.start.max(first);
                let begin = if self.by_head { head * segment.rows * stride } else { 2 * first };
                (from..cols.end.min(first + self.width), self.shift + begin + 2 * (from - first))
            })
            .collect()
    }

    /// Every row of every head: its bytes, the row and its columns.
    fn rows(&self, segment: &Segment) -> Vec<(Range<usize>, usize, Range<usize>)> {
        let mut rows = Vec::new();
        for (cols, begin) in self.spans(segment, 0..segment.cols) {
            for row in 0..segment.rows {
                let begin = begin + row * self.stride(segment);
                rows.push((begin..begin + 2 * cols.len(), row, cols.clone()));
            }
        }
        rows
    }

    /// Memory of these elements, and not a byte more than it needs to have.
    fn image(&self, segment: &Segment, element: impl Fn(usize, usize) -> u16) -> Vec<u8> {
        let rows = self.rows(segment);
        let len = rows.iter().map(|(bytes, ..)| bytes.end).max().unwrap_or(0);
        let mut image = vec![CANARY; len];
        for (bytes, row, cols) in rows {
            for (to, col) in image[bytes].as_chunks_mut().0.iter_mut().zip(cols) {
                *to = element(row, col).to_le_bytes();
            }
        }
        image
    }
}

/// The elements of streams, segment by segment, between pages that cannot be touched.
struct Memory<'a> {
    place: Place,
    tiles: &'a [Tile],
    bytes: Vec<Vec<Guarded>>,
}

impl<'a> Memory<'a> {
    fn new(place: Place, tiles: &'a [Tile], element: impl Fn(usize, usize, usize, usize) -> u16) -> Self {
        let of_tile = |(tile, (segments, _)): (usize, &Tile)| {
            let all = segments.iter().enumerate();
            all.map(|(number, segment)| {
                let image = place.image(segment, |row, col| element(tile, number, row, col));
                Guarded::new(&image, place.at_end)
            })
            .collect()
        };
        Self { place, tiles, bytes: tiles.iter().enumerate().map(of_tile).collect() }
    }
}

impl ElementSink for Memory<'_> {
    fn open(
        &mut self,
        job: usize,
        segment: usize,
        cols: Range<usize>,
        write: &mut dyn FnMut(&mut ElementWindow<'_>),
    ) {
        let (place, memory) = (self.place, &mut self.bytes[job][segment]);
        let segment = &self.tiles[job].0[segment];
        for (cols, begin) in place.spans(segment, cols) {
            let stride = place.stride(segment);
            write(&mut ElementWindow::new(cols, memory.bytes(), begin, stride, place.streaming));
        }
    }
}

impl ElementSource for Memory<'_> {
    fn open(&self, job: usize, segment: usize, cols: Range<usize>, read: &mut dyn FnMut(&ElementSpan<'_>)) {
        let (place, memory) = (self.place, self.bytes[job][segment].seen());
        let segment = &self.tiles[job].0[segment];
        for (cols, begin) in place.spans(segment, cols) {
            let next = if begin % 3 == 0 { &[] } else { &memory[memory.len() / 2..] };
            read(&ElementSpan::new(cols, memory, begin, place.stride(segment), next));
        }
    }
}

/// Of each symbol: its segment, that segment's first column among those of all, its row and its column.
fn places(segments: &[Segment]) -> Vec<(usize, usize, usize, usize)> {
    let (mut all, mut first) = (Vec::new(), 0);
    for (number, segment) in segments.iter().enumerate() {
        for row in 0..segment.rows {
            all.extend((0..segment.cols).map(|col| (number, first, row, col)));
        }
        first += segment.cols;
    }
    all
}

/// Where each segment's symbols and columns begin.
fn starts(segments: &[Segment]) -> Vec<(usize, usize)> {
    let start = |number: usize| {
        let before = &segments[..number];
        (before.iter().map(Segment::len).sum(), before.iter().map(|segment| segment.cols).sum())
    };
    (0..segments.len()).map(start).collect()
}

fn is_escape(segment: &Segment, symbol: u8) -> bool {
    segment.alphabet.escape && u16::from(symbol) == segment.alphabet.size - 1
}

fn encode(bound: &dyn BoundCoder, tiles: &[Tile]) -> Vec<Vec<u8>> {
    let mut outs: Vec<Vec<u8>> = tiles.iter().map(|(s, _)| vec![0; bound.max_len(s)]).collect();
    let jobs = tiles.iter().zip(&mut outs);
    let mut jobs: Vec<EncodeJob<'_>> =
        jobs.map(|((s, symbols), out)| EncodeJob::new(s, symbols, out)).collect();
    bound.encode_batch(&mut jobs, &mut bound.scratch());
    jobs.into_iter().map(|job| job.out[..job.result.unwrap()].to_vec()).collect()
}

/// The vector levels.
fn vector(coders: &Coders) -> impl Iterator<Item = (Level, &dyn BoundCoder)> {
    coders.bounds.iter().filter(|(level, _)| *level > Level::Scalar).map(|(level, bound)| (*level, &**bound))
}

/// Decodes streams of tiles, good or bad, to elements, and compares with what the tables make of their symbols.
fn check_decoding(
    coders: &Coders,
    tiles: &[Tile],
    streams: &[Vec<u8>],
    places_of_elements: usize,
    random: &mut Random,
) {
    let scalar = &coders.bounds[0].1;
    let mut backs: Vec<Vec<u8>> = tiles.iter().map(|(_, symbols)| vec![0; symbols.len()]).collect();
    let jobs = tiles.iter().zip(streams).zip(&mut backs);
    let mut jobs: Vec<DecodeJob<'_>> =
        jobs.map(|(((segments, _), bytes), back)| DecodeJob::new(segments, bytes, back)).collect();
    scalar.decode_batch(&mut jobs, &mut scalar.scratch());
    let verdicts: Vec<Result<(), String>> =
        jobs.into_iter().map(|job| job.result.map_err(|error| error.to_string())).collect();
    let tables: Vec<Vec<ElementTable>> = tiles
        .iter()
        .map(|(segments, _)| {
            let columns = segments.iter().map(|segment| segment.cols).sum();
            (0..columns).map(|_| ElementTable(std::array::from_fn(|_| random.next() as u16))).collect()
        })
        .collect();
    let places_of_elements: Vec<Place> = (0..places_of_elements).map(|_| Place::random(random)).collect();
    for (level, bound) in vector(coders) {
        let mut scratch = bound.scratch();
        for place in &places_of_elements {
            let mut streams: Vec<Guarded> =
                streams.iter().map(|stream| Guarded::new(stream, place.at_end)).collect();
            // Not what is written, whatever that is.
            let mut memory = Memory::new(*place, tiles, |_, _, _, _| 0);
            let jobs = tiles.iter().zip(&mut streams).zip(&tables);
            let mut jobs: Vec<ElementJob<'_>> = jobs
                .map(|(((segments, _), bytes), tables)| ElementJob::new(segments, bytes.bytes(), tables))
                .collect();
            bound.decode_elements(&mut jobs, &mut memory, &mut scratch);
            for (tile, job) in jobs.into_iter().enumerate() {
                let (segments, symbols, tables) = (&tiles[tile].0, &backs[tile], &tables[tile]);
                let verdict = job.result.map_err(|error| error.to_string());
                assert_eq!(verdict, verdicts[tile], "{level:?}, {place:?}");
                if verdict.is_ok() {
                    let all = symbols.iter().zip(places(segments));
                    let escaped =
                        all.filter(|(symbol, (number, ..))| is_escape(&segments[*number], **symbol));
                    assert_eq!(job.escaped, escaped.count(), "{level:?}, {place:?}");
                }
                let starts = starts(segments);
                for (number, segment) in segments.iter().enumerate() {
                    let (first, column) = starts[number];
                    let found = memory.bytes[tile][number].bytes();
                    let expected = place.image(segment, |row, col| {
                        let symbol = symbols[first + row * segment.cols + col];
                        if verdict.is_ok() { tables[column + col].0[usize::from(symbol)] } else { 0 }
                    });
                    if verdict.is_err() {
                        place.rows(segment).into_iter().for_each(|(bytes, ..)| found[bytes].fill(0));
                    }
                    assert!(found == expected, "{level:?}, {place:?}, {segment:?}");
                }
            }
        }
    }
}

/// Encodes random elements of the shape of tiles, and compares with their symbols, encoded.
fn check_encoding(coders: &Coders, tiles: &[Tile], places_of_elements: usize, random: &mut Random) {
    let changes: Vec<Vec<SymbolBounds>> = tiles
        .iter()
        .map(|(segments, _)| {
            let columns = segments.iter().flat_map(|segment| std::iter::repeat_n(segment, segment.cols));
            columns.map(|segment| changes(segment.alphabet.size, random)).collect()
        })
        .collect();
    let elements: Vec<Vec<u16>> = tiles
        .iter()
        .zip(&changes)
        .map(|((segments, _), changes)| {
            let places = places(segments);
            places.iter().map(|(_, first, _, col)| element(&changes[first + col], random)).collect()
        })
        .collect();
    let symbols: Vec<Tile> = tiles
        .iter()
        .zip(&elements)
        .zip(&changes)
        .map(|(((segments, _), elements), changes)| {
            let symbol = |(element, (number, first, _, col)): (&u16, (usize, usize, usize, usize))| {
                changes[first + col].symbol(*element, (segments[number].alphabet.size - 1) as u8)
            };
            (segments.clone(), elements.iter().zip(places(segments)).map(symbol).collect())
        })
        .collect();
    let expected = encode(&*coders.bounds[0].1, &symbols);
    let places_of_elements: Vec<Place> = (0..places_of_elements).map(|_| Place::random(random)).collect();
    for (level, bound) in vector(coders) {
        let mut scratch = bound.scratch();
        for (round, place) in places_of_elements.iter().enumerate() {
            let memory = Memory::new(*place, tiles, |tile, number, row, col| {
                let segments = &tiles[tile].0;
                elements[tile][starts(segments)[number].0 + row * segments[number].cols + col]
            });
            let mut outs: Vec<Guarded> =
                tiles.iter().map(|(s, _)| Guarded::new(&vec![0; bound.max_len(s)], place.at_end)).collect();
            let jobs = tiles.iter().zip(&changes).zip(&mut outs);
            let mut jobs: Vec<ElementEncodeJob<'_>> = jobs
                .map(|(((segments, symbols), changes), out)| {
                    let capacity = [symbols.len(), 0, 3, symbols.len() / 8][round % 4];
                    ElementEncodeJob::new(segments, changes, out.bytes(), Vec::with_capacity(capacity))
                })
                .collect();
            bound.encode_elements(&mut jobs, &memory, &mut scratch);
            for ((mut job, (segments, symbols)), expected) in jobs.into_iter().zip(&symbols).zip(&expected) {
                assert!(job.out[..job.result.unwrap()] == *expected, "{level:?}, {place:?}");
                let all = symbols.iter().zip(places(segments)).zip(0..);
                let escapes: Vec<u32> = all
                    .filter(|((symbol, (number, ..)), _)| is_escape(&segments[*number], **symbol))
                    .map(|(_, index)| index)
                    .collect();
                job.escaped.sort_unstable();
                assert_eq!(
                    job.escaped.len(),
                    escapes.len().min(job.escaped.capacity()),
                    "{level:?}, {place:?}"
                );
                assert!(job.escaped.is_sorted_by(|a, b| a < b), "{level:?}, {place:?}");
                assert!(job.escaped.iter().all(|index| escapes.binary_search(index).is_ok()), "{level:?}");
            }
        }
    }
}

/// Bounds of an alphabet: far apart, close together, or at the ends.
fn changes(size: u16, random: &mut Random) -> SymbolBounds {
    let (range, middle) = [(1 << 16, 0), (1 << 16, 0), (2000, 0x3c00), (40, -0x3c00), (16, i16::MAX.into())]
        [random.below(5) as usize];
    let mut bounds = [0x7c00; 32];
    for bound in &mut bounds[..usize::from(size)] {
        let key = middle + random.below(range) as i64 - range as i64 / 2;
        *bound = key.clamp(i16::MIN.into(), i16::MAX.into()) as i16;
    }
    let known = usize::from(size);
    bounds[..known].sort_unstable();
    // Behind them is nothing finite, but they ascend.
    let end = bounds[known - 1].max(0x7c00);
    bounds[known..].fill(end);
    SymbolBounds(bounds)
}

/// An element: any, a special one, or one where symbols change.
fn element(changes: &SymbolBounds, random: &mut Random) -> u16 {
    match random.below(8) {
        0..2 => random.next() as u16,
        2 => {
            // Zeros, infinities, and NaNs of all kinds, of both types of elements.
            let special = [0, 0x7c00, 0x7e00, 0x7fff, 0x7c01, 0x7f80, 0x7f81, 0x7bff, 1];
            special[random.below(9) as usize] | (random.below(2) as u16) << 15
        }
        _ => {
            let bound = changes.0[random.below(32) as usize];
            // Keys are their own inverses.
            element_key(bound.wrapping_add(random.below(3) as i16 - 1).cast_unsigned()).cast_unsigned()
        }
    }
}

/// A stream of segments of so many rows.
fn tile(alphabets: &[Alphabet], rows: &[usize], cols: usize, random: &mut Random) -> Tile {
    let all = alphabets.iter().zip(rows).enumerate();
    let segments: Vec<Segment> =
        all.map(|(plane, (alphabet, rows))| Segment::new(0, 0, plane, *rows, cols, *alphabet)).collect();
    let symbols = segments.iter().flat_map(|s| symbols(random, s.alphabet.size, s.rows, s.cols)).collect();
    (segments, symbols)
}

fn check(coders: &Coders, tiles: &[Tile], places: usize, random: &mut Random) {
    let streams = encode(&*coders.bounds[0].1, tiles);
    check_decoding(coders, tiles, &streams, places, random);
    if tiles.iter().flat_map(|(segments, _)| segments).all(|segment| segment.alphabet.escape) {
        check_encoding(coders, tiles, places, random);
    }
}

#[test]
fn all_alphabets() {
    let mut random = Random(11);
    for size in 2..=32 {
        for (escape, contexts) in [(false, 1), (false, 3), (true, 1), (true, 3)] {
            let other = 2 + random.below(31) as u16;
            let alphabets = [size, other, size].map(|size| Alphabet { size, escape });
            let cols = [32, 33, 64][random.below(3) as usize];
            let coders = Coders::of_planes(Scope::Channel, contexts, &alphabets, cols, &mut random);
            let rows = [[97, 0, 64], [97, 0, 64], [32, 5, 33], [0, 0, 0], [0, 64, 1], [97, 0, 64]];
            let tiles: Vec<_> = rows.iter().map(|rows| tile(&alphabets, rows, cols, &mut random)).collect();
            check(&coders, &tiles, 4, &mut random);
        }
    }
}

#[test]
fn odd_sizes() {
    let mut random = Random(12);
    for (size, contexts, escape) in [(2, 1, true), (20, 3, false), (32, 1, true)] {
        let alphabets = [Alphabet { size, escape }];
        for cols in [1, 2, 31, 32, 33, 64, 65, 96, 192] {
            let coders = Coders::of_planes(Scope::Channel, contexts, &alphabets, cols, &mut random);
            let rows = [0, 1, 31, 33, 64, 97, 512, 1000];
            let tiles: Vec<_> =
                rows.iter().map(|rows| tile(&alphabets, &[*rows], cols, &mut random)).collect();
            // Alone, as equals, and all at once.
            for tile in &tiles[..6] {
                check(&coders, std::slice::from_ref(tile), 4, &mut random);
                check(&coders, &vec![tile.clone(); 4], 4, &mut random);
            }
            check(&coders, &tiles, 4, &mut random);
        }
    }
}

#[test]
fn truncation_and_corruption() {
    let mut random = Random(13);
    for (size, contexts, escape) in [(3, 1, true), (3, 3, false), (32, 1, false), (32, 3, true)] {
        for (rows, cols) in [([97, 0], 5), ([64, 7], 33), ([96, 32], 64)] {
            let alphabets = [Alphabet { size, escape }; 2];
            let coders = Coders::of_planes(Scope::Channel, contexts, &alphabets, cols, &mut random);
            let tile = tile(&alphabets, &rows, cols, &mut random);
            let stream = encode(&*coders.bounds[0].1, std::slice::from_ref(&tile)).remove(0);
            let step = 1 + stream.len() / 60;
            let mut bad: Vec<Vec<u8>> =
                (0..=stream.len()).step_by(step).map(|len| stream[..len].to_vec()).collect();
            for at in (0..stream.len()).step_by(step) {
                let mut flipped = stream.clone();
                flipped[at] ^= 1 << random.below(8);
                bad.push(flipped);
            }
            for _ in 0..60 {
                let mut corrupt = stream.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(corrupt.len() as u64) as usize;
                    corrupt[at] = random.next() as u8;
                }
                corrupt.extend((0..2 * random.below(3)).map(|_| random.next() as u8));
                bad.push(corrupt);
            }
            check_decoding(&coders, &vec![tile; bad.len()], &bad, 2, &mut random);
        }
    }
}

/// Neither reads nor writes, or has no end.
struct Wrong {
    stride: usize,
}

impl ElementSink for Wrong {
    fn open(
        &mut self,
        _: usize,
        _: usize,
        cols: Range<usize>,
        write: &mut dyn FnMut(&mut ElementWindow<'_>),
    ) {
        write(&mut ElementWindow::new(cols, &mut [0; 64], 0, self.stride, false));
    }
}

impl ElementSource for Wrong {
    fn open(&self, _: usize, _: usize, cols: Range<usize>, read: &mut dyn FnMut(&ElementSpan<'_>)) {
        read(&ElementSpan::new(cols, &[0; 64], 0, self.stride, &[]));
    }
}

#[test]
fn windows_that_are_too_short() {
    let mut random = Random(14);
    let alphabets = [Alphabet { size: 16, escape: true }];
    let coders = Coders::of_planes(Scope::Channel, 1, &alphabets, 32, &mut random);
    let tile = tile(&alphabets, &[65], 32, &mut random);
    let stream = encode(&*coders.bounds[0].1, std::slice::from_ref(&tile)).remove(0);
    for (_, bound) in vector(&coders) {
        // The last row is just outside; so far away that it seems to be inside again.
        for stride in [1, 64, 1 << (usize::BITS - 6), 1 << (usize::BITS - 1)] {
            let panics =
                |f: &mut dyn FnMut()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
            let tables = [ElementTable([0; 32]); 32];
            let mut jobs = [ElementJob::new(&tile.0, &stream, &tables)];
            let decode =
                &mut || bound.decode_elements(&mut jobs, &mut Wrong { stride }, &mut bound.scratch());
            assert!(panics(decode), "decode, {stride}");
            let (changes, mut out) = ([SymbolBounds([0; 32]); 32], vec![0; bound.max_len(&tile.0)]);
            let mut jobs = [ElementEncodeJob::new(&tile.0, &changes, &mut out, Vec::new())];
            let encode = &mut || bound.encode_elements(&mut jobs, &Wrong { stride }, &mut bound.scratch());
            assert!(panics(encode), "encode, {stride}");
        }
    }
}

#[test]
fn what_has_no_elements() {
    let mut random = Random(15);
    let refused = |bound: &dyn BoundCoder, segments: &[Segment], columns: usize, kind: ErrorKind| {
        let mut wrong = Wrong { stride: 0 };
        let tables = vec![ElementTable([0; 32]); columns];
        let mut jobs = [ElementJob::new(segments, &[], &tables)];
        bound.decode_elements(&mut jobs, &mut wrong, &mut bound.scratch());
        // Streams have to be read before anything is known about escapes.
        let escapes = segments.iter().all(|segment| segment.alphabet.escape);
        assert!(
            kind == ErrorKind::Unsupported && !escapes || jobs[0].result.as_ref().unwrap_err().kind() == kind
        );
        let (changes, mut out) = (vec![SymbolBounds([0; 32]); columns], vec![0; bound.max_len(segments)]);
        let mut jobs = [ElementEncodeJob::new(segments, &changes, &mut out, Vec::new())];
        bound.encode_elements(&mut jobs, &wrong, &mut bound.scratch());
        assert_eq!(jobs[0].result.as_ref().unwrap_err().kind(), kind);
    };
    for size in [32, 33] {
        let coders = Coders::new(Scope::Channel, 1, size, 4, &mut random);
        for (level, bound) in &coders.bounds {
            assert_eq!(bound.has_elements(), *level == Level::Avx512);
            if *level == Level::Scalar {
                continue;
            }
            let mut segment = segment(size, 64, 4);
            // None for escapes, or too many symbols.
            refused(&**bound, &[segment], 4, ErrorKind::Unsupported);
            segment.alphabet.escape = true;
            if size == 32 {
                refused(&**bound, &[segment], 3, ErrorKind::InvalidData);
            } else {
                refused(&**bound, &[segment], 4, ErrorKind::Unsupported);
            }
        }
    }
}
