//! What the commands that speak with stores share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cacheg::core::{OpenOptions, ResultExt, Transport};
use cacheg::net::store::Store;
use cacheg::{Error, Limits, Result};

/// How to reach a store.
#[derive(clap::Args)]
pub(crate) struct StoreArgs {
    /// File with a bearer token for HTTP stores [default: the environment variable CACHEG_TOKEN, if it is set]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with a certificate authority to trust beside the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How long a connection may take to be made, or stay silent
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

impl StoreArgs {
    /// How transports are to be opened.
    pub(crate) fn options(&self) -> Result<OpenOptions> {
        let token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
                Some(text.split_whitespace().next().unwrap_or_default().to_owned())
            }
            None => std::env::var("CACHEG_TOKEN").ok(),
        };
        let mut options = OpenOptions::default();
        options.token = token.filter(|token| !token.is_empty());
        options.authority.clone_from(&self.ca);
        options.patience = self.patience;
        Ok(options)
    }

    /// The transport of a URL, or a folder.
    pub(crate) fn transport(&self, url: &str) -> Result<Arc<dyn Transport>> {
        cacheg::transports()?.open(url, &self.options()?)
    }

    /// The store there.
    pub(crate) fn store(&self, url: &str) -> Result<Store> {
        Ok(Store::new(self.transport(url).at(|| shown(url))?, Limits::default()))
    }
}

/// A URL for messages: without what stands before an `@`, which may be a password.
pub(crate) fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

/// A runtime for a command that waits for stores.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Error::Io { context: "cannot start threads".into(), source })
}
