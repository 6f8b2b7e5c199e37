//! `raw`: no entropy coding, symbols of fixed width.
//!
//! Shows what the other coders gain. Each segment is packed by itself: `⌈log2 size⌉` bits per symbol, least
//! significant bit first, padded with zeros to a byte. Errors on decoding: any other length, padding that is
//! not zero, symbols outside their alphabet.
//!
//! ```
//! # use cacheg_core::Build;
//! let Build::Coder(build) = cacheg_entropy::raw::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&serde_json::json!({})).unwrap().config(), serde_json::json!({}));
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundCoder, Build, Coder, CoderKernel, CoderScratch, Error, Kernel, KernelStream, Plugin, Result,
    Segment, Stage,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::segments::{self, outside};

/// The plug-in.
pub const PLUGIN: Plugin = Plugin {
    name: "raw",
    version: 1,
    origin: env!("CARGO_PKG_NAME"),
    summary: "no entropy coding: symbols of fixed width",
    usage: "raw",
    build: Build::Coder(|config| Ok(Arc::new(Raw(cacheg_core::settings("raw", config)?)))),
};

/// Settings of `raw`: none.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSettings {}

/// The stage `raw`.
#[derive(Debug, Default)]
pub struct Raw(RawSettings);

impl Stage for Raw {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(&self.0)
    }
}

impl Coder for Raw {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundCoder>> {
        Ok(Box::new(BoundRaw))
    }
}

/// `raw` needs nothing of the model.
struct BoundRaw;

/// Bits of one symbol.
fn width(segment: &Segment) -> u32 {
    segment.alphabet.size.next_power_of_two().ilog2()
}

/// Bytes of a segment.
fn packed_len(segment: &Segment) -> usize {
    // Eight symbols take `width` bytes: no overflow where the symbols themselves fit in memory.
    let (eights, rest) = (segment.len() / 8, segment.len() % 8);
    eights * width(segment) as usize + (rest * width(segment) as usize).div_ceil(8)
}

impl BoundCoder for BoundRaw {
    fn max_len(&self, segments: &[Segment]) -> usize {
        segments.iter().map(packed_len).sum()
    }

    fn encode(
        &self,
        segments: &[Segment],
        symbols: &[u8],
        out: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<usize> {
        segments::check(segments, symbols)?;
        segments::check_room(out, self.max_len(segments))?;
        let (mut rest, mut len) = (symbols, 0);
        for segment in segments {
            let (own, more) = rest.split_at(segment.len());
            rest = more;
            if own.iter().any(|symbol| u16::from(*symbol) >= segment.alphabet.size) {
                return Err(outside());
            }
            let end = len + packed_len(segment);
            pack(own, width(segment), &mut out[len..end]);
            len = end;
        }
        Ok(len)
    }

    fn decode(
        &self,
        segments: &[Segment],
        bytes: &[u8],
        symbols: &mut [u8],
        _: &mut CoderScratch,
    ) -> Result<()> {
        segments::check(segments, symbols)?;
        if bytes.len() != self.max_len(segments) {
            return Err(Error::corrupt("packed symbols of the wrong length"));
        }
        let (mut rest, mut bytes) = (symbols, bytes);
        for segment in segments {
            let (own, more) = std::mem::take(&mut rest).split_at_mut(segment.len());
            rest = more;
            let (packed, more) = bytes.split_at(packed_len(segment));
            bytes = more;
            if unpack(packed, width(segment), own) != 0 {
                return Err(Error::corrupt("padding that is not zero"));
            }
            if own.iter().any(|symbol| u16::from(*symbol) >= segment.alphabet.size) {
                return Err(Error::corrupt("a symbol outside its alphabet"));
            }
        }
        Ok(())
    }

    fn kernel(&self) -> Option<CoderKernel> {
        Some(CoderKernel::new(Kernel::new(include_str!("raw.wgsl"), Vec::new()), 0, 0))
    }

    fn kernel_stream(&self, segments: &[Segment], bytes: &[u8]) -> Result<KernelStream> {
        let mut places = Vec::with_capacity(segments.len());
        let mut begin = 0;
        for segment in segments {
            places.push([0, begin as u32]);
            begin += packed_len(segment);
        }
        if bytes.len() != begin || u32::try_from(begin).is_err() {
            return Err(Error::corrupt("packed symbols of the wrong length"));
        }
        for (segment, place) in segments.iter().zip(&places) {
            // Only the last byte of a segment has any.
            let used = segment.len() * width(segment) as usize;
            let last = bytes.get(place[1] as usize + used / 8).filter(|_| !used.is_multiple_of(8));
            if last.is_some_and(|byte| byte >> (used % 8) != 0) {
                return Err(Error::corrupt("padding that is not zero"));
            }
        }
        Ok(KernelStream::new(places, Vec::new()))
    }

    fn ideal_bits(&self, segments: &[Segment], _: &[u8]) -> Option<f64> {
        Some(segments.iter().map(|segment| segment.len() as f64 * f64::from(width(segment))).sum())
    }
}

/// Packs eight symbols at a time into `width` bytes.
fn pack(symbols: &[u8], width: u32, out: &mut [u8]) {
    let bytes = width as usize;
    for (eight, out) in symbols.chunks(8).zip(out.chunks_mut(bytes)) {
        let word = eight.iter().rev().fold(0u64, |word, symbol| word << width | u64::from(*symbol));
        out.copy_from_slice(&word.to_le_bytes()[..out.len()]);
    }
}

/// The reverse; returns the padding.
fn unpack(packed: &[u8], width: u32, symbols: &mut [u8]) -> u64 {
    let mask = (1u64 << width) - 1;
    let mut padding = 0;
    for (eight, packed) in symbols.chunks_mut(8).zip(packed.chunks(width as usize)) {
        let mut word = [0; 8];
        word[..packed.len()].copy_from_slice(packed);
        let mut word = u64::from_le_bytes(word);
        for symbol in &mut *eight {
            *symbol = (word & mask) as u8;
            word >>= width;
        }
        padding |= word;
    }
    padding
}
