//! Where stored contexts are and how their bytes travel: [`Transport`], and the plug-ins that open one by URL.
//!
//! A transport is a flat set of immutable-sized **objects**, each named by a [`Key`]. Everything above it (layout,
//! atomic publishing, adaptive fetching) is the same on all of them. Futures are boxed, one per object or per page of a
//! listing; the trait names no runtime.
//!
//! # For implementations
//! * An object appears whole or not at all: no reader ever sees a part of what [`put`](Transport::put) is writing. A
//!   future that is dropped, or a process that is killed, leaves the whole object under the key or what was there before.
//! * A body belongs to one version of its object, or fails: never the beginning of one and the end of another.
//! * Lengths come from outside: what is longer or shorter than announced is [`Corrupt`](crate::ErrorKind::Corrupt), or
//!   [`Unavailable`](crate::ErrorKind::Unavailable) if it is shorter because a connection broke off. Nothing is
//!   allocated for an announcement.
//! * Whoever waits for an answer or for the next bytes gets an error soon after
//!   [`patience`](OpenOptions::patience) has passed in silence.
//! * Errors have the right kind: [`NotFound`](crate::ErrorKind::NotFound), [`Denied`](crate::ErrorKind::Denied),
//!   [`Unavailable`](crate::ErrorKind::Unavailable) for what may go away by itself. Messages name the URL, never a secret.
//! * Dropping a [`Body`] abandons the transfer: the bytes that were not read are not waited for.
//! * `cacheg_net::conformance` checks all of this.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{Error, Result};

/// A future that says no more of itself than a trait object can.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The name of an object: segments of letters, digits and `._=-`, none of which begins with a dot or is `-` (servers keep
/// that for themselves), joined by `/`. Any transport can hold it, and no key leads out of a store. A key should not be a folder of another one: where folders
/// are real, the second of `a` and `a/b` is refused as `InvalidData`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The longest key, in bytes.
    pub const MAX: usize = 512;
    /// The longest segment of a key, in bytes: what file systems take, and room for a suffix.
    pub const MAX_SEGMENT: usize = 240;

    /// Checks a name.
    ///
    /// # Errors
    /// If it is no key.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let segment = |segment: &str| {
            (1..=Self::MAX_SEGMENT).contains(&segment.len())
                && !segment.starts_with('.')
                && segment != "-"
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=-".contains(&b))
        };
        if name.len() > Self::MAX || !name.split('/').all(segment) {
            let shown: String = name.chars().take(64).collect();
            return Err(Error::data(format!(
                "{shown:?} is no object key (letters, digits, `._=-`, `/`; at most {} bytes, {} between slashes)",
                Self::MAX,
                Self::MAX_SEGMENT
            )));
        }
        Ok(Self(name))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a transport knows of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectMeta {
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written, if the transport keeps that.
    pub modified: Option<SystemTime>,
    /// Changes whenever the bytes do, if the transport has such a thing.
    pub etag: Option<String>,
}

impl ObjectMeta {
    /// Of an object of that size, nothing else known.
    pub fn new(size: u64) -> Self {
        Self { size, modified: None, etag: None }
    }
}

/// An object on its way here.
pub struct Body {
    /// Of the whole object.
    pub meta: ObjectMeta,
    /// The bytes of it that come.
    pub range: Range<u64>,
    /// The bytes.
    pub pieces: Box<dyn Pieces>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("meta", &self.meta).field("range", &self.range).finish_non_exhaustive()
    }
}

/// Bytes as they arrive.
pub trait Pieces: Send {
    /// The next ones (not empty), or `None` when exactly the announced range has come; a range that ends early or
    /// late is an error.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>>;
}

/// A part of a listing.
pub type Page = Vec<(Key, ObjectMeta)>;

/// A listing, page by page.
pub trait Listing: Send {
    /// The next page (not empty), or `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>>;
}

/// What to do if the key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Replace the object.
    Replace,
    /// Leave it and report [`PutOutcome::Exists`].
    Create,
}

/// What became of a [`Transport::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there with these bytes.
    Written,
    /// With [`Put::Create`]: another object has the key.
    Exists,
}

/// A store of objects.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Where it is, for messages: without tokens or passwords.
    fn url(&self) -> &str;

    /// Reads an object, or a range of it, which must be within it and not empty unless the object is.
    ///
    /// # Errors
    /// As all futures here: see the module. A range outside of the object is `InvalidData`.
    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>>;

    /// Writes an object.
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>>;

    /// What is known of an object; `NotFound` if there is none.
    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>>;

    /// Removes an object; removing what is not there is no error.
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>>;

    /// All objects below `folder` (`None`: all), in any order; `folder` is whole segments. Objects that come or go
    /// meanwhile may be listed or not.
    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a>;

    /// Removes what interrupted writes have left where [`list`](Self::list) does not show it, if it is older than
    /// `age`, and returns how many bytes that was. Most transports leave nothing.
    fn sweep(&self, age: Duration) -> BoxFuture<'_, Result<u64>> {
        let _ = age;
        Box::pin(async { Ok(0) })
    }
}

/// What transports are opened with, beside the URL.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Sent as a bearer token by transports that speak HTTP.
    pub token: Option<String>,
    /// PEM file of further certificate authorities to trust.
    pub authority: Option<PathBuf>,
    /// How long a connection may take to be made, or stay silent, before it counts as lost.
    pub patience: Duration,
    /// How often a request that failed for a reason that may go away is sent again before that is reported.
    pub retries: u32,
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("OpenOptions")
            .field("token", &token)
            .field("authority", &self.authority)
            .field("patience", &self.patience)
            .field("retries", &self.retries)
            .finish()
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { token: None, authority: None, patience: Duration::from_secs(10), retries: 3 }
    }
}

