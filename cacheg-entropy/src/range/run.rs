//! One range-coded run: constriction's coder with 16-bit words and a 64-bit state, words big-endian, and an
//! end of our own.
//!
//! The decoder reads zeros after the last byte. So the encoder ends a run with the number of its last interval
//! `[lower, lower + range)` that has the most trailing zeros, and leaves trailing zero bytes out: the shortest
//! run that decodes. This is unique, and the decoder verifies it.

use cacheg_core::{Error, Result};
use constriction::backends::{ReadWords, WriteWords};
use constriction::stream::queue::{EncoderSituation, RangeCoderState, RangeDecoder, RangeEncoder};
use constriction::stream::{Decode, Encode};
use constriction::{CoderError, Queue};

use super::model::Model;
use crate::segments::outside;

/// Bytes that the end of a run needs at most: `range` is at least 2^48.
pub(crate) const MAX_TAIL: usize = 2;

/// The number in the last interval with the most trailing zeros, and how many bytes precede them.
fn tail(state: &RangeCoderState<u16, u64>) -> (u64, usize) {
    let (lower, range) = (state.lower(), state.range().get());
    for bytes in 0..8 {
        let unit = 1u64.checked_shl(64 - 8 * bytes).unwrap_or(0);
        // Rounds up to a multiple of `unit`, modulo 2^64; a unit of 2^64 is 0 here.
        let point = lower.wrapping_add(unit.wrapping_sub(1)) & unit.wrapping_neg();
        if point.wrapping_sub(lower) < range {
            return (point, bytes as usize);
        }
    }
    (lower, 8)
}

/// Words into a slice, most significant byte first.
#[derive(Debug)]
struct Sink<'a> {
    out: &'a mut [u8],
    len: usize,
}

/// The slice is full.
#[derive(Debug)]
struct Full;

impl WriteWords<u16> for Sink<'_> {
    type WriteError = Full;

    #[inline]
    fn write(&mut self, word: u16) -> Result<(), Full> {
        let to = self.out.get_mut(self.len..self.len + 2).ok_or(Full)?;
        to.copy_from_slice(&word.to_be_bytes());
        self.len += 2;
        Ok(())
    }
}

fn full(_: Full) -> Error {
    Error::data("the output buffer is too short")
}

/// Writes one run.
#[derive(Debug)]
pub(crate) struct Encoder<'a>(RangeEncoder<u16, u64, Sink<'a>>);

impl<'a> Encoder<'a> {
    /// At the beginning of `out`.
    pub(crate) fn new(out: &'a mut [u8]) -> Self {
        Self(RangeEncoder::with_write_backend(Sink { out, len: 0 }))
    }

    /// # Errors
    /// If the symbol is outside its alphabet or the buffer is full.
    #[inline]
    pub(crate) fn put(&mut self, symbol: u8, model: Model<'_>) -> Result<()> {
        self.0.encode_symbol(symbol, model).map_err(|error| match error {
            CoderError::Frontend(_) => outside(),
            CoderError::Backend(error) => full(error),
        })
    }

    /// Ends the run and returns its length.
    ///
    /// # Errors
    /// If the buffer is full.
    pub(crate) fn finish(self) -> Result<usize> {
        let (mut sink, state, situation) = self.0.into_raw_parts();
        let (point, mut bytes) = tail(&state);
        if let EncoderSituation::Inverted(count, first) = situation {
            let carry = point < state.lower();
            sink.write(if carry { first.wrapping_add(1) } else { first }).map_err(full)?;
            for _ in 1..count.get() {
                sink.write(if carry { 0 } else { u16::MAX }).map_err(full)?;
            }
        }
        for byte in point.to_be_bytes() {
            if bytes == 0 {
                break;
            }
            *sink.out.get_mut(sink.len).ok_or_else(|| full(Full))? = byte;
            sink.len += 1;
            bytes -= 1;
        }
        while sink.len > 0 && sink.out[sink.len - 1] == 0 {
            sink.len -= 1;
        }
        Ok(sink.len)
    }
}

/// Words from a slice; a last single byte is a high one.
#[derive(Debug)]
struct Words<'a> {
    bytes: &'a [u8],
}

impl ReadWords<u16, Queue> for Words<'_> {
    type ReadError = std::convert::Infallible;

    #[inline]
    fn read(&mut self) -> Result<Option<u16>, Self::ReadError> {
        Ok(match *self.bytes {
            [] => None,
            [high] => {
                self.bytes = &[];
                Some(u16::from_be_bytes([high, 0]))
            }
            [high, low, ref rest @ ..] => {
                self.bytes = rest;
                Some(u16::from_be_bytes([high, low]))
            }
        })
    }
}

/// Reads one run.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    coder: RangeDecoder<u16, u64, Words<'a>>,
    terse: bool,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(run: &'a [u8]) -> Self {
        let Ok(coder) = RangeDecoder::with_backend(Words { bytes: run });
        Self { coder, terse: run.last() != Some(&0) }
    }

    /// # Errors
    /// If there is no such symbol.
    #[inline]
    pub(crate) fn take(&mut self, model: Model<'_>) -> Result<u8> {
        self.coder.decode_symbol(model).map_err(|_| Error::corrupt("a range-coded run is damaged"))
    }

    /// Checks that the run ends as the encoder ends runs.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn finish(self) -> Result<()> {
        let (words, state, point) = self.coder.into_raw_parts();
        if self.terse && words.bytes.is_empty() && point == tail(&state).0 {
            Ok(())
        } else {
            Err(Error::corrupt("a range-coded run does not end where it should"))
        }
    }
}
