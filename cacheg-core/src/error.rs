//! One error type for the whole workspace; its kinds say whose fault it is.

use std::fmt::Display;
use std::path::Path;

/// Result with cacheg's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who is at fault, for callers that must decide what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes are not what their checksum, lengths or end state promise.
    Corrupt,
    /// Well-formed, but needs a newer reader, or something that is not linked or not implemented.
    Unsupported,
    /// A size in the input is beyond the configured [`Limits`](crate::Limits).
    Limit,
    /// The caller's data cannot be coded like this (NaN under a lossy pipeline, unequal tensors …).
    InvalidData,
    /// A pipeline, a stage or one of its settings is wrong.
    InvalidSetting,
    /// The profile is missing, of another model, or another one than the container names.
    Profile,
    /// The operating system said no.
    Io,
    /// A store does not have what was asked for.
    NotFound,
    /// A store refuses: a missing, wrong or expired token or right.
    Denied,
    /// Cannot be had now: no connection, a connection that broke off or fell silent, an overloaded server. Trying
    /// again later may help.
    Unavailable,
}

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// See [`ErrorKind::Corrupt`].
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// See [`ErrorKind::Unsupported`].
    #[error("not supported: {0}")]
    Unsupported(String),
    /// See [`ErrorKind::Limit`].
    #[error("over the limit: {0}")]
    Limit(String),
    /// See [`ErrorKind::InvalidData`].
    #[error("invalid data: {0}")]
    InvalidData(String),
    /// See [`ErrorKind::InvalidSetting`].
    #[error("invalid setting: {0}")]
    InvalidSetting(String),
    /// See [`ErrorKind::Profile`].
    #[error("profile: {0}")]
    Profile(String),
    /// See [`ErrorKind::Io`].
    #[error("{context}: {source}")]
    Io {
        /// What was attempted, with the path.
        context: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// See [`ErrorKind::NotFound`].
    #[error("not found: {0}")]
    NotFound(String),
    /// See [`ErrorKind::Denied`].
    #[error("denied: {0}")]
    Denied(String),
    /// See [`ErrorKind::Unavailable`].
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// An error inside a named place: a stage, a tensor, a file.
    #[error("{place}: {source}")]
    At {
        /// The stage, tensor or file.
        place: String,
        /// What happened there.
        source: Box<Error>,
    },
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $variant:ident),* $(,)?) => { $(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self { Self::$variant(message.into()) }
    )* };
}

impl Error {
    constructors! {
        /// A [`ErrorKind::Corrupt`] error.
        corrupt => Corrupt,
        /// A [`ErrorKind::Unsupported`] error.
        unsupported => Unsupported,
        /// A [`ErrorKind::Limit`] error.
        limit => Limit,
        /// A [`ErrorKind::InvalidData`] error.
        data => InvalidData,
        /// A [`ErrorKind::InvalidSetting`] error.
        setting => InvalidSetting,
        /// A [`ErrorKind::Profile`] error.
        profile => Profile,
        /// A [`ErrorKind::NotFound`] error.
        not_found => NotFound,
        /// A [`ErrorKind::Denied`] error.
        denied => Denied,
        /// A [`ErrorKind::Unavailable`] error.
        unavailable => Unavailable,
    }

    /// An [`ErrorKind::Io`] error: `what` was attempted on `path`.
    pub fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { context: format!("{what} {}", path.display()), source }
    }

    /// The same error, told from inside `place`.
    #[must_use]
    pub fn at(self, place: impl Display) -> Self {
        Self::At { place: place.to_string(), source: Box::new(self) }
    }

    /// Whose fault it is; contexts are looked through.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Limit(_) => ErrorKind::Limit,
            Self::InvalidData(_) => ErrorKind::InvalidData,
            Self::InvalidSetting(_) => ErrorKind::InvalidSetting,
            Self::Profile(_) => ErrorKind::Profile,
            Self::Io { .. } => ErrorKind::Io,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Denied(_) => ErrorKind::Denied,
            Self::Unavailable(_) => ErrorKind::Unavailable,
            Self::At { source, .. } => source.kind(),
        }
    }
}

/// Adds the place to the error of a `Result`.
pub trait ResultExt<T> {
    /// Like [`Error::at`]; `place` is evaluated only on errors.
    #[expect(clippy::missing_errors_doc, reason = "it only passes errors on")]
    fn at<P: Display>(self, place: impl FnOnce() -> P) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn at<P: Display>(self, place: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|e| e.at(place()))
    }
}
