//! One connection, from its acceptance to its end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::Settings;
use super::activity::{Activity, Watched};
use super::service::{Shared, serve};

/// The smallest that HTTP/1 is read and written with; TLS records have this size, too.
const BUFFER: usize = 16 << 10;

/// How connections are served.
pub(crate) fn builder(settings: &Settings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let buffer = settings.max_header_bytes.max(BUFFER);
    // Time is the watchman's business: see `Activity`.
    let http1 = &mut builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(buffer);
    // More than hyper's own limit, which is the faster one.
    if settings.max_headers > 100 {
        http1.max_headers(settings.max_headers);
    }
    let headers = u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams.max(1))
        .max_header_list_size(headers)
        .max_send_buf_size(buffer.max(64 << 10))
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20);
    builder
}

/// Serves a connection until it is over, nothing happens on it any more, or `closing` turns true and it has answered
/// what it was asked.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    builder: Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    stream: TcpStream,
    peer: SocketAddr,
    closing: watch::Receiver<bool>,
) {
    shared.metrics.connections.inc();
    // Answers are written whole; waiting for more to send only delays their ends.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new());
    let stream = Watched::new(stream, Arc::clone(&activity));
    match tls {
        None => drive(&shared, &builder, stream, peer, activity, closing).await,
        Some(tls) => match timeout(shared.settings.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => drive(&shared, &builder, stream, peer, activity, closing).await,
            Ok(Err(error)) => tracing::debug!(target: "cacheg::serve", %peer, %error, "no TLS"),
            Err(_) => cut(&shared, peer),
        },
    }
    shared.metrics.connections.dec();
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    shared: &Arc<Shared>,
    builder: &Builder<TokioExecutor>,
    stream: S,
    peer: SocketAddr,
    activity: Arc<Activity>,
    mut closing: watch::Receiver<bool>,
) {
    let service = service_fn(|asked| serve(Arc::clone(shared), Arc::clone(&activity), peer, asked));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut told = false;
    loop {
        let left = activity.time_left(&shared.settings);
        if left.is_zero() {
            return cut(shared, peer);
        }
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(target: "cacheg::serve", %peer, %error, "connection");
                }
                return;
            }
            () = sleep(left) => {}
            _ = closing.wait_for(|closing| *closing), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn cut(shared: &Shared, peer: SocketAddr) {
    shared.metrics.connections_cut.inc();
    tracing::debug!(target: "cacheg::serve", %peer, "cut: nothing happened for too long");
}
