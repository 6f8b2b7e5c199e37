//! What the server counts, in Prometheus' words.

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How `/-/metrics` is labelled.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    status: u16,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    seconds: Histogram,
    pub(crate) bytes_out: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) running: Gauge<i64, AtomicI64>,
    pub(crate) connections: Gauge<i64, AtomicI64>,
    pub(crate) connections_cut: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // From a manifest in memory to a large chunk over a slow link.
        let buckets =
            [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
        let mut all = Self {
            registry: Registry::with_prefix("cacheg_serve"),
            requests: Family::default(),
            seconds: Histogram::new(buckets),
            bytes_out: Counter::default(),
            bytes_in: Counter::default(),
            running: Gauge::default(),
            connections: Gauge::default(),
            connections_cut: Counter::default(),
        };
        let registry = &mut all.registry;
        registry.register("requests", "Requests answered", all.requests.clone());
        registry.register_with_unit(
            "request",
            "From a request's headers to the last byte of its answer",
            Unit::Seconds,
            all.seconds.clone(),
        );
        registry.register_with_unit("sent", "Bytes of answers", Unit::Bytes, all.bytes_out.clone());
        registry.register_with_unit("received", "Bytes of uploads", Unit::Bytes, all.bytes_in.clone());
        registry.register("requests_running", "Requests being answered", all.running.clone());
        registry.register("connections", "Open connections", all.connections.clone());
        registry.register(
            "connections_cut",
            "Connections closed because their peer did nothing",
            all.connections_cut.clone(),
        );
        all
    }

    pub(crate) fn answered(&self, method: &Method, status: StatusCode, after: Duration) {
        self.requests.get_or_create(&Labels { method: label(method), status: status.as_u16() }).inc();
        self.seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }
}

/// A client may invent methods; they must not become series.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "PUT", "DELETE", "PROPFIND", "COPY", "MKCOL", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_methods_are_one_series() {
        let metrics = Metrics::new();
        for name in ["GET", "A", "B\u{21}"] {
            let method = Method::from_bytes(name.as_bytes()).unwrap();
            metrics.answered(&method, StatusCode::OK, Duration::from_millis(3));
        }
        let text = metrics.text();
        assert!(text.contains("cacheg_serve_requests_total{method=\"GET\",status=\"200\"} 1"), "{text}");
        assert!(text.contains("cacheg_serve_requests_total{method=\"other\",status=\"200\"} 2"), "{text}");
        assert!(text.contains("cacheg_serve_request_seconds_bucket{le=\"0.005\"} 3"), "{text}");
        assert!(text.contains("cacheg_serve_sent_bytes_total 0"), "{text}");
    }
}
