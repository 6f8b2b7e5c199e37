//! Programs of cacheg-gpu on a second implementation of WebGPU: Dawn, by the npm package `webgpu`.
//!
//! Dawn wants a newer Vulkan driver than Debian 12 has: Mesa 25 from its backports is unpacked below `target`, beside the
//! installed one.

use std::path::{Path, PathBuf};

use crate::deps::works;
use crate::{Result, cargo, run, target_dir};

/// Files that `run.mjs` consists of.
const FILES: [&str; 3] = ["package.json", "package-lock.json", "run.mjs"];

/// Records programs with what must come out of them and runs them on Dawn.
///
/// # Errors
/// If Dawn computes something else, or what it needs cannot be had.
pub(crate) fn dawn(root: &Path) -> Result {
    let folder = PathBuf::from(target_dir()).join("dawn");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for file in FILES {
        let from = root.join("cacheg-gpu/dawn").join(file);
        std::fs::copy(&from, folder.join(file)).map_err(|e| format!("{}: {e}", from.display()))?;
    }
    let at = text(&folder);
    run("npm", &at, &[], &["ci", "--no-audit", "--no-fund", "--ignore-scripts"])?;
    let recordings = text(&folder.join("recordings"));
    cargo("", &[], &["run", "--release", "-p", "cacheg-gpu", "--example", "record", "--", &recordings])?;
    let env = mesa(&folder)?;
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (*key, value.as_str())).collect();
    run("node", &at, &env, &["run.mjs", &recordings])
}

/// Unpacks Mesa 25 on Debian 12, unless it is there; elsewhere the installed driver must do. Returns what makes Vulkan's
/// loader take it.
fn mesa(folder: &Path) -> Result<Vec<(&'static str, String)>> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.contains("VERSION_CODENAME=bookworm") || !works("apt-get", &["--version"]) {
        return Ok(Vec::new());
    }
    let root = folder.join("mesa");
    let icd = root.join("usr/share/vulkan/icd.d/lvp_icd.json");
    if !icd.exists() {
        let at = |name: &str| root.join(name).to_string_lossy().into_owned();
        for name in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(root.join(name)).map_err(|e| format!("{}: {e}", at(name)))?;
        }
        let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian";
        let sources = format!("deb {key} bookworm-backports main\ndeb {key} bookworm main\n");
        std::fs::write(root.join("sources.list"), sources).map_err(|e| e.to_string())?;
        // Lists and packages of its own: the machine's stay as they are.
        let options = [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
        ];
        let options: Vec<&str> = options.iter().flat_map(|option| ["-o", option.as_str()]).collect();
        run("apt-get", "", &[], &[&options[..], &["update"]].concat())?;
        let install =
            ["install", "--yes", "--download-only", "--no-install-recommends", "-t", "bookworm-backports"];
        let packages = ["--reinstall", "mesa-vulkan-drivers"];
        run("apt-get", "", &[], &[&options[..], &install[..], &packages[..]].concat())?;
        let archives = std::fs::read_dir(root.join("cache/archives")).map_err(|e| e.to_string())?;
        for path in archives.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_some_and(|extension| extension == "deb") {
                let path = path.to_string_lossy().into_owned();
                run("dpkg", "", &[], &["-x", &path, &root.to_string_lossy()])?;
            }
        }
    }
    let libraries = root.join("usr/lib/x86_64-linux-gnu").to_string_lossy().into_owned();
    Ok(vec![("LD_LIBRARY_PATH", libraries), ("VK_ICD_FILENAMES", icd.to_string_lossy().into_owned())])
}
