//! Why a request is not answered as asked, and the one place where errors become status codes.

use cacheg_core::{Error, ErrorKind};
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

/// An answer that is none.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// Sent to the client.
    pub(crate) message: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Only for the log: may name files and other servers.
    pub(crate) cause: Option<Error>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), headers: Vec::new(), cause: None }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Overloaded or cut off from the store: worth trying again.
    pub(crate) fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).with(RETRY_AFTER, HeaderValue::from_static("1"))
    }
}

/// An error of the store. What it says stays in the log.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let mut refusal = match error.kind() {
            ErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, "no such object"),
            ErrorKind::Denied => Self::new(StatusCode::FORBIDDEN, "the store refuses"),
            ErrorKind::Unavailable => Self::unavailable("the store cannot be reached now"),
            ErrorKind::Limit => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too large for the store"),
            ErrorKind::InvalidData => Self::new(StatusCode::BAD_REQUEST, "the store cannot do this"),
            ErrorKind::Unsupported => Self::new(StatusCode::NOT_IMPLEMENTED, "the store cannot do this"),
            _ if is_full(&error) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "the store is full"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the store failed; the server's log says why"),
        };
        refusal.cause = Some(error);
        refusal
    }
}

fn is_full(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => {
            matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        }
        Error::At { source, .. } => is_full(source),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_status_and_keep_their_secrets() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let broken = std::io::Error::other("x");
        let path = std::path::Path::new("/secret");
        for (error, status) in [
            (Error::not_found("/secret"), 404),
            (Error::denied("/secret").at("x"), 403),
            (Error::unavailable("/secret"), 503),
            (Error::limit("/secret"), 413),
            (Error::data("/secret"), 400),
            (Error::unsupported("/secret"), 501),
            (Error::corrupt("/secret"), 500),
            (Error::io("write", path, full).at("put"), 507),
            (Error::io("write", path, broken), 500),
        ] {
            let refusal = Refusal::from(error);
            assert_eq!(refusal.status.as_u16(), status);
            assert!(!refusal.message.contains("secret"), "{}", refusal.message);
        }
    }
}
