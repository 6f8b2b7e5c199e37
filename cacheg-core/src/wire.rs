//! Little-endian reading with every length checked, and the variable-length integers of escapes.

use crate::{Error, Result};

/// Takes bytes from the front of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.bytes.split_at_checked(len) else {
            return Err(Error::corrupt(format!("truncated: {len} bytes wanted, {} left", self.bytes.len())));
        };
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// LEB128, at most `u32::MAX`, in its shortest form.
    pub(crate) fn varint(&mut self) -> Result<u32> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let shortest = shift == 0 || byte != 0;
                return u32::try_from(value)
                    .ok()
                    .filter(|_| shortest)
                    .ok_or_else(|| Error::corrupt("bad varint"));
            }
        }
        Err(Error::corrupt("bad varint"))
    }

    /// Zero bytes up to the next multiple of 4 after `len` bytes.
    pub(crate) fn padding(&mut self, len: usize) -> Result<()> {
        if self.take(padding(len))?.iter().all(|b| *b == 0) {
            Ok(())
        } else {
            Err(Error::corrupt("padding is not zero"))
        }
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

/// Bytes to the next multiple of 4.
pub(crate) const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

/// Longest varint of a `u32`.
pub(crate) const MAX_VARINT: usize = 5;

/// Writes LEB128 to the front of `out`, returns its length.
pub(crate) fn put_varint(mut value: u32, out: &mut [u8]) -> usize {
    let mut len = 0;
    while value >= 0x80 {
        out[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    out[len] = value as u8;
    len + 1
}

/// Small magnitudes to small numbers.
pub(crate) const fn zigzag(value: i32) -> u32 {
    (value << 1 ^ value >> 31) as u32
}

pub(crate) const fn unzigzag(value: u32) -> i32 {
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_only_in_shortest_form() {
        for value in [0, 1, 127, 128, 300, 1 << 21, u32::MAX] {
            let mut out = [0xff; MAX_VARINT];
            let len = put_varint(value, &mut out);
            assert_eq!(Reader::new(&out[..len]).varint().unwrap(), value);
            for cut in 0..len {
                assert!(Reader::new(&out[..cut]).varint().is_err());
            }
        }
        assert!(Reader::new(&[0x80, 0]).varint().is_err());
        assert!(Reader::new(&[0xff; 6]).varint().is_err());
        assert!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint().is_err());
        for value in [0, -1, 1, i32::MIN, i32::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
    }
}
