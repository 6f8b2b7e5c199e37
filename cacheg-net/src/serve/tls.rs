//! TLS by rustls.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use cacheg_core::{Error, Result};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate with its key, ready to be used.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads a chain of certificates, the server's own first, and a private key, both in PEM files.
    ///
    /// # Errors
    /// `Io` if a file cannot be read; `InvalidSetting` if there is no certificate or key in it or they do not belong
    /// together.
    pub fn open(certificates: &Path, key: &Path) -> Result<Self> {
        let chain = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|e| pem(certificates, e))?;
        if chain.is_empty() {
            return Err(Error::setting(format!("no certificate in {}", certificates.display())));
        }
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| pem(key, e))?;
        let wrong = |e| Error::setting(format!("{} with {}: {e}", certificates.display(), key.display()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(wrong)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0))
    }
}

fn pem(path: &Path, error: PemError) -> Error {
    match error {
        PemError::Io(source) => Error::io("cannot read", path, source),
        PemError::NoItemsFound => Error::setting(format!("no PEM of the right kind in {}", path.display())),
        error => Error::setting(format!("{}: {error}", path.display())),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
