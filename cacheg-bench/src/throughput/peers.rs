//! Other people's coders as entrants, each in the order of symbols and with the blocks that suit it best.

mod constriction;
#[cfg(feature = "peers")]
mod htscodecs;
mod plain;

use cacheg::core::ResultExt;
use cacheg::{Error, Registry, Result};

use super::ours::{self, Ours};
use super::race::{Codec, Entrant, Family, Work, seconds};
use super::symbols::{Order, Symbols};

/// A block of a peer is a stream of ours, or as many as hold this much.
const BLOCK: usize = 1 << 20;
/// Sizes up to this much of the smallest are as good.
const NEARLY: f64 = 1.01;

/// A coder of blocks.
trait BlockCodec {
    /// Bytes that a block of so many symbols may need.
    fn max_len(&self, symbols: usize) -> usize;

    /// Codes block number `block` to the front of `out`, returns its length.
    fn encode(&mut self, block: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize>;

    /// Reads it.
    fn decode(&mut self, block: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()>;
}

/// A coder of blocks at work on all of them.
struct Blocks<C> {
    codec: C,
    /// Symbols of each block.
    lens: Vec<usize>,
    tables_len: usize,
}

impl<C: BlockCodec> Codec for Blocks<C> {
    fn tables_len(&self) -> usize {
        self.tables_len
    }

    fn max_len(&self) -> usize {
        self.lens.iter().map(|len| self.codec.max_len(*len)).sum()
    }

    fn encode(&mut self, symbols: &[u8], out: &mut [u8], ends: &mut Vec<usize>) -> Result<()> {
        let (mut rest, mut end) = (symbols, 0);
        for (block, len) in self.lens.iter().enumerate() {
            let (own, more) = rest.split_at(*len);
            rest = more;
            end += self.codec.encode(block, own, &mut out[end..])?;
            ends.push(end);
        }
        Ok(())
    }

    fn decode(&mut self, bytes: &[u8], ends: &[usize], symbols: &mut [u8]) -> Result<()> {
        let (mut rest, mut start) = (symbols, 0);
        for ((block, len), end) in self.lens.iter().enumerate().zip(ends) {
            let (own, more) = std::mem::take(&mut rest).split_at_mut(*len);
            rest = more;
            self.codec.decode(block, &bytes[start..*end], own)?;
            start = *end;
        }
        Ok(())
    }
}

/// What a peer's failure becomes.
fn failed(error: impl std::fmt::Display) -> Error {
    Error::data(error.to_string())
}

fn wrong_length() -> Error {
    Error::data("decoded to another length")
}

/// Whether this build has the coders of the feature `peers`.
pub(crate) const ALL: bool = cfg!(feature = "peers");

/// All peers.
pub(crate) fn entrants(registry: &Registry, symbols: &Symbols) -> Result<Vec<Entrant>> {
    // Their tables are histograms per channel, as `range` has them, and somebody has to carry those too.
    let range = ours::build(registry, "range(tables=channel)")?;
    let tables_len = Ours::with_own_tables(&range, symbols)?.tables_len();
    let mut entrants = vec![
        with_tables("constriction range", constriction::Range::new(symbols)?, symbols, tables_len),
        with_tables("constriction ANS, 12-bit lookup", constriction::Ans::new(symbols)?, symbols, tables_len),
        block_coder("zstd -1", || plain::Zstd::level(1), symbols)?,
        block_coder("zstd -3", || plain::Zstd::level(3), symbols)?,
        block_coder("Huff0 (zstd, literals only)", plain::Zstd::huff0, symbols)?,
        block_coder("lz4", || Ok(plain::Lz4), symbols)?,
        block_coder("pco", || Ok(plain::Pco::new()), symbols)?,
    ];
    entrants.extend(linked(symbols)?);
    Ok(entrants)
}

/// Those from C libraries that have to be installed.
#[cfg(feature = "peers")]
fn linked(symbols: &Symbols) -> Result<Vec<Entrant>> {
    let of_order = |order| {
        let codec = || Ok(htscodecs::Rans32x16::new(order));
        block_coder(&format!("htscodecs rANS 32x16 order {order}"), codec, symbols)
    };
    [0, 1].into_iter().map(of_order).collect()
}

/// None.
#[cfg(not(feature = "peers"))]
fn linked(_: &Symbols) -> Result<Vec<Entrant>> {
    Ok(Vec::new())
}

fn entrant<C: BlockCodec + 'static>(name: &str, order: Order, blocks: Blocks<C>) -> Entrant {
    Entrant { name: name.to_owned(), family: Family::Peer, work: Work::Codec(order, Box::new(blocks)) }
}

/// A coder with a table per channel: all of a channel's symbols in a row.
fn with_tables<C: BlockCodec + 'static>(
    name: &str,
    codec: C,
    symbols: &Symbols,
    tables_len: usize,
) -> Entrant {
    entrant(name, Order::Channel, Blocks { codec, lens: lens(symbols), tables_len })
}

/// A coder that brings its own tables, at its best: of both orders and two sizes of blocks the one that decodes
/// fastest among those that are (nearly) the smallest.
fn block_coder<C: BlockCodec + 'static>(
    name: &str,
    codec: impl Fn() -> Result<C>,
    symbols: &Symbols,
) -> Result<Entrant> {
    let mut tried = Vec::new();
    // Not zeros: those pages would be made only when the first way writes to them, at its expense.
    let mut decoded = vec![0xaa; symbols.len()];
    let ways =
        [Order::Channel, Order::Token].into_iter().flat_map(|order| [0, BLOCK].map(|least| (order, least)));
    for (order, least) in ways {
        let codec = codec().at(|| name)?;
        let mut blocks = Blocks { codec, lens: joined(&lens(symbols), least), tables_len: 0 };
        let (mut out, mut ends) = (vec![0; blocks.max_len()], Vec::new());
        blocks.encode(symbols.all(order), &mut out, &mut ends).at(|| name)?;
        let len = ends.last().copied().unwrap_or(0);
        let time = seconds(|| blocks.decode(&out[..len], &ends, &mut decoded)).at(|| name)?;
        tried.push((len, time, entrant(name, order, blocks)));
    }
    let smallest = tried.iter().map(|(len, ..)| *len).min().unwrap_or(0);
    tried.retain(|(len, ..)| *len as f64 <= NEARLY * smallest as f64);
    let fastest = tried.into_iter().min_by(|(_, a, _), (_, b, _)| a.total_cmp(b));
    fastest.map(|(.., entrant)| entrant).ok_or_else(|| Error::data("no way to run it").at(name))
}

fn lens(symbols: &Symbols) -> Vec<usize> {
    symbols.streams.iter().map(|stream| stream.range.len()).collect()
}

/// Neighbours joined until each has `least` symbols.
fn joined(lens: &[usize], least: usize) -> Vec<usize> {
    let mut all: Vec<usize> = Vec::new();
    for len in lens {
        match all.last_mut() {
            Some(last) if *last < least => *last += len,
            _ => all.push(*len),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn blocks_are_joined_streams() {
        assert_eq!(joined(&[3, 3, 3, 9, 1], 0), [3, 3, 3, 9, 1]);
        assert_eq!(joined(&[3, 3, 3, 9, 1], 5), [6, 12, 1]);
        assert!(joined(&[], 5).is_empty());
    }
}
