//! Recomputes the checksums of a damaged container, so that tests and fuzzers get past them to the code that
//! must withstand bytes which somebody made on purpose.

use xxhash_rust::xxh3::xxh3_64;

use crate::chunk::{ENTRY, PREFIX, checksum};
use crate::wire::padding;

/// Makes every checksum of a container right that can be found; everything else stays as it is.
pub fn container(bytes: &mut [u8]) {
    let Some(header) = field(bytes, 8).map(|len| 20usize.saturating_add(len + padding(len))) else { return };
    if header > bytes.len() {
        return;
    }
    let sum = crate::container::checksum(&bytes[..header]);
    bytes[12..20].copy_from_slice(&sum.to_le_bytes());
    let mut rest = &mut bytes[header..];
    while let Some(len) = chunk(rest) {
        rest = &mut rest[len..];
    }
}

/// The same for the chunk at the front of `bytes`; returns its length.
pub fn chunk(bytes: &mut [u8]) -> Option<usize> {
    let total = bytes.get(8..16).map(|b| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)))?;
    let total = usize::try_from(total).ok().filter(|total| (PREFIX..=bytes.len()).contains(total))?;
    let (header, carried, tiles) = (field(bytes, 16)?, field(bytes, 20)?, field(bytes, 24)?);
    let directory = PREFIX + header + padding(header) + carried;
    let payload = directory + tiles * ENTRY;
    if payload > total {
        return None;
    }
    let mut tile = payload;
    for entry in (0..tiles).map(|index| directory + index * ENTRY) {
        let len = field(bytes, entry)?;
        let end = tile.saturating_add(len + padding(len));
        if end > total {
            break;
        }
        let sum = xxh3_64(&bytes[tile..end]);
        bytes[entry + 4..entry + 12].copy_from_slice(&sum.to_le_bytes());
        tile = end;
    }
    let sum = checksum(&bytes[..payload]);
    bytes[32..40].copy_from_slice(&sum.to_le_bytes());
    Some(total)
}

fn field(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
}
