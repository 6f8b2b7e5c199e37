//! Starting, asking and stopping it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cacheg"));
    command.current_dir(folder).arg("serve").args(args).env_remove("CACHEG_TOKEN").env_remove("CACHEG_LOG");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ended when dropped.
pub(crate) struct Served {
    child: Child,
    /// What it printed when it was ready.
    pub(crate) line: String,
    pub(crate) address: String,
}

impl Served {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let rest = line.split("127.0.0.1:").nth(1).unwrap_or_default();
        let port = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let address = format!("127.0.0.1:{port}");
        Self { child, line, address }
    }

    pub(crate) fn ask(&self, method: &str, path: &str, more: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Of `/proc/PID/status`, in KiB.
    pub(crate) fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; its status and what it logged.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
