//! Elements against symbols.

use std::ops::Range;

use cacheg_core::{
    BoundCoder, ElementEncodeJob, ElementJob, ElementSink, ElementSource, ElementSpan, ElementTable,
    ElementWindow, Segment, SymbolBounds, element_key,
};

use super::{Verdicts, decode, encode};

/// Where the elements of a segment are: heads of some columns, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Columns of a head.
    width: usize,
    /// Bytes between rows.
    gap: usize,
    /// Bytes from an aligned address to the first element.
    shift: usize,
    streaming: bool,
}

impl Heads {
    /// One of some kinds.
    pub(super) fn new(kind: u8) -> Self {
        let width = [1, 5, 31, 32, 33, 48, 64, 96][usize::from(kind % 8)];
        let gap = [0, 0, 2, (64 - 2 * width % 64) % 64][usize::from(kind / 8 % 4)];
        let shift = if kind & 0x80 == 0 { 0 } else { 6 };
        Self { width, gap, shift, streaming: kind & 0x40 == 0 }
    }

    fn stride(self) -> usize {
        2 * self.width + self.gap
    }

    /// Bytes of some segments.
    fn len(self, segments: &[Segment]) -> usize {
        let bytes = |s: &Segment| s.cols.div_ceil(self.width) * s.rows * self.stride();
        segments.iter().map(bytes).sum()
    }

    /// Memory for them, which is aligned somewhere near its beginning.
    fn memory(self, segments: &[Segment]) -> Vec<u8> {
        vec![0xa5; 64 + self.shift + self.len(segments)]
    }

    /// Some columns of a segment, head by head, and where each begins.
    fn spans(
        self,
        memory: &[u8],
        segments: &[Segment],
        segment: usize,
        cols: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let begin = memory.as_ptr().align_offset(64) % 64 + self.shift + self.len(&segments[..segment]);
        let (rows, width) = (segments[segment].rows, self.width);
        let heads = cols.start / width..cols.end.div_ceil(width);
        heads.map(move |head| {
            let from = cols.start.max(head * width);
            let begin = begin + head * rows * self.stride() + 2 * (from - head * width);
            (from..cols.end.min((head + 1) * width), begin)
        })
    }

    /// The elements of all segments, each row by row.
    fn elements(self, memory: &[u8], segments: &[Segment]) -> Vec<u16> {
        let mut elements = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            for row in 0..segment.rows {
                for (cols, begin) in self.spans(memory, segments, index, 0..segment.cols) {
                    let bytes = &memory[begin + row * self.stride()..][..2 * cols.len()];
                    elements.extend(bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)));
                }
            }
        }
        elements
    }
}

/// Memory of streams.
struct Memory<'a> {
    heads: Heads,
    tiles: &'a [(Vec<Segment>, Vec<u8>)],
    bytes: Vec<Vec<u8>>,
}

impl<'a> Memory<'a> {
    fn new(heads: Heads, tiles: &'a [(Vec<Segment>, Vec<u8>)]) -> Self {
        Self { heads, tiles, bytes: tiles.iter().map(|(segments, _)| heads.memory(segments)).collect() }
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
        let (heads, memory) = (self.heads, &mut self.bytes[job]);
        for (cols, begin) in heads.spans(memory, &self.tiles[job].0, segment, cols) {
            write(&mut ElementWindow::new(cols, memory, begin, heads.stride(), heads.streaming));
        }
    }
}

impl ElementSource for Memory<'_> {
    fn open(&self, job: usize, segment: usize, cols: Range<usize>, read: &mut dyn FnMut(&ElementSpan<'_>)) {
        let (heads, memory) = (self.heads, &self.bytes[job]);
        for (cols, begin) in heads.spans(memory, &self.tiles[job].0, segment, cols) {
            read(&ElementSpan::new(cols, memory, begin, heads.stride(), memory));
        }
    }
}

