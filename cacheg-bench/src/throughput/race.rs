//! The race: all entrants in one process, one after the other, round after round.
//!
//! Machines are noisy and slow down together, so that times of different moments must not be compared. Each
//! round visits every entrant; ratios are taken within a round, and what is reported is the median over rounds.

use std::ops::Range;
use std::time::Instant;

use cacheg::report::progress;
use cacheg::{Error, Result};

use super::symbols::{Order, Symbols};

/// A visit repeats what takes less than this, for the clock's and the scheduler's sake.
const VISIT_SECONDS: f64 = 0.02;
const VISIT_MOST: usize = 15;
/// Symbols that are coded at a time, if streams are no larger: four tiles, as the engine has them in hand.
const PIECE: usize = 400_000;
/// What a container needs to find a stream: its length.
const DIRECTORY_ENTRY: usize = 4;

/// Codes the streams (or blocks) of the race, some of them at a time.
pub(crate) trait Codec {
    /// Bytes of tables that a reader needs beside the streams, of all contexts.
    fn tables_len(&self) -> usize {
        0
    }

    /// Symbols of each stream.
    fn lens(&self) -> &[usize];

    /// Room that `encode` may need.
    fn max_len(&self, streams: Range<usize>) -> usize;

    /// Writes streams, whose symbols are given, one after the other to the front of `out`; `ends` gets the end of each.
    fn encode(
        &mut self,
        streams: Range<usize>,
        symbols: &[u8],
        out: &mut [u8],
        ends: &mut Vec<usize>,
    ) -> Result<()>;

    /// Reads them.
    fn decode(
        &mut self,
        streams: Range<usize>,
        bytes: &[u8],
        ends: &[usize],
        symbols: &mut [u8],
    ) -> Result<()>;
}

/// Writes f16 values as bytes.
pub(crate) type Write = Box<dyn Fn(&mut [u8])>;

/// What an entrant does.
pub(crate) enum Work {
    /// Codes symbols that come in this order.
    Codec(Order, Box<dyn Codec>),
    /// Writes the f16 values of all symbols: what decoding is compared with.
    Reference(Write),
}

/// Whose an entrant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// A stage of cacheg.
    Ours,
    /// Somebody else's coder.
    Peer,
    /// No coder: what the memory allows.
    Reference,
}

impl Family {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
            Self::Reference => "reference",
        }
    }
}

/// One who takes part.
pub(crate) struct Entrant {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) work: Work,
}

/// An entrant's result.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) order: Option<Order>,
    /// Number of streams or blocks.
    pub(crate) streams: usize,
    /// Bytes of all streams and their directory.
    pub(crate) stream_len: usize,
    pub(crate) tables_len: usize,
    /// Seconds, a visit each.
    pub(crate) encode: Vec<f64>,
    pub(crate) decode: Vec<f64>,
}

/// Some streams: what is coded at a time.
struct Piece {
    streams: Range<usize>,
    /// Its symbols, among all.
    symbols: Range<usize>,
    coded: Vec<u8>,
    ends: Vec<usize>,
}

struct Runner {
    lane: Lane,
    work: Work,
    pieces: Vec<Piece>,
}

/// Memory that pieces pass through. Like the scratch of the engine it stays in the cache, on both sides of a coder.
#[derive(Default)]
struct Windows {
    symbols: Vec<u8>,
    coded: Vec<u8>,
}

