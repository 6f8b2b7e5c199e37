//! Two network namespaces joined by a shaped pair of virtual interfaces.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use cacheg::{Error, Result};

/// Names begin with this and the process's number, by which those that a killed process left are known.
const PREFIX: &str = "cacheg-bench-";

/// Where the server listens.
pub(crate) const SERVER: &str = "10.0.0.1";
const CLIENT: &str = "10.0.0.2";

/// The namespaces, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Pair {
    server: String,
    client: String,
    interface: String,
}

/// What a machine lacks for namespaces, if anything, and what to do about it.
pub(crate) fn missing() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let effective = user.and_then(|ids| ids.split_whitespace().nth(1));
    if effective.is_none() {
        return Some("network namespaces are Linux's".into());
    }
    if effective != Some("0") {
        return Some("network namespaces need root".into());
    }
    for program in ["ip", "tc"] {
        if Command::new(program).arg("-V").output().is_err() {
            return Some(format!("there is no `{program}` (Debian: apt-get install iproute2)"));
        }
    }
    None
}

impl Pair {
    /// Makes them, with an open link.
    pub(crate) fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if let Some(missing) = missing() {
            return Err(Error::unsupported(format!(
                "{missing}; --loopback measures on a simulated link in its place"
            )));
        }
        remove_orphans();
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let interface = |end: char| format!("cg{end}{id}");
        let pair = Self {
            server: format!("{PREFIX}{id}-s"),
            client: format!("{PREFIX}{id}-c"),
            interface: interface('s'),
        };
        let (near, far) = (&*pair.interface, &*interface('c'));
        // From here on whatever fails takes along what was made.
        for name in [&pair.server, &pair.client] {
            run("ip", &["netns", "add", name])?;
        }
        let peer = ["peer", "name", far, "netns", &pair.client];
        run("ip", &[&["-n", &pair.server, "link", "add", near, "type", "veth"][..], &peer].concat())?;
        for (name, interface, address) in [(&pair.server, near, SERVER), (&pair.client, far, CLIENT)] {
            let address = format!("{address}/30");
            run("ip", &["-n", name, "address", "add", &address, "dev", interface])?;
            run("ip", &["-n", name, "link", "set", interface, "up"])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(pair)
    }

    /// Where the server runs.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Where the client runs.
    pub(crate) fn client(&self) -> &str {
        &self.client
    }

    /// Limits what the server sends. A millisecond's worth may come at once, or what a card would send at once; what is
    /// more than 50 ms behind is dropped, as routers do, and TCP finds out.
    pub(crate) fn shape(&self, mbps: f64) -> Result<()> {
        let rate = format!("{}bit", (mbps * 1e6).round());
        let burst = format!("{}", ((mbps * 1e6 / 8.0 * 0.001) as u64).max(16 << 10));
        let limit = ["rate", &rate, "burst", &burst, "latency", "50ms"];
        let device = ["-n", &self.server, "qdisc", "replace", "dev", &self.interface, "root", "tbf"];
        run("tc", &[&device[..], &limit].concat())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            // It may not be there yet; interfaces go with their namespaces.
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

/// Removes what processes that were killed have left.
fn remove_orphans() {
    let Ok(all) = Command::new("ip").args(["netns", "list"]).output() else { return };
    for line in String::from_utf8_lossy(&all.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        let Some(process) = process.filter(|process| process.parse::<u32>().is_ok()) else { continue };
        if !Path::new("/proc").join(process).exists() {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .output()
        .map_err(|source| Error::Io { context: format!("cannot run `{program}`"), source })?;
    if out.status.success() {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "`{program} {}`: {}; --loopback measures on a simulated link in its place",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    )))
}