/// Something like a random number.
fn mix(x: usize) -> u16 {
    (((x + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u16
}

/// The columns of all segments, with the number of each among all.
fn columns(segments: &[Segment]) -> impl Iterator<Item = (usize, &Segment)> {
    segments.iter().flat_map(|segment| std::iter::repeat_n(segment, segment.cols)).enumerate()
}

/// The columns of all symbols, with the segment of each.
fn columns_of_symbols(segments: &[Segment]) -> impl Iterator<Item = (usize, &Segment)> {
    segments
        .iter()
        .scan(0, |first, segment| {
            let own = *first..*first + segment.cols;
            *first = own.end;
            Some((0..segment.rows).flat_map(move |_| own.clone()).map(move |col| (col, segment)))
        })
        .flatten()
}

/// Whether there are elements of these.
fn suits(tiles: &[(Vec<Segment>, Vec<u8>)]) -> bool {
    tiles.iter().flat_map(|(segments, _)| segments).all(|segment| segment.alphabet.size <= 32)
}

/// Streams, good or bad, are decoded to what their symbols stand for, with the same verdicts.
pub(super) fn check_decoding(
    bounds: &[Box<dyn BoundCoder>],
    tiles: &[(Vec<Segment>, Vec<u8>)],
    streams: &[Vec<u8>],
    heads: Heads,
) {
    let [scalar, vector @ ..] = bounds else { return };
    if !suits(tiles) {
        return;
    }
    // Every symbol of a column stands for something else.
    let table = |col: usize| ElementTable(std::array::from_fn(|i| (i as u16) << 11 | mix(32 * col + i) >> 5));
    let tables: Vec<Vec<ElementTable>> =
        tiles.iter().map(|(segments, _)| columns(segments).map(|(col, _)| table(col)).collect()).collect();
    let symbols = decode(&**scalar, tiles, streams);
    let expected: Verdicts<(usize, Vec<u16>)> = symbols
        .into_iter()
        .zip(tiles)
        .zip(&tables)
        .map(|((symbols, (segments, _)), tables)| {
            let symbols = symbols?;
            let all = || symbols.iter().zip(columns_of_symbols(segments));
            let escaped = all().filter(|(symbol, (_, segment))| {
                segment.alphabet.escape && u16::from(**symbol) == segment.alphabet.size - 1
            });
            let elements = all().map(|(symbol, (col, _))| tables[col].0[usize::from(*symbol)]);
            Ok((escaped.count(), elements.collect()))
        })
        .collect();
    for bound in vector {
        let mut memory = Memory::new(heads, tiles);
        let jobs = tiles.iter().zip(streams).zip(&tables);
        let mut jobs: Vec<ElementJob<'_>> =
            jobs.map(|(((segments, _), bytes), tables)| ElementJob::new(segments, bytes, tables)).collect();
        bound.decode_elements(&mut jobs, &mut memory, &mut bound.scratch());
        let found = jobs.into_iter().zip(&memory.bytes).map(|(job, bytes)| {
            job.result.map_err(|error| error.to_string())?;
            Ok((job.escaped, heads.elements(bytes, job.segments)))
        });
        assert_eq!(expected, found.collect::<Verdicts<_>>());
    }
}

/// Elements are encoded as their symbols are.
pub(super) fn check_encoding(
    bounds: &[Box<dyn BoundCoder>],
    tiles: &[(Vec<Segment>, Vec<u8>)],
    input: &[u8],
    heads: Heads,
) {
    let [scalar, vector @ ..] = bounds else { return };
    if !suits(tiles)
        || tiles.iter().flat_map(|(segments, _)| segments).any(|segment| !segment.alphabet.escape)
    {
        return;
    }
    let byte = |i: usize| input.get(i % input.len().max(1)).copied().unwrap_or(0);
    let bounds_of = |col: usize, segment: &Segment| {
        let mut bounds = [i16::MAX; 32];
        for (i, bound) in bounds[..usize::from(segment.alphabet.size)].iter_mut().enumerate() {
            *bound = (mix(32 * col + i) ^ u16::from(byte(col + i))).cast_signed();
        }
        bounds.sort_unstable();
        SymbolBounds(bounds)
    };
    let changes: Vec<Vec<SymbolBounds>> = tiles
        .iter()
        .map(|(segments, _)| columns(segments).map(|(col, segment)| bounds_of(col, segment)).collect())
        .collect();
    let mut memory = Memory::new(heads, tiles);
    for (tile, bytes) in memory.bytes.iter_mut().enumerate() {
        // Anything, and often a number where symbols change.
        let count = changes[tile].len().max(1);
        for (i, to) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
            let any = mix(i + tile) ^ u16::from(byte(i));
            let bound = changes[tile].get(i % count).map_or(0, |bounds| bounds.0[usize::from(any % 32)]);
            // Keys are their own inverses.
            let near = element_key(bound.wrapping_add((any / 32 % 3) as i16 - 1).cast_unsigned());
            *to = if any & 128 == 0 { any } else { near.cast_unsigned() }.to_le_bytes();
        }
    }
    let symbols: Vec<(Vec<Segment>, Vec<u8>)> = tiles
        .iter()
        .zip(&memory.bytes)
        .zip(&changes)
        .map(|(((segments, _), bytes), changes)| {
            let elements = heads.elements(bytes, segments);
            let symbols =
                elements.iter().zip(columns_of_symbols(segments)).map(|(element, (col, segment))| {
                    changes[col].symbol(*element, (segment.alphabet.size - 1) as u8)
                });
            (segments.clone(), symbols.collect())
        })
        .collect();
    let expected: Verdicts<(Vec<u32>, Vec<u8>)> = encode(&**scalar, &symbols)
        .into_iter()
        .zip(&symbols)
        .map(|(bytes, (segments, symbols))| {
            let all = symbols.iter().zip(columns_of_symbols(segments)).zip(0..);
            let escaped =
                all.filter(|((symbol, (_, segment)), _)| u16::from(**symbol) == segment.alphabet.size - 1);
            Ok((escaped.map(|(_, index)| index).collect(), bytes?))
        })
        .collect();
    for bound in vector {
        let mut outs: Vec<Vec<u8>> = tiles.iter().map(|(s, _)| vec![0xa5; bound.max_len(s)]).collect();
        let mut jobs: Vec<ElementEncodeJob<'_>> = symbols
            .iter()
            .zip(&changes)
            .zip(&mut outs)
            .map(|(((segments, symbols), changes), out)| {
                ElementEncodeJob::new(segments, changes, out, Vec::with_capacity(symbols.len()))
            })
            .collect();
        bound.encode_elements(&mut jobs, &memory, &mut bound.scratch());
        let found = jobs.into_iter().map(|mut job| {
            let len = job.result.map_err(|error| error.to_string())?;
            job.escaped.sort_unstable();
            Ok((job.escaped, job.out[..len].to_vec()))
        });
        assert_eq!(expected, found.collect::<Verdicts<_>>());
    }
}
