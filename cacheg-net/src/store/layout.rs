//! Which object is where: `FORMAT.md`, section 9.

use std::fmt;

use cacheg_core::spec::StageSpec;
use cacheg_core::{Error, Key, Result, canonical_json};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 in lower-case hexadecimal digits, 64 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(String);

impl Hash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_digest(Sha256::digest(bytes).into())
    }

    /// From the digest itself.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Hash {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(hex) {
            Ok(Self(text))
        } else {
            Err(Error::data("a SHA-256 has 64 lower-case hexadecimal digits"))
        }
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a context in its store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContextId(String);

impl ContextId {
    /// Checks a name.
    ///
    /// # Errors
    /// If it is not 1 to 64 lower-case letters, digits and inner `-`.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=64).contains(&name.len())
            && name.bytes().all(fits)
            && !name.starts_with('-')
            && !name.ends_with('-')
        {
            return Ok(Self(name));
        }
        let shown: String = name.chars().take(80).collect();
        Err(Error::setting(format!(
            "{shown:?} cannot name a context: 1 to 64 lower-case letters, digits and `-` inside"
        )))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContextId {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<ContextId> for String {
    fn from(id: ContextId) -> Self {
        id.0
    }
}

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names the stages of a level in object keys: 16 digits.
pub(super) fn stages_name(pipeline: &[StageSpec]) -> Result<String> {
    Ok(Hash::of(&canonical_json(&pipeline)?).as_str()[..16].to_owned())
}

pub(super) fn manifest(id: &ContextId) -> Result<Key> {
    Key::new(format!("contexts/{id}/manifest.json"))
}

pub(super) fn text(id: &ContextId, content: &Hash) -> Result<Key> {
    Key::new(format!("contexts/{id}/text-{content}.zst"))
}

pub(super) fn chunk_folder(key: &Hash) -> Result<Key> {
    Key::new(format!("chunks/{key}"))
}

pub(super) fn chunk(key: &Hash, stages: &str, content: &Hash) -> Result<Key> {
    Key::new(format!("chunks/{key}/{stages}-{content}.cgkc"))
}

pub(super) fn profile(hash: &Hash) -> Result<Key> {
    Key::new(format!("profiles/{hash}.cgprof"))
}

pub(super) fn prefix(key: &Hash) -> Result<Key> {
    Key::new(format!("prefixes/{key}.json"))
}

/// What an object is, by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Manifest(ContextId),
    Text(ContextId),
    Chunk { key: Hash, stages: String, content: Hash },
    Profile(Hash),
    Prefix(Hash),
}

/// Reads a key; `None` for objects that are not ours.
pub(super) fn parse(key: &Key) -> Option<Object> {
    let hash = |text: &str| Hash::try_from(text.to_owned()).ok();
    let segments: Vec<&str> = key.as_str().split('/').collect();
    match *segments.as_slice() {
        ["contexts", id, "manifest.json"] => Some(Object::Manifest(ContextId::new(id).ok()?)),
        ["contexts", id, name] => {
            hash(name.strip_prefix("text-")?.strip_suffix(".zst")?)?;
            Some(Object::Text(ContextId::new(id).ok()?))
        }
        ["chunks", key, name] => {
            let (stages, content) = name.strip_suffix(".cgkc")?.split_once('-')?;
            let named = stages.len() == 16 && stages.bytes().all(|b| b.is_ascii_hexdigit());
            named.then_some(())?;
            Some(Object::Chunk { key: hash(key)?, stages: stages.to_owned(), content: hash(content)? })
        }
        ["profiles", name] => Some(Object::Profile(hash(name.strip_suffix(".cgprof")?)?)),
        ["prefixes", name] => Some(Object::Prefix(hash(name.strip_suffix(".json")?)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "0-b", &"x".repeat(64)] {
            assert!(ContextId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a_b", &"x".repeat(65)] {
            assert!(ContextId::new(bad).is_err(), "{bad}");
        }
        // FIPS 180-4: the empty message.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Hash::of(b"").as_str(), empty);
        assert!(
            Hash::try_from(empty.to_uppercase()).is_err() && Hash::try_from(empty[1..].to_owned()).is_err()
        );
    }

    #[test]
    fn keys_and_back() {
        let (id, hash) = (ContextId::new("a-1").unwrap(), Hash::of(b"x"));
        let object =
            Object::Chunk { key: hash.clone(), stages: "0123456789abcdef".into(), content: Hash::of(b"y") };
        let key = chunk(&hash, "0123456789abcdef", &Hash::of(b"y")).unwrap();
        assert_eq!(parse(&key), Some(object));
        assert_eq!(parse(&manifest(&id).unwrap()), Some(Object::Manifest(id.clone())));
        assert_eq!(parse(&text(&id, &hash).unwrap()), Some(Object::Text(id)));
        assert_eq!(parse(&profile(&hash).unwrap()), Some(Object::Profile(hash.clone())));
        assert_eq!(parse(&prefix(&hash).unwrap()), Some(Object::Prefix(hash)));
        for other in ["x", "contexts/a/b", "chunks/a/b", "contexts/A/manifest.json"] {
            assert_eq!(parse(&Key::new(other).unwrap()), None, "{other}");
        }
    }
}
