//! What tests and measurements need beside Rust: Debian's packages.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, run};

/// Set to anything but `0` or nothing, it keeps this program from installing packages. What needs them fails then.
const OPT_OUT: &str = "CACHEG_NO_INSTALL";

/// Installs what tests need, unless it is there: a Vulkan driver that works without a GPU, the server of cacheg-net's
/// `redis:` transport, and the clock that tests of `cacheg` set.
///
/// # Errors
/// As [`install`], of the first that fails; the others are tried all the same.
pub(crate) fn tests() -> Result {
    let driver = |folder: &str| {
        let files = std::fs::read_dir(format!("{folder}/vulkan/icd.d"));
        files.is_ok_and(|mut files| files.next().is_some())
    };
    let drivers = ["/usr/share", "/usr/local/share", "/etc"].into_iter().any(driver);
    let results = [
        install("mesa-vulkan-drivers", drivers),
        install("redis-server", works("redis-server", &["--version"])),
        install("faketime", works("faketime", &["-f", "+0", "true"])),
    ];
    results.into_iter().collect()
}

/// Installs the C library that the feature `peers` of cacheg-bench links with, unless it is there.
///
/// # Errors
/// As [`install`].
pub(crate) fn peers() -> Result {
    // Comes with the package, wherever it is built for.
    let header = "htscodecs/rANS_static4x16.h";
    let folders = ["/usr/include", "/usr/local/include"];
    install("libhtscodecs-dev", folders.iter().any(|folder| Path::new(folder).join(header).exists()))
}

/// Installs a package, unless it is there.
///
/// # Errors
/// If it is not there and cannot or shall not be installed; the message says what to do.
fn install(package: &str, there: bool) -> Result {
    if there {
        eprintln!("\n== {package} is installed");
        return Ok(());
    }
    if std::env::var(OPT_OUT).is_ok_and(|value| !matches!(&*value, "" | "0")) {
        return Err(format!("{package} is missing, and {OPT_OUT} is set: install it yourself"));
    }
    if !works("apt-get", &["--version"]) {
        return Err(format!("{package} is missing, and there is no apt-get to install it with"));
    }
    apt(package, &["update"])?;
    apt(package, &["install", "--yes", "--no-install-recommends", package])
}

/// Runs apt-get, as root where that can be had without asking.
fn apt(package: &str, args: &[&str]) -> Result {
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    let result = if works("sudo", &["-n", "true"]) {
        run("sudo", "", &env, &[&["-n", "apt-get"], args].concat())
    } else {
        run("apt-get", "", &env, args)
    };
    result.map_err(|message| format!("{message}; install {package} as root"))
}

pub(crate) fn works(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
