//! The `constriction` crate used directly, a table per channel. Tables are built before the race, as ours are.

use cacheg::{Error, Result};
use constriction::backends::Cursor;
use constriction::stream::model::{
    DefaultContiguousCategoricalEntropyModel, SmallContiguousCategoricalEntropyModel,
    SmallContiguousLookupDecoderModel,
};
use constriction::stream::queue::{DefaultRangeDecoder, DefaultRangeEncoder};
use constriction::stream::stack::SmallAnsCoder;
use constriction::stream::{Decode, Encode};

use super::super::symbols::Symbols;
use super::{BlockCodec, failed};

/// Runs of symbols of one channel: its number among all distinct contexts' channels, and the length.
type Runs = Vec<Vec<(usize, usize)>>;

fn runs(symbols: &Symbols) -> Runs {
    let mut base = Vec::new();
    let mut channels = 0;
    for context in &symbols.contexts[..symbols.distinct] {
        base.push(channels);
        channels += context.counts.len() / usize::from(symbols.bins);
    }
    let of_stream = |stream: &super::super::symbols::Stream| {
        let of_tile = |tile: &super::super::symbols::Tile| {
            let first = base[stream.context % symbols.distinct]
                + symbols.contexts[stream.context].first_channel[tile.segment.plane];
            let rows = tile.segment.rows;
            (first..first + tile.segment.cols).map(move |channel| (channel, rows))
        };
        stream.tiles.iter().flat_map(of_tile).collect()
    };
    symbols.streams.iter().map(of_stream).collect()
}

/// Each channel's frequencies as probabilities, made into models.
fn models<M>(symbols: &Symbols, model: impl Fn(&[f64]) -> std::result::Result<M, ()>) -> Result<Vec<M>> {
    let counts = symbols.contexts[..symbols.distinct]
        .iter()
        .flat_map(|c| c.counts.chunks_exact(usize::from(symbols.bins)));
    let refused = |()| Error::data("constriction refuses a histogram");
    counts
        .map(|counts| model(&counts.iter().map(|n| f64::from(*n)).collect::<Vec<_>>()).map_err(refused))
        .collect()
}

/// Writes words; the reader knows their number from the length.
fn put<const N: usize>(words: impl Iterator<Item = [u8; N]>, out: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    for word in words {
        let to = out.get_mut(len..len + N).ok_or_else(|| Error::data("the output buffer is too short"))?;
        to.copy_from_slice(&word);
        len += N;
    }
    Ok(len)
}

/// The range coder in its default setting: 32-bit words, 24-bit tables, symbols found by bisection.
pub(super) struct Range {
    runs: Runs,
    models: Vec<DefaultContiguousCategoricalEntropyModel>,
    words: Vec<u32>,
}

impl Range {
    pub(super) fn new(symbols: &Symbols) -> Result<Self> {
        let model = |p: &[f64]| {
            DefaultContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(p, None)
        };
        Ok(Self { runs: runs(symbols), models: models(symbols, model)?, words: Vec::new() })
    }
}

impl BlockCodec for Range {
    fn max_len(&self, symbols: usize) -> usize {
        // 24 bits is the most that a symbol can cost.
        3 * symbols + 64
    }

    fn encode(&mut self, block: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        self.words.clear();
        // Not one encoder for all blocks: its `clear` forgets to forget a carry that is under way.
        let mut encoder = DefaultRangeEncoder::with_write_backend(std::mem::take(&mut self.words));
        let mut rest = symbols;
        for (channel, len) in &self.runs[block] {
            let (own, more) = rest.split_at(*len);
            rest = more;
            let all = own.iter().map(|symbol| usize::from(*symbol));
            encoder.encode_iid_symbols(all, &self.models[*channel]).map_err(failed)?;
        }
        self.words = encoder.into_compressed().map_err(failed)?;
        put(self.words.iter().map(|word| word.to_le_bytes()), out)
    }

    fn decode(&mut self, block: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        self.words.clear();
        self.words.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        let mut decoder =
            DefaultRangeDecoder::with_backend(Cursor::new_at_write_beginning(self.words.as_slice()))
                .map_err(failed)?;
        let mut rest = symbols;
        for (channel, len) in &self.runs[block] {
            let (own, more) = std::mem::take(&mut rest).split_at_mut(*len);
            rest = more;
            for (to, symbol) in own.iter_mut().zip(decoder.decode_iid_symbols(*len, &self.models[*channel])) {
                *to = symbol.map_err(failed)? as u8;
            }
        }
        Ok(())
    }
}

/// The ANS coder in its small setting, which lookup tables need: 16-bit words, 12-bit tables.
pub(super) struct Ans {
    runs: Runs,
    encode: Vec<SmallContiguousCategoricalEntropyModel>,
    decode: Vec<SmallContiguousLookupDecoderModel>,
    encoder: SmallAnsCoder,
    words: Vec<u16>,
}

impl Ans {
    pub(super) fn new(symbols: &Symbols) -> Result<Self> {
        let model = |p: &[f64]| {
            SmallContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(p, None)
        };
        let encode: Vec<SmallContiguousCategoricalEntropyModel> = models(symbols, model)?;
        let decode =
            encode.iter().map(SmallContiguousCategoricalEntropyModel::to_lookup_decoder_model).collect();
        Ok(Self { runs: runs(symbols), encode, decode, encoder: SmallAnsCoder::new(), words: Vec::new() })
    }
}

impl BlockCodec for Ans {
    fn max_len(&self, symbols: usize) -> usize {
        2 * symbols + 64
    }

    fn encode(&mut self, block: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        self.encoder.clear();
        let mut rest = symbols;
        for (channel, len) in self.runs[block].iter().rev() {
            let (more, own) = rest.split_at(rest.len() - len);
            rest = more;
            let all = own.iter().map(|symbol| usize::from(*symbol));
            self.encoder.encode_iid_symbols_reverse(all, &self.encode[*channel]).map_err(failed)?;
        }
        let words = self.encoder.get_compressed().map_err(failed)?;
        put(words.iter().map(|word| word.to_le_bytes()), out)
    }

    fn decode(&mut self, block: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        self.words.clear();
        self.words.extend(bytes.as_chunks::<2>().0.iter().map(|word| u16::from_le_bytes(*word)));
        let mut decoder = SmallAnsCoder::from_compressed_slice(&self.words)
            .map_err(|_| Error::data("constriction refuses its own words"))?;
        let mut rest = symbols;
        for (channel, len) in &self.runs[block] {
            let (own, more) = std::mem::take(&mut rest).split_at_mut(*len);
            rest = more;
            for (to, symbol) in own.iter_mut().zip(decoder.decode_iid_symbols(*len, &self.decode[*channel])) {
                *to = symbol.map_err(failed)? as u8;
            }
        }
        Ok(())
    }
}
