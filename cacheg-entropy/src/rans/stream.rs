//! The ends of a stream: header, words, verification.

use std::hint::select_unpredictable;

use cacheg_core::{Error, Result};

/// Lanes.
pub(super) const LANES: usize = 32;

/// Bytes of the final states.
pub(super) const HEADER: usize = LANES * 4;

/// States are at least this. Also the state in which the encoder begins: not 0, which would absorb errors.
pub(super) const LOW: u32 = 1 << 16;

/// The encoder's first states, and the decoder's last.
pub(super) const START: [u32; LANES] = [LOW; LANES];

/// Words as they are stored, little-endian.
pub(super) type Words<'a> = &'a [[u8; 2]];

/// Reads the header.
///
/// # Errors
/// If it is cut short or holds impossible states, or half a word is left over.
pub(super) fn open(bytes: &[u8]) -> Result<([u32; LANES], Words<'_>)> {
    let (header, words) = bytes.split_first_chunk::<HEADER>().ok_or_else(short)?;
    let mut states = START;
    for (state, bytes) in states.iter_mut().zip(header.as_chunks().0) {
        *state = u32::from_le_bytes(*bytes);
    }
    let (words, odd) = words.as_chunks();
    if !odd.is_empty() {
        return Err(short());
    }
    if states.iter().any(|state| *state < LOW) {
        return Err(Error::corrupt("impossible state in a rANS stream"));
    }
    Ok((states, words))
}

/// Verifies the end.
///
/// # Errors
/// If words are left or a state is not where the encoder began.
pub(super) fn close(states: &[u32; LANES], words: Words<'_>) -> Result<()> {
    if *states == START && words.is_empty() {
        Ok(())
    } else {
        Err(Error::corrupt("a rANS stream does not end where it should"))
    }
}

/// Refills one lane, of whose words `used` are gone.
#[inline(always)]
pub(super) fn refilled(x: u32, window: &[[u8; 2]; LANES], used: usize) -> (u32, usize) {
    // At most one word for each of the lanes; the mask only spares the bounds check.
    let word = u32::from(u16::from_le_bytes(window[used & (LANES - 1)]));
    let empty = x < LOW;
    (select_unpredictable(empty, x << 16 | word, x), used + usize::from(empty))
}

/// Refills the first lanes from the stream, in lane order.
///
/// # Errors
/// If there are too few words.
#[inline]
pub(super) fn refill(states: &mut [u32], words: &mut Words<'_>) -> Result<()> {
    let mut used = 0;
    if let Some(window) = words.first_chunk::<LANES>() {
        for x in states {
            (*x, used) = refilled(*x, window, used);
        }
    } else {
        for x in states {
            if *x < LOW {
                let word = words.get(used).ok_or_else(short)?;
                *x = *x << 16 | u32::from(u16::from_le_bytes(*word));
                used += 1;
            }
        }
    }
    *words = &words[used..];
    Ok(())
}

/// Writes words from the end of the buffer towards the front.
#[derive(Debug)]
pub(super) struct WordWriter<'a> {
    header: &'a mut [u8; HEADER],
    room: &'a mut [u8],
    /// Bytes of `room` that are still free.
    free: usize,
}

impl<'a> WordWriter<'a> {
    /// # Errors
    /// If not even the header fits.
    pub(super) fn new(out: &'a mut [u8]) -> Result<Self> {
        let (header, room) = out.split_first_chunk_mut().ok_or_else(full)?;
        Ok(Self { header, free: room.len(), room })
    }

    /// Writes a word, which stays only if `keep`.
    ///
    /// # Errors
    /// If the buffer is full: there must be room for the word in any case.
    #[inline(always)]
    pub(super) fn put_if(&mut self, keep: bool, word: u32) -> Result<()> {
        let to = self.room[..self.free].last_chunk_mut::<2>().ok_or_else(full)?;
        *to = (word as u16).to_le_bytes();
        self.free -= 2 * usize::from(keep);
        Ok(())
    }

    /// Writes the states, moves the words behind them and returns the stream's length.
    pub(super) fn finish(self, states: &[u32; LANES]) -> usize {
        for (bytes, state) in self.header.as_chunks_mut().0.iter_mut().zip(states) {
            *bytes = state.to_le_bytes();
        }
        let len = self.room.len() - self.free;
        self.room.copy_within(self.free.., 0);
        HEADER + len
    }
}

/// There are too few words.
pub(super) fn short() -> Error {
    Error::corrupt("a rANS stream is cut short")
}

/// There is too little room.
pub(super) fn full() -> Error {
    Error::data("the output buffer is too short")
}
