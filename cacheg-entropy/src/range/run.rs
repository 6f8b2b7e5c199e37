//! One range-coded run: constriction's coder with 16-bit words and a 64-bit state, words big-endian, and an
//! end of our own.
//!
//! The decoder reads zeros after the last byte. So the encoder ends a run with the number of its last interval
//! `[lower, lower + range)` that has the most trailing zero bytes, and leaves these out. The decoder verifies
//! both the number and the length.

use std::convert::Infallible;

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
        Ok(sink.len)
    }
}

/// Words from a slice, and zeros after its end. A last single byte is a high one.
#[derive(Debug)]
struct Words<'a> {
    run: &'a [u8],
    /// Bytes read, the zeros too.
    read: usize,
}

impl ReadWords<u16, Queue> for Words<'_> {
    type ReadError = Infallible;

    #[inline]
    fn read(&mut self) -> Result<Option<u16>, Infallible> {
        let word = match self.run.get(self.read..).unwrap_or_default() {
            [] => 0,
            [high] => u16::from_be_bytes([*high, 0]),
            [high, low, ..] => u16::from_be_bytes([*high, *low]),
        };
        self.read += 2;
        Ok(Some(word))
    }
}

/// Reads one run.
#[derive(Debug)]
pub(crate) struct Decoder<'a>(RangeDecoder<u16, u64, Words<'a>>);

impl<'a> Decoder<'a> {
    pub(crate) fn new(run: &'a [u8]) -> Self {
        let Ok(coder) = RangeDecoder::with_backend(Words { run, read: 0 });
        Self(coder)
    }

    /// # Errors
    /// If there is no such symbol.
    #[inline]
    pub(crate) fn take(&mut self, model: Model<'_>) -> Result<u8> {
        self.0.decode_symbol(model).map_err(|_| Error::corrupt("a range-coded run is damaged"))
    }

    /// Checks that the run ends as the encoder ends runs.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn finish(self) -> Result<()> {
        let (words, state, point) = self.0.into_raw_parts();
        let (expected, bytes) = tail(&state);
        // The decoder reads 64 bits ahead of the words that have left the encoder's state.
        if point == expected && words.read - 8 + bytes == words.run.len() {
            Ok(())
        } else {
            Err(Error::corrupt("a range-coded run does not end where it should"))
        }
    }
}