/// A transport that can be opened by URL. `const`-constructible; submit it with
/// [`register_transport!`](crate::register_transport).
#[derive(Debug, Clone, Copy)]
pub struct TransportPlugin {
    /// The URL scheme, lower case; with a final `+` the scheme is a prefix of another one (`shaped+http://…`).
    pub scheme: &'static str,
    /// The crate that brings it.
    pub origin: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// What its URLs look like.
    pub usage: &'static str,
    /// Opens it. Nothing is sent yet where that can be avoided.
    pub open: fn(url: &str, options: &OpenOptions, transports: &Transports) -> Result<Arc<dyn Transport>>,
}

/// A plug-in found by `inventory`; made by [`register_transport!`](crate::register_transport).
#[doc(hidden)]
#[derive(Debug)]
pub struct LinkedTransport(pub TransportPlugin);

inventory::collect!(LinkedTransport);

/// Registers a third-party transport, as [`register_stage!`](crate::register_stage) does stages.
#[macro_export]
macro_rules! register_transport {
    ($plugin:expr) => {
        $crate::__inventory::submit! { $crate::LinkedTransport($plugin) }
    };
}

/// The transports a program can use: an ordinary value, like [`Registry`](crate::Registry).
#[derive(Debug, Clone, Default)]
pub struct Transports {
    plugins: BTreeMap<&'static str, TransportPlugin>,
}

impl Transports {
    /// A registry of these.
    ///
    /// # Errors
    /// If two have the same scheme.
    pub fn new(plugins: impl IntoIterator<Item = TransportPlugin>) -> Result<Self> {
        plugins.into_iter().try_fold(Self::default(), Self::with)
    }

    /// Adds all transports that linked crates have submitted.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn with_linked(self) -> Result<Self> {
        inventory::iter::<LinkedTransport>.into_iter().try_fold(self, |all, linked| all.with(linked.0))
    }

    /// Adds one.
    ///
    /// # Errors
    /// If another origin has registered the scheme.
    pub fn with(mut self, plugin: TransportPlugin) -> Result<Self> {
        if let Some(other) = self.plugins.insert(plugin.scheme, plugin) {
            return Err(Error::setting(format!(
                "URL scheme `{}` is registered twice, by {} and by {}",
                plugin.scheme, other.origin, plugin.origin
            )));
        }
        Ok(self)
    }

    /// Opens a store. What has no scheme is a path, and opened as `file:`.
    ///
    /// # Errors
    /// If the scheme is unknown (the message lists those that are linked) or the URL is not what it takes.
    pub fn open(&self, url: &str, options: &OpenOptions) -> Result<Arc<dyn Transport>> {
        let (scheme, rest) = match url.split_once(':') {
            // One letter is a drive, not a scheme.
            Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
            _ => ("file", url),
        };
        let wrapped = scheme.split_once('+').and_then(|(outer, _)| self.plugins.get(&*format!("{outer}+")));
        let plugin = self.plugins.get(scheme).or(wrapped).ok_or_else(|| {
            let known: Vec<&str> = self.plugins.keys().copied().collect();
            Error::setting(format!(
                "unknown URL scheme `{scheme}:`; this program has {}. Some need a feature of the build",
                known.join(", ")
            ))
        })?;
        let url = if scheme.len() + rest.len() < url.len() { url.to_owned() } else { format!("file:{rest}") };
        (plugin.open)(&url, options, self)
    }

    /// All transports, by scheme.
    pub fn iter(&self) -> impl Iterator<Item = &TransportPlugin> {
        self.plugins.values()
    }
}

fn is_scheme(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_inside() {
        for good in ["a", "contexts/x-1/manifest.json", "chunks/ab/0-cd.cgkv", "a=b"] {
            assert_eq!(Key::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", ".part", "a/.b", "a b", "a%2f", "a\\b", "é", "a\0", "-",
            "-/a", "a/-",
        ] {
            assert!(Key::new(bad).is_err(), "{bad:?}");
        }
        let segment = "a".repeat(Key::MAX_SEGMENT);
        assert!(Key::new(segment.clone()).is_ok() && Key::new(format!("{segment}a")).is_err());
        let most = format!("{segment}/{segment}/{}", "a".repeat(Key::MAX - 2 * Key::MAX_SEGMENT - 2));
        assert!(Key::new(most.clone()).is_ok() && Key::new(format!("{most}a")).is_err());
    }

    fn plugin(scheme: &'static str) -> TransportPlugin {
        TransportPlugin {
            scheme,
            origin: "test",
            summary: "",
            usage: "",
            open: |url, _, _| Err(Error::data(format!("opened {url}"))),
        }
    }

    #[test]
    fn urls_find_their_transport() {
        let all = Transports::new([plugin("file"), plugin("http"), plugin("shaped+")]).unwrap();
        let open = |url: &str| all.open(url, &OpenOptions::default()).unwrap_err().to_string();
        assert!(open("http://x/y").contains("opened http://x/y"));
        assert!(open("some/folder").contains("opened file:some/folder"));
        assert!(open("file:/x").contains("opened file:/x"));
        assert!(open("C:\\x").contains("opened file:C:\\x"));
        assert!(open("shaped+http://x").contains("opened shaped+http://x"));
        let unknown = open("gopher://x");
        assert!(unknown.contains("gopher") && unknown.contains("file, http"), "{unknown}");
        assert!(all.with(plugin("http")).unwrap_err().to_string().contains("twice"));
        let shown = format!("{:?}", OpenOptions { token: Some("secret".into()), ..OpenOptions::default() });
        assert!(!shown.contains("secret"), "{shown}");
    }
}
