//! The oldest compiler: no dependency may need a newer one than `rust-version` promises. (That our own code
//! keeps to it is clippy's `incompatible_msrv`; the public CI also builds with that very compiler.)

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn metadata(root: &Path) -> Result<Value, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cannot run cargo metadata: {e}"))?;
    if !out.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)));
    }
    serde_json::from_slice(&out.stdout).map_err(|e| format!("cargo metadata: {e}"))
}

/// The packages of the workspace.
pub(crate) fn packages(root: &Path) -> Result<Vec<Value>, String> {
    let metadata = metadata(root)?;
    let members = metadata["workspace_members"].as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    Ok(packages.into_iter().filter(|package| members.contains(&package["id"])).collect())
}

fn version(text: &str) -> Vec<u32> {
    let mut parts: Vec<u32> = text.split('.').filter_map(|part| part.parse().ok()).collect();
    parts.resize(3, 0);
    parts
}

/// Fails if a dependency needs a newer compiler than the workspace promises.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let metadata = metadata(root)?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let own = packages
        .iter()
        .find(|package| package["name"] == "cacheg")
        .and_then(|package| package["rust_version"].as_str().map(str::to_owned))
        .ok_or("no rust-version in cacheg/Cargo.toml")?;
    let newer: Vec<String> = packages
        .iter()
        .filter_map(|package| Some((package["name"].as_str()?, package["rust_version"].as_str()?)))
        .filter(|(_, needs)| version(needs) > version(&own))
        .map(|(name, needs)| format!("{name} needs {needs}"))
        .collect();
    eprintln!("\n== MSRV {own}, {} packages", packages.len());
    if newer.is_empty() { Ok(()) } else { Err(format!("MSRV is {own}, but {}", newer.join(", "))) }
}
