//! The race: all entrants in one process, one after the other, round after round.
//!
//! Machines are noisy and slow down together, so that times of different moments must not be compared. Each
//! round visits every entrant; ratios are taken within a round, and what is reported is the median over rounds.

use std::time::Instant;

use cacheg::report::progress;
use cacheg::{Error, Result};

use super::symbols::{Order, Symbols};

/// A visit repeats what takes less than this, for the clock's and the scheduler's sake.
const VISIT_SECONDS: f64 = 0.02;
const VISIT_MOST: usize = 15;
/// What a container needs to find a stream: its length.
const DIRECTORY_ENTRY: usize = 4;

/// Codes all streams of the race.
pub(crate) trait Codec {
    /// Bytes of tables that a reader needs beside the streams, of all contexts.
    fn tables_len(&self) -> usize {
        0
    }

    /// Room that `encode` may need.
    fn max_len(&self) -> usize;

    /// Writes all streams one after the other; `ends` gets the end of each.
    fn encode(&mut self, symbols: &[u8], out: &mut [u8], ends: &mut Vec<usize>) -> Result<()>;

    /// Reads them all.
    fn decode(&mut self, bytes: &[u8], ends: &[usize], symbols: &mut [u8]) -> Result<()>;
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

struct Runner {
    lane: Lane,
    work: Work,
    coded: Vec<u8>,
    ends: Vec<usize>,
}

/// Runs the race and checks every result of it.
pub(crate) fn run(
    symbols: &Symbols,
    values: &[u8],
    entrants: Vec<Entrant>,
    rounds: usize,
) -> Result<Vec<Lane>> {
    let room = entrants.iter().map(|entrant| match &entrant.work {
        Work::Codec(_, codec) => codec.max_len(),
        Work::Reference(_) => 0,
    });
    let mut encoded = vec![0; room.max().unwrap_or(0)];
    let mut decoded = vec![0; values.len()];
    let mut runners = Vec::new();
    let bar = progress((entrants.len() * (rounds + 1)) as u64, "coders");
    for entrant in entrants {
        runners.push(prepare(symbols, entrant, &mut encoded)?);
        bar.inc(1);
    }
    for round in 0..rounds {
        for index in 0..runners.len() {
            // Nobody should always run behind the same neighbour, whose leavings are in the cache.
            let count = runners.len();
            let runner = &mut runners[(index + round) % count];
            visit(symbols, values, runner, &mut encoded, &mut decoded)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(runners.into_iter().map(|runner| runner.lane).collect())
}

fn prepare(symbols: &Symbols, entrant: Entrant, encoded: &mut [u8]) -> Result<Runner> {
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
    let (mut coded, mut ends) = (Vec::new(), Vec::new());
    if let Work::Codec(order, codec) = &mut work {
        codec.encode(symbols.all(*order), encoded, &mut ends).map_err(|e| e.at(&lane.name))?;
        coded.extend(&encoded[..ends.last().copied().unwrap_or(0)]);
        lane.order = Some(*order);
        lane.streams = ends.len();
        lane.tables_len = codec.tables_len();
        lane.stream_len = coded.len() + ends.len() * DIRECTORY_ENTRY;
    }
    Ok(Runner { lane, work, coded, ends })
}

fn visit(
    symbols: &Symbols,
    values: &[u8],
    runner: &mut Runner,
    encoded: &mut [u8],
    decoded: &mut [u8],
) -> Result<()> {
    let Runner { lane, work, coded, ends } = runner;
    // So that nothing is left of what the entrant before wrote, and for all the caches are in the same state.
    decoded.fill(0xaa);
    let good = match work {
        Work::Reference(run) => {
            lane.decode.push(seconds(|| {
                run(decoded);
                Ok(())
            })?);
            decoded == values
        }
        Work::Codec(order, codec) => {
            let input = symbols.all(*order);
            let mut new_ends = Vec::with_capacity(ends.len());
            let encode = seconds(|| {
                new_ends.clear();
                codec.encode(input, encoded, &mut new_ends)
            });
            lane.encode.push(encode.map_err(|e| e.at(&lane.name))?);
            let out = &mut decoded[..input.len()];
            let decode = seconds(|| codec.decode(coded, ends, out));
            lane.decode.push(decode.map_err(|e| e.at(&lane.name))?);
            new_ends == *ends && encoded[..coded.len()] == **coded && out == input
        }
    };
    if good { Ok(()) } else { Err(Error::data("the result is wrong").at(&lane.name)) }
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
