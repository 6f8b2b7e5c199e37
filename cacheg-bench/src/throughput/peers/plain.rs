//! Compressors of bytes or numbers, as their crates offer them; contexts are reused from block to block.

use cacheg::Result;
use pco::ChunkConfig;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch, compress_bound};

use super::{BlockCodec, failed, wrong_length};

/// Zstandard.
pub(super) struct Zstd {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

impl Zstd {
    pub(super) fn level(level: i32) -> Result<Self> {
        Ok(Self {
            compressor: Compressor::new(level).map_err(failed)?,
            decompressor: Decompressor::new().map_err(failed)?,
        })
    }

    /// Zstandard's entropy coder alone. It has no public interface, but at the largest acceleration no matches
    /// are looked for, so that each 128 KiB of a frame are one run of literals: Huff0 in four streams.
    pub(super) fn huff0() -> Result<Self> {
        let mut codec = Self::level(-(128 << 10))?;
        // Negative levels store literals unless told not to.
        let literals = CParameter::LiteralCompressionMode(ParamSwitch::Enable);
        codec.compressor.set_parameter(literals).map_err(failed)?;
        Ok(codec)
    }
}

impl BlockCodec for Zstd {
    fn max_len(&self, symbols: usize) -> usize {
        compress_bound(symbols)
    }

    fn encode(&mut self, _: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        self.compressor.compress_to_buffer(symbols, out).map_err(failed)
    }

    fn decode(&mut self, _: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        let len = self.decompressor.decompress_to_buffer(bytes, symbols).map_err(failed)?;
        if len == symbols.len() { Ok(()) } else { Err(wrong_length()) }
    }
}

/// LZ4 blocks (`lz4_flex`, its unchecked fast paths).
pub(super) struct Lz4;

impl BlockCodec for Lz4 {
    fn max_len(&self, symbols: usize) -> usize {
        lz4_flex::block::get_maximum_output_size(symbols)
    }

    fn encode(&mut self, _: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        lz4_flex::block::compress_into(symbols, out).map_err(failed)
    }

    fn decode(&mut self, _: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        let len = lz4_flex::block::decompress_into(bytes, symbols).map_err(failed)?;
        if len == symbols.len() { Ok(()) } else { Err(wrong_length()) }
    }
}

/// pco on the symbols as `u8`, with its default settings.
pub(super) struct Pco {
    config: ChunkConfig,
}

impl Pco {
    pub(super) fn new() -> Self {
        // It warns of 8-bit numbers, which are seldom what they seem; ours are.
        Self { config: ChunkConfig::default().with_enable_8_bit(true) }
    }
}

impl BlockCodec for Pco {
    fn max_len(&self, symbols: usize) -> usize {
        // Chunks and their headers are few; incompressible ones are stored as they are.
        2 * symbols + 1024
    }

    fn encode(&mut self, _: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        let room = out.len();
        let rest = pco::standalone::simple_compress_into(symbols, &self.config, out).map_err(failed)?;
        Ok(room - rest.len())
    }

    fn decode(&mut self, _: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        let progress = pco::standalone::simple_decompress_into(bytes, symbols).map_err(failed)?;
        if progress.n_processed == symbols.len() { Ok(()) } else { Err(wrong_length()) }
    }
}
