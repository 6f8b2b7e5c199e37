//! Files that appear whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use cacheg_core::{Error, Result};
use tempfile::NamedTempFile;

/// A file under a temporary name in the target's folder, renamed when it is complete. Until then, and if the
/// program fails or is killed, nothing changes under the final name.
#[derive(Debug)]
pub struct OutputFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    force: bool,
}

impl OutputFile {
    /// Begins a file.
    ///
    /// # Errors
    /// If the path exists and `force` is not set, or if the folder cannot be written to.
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let target;
        let path = match std::fs::symlink_metadata(path) {
            Err(_) => path,
            Ok(found) if found.is_symlink() => {
                // What a link names is replaced, not the link; a dangling one names nothing we could check.
                target = path.canonicalize().map_err(|e| Error::io("cannot follow", path, e))?;
                &target
            }
            Ok(_) => path,
        };
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(exists(path, "it is not a regular file")),
            Ok(_) if !force => return Err(exists(path, "give --force to replace it")),
            _ => {}
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".cacheg-").suffix(".part");
        #[cfg(unix)]
        {
            // As `File::create` would, instead of the owner-only mode of temporary files.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file =
            builder.tempfile_in(folder).map_err(|e| Error::io("cannot create a file in", folder, e))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path: path.to_owned(), force })
    }

    /// Completes it.
    ///
    /// # Errors
    /// If the rest cannot be written, or if somebody has created the path meanwhile and `force` is not set.
    pub fn commit(self) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("cannot write", &self.path, e);
        let file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        let renamed: std::result::Result<File, tempfile::PersistError> =
            if self.force { file.persist(&self.path) } else { file.persist_noclobber(&self.path) };
        match renamed {
            Ok(_) => Ok(()),
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(exists(&self.path, "it appeared meanwhile; give --force to replace it"))
            }
            Err(e) => Err(failed(e.error)),
        }
    }
}

fn exists(path: &Path, what: &str) -> Error {
    Error::io(
        "cannot write",
        path,
        std::io::Error::new(std::io::ErrorKind::AlreadyExists, format!("it exists; {what}")),
    )
}

impl Write for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_appears_before_commit_and_nothing_is_replaced_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut file = OutputFile::create(&path, false).unwrap();
        file.write_all(b"one").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "an abandoned file is removed");

        let mut file = OutputFile::create(&path, false).unwrap();
        file.write_all(b"two").unwrap();
        std::fs::write(&path, "other").unwrap();
        assert!(file.commit().unwrap_err().to_string().contains("--force"));
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
        assert!(OutputFile::create(&path, false).unwrap_err().to_string().contains("--force"));

        let mut file = OutputFile::create(&path, true).unwrap();
        file.write_all(b"three").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert!(OutputFile::create(folder.path(), true).is_err());
        assert!(OutputFile::create(&folder.path().join("no/such"), false).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(OutputFile::create(&link, true).is_err(), "dangling");
        std::fs::write(&target, "old").unwrap();
        let mut file = OutputFile::create(&link, true).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        let error = OutputFile::create(Path::new("/dev/null"), true).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
