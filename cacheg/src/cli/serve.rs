//! `cacheg serve`

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use cacheg::core::OpenOptions;
use cacheg::net::serve::{Server, Settings, Tls, Tokens};
use cacheg::{Error, Result};
use serde_json::json;

use super::logging;

/// Threads that may wait for disks at a time. More only queue up in front of the same disks, each with a stack.
const DISK_THREADS: usize = 32;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg serve store --listen 127.0.0.1:8080\n  cacheg serve store --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem --token-file tokens\n  cacheg serve store --listen 127.0.0.1:0 --json      # any free port; the first line says which\n  cacheg serve store --writable --max-object 64MiB    # `cacheg publish` can write to it\n\nA token file has lines `TOKEN [EXPIRY]`, the expiry in UTC as in 2026-12-31T23:59:59Z. Without the file, the environment variable CACHEG_TOKEN is the one token; without both everybody may ask. CACHEG_STORE_TOKEN is sent to the store, if that is itself a server.\n\nMetrics for Prometheus are at /-/metrics, health at /-/health. SIGINT and SIGTERM stop accepting and let transfers finish."
)]
pub(crate) struct Args {
    /// The store: a folder, or a URL that `cacheg` can open
    #[arg(value_name = "DIR|URL")]
    store: String,
    /// Where to listen; port 0 is any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Allow PUT, DELETE and COPY
    #[arg(long)]
    writable: bool,
    /// The longest object that may be uploaded, and the memory that all uploads share
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    max_object: u64,
    /// File of the bearer tokens that are accepted
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the server's certificate and those that vouch for it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Requests at a time, over all connections; more wait a while, then get 503
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    max_requests: u32,
    /// Requests at a time on one HTTP/2 connection
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..))]
    max_streams: u32,
    /// A request's line and headers together
    #[arg(long, value_name = "SIZE", default_value = "32KiB", value_parser = size)]
    max_header: u64,
    /// How many headers a request may have
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..))]
    max_headers: u32,
    /// Time for TLS and the first request's headers
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    header_timeout: Duration,
    /// Time that a connection may be idle, or a transfer without progress
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    idle_timeout: Duration,
    /// Time that transfers have to finish when the server is told to stop
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How the log on stderr looks; CACHEG_LOG=warn leaves out requests
    #[arg(long, value_name = "FORM", default_value = "text")]
    log: Log,
    /// Say where it listens as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Log {
    Text,
    Json,
}

impl Args {
    /// Unlike other commands, a server says what it does.
    pub(crate) fn start_log(&self) {
        let form = match self.log {
            Log::Text => logging::Form::Text,
            Log::Json => logging::Form::Json,
        };
        logging::start("warn,cacheg=info", form);
    }

    fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.writable = self.writable;
        settings.tokens = match (&self.token_file, std::env::var("CACHEG_TOKEN")) {
            (Some(path), _) => Some(Tokens::open(path)?),
            (None, Ok(token)) => Some(Tokens::one(&token).map_err(|e| e.at("CACHEG_TOKEN"))?),
            (None, Err(std::env::VarError::NotPresent)) => None,
            // Not set as meant: never to be taken for no token.
            (None, Err(error)) => return Err(Error::setting(format!("CACHEG_TOKEN: {error}"))),
        };
        settings.tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some(Tls::open(cert, key)?),
            _ => None,
        };
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        settings.max_object = self.max_object;
        settings.max_connections = count(self.max_connections);
        settings.max_requests = count(self.max_requests);
        settings.max_streams = self.max_streams;
        settings.max_header_bytes = usize::try_from(self.max_header).unwrap_or(usize::MAX);
        settings.max_headers = count(self.max_headers);
        settings.header_timeout = self.header_timeout;
        settings.idle_timeout = self.idle_timeout;
        settings.grace = self.grace;
        Ok(settings)
    }
}

