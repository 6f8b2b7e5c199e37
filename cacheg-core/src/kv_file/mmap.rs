//! The bytes of a file, mapped or in memory.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapMut};

use crate::{Error, Result};

/// A file's bytes.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(Mmap),
    Held(Cow<'static, [u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

/// Maps a regular file.
pub(super) fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let status = file.metadata().map_err(|e| Error::io("opening", path, e))?;
    if !status.is_file() {
        return Err(Error::unsupported("not a regular file, and only those can be mapped").at(path.display()));
    }
    if status.len() == 0 {
        return Err(Error::corrupt("the file is empty").at(path.display()));
    }
    // SAFETY: the map is private to this module's `Bytes`, read-only and as long as the file is now. What is
    // read from it is either copied before it is checked (the header) or plain numbers of which every bit
    // pattern is valid (the tensors), so a change behind our back cannot break what was checked. That nobody
    // changes or truncates the file meanwhile is asked of the caller by `KvFile::open`, as every reader that
    // maps files has to.
    #[expect(unsafe_code, reason = "mapping a file is how gigabytes of cache are read without a copy")]
    let map = unsafe { Mmap::map(&file) };
    map.map(Bytes::Mapped).map_err(|e| Error::io("mapping", path, e))
}

/// Maps a file that is ours alone for writing.
pub(super) fn map_mut(file: &File, path: &Path) -> Result<MmapMut> {
    // SAFETY: as above; bytes are plain numbers. That nobody else changes or truncates the file is asked of the caller
    // by `KvFileMut`.
    #[expect(unsafe_code, reason = "decoding straight into the file saves a copy of gigabytes")]
    let map = unsafe { MmapMut::map_mut(file) };
    map.map_err(|e| Error::io("mapping", path, e))
}
