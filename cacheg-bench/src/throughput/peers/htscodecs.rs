//! htscodecs (<https://github.com/samtools/htscodecs>), the fastest published rANS on CPUs: its 32-way codec
//! with 16-bit renormalisation, which picks AVX-512, AVX2 or SSE4.1 by itself. From Debian's `libhtscodecs-dev`;
//! `cargo xtask bench-deps` installs it.

use std::ffi::{c_int, c_uchar, c_uint};
use std::ptr::NonNull;

use cacheg::{Error, Result};

use super::{BlockCodec, failed, wrong_length};

#[link(name = "htscodecs")]
#[expect(unsafe_code, reason = "declares a C library's functions, from <htscodecs/rANS_static4x16.h>")]
unsafe extern "C" {
    fn rans_compress_bound_4x16(size: c_uint, order: c_int) -> c_uint;
    fn rans_compress_to_4x16(
        input: *mut c_uchar,
        in_size: c_uint,
        out: *mut c_uchar,
        out_size: *mut c_uint,
        order: c_int,
    ) -> *mut c_uchar;
    fn rans_uncompress_to_4x16(
        input: *mut c_uchar,
        in_size: c_uint,
        out: *mut c_uchar,
        out_size: *mut c_uint,
    ) -> *mut c_uchar;
}

/// `RANS_ORDER_X32`: 32 lanes.
const X32: c_int = 0x04;

/// rANS 32x16 of order 0 or 1, tables in each block.
pub(super) struct Rans32x16 {
    flags: c_int,
}

impl Rans32x16 {
    pub(super) fn new(order: c_int) -> Self {
        Self { flags: order | X32 }
    }

    fn bound(&self, symbols: usize) -> Result<usize> {
        let size = c_uint::try_from(symbols).map_err(failed)?;
        // SAFETY: a pure function of its two numbers.
        #[expect(unsafe_code, reason = "call of a C function")]
        let bound = unsafe { rans_compress_bound_4x16(size, self.flags) };
        usize::try_from(bound).map_err(failed)
    }
}

impl BlockCodec for Rans32x16 {
    fn max_len(&self, symbols: usize) -> usize {
        // The library's own bound, which a block of more than 4 GiB does not have; that fails in `encode`.
        self.bound(symbols).unwrap_or(0)
    }

    fn encode(&mut self, _: usize, symbols: &[u8], out: &mut [u8]) -> Result<usize> {
        let in_size = c_uint::try_from(symbols.len()).map_err(failed)?;
        if out.len() < self.bound(symbols.len())? {
            return Err(Error::data("the output buffer is too short"));
        }
        let mut out_size = c_uint::try_from(out.len()).unwrap_or(c_uint::MAX);
        // SAFETY: `symbols` has `in_size` bytes, which the library only reads although its pointer is not
        // const; `out` has `out_size` bytes or more, which is at least the library's bound; both outlive the
        // call, and the borrow checker keeps them apart.
        #[expect(unsafe_code, reason = "call of a C function")]
        let result = unsafe {
            let input = symbols.as_ptr().cast_mut();
            rans_compress_to_4x16(input, in_size, out.as_mut_ptr(), &raw mut out_size, self.flags)
        };
        NonNull::new(result).ok_or_else(|| Error::data("htscodecs cannot encode"))?;
        usize::try_from(out_size).map_err(failed)
    }

    fn decode(&mut self, _: usize, bytes: &[u8], symbols: &mut [u8]) -> Result<()> {
        let in_size = c_uint::try_from(bytes.len()).map_err(failed)?;
        let mut out_size = c_uint::try_from(symbols.len()).map_err(failed)?;
        // SAFETY: as in `encode`; the library checks that what the block announces fits `out_size`, and never
        // reads beyond `in_size`.
        #[expect(unsafe_code, reason = "call of a C function")]
        let result = unsafe {
            let input = bytes.as_ptr().cast_mut();
            rans_uncompress_to_4x16(input, in_size, symbols.as_mut_ptr(), &raw mut out_size)
        };
        NonNull::new(result).ok_or_else(|| Error::corrupt("htscodecs cannot decode"))?;
        if usize::try_from(out_size) == Ok(symbols.len()) { Ok(()) } else { Err(wrong_length()) }
    }
}
