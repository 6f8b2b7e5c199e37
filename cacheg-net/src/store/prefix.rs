//! Prefix keys: contexts that begin alike share chunks (`FORMAT.md`, section 9.2).

use std::ops::Range;

use cacheg_core::{Geometry, KvView, Result, canonical_json};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Hash;

/// What makes two models' KV caches of the same tokens interchangeable: the geometry and the model's name.
///
/// # Errors
/// Never: geometries have JSON.
pub fn fingerprint(geometry: &Geometry, model: &str) -> Result<Hash> {
    Ok(Hash::of(&canonical_json(&json!({ "geometry": geometry, "model": model }))?))
}

/// The keys of a context's chunks, one after the other.
#[derive(Debug, Clone)]
pub struct PrefixChain {
    hash: [u8; 32],
}

impl PrefixChain {
    /// Of contexts whose token ids are known.
    pub fn of_tokens(fingerprint: &Hash, profile: Option<&Hash>, position: u64) -> Self {
        Self::new("cacheg prefix 1", fingerprint, profile, position)
    }

    /// Of contexts of which only the KV cache is known.
    pub fn of_content(fingerprint: &Hash, profile: Option<&Hash>, position: u64) -> Self {
        Self::new("cacheg content 1", fingerprint, profile, position)
    }

    fn new(kind: &str, fingerprint: &Hash, profile: Option<&Hash>, position: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_bytes());
        hash.update(digest(fingerprint));
        hash.update(profile.map_or([0; 32], digest));
        hash.update(position.to_le_bytes());
        Self { hash: hash.finalize().into() }
    }

    /// The key of the next chunk, which has these tokens.
    pub fn next(&mut self, tokens: &[u32]) -> Hash {
        let mut hash = Sha256::new();
        hash.update(self.hash);
        hash.update((tokens.len() as u32).to_le_bytes());
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        self.hash = hash.finalize().into();
        Hash::from_digest(self.hash)
    }

    /// The key of the next chunk, which has these rows of a KV cache.
    pub fn next_rows(&mut self, kv: &KvView<'_>, rows: Range<usize>) -> Hash {
        let mut content = Sha256::new();
        // Widening is exact, so that equal values are equal elements.
        let mut row = Vec::new();
        for plane in kv.planes() {
            row.resize(plane.channels(), 0.0f32);
            for token in rows.clone() {
                kv.load(plane.index, token, 1, &mut row);
                row.iter().for_each(|value| content.update(value.to_bits().to_le_bytes()));
            }
        }
        let mut hash = Sha256::new();
        hash.update(self.hash);
        hash.update((rows.len() as u32).to_le_bytes());
        hash.update(content.finalize());
        self.hash = hash.finalize().into();
        Hash::from_digest(self.hash)
    }
}

fn digest(hash: &Hash) -> [u8; 32] {
    let digits = hash.as_str().as_bytes();
    let value = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
    std::array::from_fn(|i| value(digits[2 * i]) << 4 | value(digits[2 * i + 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_tell_apart_what_differs() {
        let (a, b) = (Hash::of(b"a"), Hash::of(b"b"));
        assert_eq!(Hash::from_digest(digest(&a)), a);
        let first = |mut chain: PrefixChain| chain.next(&[1, 2]);
        let chain = || PrefixChain::of_tokens(&a, None, 0);
        let all = [
            first(chain()),
            first(PrefixChain::of_tokens(&b, None, 0)),
            first(PrefixChain::of_tokens(&a, Some(&b), 0)),
            first(PrefixChain::of_tokens(&a, None, 1)),
            first(PrefixChain::of_content(&a, None, 0)),
            chain().next(&[1]),
            chain().next(&[2, 1]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        let (mut x, mut y) = (chain(), chain());
        assert_eq!(x.next(&[1, 2]), y.next(&[1, 2]));
        assert_eq!(x.next(&[3]), y.next(&[3]));
        y = chain();
        y.next(&[1, 9]);
        assert_ne!(x.next(&[4]), y.next(&[4]), "a chunk's key depends on all tokens before it");
    }

    /// The hashes, done by hand from the text of the format.
    #[test]
    fn as_specified() {
        let fingerprint = Hash::of(b"model");
        let mut bytes = b"cacheg prefix 1".to_vec();
        bytes.extend(Sha256::digest(b"model"));
        bytes.extend([0; 32]);
        bytes.extend(7u64.to_le_bytes());
        let mut next = Sha256::digest(&bytes).to_vec();
        next.extend(2u32.to_le_bytes());
        next.extend([5, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(PrefixChain::of_tokens(&fingerprint, None, 7).next(&[5, 256]), Hash::of(&next));
    }
}
