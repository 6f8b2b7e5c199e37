//! Whole objects, checked while they arrive.

use cacheg_core::{Error, Key, Result, ResultExt, Transport};
use sha2::{Digest, Sha256};

use super::Hash;

/// Reads an object of at most `most` bytes.
pub(super) async fn whole(transport: &dyn Transport, key: &Key, most: u64) -> Result<Vec<u8>> {
    let place = || format!("{key} in {}", transport.url());
    let mut body = transport.get(key, None).await?;
    if body.meta.size > most {
        return Err(
            Error::limit(format!("{} bytes, at most {most} are expected", body.meta.size)).at(place())
        );
    }
    let mut bytes = Vec::new();
    while let Some(piece) = body.pieces.next().await? {
        // What was announced is the other side's word.
        if bytes.len() as u64 + piece.len() as u64 > most {
            return Err(Error::corrupt("longer than announced").at(place()));
        }
        let room = bytes.try_reserve(piece.len());
        room.map_err(|_| Error::limit("no memory for an object")).at(place)?;
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Reads an object of exactly these bytes.
pub(super) async fn exact(
    transport: &dyn Transport,
    key: &Key,
    bytes: u64,
    sha256: &Hash,
) -> Result<Vec<u8>> {
    let read = whole(transport, key, bytes).await?;
    if read.len() as u64 != bytes || Hash::from_digest(Sha256::digest(&read).into()) != *sha256 {
        let what = format!("it is not the object that its name promises ({} of {bytes} bytes)", read.len());
        return Err(Error::corrupt(what).at(format!("{key} in {}", transport.url())));
    }
    Ok(read)
}
