//! Where logs go and how they look.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "only servers log with time"))]
pub(crate) enum Form {
    /// For people who wait for a command: no time.
    Short,
    /// With time.
    Text,
    /// With time, one JSON object a line.
    Json,
}

/// Starts logging to stderr: `CACHEG_LOG`, or what `default` says.
pub(crate) fn start(default: &str, form: Form) {
    let filter = EnvFilter::try_from_env("CACHEG_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match form {
        Form::Short => log.without_time().init(),
        Form::Text => log.init(),
        Form::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
}
