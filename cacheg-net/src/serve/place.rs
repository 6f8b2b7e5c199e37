//! What a request's target names.

use cacheg_core::Key;
use http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::refusal::Refusal;

/// A target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The whole store.
    Root,
    /// An object, or the folder of that name; with a final slash only the folder.
    Object(Key, Folder),
    /// `/-/health`
    Health,
    /// `/-/metrics`
    Metrics,
    /// `*`, the server itself.
    Server,
}

/// Whether a target ended in a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Folder {
    No,
    Yes,
}

/// Finds out. Queries are ignored.
pub(crate) fn place(uri: &Uri) -> Result<Place, Refusal> {
    let path = match uri.path() {
        "/" => return Ok(Place::Root),
        "*" => return Ok(Place::Server),
        "/-/health" => return Ok(Place::Health),
        "/-/metrics" => return Ok(Place::Metrics),
        path => path.strip_prefix('/').ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "no path"))?,
    };
    // A key's own segments are divided by real slashes only: one name per object.
    if path.to_ascii_lowercase().contains("%2f") {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "an encoded slash is no part of an object key"));
    }
    let (path, folder) = path.strip_suffix('/').map_or((path, Folder::No), |path| (path, Folder::Yes));
    let name = percent_decode_str(path).decode_utf8_lossy();
    if name == "-" || name.starts_with("-/") {
        return Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "`/-/` is the server's own; it has health and metrics",
        ));
    }
    let key = Key::new(name).map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(Place::Object(key, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let at = |uri: &'static str| place(&Uri::from_static(uri));
        let object = |name: &str, folder| Place::Object(Key::new(name).unwrap(), folder);
        assert_eq!(at("/").unwrap(), Place::Root);
        assert_eq!(at("*").unwrap(), Place::Server);
        assert_eq!(at("/-/health").unwrap(), Place::Health);
        assert_eq!(at("/a/b.c?x=1").unwrap(), object("a/b.c", Folder::No));
        assert_eq!(at("/a/").unwrap(), object("a", Folder::Yes));
        assert_eq!(at("/%61%2E%3D").unwrap(), object("a.=", Folder::No));
        assert_eq!(at("http://host/a").unwrap(), object("a", Folder::No));
        for bad in [
            "/..",
            "/a/../b",
            "/%2e%2e/b",
            "/a/%2e%2E/b",
            "/a%2fb",
            "/a/..%2f..%2Fb",
            "/%252e%252e/b",
            "//a",
            "/a//b",
            "/a//",
            "/.hidden",
            "/a%00",
            "/a%0a",
            "/a%5cb",
            "/%ff",
            "/a%",
            "/%c3%a9",
        ] {
            assert_eq!(at(bad).unwrap_err().status, 400, "{bad}");
        }
        for own in ["/-", "/-/", "/-/x", "/%2d/x"] {
            assert_eq!(at(own).unwrap_err().status, 404, "{own}");
        }
    }
}
