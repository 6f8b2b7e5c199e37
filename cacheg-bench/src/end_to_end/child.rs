//! This program again, as a child that is spoken with in lines of JSON.

use std::ffi::OsStr;
use std::process::Stdio;

use cacheg::{Error, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

/// A child process; it is killed when this is dropped, and its standard input ends when this process does.
pub(crate) struct Child {
    what: &'static str,
    process: tokio::process::Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts this program with these arguments, in a network namespace if one is named.
    pub(crate) fn start(what: &'static str, namespace: Option<&str>, args: &[&OsStr]) -> Result<Self> {
        let failed = |source| Error::Io { context: format!("cannot start {what}"), source };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = match namespace {
            Some(namespace) => {
                // Replaces itself by the program: the child is what is asked for, with nothing between.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::data(format!("{what} has no pipes")));
        };
        Ok(Self { what, process, input, lines: BufReader::new(output).lines() })
    }

    /// Its process, as long as it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Its next line.
    pub(crate) async fn hear(&mut self) -> Result<Value> {
        let failed = |source| Error::Io { context: format!("cannot hear {}", self.what), source };
        match self.lines.next_line().await.map_err(failed)? {
            Some(line) => serde_json::from_str(&line)
                .map_err(|e| Error::data(format!("{} said something strange: {e}", self.what))),
            None => {
                let status = self.process.wait().await.map(|status| status.to_string());
                Err(Error::data(format!("{} has ended: {}", self.what, status.unwrap_or_default())))
            }
        }
    }

    /// Writes a line to it.
    #[cfg_attr(not(feature = "llm"), expect(dead_code, reason = "servers are only listened to"))]
    pub(crate) async fn tell(&mut self, what: &Value) -> Result<()> {
        let mut line = what.to_string();
        line.push('\n');
        let written = match self.input.write_all(line.as_bytes()).await {
            Ok(()) => self.input.flush().await,
            failed => failed,
        };
        written.map_err(|source| Error::Io { context: format!("cannot speak with {}", self.what), source })
    }
}
