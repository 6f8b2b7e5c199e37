//! Walking through the segments of a tile.

use cacheg_core::{Error, Result, Segment};

/// Symbols of all segments, or an error if that is more than memory can hold.
pub(crate) fn count(segments: &[Segment]) -> Result<usize> {
    segments
        .iter()
        .try_fold(0usize, |sum, segment| sum.checked_add(segment.rows.checked_mul(segment.cols)?))
        .ok_or_else(|| Error::limit("a tile of too many symbols"))
}

/// Checks that `symbols` are those of the segments.
pub(crate) fn check(segments: &[Segment], symbols: &[u8]) -> Result<()> {
    if count(segments)? == symbols.len() {
        Ok(())
    } else {
        Err(Error::data("as many symbols as the segments have are needed"))
    }
}

/// Checks that `out` can take whatever may come.
pub(crate) fn check_room(out: &[u8], max_len: usize) -> Result<()> {
    if out.len() >= max_len { Ok(()) } else { Err(Error::data("the output buffer is too short")) }
}

/// A symbol that its alphabet does not have, on the way in.
pub(crate) fn outside() -> Error {
    Error::data("a symbol outside its alphabet")
}
