//! Token ids as a store holds them: one Zstandard frame of u32 (`FORMAT.md`, section 9.1).

use cacheg_core::{Error, Result};

/// Packs token ids.
pub(super) fn pack(tokens: &[u32]) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    zstd::bulk::compress(&bytes, 19)
        .map_err(|source| Error::Io { context: "compressing token ids".into(), source })
}

/// Unpacks as many token ids as the manifest says there are.
pub(super) fn unpack(bytes: &[u8], tokens: u64) -> Result<Vec<u32>> {
    let corrupt = || Error::corrupt(format!("text.zst does not hold {tokens} token ids"));
    let len = usize::try_from(tokens).ok().and_then(|n| n.checked_mul(4)).ok_or_else(corrupt)?;
    let stated = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten();
    if stated != Some(len as u64) {
        return Err(corrupt());
    }
    let bytes = zstd::bulk::decompress(bytes, len).map_err(|_| corrupt())?;
    if bytes.len() != len {
        return Err(corrupt());
    }
    Ok(bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_nothing_else() {
        let tokens: Vec<u32> = (0..1000).map(|i| i * i).collect();
        let packed = pack(&tokens).unwrap();
        assert_eq!(unpack(&packed, 1000).unwrap(), tokens);
        assert!(unpack(&packed, 999).is_err() && unpack(&packed, u64::MAX).is_err());
        for cut in 0..packed.len() {
            assert!(unpack(&packed[..cut], 1000).is_err());
        }
        assert!(unpack(b"nonsense", 2).is_err());
    }
}
