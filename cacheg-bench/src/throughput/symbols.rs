//! What is coded: symbols of real KV caches, in both orders, and their entropy.

use std::ops::Range;

use cacheg::core::{Alphabet, Dtype, Part, Plane, ResultExt, Role, Segment};
use cacheg::{Error, KvView, Result};

/// A stream holds at least this many symbols; smaller planes share one, so that nobody pays for headers and
/// flushed states more than real chunks do.
const STREAM_MIN: usize = 64 << 10;
/// A tile holds at most this many symbols; larger planes are cut.
const TILE_MAX: usize = 1 << 17;

/// The order of the symbols within each tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Row-major: all channels of a token together.
    Token,
    /// Column-major: all tokens of a channel together.
    Channel,
}

impl Order {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Channel => "channel",
        }
    }
}

/// One KV cache.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) planes: Vec<Plane>,
    pub(crate) parts: Vec<Vec<Part>>,
    /// Number of each plane's first channel.
    pub(crate) first_channel: Vec<usize>,
    /// `bins` counters for each channel.
    pub(crate) counts: Vec<u32>,
    /// Its streams.
    pub(crate) streams: Range<usize>,
}

/// A plane's tokens, or some of them.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    /// Its plane, rows and columns.
    pub(crate) segment: Segment,
    /// Its first token.
    pub(crate) first: usize,
    /// Its symbols, among all.
    pub(crate) range: Range<usize>,
}

/// What is coded at a time: the tiles of one stream of ours, one block of a peer.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) context: usize,
    pub(crate) tiles: Vec<Tile>,
    /// Its symbols, among all.
    pub(crate) range: Range<usize>,
}

/// Symbols of any number of KV caches.
#[derive(Debug)]
pub(crate) struct Symbols {
    pub(crate) bins: u16,
    pub(crate) contexts: Vec<Context>,
    pub(crate) streams: Vec<Stream>,
    /// Contexts that are no repetitions of others: context `i` is the same as `i % distinct`, and uses its tables.
    pub(crate) distinct: usize,
    token_major: Vec<u8>,
    channel_major: Vec<u8>,
    /// Step of each row of each tile.
    pub(crate) steps: Vec<f32>,
    /// Bits of an ideal coder that knows each channel's frequencies: order 0 by context, layer and channel.
    pub(crate) entropy_bits: f64,
}

