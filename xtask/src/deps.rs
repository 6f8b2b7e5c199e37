//! The C library that the feature `peers` of cacheg-bench links with.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, run};

const PACKAGE: &str = "libhtscodecs-dev";
/// Comes with the package, wherever it is built for.
const HEADER: &str = "htscodecs/rANS_static4x16.h";

/// Installs it, unless it is there.
///
/// # Errors
/// If it is not there and cannot be installed; the message says what to do.
pub(crate) fn install() -> Result {
    if ["/usr/include", "/usr/local/include"].iter().any(|folder| Path::new(folder).join(HEADER).exists()) {
        eprintln!("\n== {PACKAGE} is installed");
        return Ok(());
    }
    if !works("apt-get", &["--version"]) {
        return Err(format!("htscodecs is missing, and there is no apt-get to install {PACKAGE} with"));
    }
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", PACKAGE])
}

/// Runs apt-get, as root where that can be had without asking.
fn apt(args: &[&str]) -> Result {
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    let result = if works("sudo", &["-n", "true"]) {
        run("sudo", "", &env, &[&["-n", "apt-get"], args].concat())
    } else {
        run("apt-get", "", &env, args)
    };
    result.map_err(|message| format!("{message}; install {PACKAGE} as root"))
}

fn works(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
