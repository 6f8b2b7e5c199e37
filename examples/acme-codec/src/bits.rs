//! Writing and reading single bits, the first into the highest bit of a byte.

use cacheg_core::{Error, Result};

/// Writes to a buffer that is large enough; its old contents do not matter.
pub(crate) struct BitWriter<'a> {
    bytes: &'a mut [u8],
    /// Bits written.
    len: usize,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, len: 0 }
    }

    /// Writes the low `count` bits of `value`, highest first.
    pub(crate) fn write(&mut self, value: u32, count: u32) {
        for bit in (0..count).rev() {
            let byte = &mut self.bytes[self.len / 8];
            if self.len.is_multiple_of(8) {
                *byte = 0;
            }
            *byte |= ((value >> bit & 1) as u8) << (7 - self.len % 8);
            self.len += 1;
        }
    }

    /// Bytes used; the rest of the last one is zeros.
    pub(crate) fn finish(self) -> usize {
        self.len.div_ceil(8)
    }
}

/// Reads what [`BitWriter`] wrote.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    /// Bits read.
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn bit(&mut self) -> Result<u32> {
        let byte = self.bytes.get(self.at / 8).ok_or_else(|| Error::corrupt("the stream is too short"))?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit.into())
    }

    pub(crate) fn bits(&mut self, count: u32) -> Result<u32> {
        (0..count).try_fold(0, |value, _| Ok(value << 1 | self.bit()?))
    }

    /// Checks that nothing is left but the zeros that fill the last byte.
    pub(crate) fn finish(self) -> Result<()> {
        let padding = |byte: &u8| u32::from(*byte) & (0xff >> (self.at % 8));
        let clean = self.at.is_multiple_of(8) || self.bytes.get(self.at / 8).map(padding) == Some(0);
        if clean && self.bytes.len() == self.at.div_ceil(8) {
            Ok(())
        } else {
            Err(Error::corrupt("the stream does not end where its symbols do"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_and_the_end_is_checked() {
        let mut bytes = [0xff; 4];
        let mut writer = BitWriter::new(&mut bytes);
        writer.write(0b101, 3);
        writer.write(0b0_1100_1010, 9);
        assert_eq!(writer.finish(), 2);
        assert_eq!(bytes[..2], [0b1010_1100, 0b1010_0000]);
        let read = |bytes: &[u8]| {
            let mut reader = BitReader::new(bytes);
            let values = (reader.bits(3)?, reader.bits(9)?);
            reader.finish().map(|()| values)
        };
        assert_eq!(read(&bytes[..2]).unwrap(), (0b101, 0b0_1100_1010));
        assert!(read(&bytes[..1]).is_err());
        assert!(read(&bytes[..3]).is_err());
        assert!(read(&[bytes[0], bytes[1] | 1]).is_err());
    }
}
