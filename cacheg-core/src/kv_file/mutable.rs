//! A KV cache in a file that is filled in place, in any order of tokens.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::MmapMut;

use super::mmap::map_mut;
use super::write::{header, in_file_order};
use crate::{Error, Geometry, KvView, KvViewMut, Order, Plane, Result};

/// A safetensors file as [`write_kv`](crate::write_kv) writes it, mapped for writing: rows that are decoded into
/// [`view_mut`](Self::view_mut) are in the file. Rows that nothing was written to are zero and take no space where the
/// file system can do that.
#[derive(Debug)]
pub struct KvFileMut {
    map: MmapMut,
    geometry: Geometry,
    tokens: usize,
    first_position: u64,
    /// Where each plane is in `map`, in the order of the geometry.
    planes: Vec<Range<usize>>,
    path: PathBuf,
}

impl KvFileMut {
    /// Lays the file out: `file`, opened for reading and writing, gets a header and its final length. A file that already
    /// has exactly this header and length keeps its rows; any other is emptied first. While the `KvFileMut` lives, nobody
    /// else may write to it or truncate it; `path` is for messages.
    ///
    /// # Errors
    /// If the file cannot be written or mapped, the disk is full, or the metadata is too long for a header.
    pub fn open(
        mut file: &File,
        path: &Path,
        geometry: &Geometry,
        tokens: usize,
        first_position: u64,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("writing", path, e);
        let planes = geometry.planes();
        let ordered = in_file_order(&planes);
        let header = header(&ordered, tokens, None, metadata, &[])?;
        let too_large = || Error::limit(format!("{tokens} tokens of {} bytes", geometry.bytes_per_token()));
        let plane_len = |plane: &Plane| {
            plane.channels().checked_mul(plane.shape.dtype.size()).and_then(|row| row.checked_mul(tokens))
        };
        let mut start = 8 + header.len();
        let mut ranges = vec![0..0; planes.len()];
        for plane in &ordered {
            let end = plane_len(plane).and_then(|len| start.checked_add(len)).ok_or_else(too_large)?;
            ranges[plane.index] = start..end;
            start = end;
        }
        let mut front = (header.len() as u64).to_le_bytes().to_vec();
        front.extend(&header);
        let kept = file.metadata().map_err(failed)?.len() == start as u64 && {
            let mut there = vec![0; front.len()];
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut there)).map_err(failed)?;
            there == front
        };
        if !kept {
            file.set_len(0).map_err(failed)?;
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&front)).map_err(failed)?;
            allocate(file, start as u64).map_err(failed)?;
        }
        let map = map_mut(file, path)?;
        if map.len() != start {
            return Err(Error::unsupported(format!("{} changed while it was opened", path.display())));
        }
        let (geometry, path) = (geometry.clone(), path.to_owned());
        Ok(Self { map, geometry, tokens, first_position, planes: ranges, path })
    }

    /// Borrows the KV cache for writing.
    ///
    /// # Errors
    /// Never: the file was laid out for it.
    pub fn view_mut(&mut self) -> Result<KvViewMut<'_>> {
        // Slices apart, in the order of the file, then in that of the geometry.
        let mut order: Vec<usize> = (0..self.planes.len()).collect();
        order.sort_by_key(|plane| self.planes[*plane].start);
        let mut slices: Vec<Option<&mut [u8]>> = self.planes.iter().map(|_| None).collect();
        let (mut rest, mut at) = (&mut self.map[..], 0);
        for plane in order {
            let range = self.planes[plane].clone();
            let (_, behind) = rest.split_at_mut(range.start - at);
            let (slice, behind) = behind.split_at_mut(range.len());
            (slices[plane], rest, at) = (Some(slice), behind, range.end);
        }
        let slices = slices.into_iter().flatten().collect();
        KvViewMut::new(&self.geometry, self.tokens, Order::HeadMajor, slices)
    }

    /// Borrows the KV cache.
    ///
    /// # Errors
    /// Never: the file was laid out for it.
    pub fn view(&self) -> Result<KvView<'_>> {
        let planes = self.planes.iter().map(|range| &self.map[range.clone()]).collect();
        KvView::new(self.geometry.clone(), self.tokens, self.first_position, Order::HeadMajor, planes)
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn sync(&self) -> Result<()> {
        self.map.flush().map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// Gives the file its length, and disk space where the system can reserve it: writing to a map when the disk is full
/// kills the process.
fn allocate(file: &File, len: u64) -> std::io::Result<()> {
    file.set_len(len)?;
    reserve(file, len)
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, len: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let len = i64::try_from(len).map_err(std::io::Error::other)?;
    // SAFETY: a system call on a descriptor that `file` keeps open; it takes no pointers.
    #[expect(unsafe_code, reason = "the standard library cannot reserve space")]
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        // File systems that cannot are left to the hope that there is room; an empty range is none.
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, KvCache, KvFile, Limits, kv_metadata, write_kv};
    use crate::{LayerGroup, Shape};

    fn geometry() -> Geometry {
        let shape = |heads, head_dim, dtype| Shape { heads, head_dim, dtype };
        let (key, value) = (Some(shape(2, 4, Dtype::F16)), Some(shape(2, 4, Dtype::F32)));
        let group = LayerGroup { repeat: 2, key, value, latent: None, rope: None };
        Geometry::new(vec![group]).unwrap()
    }

    #[test]
    fn filled_in_place_is_what_is_written_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kv");
        let cache = KvCache::from_fn(&geometry(), 5, |plane, token, channel| {
            (plane.index * 100 + token * 10 + channel) as f32
        });
        let metadata = kv_metadata(&cache.view());
        let mut whole = Vec::new();
        write_kv(&mut whole, &cache.view(), &metadata).unwrap();
        let open = || {
            let file =
                File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            KvFileMut::open(&file, &path, &geometry(), 5, 0, &metadata).unwrap()
        };
        for token in [3, 0, 4, 1, 2] {
            // Opened again and again: rows stay.
            let mut file = open();
            let mut view = file.view_mut().unwrap();
            for plane in view.planes_mut() {
                let index = plane.plane().index;
                let mut row = vec![0.0; plane.plane().channels()];
                cache.view().load(index, token, 1, &mut row);
                plane.store(token, 1, &row);
            }
            file.sync().unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(open().view().unwrap().plane_bytes(1), cache.view().plane_bytes(1));
        assert_eq!(KvFile::open(&path, &Limits::default()).unwrap().tokens(), 5);
        // Another layout: emptied.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let other = KvFileMut::open(&file, &path, &geometry(), 4, 0, &metadata).unwrap();
        assert!(other.view().unwrap().plane_bytes(0).iter().all(|byte| *byte == 0));
    }
}