impl Symbols {
    /// Quantises as the public CacheGen code does: uniform, symmetric, scaled by the largest magnitude of each
    /// token, `bins` levels for keys and values alike.
    pub(crate) fn quantize(views: &[KvView<'_>], bins: u16) -> Result<Self> {
        if !(4..=256).contains(&bins) {
            return Err(Error::setting(format!("{bins} bins, not 4 to 256")));
        }
        let mut symbols = Self {
            bins,
            contexts: Vec::new(),
            streams: Vec::new(),
            distinct: views.len(),
            token_major: Vec::new(),
            channel_major: Vec::new(),
            steps: Vec::new(),
            entropy_bits: 0.0,
        };
        for (index, view) in views.iter().enumerate() {
            symbols.push(view).at(|| format!("KV cache {}", index + 1))?;
        }
        if views.is_empty() {
            return Err(Error::data("no KV cache"));
        }
        Ok(symbols)
    }

    /// Says that the KV caches are these many, over and over.
    pub(crate) fn repeating(mut self, distinct: usize) -> Self {
        self.distinct = distinct.clamp(1, self.contexts.len().max(1));
        self
    }

    pub(crate) fn repeats(&self) -> usize {
        self.contexts.len() / self.distinct
    }

    pub(crate) fn len(&self) -> usize {
        self.token_major.len()
    }

    /// All symbols, stream after stream, tile after tile.
    pub(crate) fn all(&self, order: Order) -> &[u8] {
        match order {
            Order::Token => &self.token_major,
            Order::Channel => &self.channel_major,
        }
    }

    /// What dequantisation makes of a symbol, in steps.
    pub(crate) fn center(&self) -> f32 {
        f32::from(self.bins / 2 - 1)
    }

    /// The reconstructed KV caches as f16, tile by tile, row-major.
    pub(crate) fn dequantized(&self) -> Vec<u8> {
        let (mut bytes, mut steps) = (vec![0; self.len() * 2], self.steps.iter());
        let mut values = Vec::new();
        for tile in self.streams.iter().flat_map(|stream| &stream.tiles) {
            let rows = self.token_major[tile.range.clone()].chunks_exact(tile.segment.cols);
            let out = bytes[tile.range.start * 2..tile.range.end * 2].chunks_exact_mut(tile.segment.cols * 2);
            for ((row, out), step) in rows.zip(out).zip(&mut steps) {
                values.clear();
                values.extend(row.iter().map(|symbol| (f32::from(*symbol) - self.center()) * step));
                Dtype::F16.narrow(&values, out);
            }
        }
        bytes
    }

    fn push(&mut self, view: &KvView<'_>) -> Result<()> {
        let (planes, tokens, bins) = (view.planes().to_vec(), view.tokens(), usize::from(self.bins));
        if tokens == 0 {
            return Err(Error::data("no tokens"));
        }
        let alphabet = Alphabet { size: self.bins, escape: false };
        let mut context = Context {
            parts: planes
                .iter()
                .map(|plane| {
                    let mut part = Part::new(Role::Whole, plane.channels());
                    part.alphabets.push(alphabet);
                    vec![part]
                })
                .collect(),
            first_channel: Vec::new(),
            counts: Vec::new(),
            streams: self.streams.len()..self.streams.len(),
            planes,
        };
        let index = self.contexts.len();
        let mut values = Vec::new();
        for plane in &context.planes {
            let cols = plane.channels();
            let first_channel = context.counts.len() / bins;
            context.first_channel.push(first_channel);
            context.counts.resize((first_channel + cols) * bins, 0);
            let counts = &mut context.counts[first_channel * bins..];
            let tiles = tokens.div_ceil((TILE_MAX / cols).max(1));
            for tile in 0..tiles {
                let (first, end) = (tokens * tile / tiles, tokens * (tile + 1) / tiles);
                let start = self.len();
                values.resize((end - first) * cols, 0.0);
                view.load(plane.index, first, end - first, &mut values);
                for row in values.chunks_exact(cols) {
                    self.push_row(row).at(|| plane.name())?;
                }
                let range = start..self.len();
                let rows = &self.token_major[range.clone()];
                for channel in 0..cols {
                    let counts = &mut counts[channel * bins..];
                    for symbol in rows[channel..].iter().step_by(cols) {
                        self.channel_major.push(*symbol);
                        counts[usize::from(*symbol)] += 1;
                    }
                }
                let segment = Segment::new(plane.index, 0, 0, end - first, cols, alphabet);
                let tile = Tile { segment, first, range: range.clone() };
                match self.streams.last_mut() {
                    Some(last) if last.context == index && last.range.len() < STREAM_MIN => {
                        last.range.end = range.end;
                        last.tiles.push(tile);
                    }
                    _ => self.streams.push(Stream { context: index, tiles: vec![tile], range }),
                }
            }
        }
        context.streams.end = self.streams.len();
        self.entropy_bits += context.counts.chunks_exact(bins).map(entropy_bits).sum::<f64>();
        self.contexts.push(context);
        Ok(())
    }

    fn push_row(&mut self, row: &[f32]) -> Result<()> {
        if row.iter().any(|x| !x.is_finite()) {
            return Err(Error::data("a value that is not finite"));
        }
        let max = row.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let center = self.center();
        let scale = if max > 0.0 { center / max } else { 0.0 };
        // Two roundings may step over the last level by a hair, hence the clamp; the cast is exact.
        let symbol = |x: &f32| ((x * scale).round().clamp(-center, center) + center) as u8;
        self.token_major.extend(row.iter().map(symbol));
        self.steps.push(max / center);
        Ok(())
    }
}

/// Bits that symbols of these counts need under their own frequencies.
fn entropy_bits(counts: &[u32]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) * (total / f64::from(*n)).log2()).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use cacheg::KvCache;

    use super::*;

    /// Symbols of a cut of the sample: two KV caches, streams that planes share.
    pub(crate) fn small(tokens: usize, bins: u16) -> Symbols {
        let sample = cacheg::sample().unwrap();
        let cuts = [
            KvCache::copy_of(&sample.view(), 0, tokens),
            KvCache::copy_of(&sample.view(), 168 - tokens, tokens),
        ];
        Symbols::quantize(&cuts.each_ref().map(KvCache::view), bins).unwrap()
    }

    #[test]
    fn both_orders_hold_the_same_tiles() {
        let symbols = small(70, 32);
        assert_eq!(symbols.len(), 2 * 70 * 60 * 192);
        assert_eq!(symbols.streams.iter().map(|stream| stream.range.len()).sum::<usize>(), symbols.len());
        assert!(symbols.streams.iter().all(|stream| stream.tiles.len() > 1));
        for tile in symbols.streams.iter().flat_map(|stream| &stream.tiles) {
            let [token, channel] =
                [Order::Token, Order::Channel].map(|order| &symbols.all(order)[tile.range.clone()]);
            let (rows, cols) = (tile.segment.rows, tile.segment.cols);
            for (row, col) in [(0, 0), (3, 5), (rows - 1, cols - 1)] {
                assert_eq!(token[row * cols + col], channel[col * rows + row]);
            }
        }
    }

    #[test]
    fn symbols_are_within_their_alphabet_and_near_the_values() {
        let sample = cacheg::sample().unwrap();
        let symbols = Symbols::quantize(&[sample.view()], 16).unwrap();
        assert!(symbols.all(Order::Token).iter().all(|symbol| *symbol < 15));
        let bits = symbols.entropy_bits / symbols.len() as f64;
        assert!(bits > 1.0 && bits < 15f64.log2(), "{bits}");
        let mut got = vec![0.0; 168 * 192];
        Dtype::F16.widen(&symbols.dequantized()[..168 * 192 * 2], &mut got);
        let mut want = vec![0.0; 168 * 192];
        sample.view().load(0, 0, 168, &mut want);
        let steps = symbols.steps.iter().flat_map(|step| std::iter::repeat_n(step, 192));
        assert!(got.iter().zip(&want).zip(steps).all(|((got, want), step)| (got - want).abs() < 0.51 * step));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let sample = cacheg::sample().unwrap();
        for bins in [0, 3, 257] {
            assert!(Symbols::quantize(&[sample.view()], bins).is_err());
        }
        assert!(Symbols::quantize(&[], 32).is_err());
    }
}
