//! A server in a process of its own, which ends with its parent.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cacheg::core::OpenOptions;
use cacheg::net::serve::{Server, Settings};
use cacheg::{Error, Result};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::child::Child;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The store's folder
    folder: PathBuf,
    listen: SocketAddr,
}

/// Serves until standard input ends: no server outlives who started it, however that ended.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.folder.to_str().ok_or_else(|| Error::setting("the folder's name is not UTF-8"))?;
    let transport = cacheg::transports()?.open(folder, &OpenOptions::default())?;
    let mut settings = Settings::default();
    settings.grace = Duration::from_millis(200);
    let runtime = crate::runtime()?;
    runtime.block_on(async {
        let server = Server::bind(transport, args.listen, settings).await?;
        let failed = |source| Error::Io { context: "cannot write to standard output".into(), source };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", json!({ "url": server.url() })).and_then(|()| out.flush()).map_err(failed)?;
        drop(out);
        let ended = async {
            let (mut input, mut byte) = (tokio::io::stdin(), [0]);
            while input.read(&mut byte).await.is_ok_and(|read| read > 0) {}
        };
        server.run(ended).await;
        Ok::<_, Error>(())
    })?;
    // The thread that waits for standard input need not be waited for.
    runtime.shutdown_background();
    Ok(())
}

/// A running server.
pub(crate) struct Running {
    /// Where it listens.
    pub(crate) url: String,
    /// Stops when this is dropped.
    child: Child,
}

impl Running {
    /// Its process, as long as it runs.
    pub(crate) fn process(&self) -> Option<u32> {
        self.child.id()
    }
}

/// Starts one, in a network namespace or not.
pub(crate) async fn start(namespace: Option<&str>, folder: &Path, listen: &str) -> Result<Running> {
    let args = ["stream-serve".as_ref(), folder.as_os_str(), listen.as_ref()];
    let mut child = Child::start("the server", namespace, &args)?;
    let said: Value = child.hear().await?;
    let url = said["url"].as_str().ok_or_else(|| Error::data("the server does not say where it listens"))?;
    Ok(Running { url: url.to_owned(), child })
}
