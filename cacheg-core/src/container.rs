//! The self-contained file: a header with what was known of the KV cache, then its chunks.

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::chunk::{VERSION, check_tokens, check_version};
use crate::json;
use crate::wire::{Reader, padding};
use crate::{Chunk, Error, Geometry, Kept, Limits, Result, ResultExt};

const MAGIC: [u8; 4] = *b"CGKV";
const PREFIX: usize = 20;

/// What a container says of the KV cache as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerHeader {
    /// Number of chunks.
    pub chunks: u64,
    /// The model's geometry.
    pub geometry: Geometry,
    /// Metadata of the safetensors file it was made from.
    pub metadata: BTreeMap<String, String>,
    /// Position of the first token in the model's sequence.
    pub position: u64,
    /// Number of tokens.
    pub tokens: u64,
}

impl ContainerHeader {
    /// Writes the header; the chunks have to follow.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_to(&self, out: &mut dyn Write) -> std::io::Result<usize> {
        let header = json::canonical(self).map_err(std::io::Error::other)?;
        let len = u32::try_from(header.len()).ok().filter(|len| *len <= Limits::default().max_header);
        let len = len.ok_or_else(|| std::io::Error::other("metadata beyond the limit of a header"))?;
        let mut bytes = Vec::with_capacity(PREFIX + header.len() + 4);
        bytes.extend(MAGIC);
        bytes.extend(VERSION);
        bytes.extend([0, 0]);
        bytes.extend(len.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(&header);
        bytes.resize(bytes.len() + padding(header.len()), 0);
        let sum = checksum(&bytes);
        bytes[12..20].copy_from_slice(&sum.to_le_bytes());
        out.write_all(&bytes)?;
        Ok(bytes.len())
    }
}

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&bytes[..12]);
    hash.update(&bytes[PREFIX..]);
    hash.digest()
}

/// A container whose headers and directories have been checked.
#[derive(Debug)]
pub struct Container<'a> {
    /// What it says of the KV cache.
    pub header: ContainerHeader,
    /// Its chunks, in the order of their tokens.
    pub chunks: Vec<Chunk<'a>>,
    /// Bytes of the file's header.
    pub header_bytes: usize,
}

impl<'a> Container<'a> {
    /// Reads a container, all of `bytes`.
    ///
    /// # Errors
    /// Corrupt or truncated bytes, another version, sizes over the limits.
    pub fn parse(bytes: &'a [u8], limits: &Limits) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::corrupt("the file is empty"));
        }
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != MAGIC {
            return Err(Error::corrupt("not a cacheg container (no `CGKV` at its front)"));
        }
        check_version("container", [reader.u8()?, reader.u8()?], &[VERSION])?;
        if reader.u16()? != 0 {
            return Err(Error::unsupported("a container with unknown flags"));
        }
        let (len, sum) = (reader.u32()?, reader.u64()?);
        if len > limits.max_header {
            return Err(Error::limit(format!("a header of {len} bytes")));
        }
        let len = len as usize;
        let json = reader.take(len)?;
        reader.padding(len)?;
        let header_bytes = PREFIX + len + padding(len);
        if checksum(&bytes[..header_bytes]) != sum {
            return Err(Error::corrupt("checksum of the container's header"));
        }
        let header: ContainerHeader =
            serde_json::from_slice(json).map_err(|e| Error::corrupt(format!("container header: {e}")))?;
        header.geometry.validate(limits)?;
        if header.tokens > limits.max_tokens {
            return Err(Error::limit(format!("{} tokens", header.tokens)));
        }
        let tokens =
            usize::try_from(header.tokens).map_err(|_| Error::limit(format!("{} tokens", header.tokens)))?;
        if header.position.checked_add(header.tokens).is_none() {
            return Err(Error::corrupt("positions beyond 64 bits"));
        }
        let mut chunks: Vec<Chunk<'a>> = Vec::new();
        // How many tokens are left to decode, only the chunks know.
        let (mut next, mut rows, mut per_row) = (0, 0u64, 0u64);
        while next < tokens {
            let place = || format!("chunk {}", chunks.len());
            let chunk = Chunk::parse(reader.rest(), limits).at(place)?;
            let range = chunk.tokens();
            if *chunk.geometry() != header.geometry
                || range.start != next
                || range.end > tokens
                || range.is_empty()
                || header.position.checked_add(next as u64) != Some(chunk.position())
            {
                return Err(Error::corrupt("it does not belong here").at(place()));
            }
            next = range.end;
            rows += chunk.rows() as u64;
            check_tokens(rows, &header.geometry, limits)?;
            if let Some(bitmaps) = chunk.bitmaps() {
                // A number for each row of each head.
                per_row = size_of::<u32>() as u64 * bitmaps.count();
            }
            let sets = rows.saturating_mul(per_row);
            if sets > limits.max_output {
                return Err(Error::limit(format!("{sets} bytes of positions")));
            }
            reader.take(chunk.len())?;
            chunks.push(chunk);
        }
        if chunks.len() as u64 != header.chunks {
            return Err(Error::corrupt(format!(
                "{} chunks where {} are expected",
                chunks.len(),
                header.chunks
            )));
        }
        if !reader.rest().is_empty() {
            return Err(Error::corrupt(format!("{} bytes after the last chunk", reader.rest().len())));
        }
        Ok(Self { header, chunks, header_bytes })
    }

    /// Rows that it decodes to: its tokens, or those that every head has kept.
    pub fn rows(&self) -> usize {
        self.chunks.iter().map(Chunk::rows).sum()
    }

    /// Which tokens those are; `None` if nothing was dropped from any chunk.
    ///
    /// # Errors
    /// If tokens cannot be numbered in 32 bits.
    pub fn kept(&self) -> Result<Option<Kept>> {
        let Some(heads) = self.chunks.iter().find_map(|chunk| Some(chunk.bitmaps()?.heads().to_vec())) else {
            return Ok(None);
        };
        if self.header.tokens > u64::from(u32::MAX) {
            return Err(Error::limit(format!("dropped tokens among {}", self.header.tokens)));
        }
        let mut kept = Kept::empty(heads, self.header.position);
        for chunk in &self.chunks {
            kept.extend(chunk.tokens().len(), chunk.bitmaps());
        }
        Ok(Some(kept))
    }
}
