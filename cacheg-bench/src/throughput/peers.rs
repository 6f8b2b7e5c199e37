//! Other people's coders as entrants: one block per stream of ours, in the order that makes the block smaller.

mod constriction;
#[cfg(feature = "peers")]
mod htscodecs;
mod plain;

use cacheg::core::ResultExt;
use cacheg::{Error, Registry, Result};

use super::ours::{self, Ours};
use super::race::{Codec, Entrant, Family, Work};
use super::symbols::{Order, Symbols};

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
    let tables_len = Ours::with_own_tables(&*range, symbols)?.tables_len();
    let mut entrants = vec![
        with_tables("constriction range", constriction::Range::new(symbols)?, symbols, tables_len),
        with_tables("constriction ANS, 12-bit lookup", constriction::Ans::new(symbols)?, symbols, tables_len),
        block_coder("zstd -1", || plain::Zstd::level(1), symbols)?,
        block_coder("zstd -3", || plain::Zstd::level(3), symbols)?,
        block_coder("Huff0 (zstd, literals only)", plain::Zstd::huff0, symbols)?,
        block_coder("lz4", || Ok(plain::Lz4), symbols)?,
        block_coder("pco", || Ok(plain::Pco::new()), symbols)?,
    ];
    #[cfg(feature = "peers")]
    for order in [0, 1] {
        let codec = || Ok(htscodecs::Rans32x16::new(order));
        entrants.push(block_coder(&format!("htscodecs rANS 32x16 order {order}"), codec, symbols)?);
    }
    Ok(entrants)
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

/// A coder that brings its own tables: the better of both orders.
fn block_coder<C: BlockCodec + 'static>(
    name: &str,
    codec: impl Fn() -> Result<C>,
    symbols: &Symbols,
) -> Result<Entrant> {
    let mut best: Option<(usize, Entrant)> = None;
    for order in [Order::Channel, Order::Token] {
        let mut blocks = Blocks { codec: codec().at(|| name)?, lens: lens(symbols), tables_len: 0 };
        let (mut out, mut ends) = (vec![0; blocks.max_len()], Vec::new());
        blocks.encode(symbols.all(order), &mut out, &mut ends).at(|| name)?;
        let len = ends.last().copied().unwrap_or(0);
        if best.as_ref().is_none_or(|(least, _)| len < *least) {
            best = Some((len, entrant(name, order, blocks)));
        }
    }
    best.map(|(_, entrant)| entrant).ok_or_else(wrong_length)
}

fn lens(symbols: &Symbols) -> Vec<usize> {
    symbols.streams.iter().map(|stream| stream.range.len()).collect()
}
