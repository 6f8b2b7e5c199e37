//! Bit streams, least significant bit first, and Exp-Golomb codes.

use cacheg_core::{Error, Result};

/// Writes bits.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    filled: u32,
}

impl BitWriter {
    /// The low `count` bits of `value`, at most 32.
    pub(crate) fn put(&mut self, value: u32, count: u32) {
        let value = u64::from(value) & ((1 << count) - 1);
        self.pending |= value << self.filled;
        self.filled += count;
        while self.filled >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.filled -= 8;
        }
    }

    /// An Exp-Golomb code of order `k`.
    pub(crate) fn put_golomb(&mut self, value: u16, k: u32) {
        let u = (u32::from(value) >> k) + 1;
        let len = u.ilog2();
        self.put(1 << len, len + 1);
        self.put(u, len);
        self.put(u32::from(value), k);
    }

    /// The bytes, the last one padded with zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.filled > 0 {
            self.bytes.push(self.pending as u8);
        }
        self.bytes
    }
}

/// Bits of an Exp-Golomb code.
pub(crate) fn golomb_len(value: u16, k: u32) -> u32 {
    2 * ((u32::from(value) >> k) + 1).ilog2() + 1 + k
}

/// Reads bits.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u64,
    filled: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, filled: 0 }
    }

    /// The next `count` bits, at most 32.
    ///
    /// # Errors
    /// If there are fewer.
    pub(crate) fn take(&mut self, count: u32) -> Result<u32> {
        while self.filled < count {
            let (byte, rest) =
                self.bytes.split_first().ok_or_else(|| Error::corrupt("tables are cut short"))?;
            self.bytes = rest;
            self.pending |= u64::from(*byte) << self.filled;
            self.filled += 8;
        }
        let value = self.pending & ((1 << count) - 1);
        self.pending >>= count;
        self.filled -= count;
        Ok(value as u32)
    }

    /// An Exp-Golomb code of order `k`.
    ///
    /// # Errors
    /// If it is cut short or above 16 bits.
    pub(crate) fn take_golomb(&mut self, k: u32) -> Result<u16> {
        let mut len = 0;
        while self.take(1)? == 0 {
            len += 1;
            if len > 16 {
                return Err(Error::corrupt("a weight is out of range"));
            }
        }
        let u = (1 << len) | self.take(len)?;
        let value = (u64::from(u - 1) << k) | u64::from(self.take(k)?);
        u16::try_from(value).map_err(|_| Error::corrupt("a weight is out of range"))
    }

    /// Checks that only zero bits of the last byte are left.
    ///
    /// # Errors
    /// If there is more.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.bytes.is_empty() && self.filled < 8 && self.pending == 0 {
            Ok(())
        } else {
            Err(Error::corrupt("bytes after the last table"))
        }
    }
}
