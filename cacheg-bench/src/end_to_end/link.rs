//! The link between server and client.

use std::path::Path;

use cacheg::Result;

use super::namespaces::{Pair, SERVER};
use super::server::{self, Running};

/// What is between them.
pub(crate) enum Link {
    /// A shaped interface of the kernel. The server ends before its namespace does.
    Namespaces { server: Running, pair: Pair },
    /// Loopback, throttled in the client.
    Loopback { server: Running },
}

impl Link {
    /// Starts a server of this store and makes the link.
    pub(crate) async fn new(loopback: bool, store: &Path) -> Result<Self> {
        if loopback {
            return Ok(Self::Loopback { server: server::start(None, store, "127.0.0.1:0").await? });
        }
        let pair = Pair::create()?;
        let server = server::start(Some(pair.server()), store, &format!("{SERVER}:0")).await?;
        Ok(Self::Namespaces { server, pair })
    }

    /// Where the client runs.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Namespaces { pair, .. } => Some(pair.client()),
            Self::Loopback { .. } => None,
        }
    }

    /// Sets the rate; where the client finds the store now.
    pub(crate) fn shape(&self, mbps: f64) -> Result<String> {
        match self {
            Self::Namespaces { server, pair } => {
                pair.shape(mbps)?;
                Ok(server.url.clone())
            }
            Self::Loopback { server } => Ok(format!("shaped+{}#rate={mbps}Mbps", server.url)),
        }
    }

    /// For people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Namespaces { .. } => "two network namespaces, veth, tbf",
            Self::Loopback { .. } => "loopback, throttled in the client",
        }
    }
}
