//! Strong entity tags for objects, from what their transport knows.

use cacheg_core::{Key, ObjectMeta};
use sha2::{Digest, Sha256};

/// The largest object that is hashed for want of another tag, in bytes.
pub(crate) const HASHED: u64 = 256 << 10;

/// Whether an object never changes, because its name says what is in it.
pub(crate) fn is_immutable(key: &Key) -> bool {
    ["chunks/", "profiles/"].iter().any(|folder| key.as_str().starts_with(folder))
}

/// The tag as sent, with its quotes; `None` if only the bytes themselves could tell.
pub(crate) fn of(key: &Key, meta: &ObjectMeta) -> Option<String> {
    let strong = meta.etag.as_deref().filter(|etag| !etag.starts_with("W/") && !etag.is_empty());
    match strong {
        Some(etag) => Some(quoted(etag)),
        None if is_immutable(key) => Some(hashed(format!("{key} {}", meta.size).as_bytes())),
        None => None,
    }
}

/// The tag of these bytes.
pub(crate) fn hashed(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

fn quoted(etag: &str) -> String {
    let bare = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag);
    if bare.bytes().all(|b| b.is_ascii_graphic() && b != b'"') {
        format!("\"{bare}\"")
    } else {
        hashed(bare.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let key = |name: &str| Key::new(name).unwrap();
        let meta = |etag: Option<&str>| {
            let mut meta = ObjectMeta::new(5);
            meta.etag = etag.map(Into::into);
            meta
        };
        assert_eq!(of(&key("a"), &meta(Some("x-1"))).unwrap(), "\"x-1\"");
        assert_eq!(of(&key("a"), &meta(Some("\"x-1\""))).unwrap(), "\"x-1\"");
        assert_eq!(of(&key("a"), &meta(Some("W/\"x\""))), None);
        assert_eq!(of(&key("a"), &meta(None)), None);
        assert!(of(&key("chunks/a"), &meta(None)).is_some());
        assert_ne!(of(&key("chunks/a"), &meta(None)), of(&key("chunks/b"), &meta(None)));
        let odd = of(&key("a"), &meta(Some("x\r\ny"))).unwrap();
        assert!(odd.bytes().all(|b| b.is_ascii_graphic()), "{odd}");
    }
}