/// Serves until told to stop.
pub(crate) fn run(args: Args, threads: Option<u16>) -> Result<()> {
    let address = address(&args.listen)?;
    let settings = args.settings()?;
    warn_of_strangers(address, &settings);
    if !args.store.contains(':') && !args.writable && !std::path::Path::new(&args.store).is_dir() {
        return Err(Error::not_found(format!(
            "{} is no folder; with --writable it would be made by the first upload",
            args.store
        )));
    }
    let mut options = OpenOptions::default();
    options.token = std::env::var("CACHEG_STORE_TOKEN").ok();
    raise_file_limit(args.max_connections);

    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        runtime.worker_threads(usize::from(threads));
    }
    let runtime = runtime.max_blocking_threads(DISK_THREADS).enable_all().build();
    let runtime =
        runtime.map_err(|source| Error::Io { context: "cannot start the runtime".into(), source })?;
    let stopped = runtime.block_on(async {
        let store = cacheg::transports()?.open(&args.store, &options)?;
        let stop = signals()?;
        let server = Server::bind(store, address, settings).await?;
        ready(&server, args.json)?;
        Ok::<_, Error>(server.run(stop).await)
    })?;
    // Reads of transfers that were broken off need not be waited for.
    runtime.shutdown_background();
    if stopped.broken_off > 0 {
        tracing::warn!(target: "cacheg::serve", connections = stopped.broken_off, "broken off: --grace is over");
    }
    Ok(())
}

/// Tells scripts, which may be waiting for it, where the server listens.
fn ready(server: &Server, json: bool) -> Result<()> {
    let url = server.url();
    let line = if json {
        json!({"url": url, "address": server.address().to_string()}).to_string()
    } else {
        format!("listening on {url}")
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|source| Error::Io { context: "cannot write to stdout".into(), source })
}

/// Ready at the first SIGINT or SIGTERM.
fn signals() -> Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let io = |source| Error::Io { context: "cannot wait for signals".into(), source };
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt()).map_err(io)?, signal(SignalKind::terminate()).map_err(io)?);
        Ok(async move {
            std::future::poll_fn(|cx| {
                if interrupt.poll_recv(cx).is_ready() || terminate.poll_recv(cx).is_ready() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        let _ = tokio::signal::ctrl_c().await;
    })
}

fn address(listen: &str) -> Result<SocketAddr> {
    let wrong = |why: String| {
        Error::setting(format!("--listen {listen}: {why}; it is HOST:PORT, e.g. 127.0.0.1:8080 or [::1]:0"))
    };
    let mut all = listen.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    all.next().ok_or_else(|| wrong("no such host".into()))
}

/// Open doors are allowed, but not by oversight.
fn warn_of_strangers(address: SocketAddr, settings: &Settings) {
    if address.ip().is_loopback() {
        return;
    }
    match (&settings.tokens, &settings.tls) {
        (None, _) if settings.writable => {
            tracing::warn!(target: "cacheg::serve", "anybody who reaches {address} can write; see --token-file");
        }
        (Some(_), None) => {
            tracing::warn!(target: "cacheg::serve", "tokens travel in plain text; see --tls-cert");
        }
        _ => {}
    }
}

/// A connection and the file it reads from are a descriptor each; the usual limit of 1,024 is soft.
fn raise_file_limit(connections: u32) {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let needed = u64::from(connections) * 2 + 64;
        let mut limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < needed) {
            limit.current = Some(limit.maximum.map_or(needed, |most| most.min(needed)));
            let raised = setrlimit(Resource::Nofile, limit);
            if raised.is_err() || limit.current.is_some_and(|current| current < needed) {
                tracing::warn!(
                    target: "cacheg::serve",
                    "--max-connections {connections} may need {needed} file descriptors; raise the limit (ulimit -Hn)"
                );
            }
        }
    }
    #[cfg(not(unix))]
    let _ = connections;
}

/// `64MiB`, `1GB`, `1000`: bytes.
fn size(text: &str) -> std::result::Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err("a size is like 64MiB, 1GB or 1000".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size is like 64MiB, 1GB or 1000".to_owned())?;
    match number.checked_mul(factor) {
        None | Some(0) => Err("out of range".into()),
        Some(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("32KiB", 32_768), ("2 mb", 2_000_000), ("1GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "MiB", "-1", "1.5MiB", "1TB2", "99999999999GiB", "1e3"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("127.0.0.1:0").unwrap().port(), 0);
        assert!(address("[::1]:80").unwrap().is_ipv6());
        for bad in ["", "8080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"] {
            let message = address(bad).unwrap_err().to_string();
            assert!(message.contains("HOST:PORT"), "{message}");
        }
    }
}
