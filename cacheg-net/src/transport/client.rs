//! The HTTP client that `http:` and `s3:` share: rustls with `ring`, no OpenSSL, and no waiting for what is silent.

use std::io::BufReader;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cacheg_core::{Error, OpenOptions, Result};
use http_body::{Body, Frame, SizeHint};
use reqwest::redirect::Policy;
use reqwest::{Client, Request, Response, Url};
use rustls_platform_verifier::Verifier;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const AGENT: &str = concat!("cacheg/", env!("CARGO_PKG_VERSION"));
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// Uploads are handed to the network in pieces of this many bytes, so that it shows whether they go on.
const PIECE: usize = 64 << 10;

/// A client for servers of this URL's kind.
pub(super) fn client(url: &Url, options: &OpenOptions) -> Result<Client> {
    let config = if url.scheme() == "https" { trusting(options)? } else { trusting_nobody()? };
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config)
        .user_agent(AGENT)
        .connect_timeout(options.patience)
        .redirect(Policy::custom(|attempt| {
            let from = attempt.previous().last().map(Url::scheme);
            if attempt.previous().len() > REDIRECTS {
                attempt.error("too many redirects")
            } else if from == Some("https") && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to http")
            } else {
                attempt.follow()
            }
        }));
    if is_loopback(url) {
        // No proxy can reach it.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| Error::setting(format!("no HTTP client: {}", reason(e))))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What the system trusts, and the given authorities.
fn trusting(options: &OpenOptions) -> Result<ClientConfig> {
    let mut roots = Vec::new();
    if let Some(path) = &options.authority {
        let file = std::fs::File::open(path).map_err(|e| Error::io("cannot open", path, e))?;
        let wrong = |e| Error::setting(format!("{}: {e}", path.display()));
        for certificate in CertificateDer::pem_reader_iter(BufReader::new(file)) {
            roots.push(certificate.map_err(wrong)?);
        }
        if roots.is_empty() {
            return Err(Error::setting(format!("{} has no certificate in PEM", path.display())));
        }
    }
    let provider = provider();
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider))
        .map_err(|e| Error::setting(format!("certificate authorities cannot be loaded: {e}")))?;
    let mut config = builder(provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// For plain HTTP, which shall not fail where no certificates are installed.
fn trusting_nobody() -> Result<ClientConfig> {
    Ok(builder(provider())?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<tokio_rustls::rustls::ConfigBuilder<ClientConfig, tokio_rustls::rustls::WantsVerifier>> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::setting(format!("no TLS: {e}")))
}

/// Why a request was not answered.
#[derive(Debug)]
pub(super) enum Failure {
    /// For so long nothing was heard or taken.
    Silent(Duration),
    /// Anything else.
    Broken(reqwest::Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(patience) => write!(f, "no answer for {patience:?}"),
            Self::Broken(error) => f.write_str(&chain(error)),
        }
    }
}

impl std::error::Error for Failure {}

/// Sends a request and waits for the answer's headers: `patience` after the last sign of life at the longest. That an
/// upload goes on is one.
pub(super) async fn send(
    client: &Client,
    mut request: Request,
    upload: Option<Bytes>,
    patience: Duration,
) -> std::result::Result<Response, Failure> {
    let life = Arc::new(Mutex::new(Instant::now()));
    let last = || *life.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(rest) = upload {
        *request.body_mut() = Some(reqwest::Body::wrap(Upload { rest, life: Arc::clone(&life) }));
    }
    let mut answer = std::pin::pin!(client.execute(request));
    loop {
        let until = last() + patience;
        match timeout_at(until, &mut answer).await {
            Ok(answer) => return answer.map_err(|e| Failure::Broken(e.without_url())),
            Err(_) if last() + patience > until => {}
            Err(_) => return Err(Failure::Silent(patience)),
        }
    }
}

struct Upload {
    rest: Bytes,
    /// When the network has last taken something.
    life: Arc<Mutex<Instant>>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Self::Error>>> {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let length = PIECE.min(self.rest.len());
        let piece = self.rest.split_to(length);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// The causes of an error, too; without the URL, which may have secrets.
pub(super) fn reason(error: reqwest::Error) -> String {
    chain(&error.without_url())
}

/// An error and its causes, in a line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some repeat their cause themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