/// Runs the race and checks every result of it.
pub(crate) fn run(
    symbols: &Symbols,
    values: &[u8],
    entrants: Vec<Entrant>,
    rounds: usize,
) -> Result<Vec<Lane>> {
    let mut out = vec![0; values.len()];
    let mut windows = Windows::default();
    let mut runners = Vec::new();
    let bar = progress((entrants.len() * (rounds + 1)) as u64, "coders");
    for entrant in entrants {
        runners.push(prepare(symbols, entrant, &mut windows)?);
        bar.inc(1);
    }
    for round in 0..rounds {
        for index in 0..runners.len() {
            // Nobody should always run behind the same neighbour, whose leavings are in the cache.
            let count = runners.len();
            let runner = &mut runners[(index + round) % count];
            visit(symbols, values, runner, &mut windows, &mut out)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(runners.into_iter().map(|runner| runner.lane).collect())
}

fn prepare(symbols: &Symbols, entrant: Entrant, windows: &mut Windows) -> Result<Runner> {
    let Entrant { name, family, mut work } = entrant;
    let mut lane = Lane {
        name,
        family,
        order: None,
        streams: 0,
        stream_len: 0,
        tables_len: 0,
        encode: Vec::new(),
        decode: Vec::new(),
    };
    let mut pieces = Vec::new();
    if let Work::Codec(order, codec) = &mut work {
        pieces = cut(codec.lens());
        for piece in &mut pieces {
            let room = codec.max_len(piece.streams.clone());
            windows.coded.resize(room.max(windows.coded.len()), 0);
            windows.symbols.resize(piece.symbols.len().max(windows.symbols.len()), 0);
            let own = &symbols.all(*order)[piece.symbols.clone()];
            codec
                .encode(piece.streams.clone(), own, &mut windows.coded, &mut piece.ends)
                .map_err(|e| e.at(&lane.name))?;
            piece.coded.extend(&windows.coded[..piece.ends.last().copied().unwrap_or(0)]);
        }
        lane.order = Some(*order);
        lane.streams = codec.lens().len();
        lane.tables_len = codec.tables_len();
        let coded: usize = pieces.iter().map(|piece| piece.coded.len()).sum();
        lane.stream_len = coded + lane.streams * DIRECTORY_ENTRY;
    }
    Ok(Runner { lane, work, pieces })
}

/// Streams that follow each other, until there are enough symbols.
fn cut(lens: &[usize]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut begin = 0;
    for (stream, len) in lens.iter().enumerate() {
        match pieces.last_mut() {
            Some(last) if last.symbols.len() + len <= PIECE => {
                (last.streams.end, last.symbols.end) = (stream + 1, begin + len);
            }
            _ => pieces.push(Piece {
                streams: stream..stream + 1,
                symbols: begin..begin + len,
                coded: Vec::new(),
                ends: Vec::new(),
            }),
        }
        begin += len;
    }
    pieces
}

fn visit(
    symbols: &Symbols,
    values: &[u8],
    runner: &mut Runner,
    windows: &mut Windows,
    out: &mut [u8],
) -> Result<()> {
    let Runner { lane, work, pieces } = runner;
    let mut good = true;
    match work {
        Work::Reference(run) => {
            // So that nothing is left of what the entrant before wrote.
            out.fill(0xaa);
            lane.decode.push(seconds(|| {
                run(out);
                Ok(())
            })?);
            good = out == values;
        }
        Work::Codec(order, codec) => {
            let (all, mut ends) = (symbols.all(*order), Vec::new());
            let mut pass = || {
                let (mut encode, mut decode) = (0.0, 0.0);
                for piece in &*pieces {
                    let input = &all[piece.symbols.clone()];
                    let window = &mut windows.symbols[..input.len()];
                    window.copy_from_slice(input);
                    ends.clear();
                    encode +=
                        once(|| codec.encode(piece.streams.clone(), window, &mut windows.coded, &mut ends))?;
                    let coded = &mut windows.coded[..piece.coded.len()];
                    good &= ends == piece.ends && *coded == *piece.coded;
                    window.fill(0xaa);
                    decode += once(|| codec.decode(piece.streams.clone(), coded, &ends, window))?;
                    good &= window == input;
                }
                Ok((encode, decode))
            };
            let (mut encodes, mut decodes) = (Vec::new(), Vec::new());
            while encodes.len() < VISIT_MOST && decodes.iter().sum::<f64>() < VISIT_SECONDS {
                let (encode, decode) = pass().map_err(|e: Error| e.at(&lane.name))?;
                encodes.push(encode);
                decodes.push(decode);
            }
            lane.encode.push(median(encodes));
            lane.decode.push(median(decodes));
        }
    }
    if good { Ok(()) } else { Err(Error::data("the result is wrong").at(&lane.name)) }
}

fn once(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Time of one run: the median of as many as a visit allows.
pub(crate) fn seconds(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut all = Vec::new();
    while all.len() < VISIT_MOST && all.iter().sum::<f64>() < VISIT_SECONDS {
        let start = Instant::now();
        run()?;
        all.push(start.elapsed().as_secs_f64());
    }
    Ok(median(all))
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => numbers[middle],
        _ => f64::midpoint(numbers[middle - 1], numbers[middle]),
    }
}

/// How many times as fast `this` is as `other`: the median of the rounds' ratios.
pub(crate) fn speed_ratio(this: &[f64], other: &[f64]) -> f64 {
    median(this.iter().zip(other).map(|(this, other)| other / this).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        // The machine was twice as slow in the second round: the ratio does not care.
        assert_eq!(speed_ratio(&[1.0, 2.0], &[3.0, 6.0]), 3.0);
    }
}
