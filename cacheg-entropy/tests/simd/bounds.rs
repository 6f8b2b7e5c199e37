//! Vector kernels stay inside their buffers.
//!
//! Here every stream, every buffer for one and all symbols end, or begin, where memory ends: one byte more would be
//! a fault. What is inside a coder (tables, symbols in native order, states) is not covered by this, but by
//! AddressSanitizer:
//!
//! ```text
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target x86_64-unknown-linux-gnu -p cacheg-entropy --test simd
//! cargo +nightly fuzz run rans_simd
//! ```

#![expect(unsafe_code, reason = "memory that cannot be touched")]

use cacheg_core::{DecodeJob, EncodeJob, Segment};
use cacheg_entropy::Scope;

use crate::coders::{Coders, Random, segment, symbols};

/// Memory between two pages that cannot be touched.
struct Guarded {
    base: *mut u8,
    /// Bytes of all.
    all: usize,
    /// Bytes of the buffer.
    len: usize,
    /// It ends where the page behind it begins; otherwise it begins where the page before it ends.
    at_end: bool,
}

/// At least a page of any machine.
const PAGE: usize = 1 << 16;

impl Guarded {
    fn new(bytes: &[u8], at_end: bool) -> Self {
        let inner = bytes.len().next_multiple_of(PAGE);
        let all = inner + 2 * PAGE;
        // SAFETY: new memory that nobody knows; the part in the middle may be read and written.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0);
            assert!(base != libc::MAP_FAILED);
            let base = base.cast::<u8>();
            let usable = libc::PROT_READ | libc::PROT_WRITE;
            assert!(inner == 0 || libc::mprotect(base.add(PAGE).cast(), inner, usable) == 0);
            base
        };
        let mut guarded = Self { base, all, len: bytes.len(), at_end };
        guarded.bytes().copy_from_slice(bytes);
        guarded
    }

    fn bytes(&mut self) -> &mut [u8] {
        let offset = if self.at_end { self.all - PAGE - self.len } else { PAGE };
        // SAFETY: inside the usable part.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(offset), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped.
        unsafe { libc::munmap(self.base.cast(), self.all) };
    }
}

/// Encodes and decodes tiles at every level, then streams that were cut short.
fn check(coders: &Coders, tiles: &[(Segment, Vec<u8>)], at_end: bool) {
    let segments: Vec<[Segment; 1]> = tiles.iter().map(|(segment, _)| [*segment]).collect();
    let guarded = |bytes: &[u8]| Guarded::new(bytes, at_end);
    for (level, bound) in &coders.bounds {
        let mut scratch = bound.scratch();
        let mut symbols: Vec<Guarded> = tiles.iter().map(|(_, symbols)| guarded(symbols)).collect();
        let mut outs: Vec<Guarded> = segments.iter().map(|s| guarded(&vec![0; bound.max_len(s)])).collect();
        let jobs = segments.iter().zip(&mut symbols).zip(&mut outs);
        let mut jobs: Vec<EncodeJob<'_>> =
            jobs.map(|((s, symbols), out)| EncodeJob::new(s, symbols.bytes(), out.bytes())).collect();
        bound.encode_batch(&mut jobs, &mut scratch);
        let lens: Vec<usize> = jobs.into_iter().map(|job| job.result.unwrap()).collect();
        let streams: Vec<Vec<u8>> =
            outs.iter_mut().zip(lens).map(|(out, len)| out.bytes()[..len].to_vec()).collect();
        for cut in [0, 2, 40, 130] {
            let mut streams: Vec<Guarded> =
                streams.iter().map(|stream| guarded(&stream[..stream.len().saturating_sub(cut)])).collect();
            let mut backs: Vec<Guarded> = tiles.iter().map(|(_, s)| guarded(&vec![0; s.len()])).collect();
            let jobs = segments.iter().zip(&mut streams).zip(&mut backs);
            let mut jobs: Vec<DecodeJob<'_>> =
                jobs.map(|((s, bytes), back)| DecodeJob::new(s, bytes.bytes(), back.bytes())).collect();
            bound.decode_batch(&mut jobs, &mut scratch);
            for (job, (_, symbols)) in jobs.into_iter().zip(tiles) {
                assert_eq!(job.result.is_ok(), cut == 0 || symbols.is_empty(), "{level:?}, {cut}");
            }
            let back = backs.iter_mut().zip(tiles).all(|(back, (_, symbols))| back.bytes() == symbols);
            assert!(back || cut > 0, "{level:?}");
        }
    }
}

#[test]
fn nothing_outside_buffers() {
    let mut random = Random(5);
    for (size, contexts) in [(2, 1), (32, 1), (32, 3), (17, 3), (33, 1), (256, 1)] {
        for cols in [1, 3, 16, 31, 33, 64, 70] {
            let coders = Coders::new(Scope::Channel, contexts, size, cols, &mut random);
            for rows in [[1, 31, 32, 33], [64, 64, 64, 64], [65, 97, 96, 256]] {
                let tiles: Vec<_> = rows
                    .map(|rows| (segment(size, rows, cols), symbols(&mut random, size, rows, cols)))
                    .into();
                check(&coders, &tiles, true);
                check(&coders, &tiles, false);
            }
        }
    }
}
