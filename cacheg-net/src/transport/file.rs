//! `file:FOLDER`: objects as files.
//!
//! Files are written under a hidden temporary name beside their final one, synced, and renamed: readers see the old or
//! the new bytes, also after a crash. Symbolic links inside of the folder are never followed (the folder itself may be
//! one), so that nobody who can write into a store makes another program read or write outside of it. What is no object
//! (hidden files, names that are no keys, links, devices) is not listed.

use std::fs::{self, DirBuilder, File, ReadDir};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cacheg_core::{
    Body, BoxFuture, Error, Key, Listing, ObjectMeta, Page, Pieces, Put, PutOutcome, Result, Transport,
    TransportPlugin,
};

use super::check_range;

/// The plug-in.
pub(super) const PLUGIN: TransportPlugin = TransportPlugin {
    scheme: "file",
    origin: super::ORIGIN,
    summary: "a folder; what has no scheme is one, too",
    usage: "file:FOLDER (taken as it stands, no percent signs decoded), file:///FOLDER",
    open: |url, _, _| {
        let path = url.strip_prefix("file:").unwrap_or(url);
        let path = match path.strip_prefix("//") {
            None => path,
            Some(path) if path.starts_with('/') => path,
            Some(_) => {
                return Err(Error::setting(format!(
                    "{url}: files of other hosts cannot be had; write file:/FOLDER"
                )));
            }
        };
        Ok(Arc::new(FileStore::new(path)?))
    },
};

/// How much is written at once, in bytes.
const PIECE: usize = 1 << 20;
/// How much is read at once: what each of many slow readers holds in memory.
const READ: u64 = 256 << 10;
/// Objects in a page of a listing.
const PAGE: usize = 1_000;
const TEMPORARY: &str = ".cacheg-";
const SUFFIX: &str = ".part";

/// A folder of objects.
#[derive(Debug)]
pub struct FileStore {
    url: String,
    root: PathBuf,
}

impl FileStore {
    /// Of this folder, which is made when the first object is written.
    ///
    /// # Errors
    /// If the path is empty.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if root.as_os_str().is_empty() {
            return Err(Error::setting("file: needs a folder; the present one is file:."));
        }
        Ok(Self { url: format!("file:{}", root.display()), root })
    }

    fn place(&self, key: &Key) -> Place {
        Place { url: self.url.clone(), root: self.root.clone(), key: key.clone() }
    }
}

impl Transport for FileStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Body>> {
        let place = self.place(key);
        Box::pin(blocking(move || place.read(range)))
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes, mode: Put) -> BoxFuture<'a, Result<PutOutcome>> {
        let place = self.place(key);
        Box::pin(async move {
            let claim = Claim::default();
            let theirs = Claim(Arc::clone(&claim.0));
            let _abandon = claim.on_drop();
            blocking(move || place.write(&bytes, mode, &theirs)).await
        })
    }

    fn head<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<ObjectMeta>> {
        let place = self.place(key);
        Box::pin(blocking(move || Ok(place.open()?.1)))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<()>> {
        let place = self.place(key);
        Box::pin(blocking(move || place.remove()))
    }

    fn list<'a>(&'a self, folder: Option<&'a Key>) -> Box<dyn Listing + 'a> {
        Box::new(Pages { walk: Some(Walk::new(self.root.clone(), folder)) })
    }

    fn sweep(&self, age: Duration) -> BoxFuture<'_, Result<u64>> {
        let root = self.root.clone();
        Box::pin(blocking(move || Walk::new(root, None).sweep(age)))
    }
}

/// Runs what waits for disks where it stops nobody else.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::unavailable(format!("file access was interrupted: {e}"))),
    }
}

/// Who decides whether a file is published: the thread that has written it, or the future that has been dropped
/// meanwhile. The first to ask wins.
#[derive(Debug, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    fn on_drop(self) -> impl Drop {
        struct Abandon(Claim);
        impl Drop for Abandon {
            fn drop(&mut self) {
                self.0.take();
            }
        }
        Abandon(self)
    }
}

/// Where an object is or will be.
struct Place {
    url: String,
    root: PathBuf,
    key: Key,
}

impl Place {
    fn path(&self) -> PathBuf {
        self.root.join(self.key.as_str())
    }

    fn missing(&self) -> Error {
        super::missing(&self.url, &self.key)
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => self.missing(),
            io::ErrorKind::PermissionDenied => {
                Error::denied(format!("cannot {what} {}: {error}", self.path().display()))
            }
            _ => Error::io(&format!("cannot {what}"), &self.path(), error),
        }
    }

    /// The folders above the object, from the root's child to its parent.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let key = self.key.as_str();
        key.match_indices('/').map(|(end, _)| self.root.join(&key[..end]))
    }

    /// Refuses links among the folders above the object; `make`: makes those that are missing.
    fn walk(&self, make: bool) -> Result<()> {
        if make {
            fs::create_dir_all(&self.root).map_err(|e| Error::io("cannot make folder", &self.root, e))?;
        }
        for folder in self.folders() {
            let found = match fs::symlink_metadata(&folder) {
                Err(e) if make && e.kind() == io::ErrorKind::NotFound => {
                    match DirBuilder::new().create(&folder) {
                        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(self.failed("make a folder for", e));
                        }
                        // Perhaps somebody else has made it, or something else.
                        _ => fs::symlink_metadata(&folder),
                    }
                }
                found => found,
            };
            let found = found.map_err(|e| self.failed("look for", e))?;
            if found.is_symlink() {
                return Err(Error::denied(format!(
                    "{} is a symbolic link; those are not followed inside of a store",
                    folder.display()
                )));
            }
            if make && !found.is_dir() {
                return Err(self.clash());
            }
        }
        Ok(())
    }

    fn clash(&self) -> Error {
        Error::data(format!(
            "{} cannot be written: part of the path is an object, or the path is a folder of others",
            super::at(&self.url, &self.key)
        ))
    }

    fn open(&self) -> Result<(File, ObjectMeta)> {
        self.walk(false)?;
        let mut options = File::options();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            // Waiting for somebody to write into a named pipe is not reading an object.
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        }
        let file = options.open(self.path()).map_err(|e| match fs::symlink_metadata(self.path()) {
            Ok(found) if found.is_symlink() => Error::denied(format!(
                "{} is a symbolic link; those are not followed inside of a store",
                self.path().display()
            )),
            _ => self.failed("open", e),
        })?;
        let found = file.metadata().map_err(|e| self.failed("look at", e))?;
        if !found.is_file() {
            return Err(self.missing());
        }
        Ok((file, object_meta(&found)))
    }

    fn read(self, range: Option<Range<u64>>) -> Result<Body> {
        let (mut file, meta) = self.open()?;
        let range = check_range(&self.url, &self.key, range, meta.size)?;
        file.seek(SeekFrom::Start(range.start)).map_err(|e| self.failed("read", e))?;
        let pieces = Reader { place: Some((self, file)), left: range.end - range.start };
        Ok(Body { meta, range, pieces: Box::new(pieces) })
    }

    fn write(&self, bytes: &[u8], mode: Put, claim: &Claim) -> Result<PutOutcome> {
        let path = self.path();
        if mode == Put::Create
            && self.walk(false).is_ok()
            && fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir())
        {
            // Only spares the writing: what decides comes below.
            return Ok(PutOutcome::Exists);
        }
        let folder = path.parent().unwrap_or(&self.root);
        let mut file = self.temporary(folder)?;
        for piece in bytes.chunks(PIECE) {
            if claim.0.load(Ordering::Relaxed) {
                break;
            }
            file.write_all(piece).map_err(|e| self.failed("write", e))?;
        }
        file.as_file().sync_all().map_err(|e| self.failed("write", e))?;
        if !claim.take() {
            return Err(Error::unavailable("the write was abandoned"));
        }
        let renamed = match mode {
            Put::Replace => file.persist(&path),
            Put::Create => file.persist_noclobber(&path),
        };
        match renamed.map_err(|e| e.error) {
            Ok(_) => {}
            Err(_) if path.is_dir() => return Err(self.clash()),
            Err(e) if mode == Put::Create && e.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(PutOutcome::Exists);
            }
            Err(e) => return Err(self.failed("write", e)),
        }
        sync_folder(folder).map_err(|e| self.failed("write", e))?;
        Ok(PutOutcome::Written)
    }

    /// A new file in the folder, which is made if it is missing.
    fn temporary(&self, folder: &Path) -> Result<tempfile::NamedTempFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As `File::create` would, instead of the owner-only mode of temporary files.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut attempts = 0;
        loop {
            // A folder that was emptied may be removed between the two steps; not for ever.
            let made = self
                .walk(true)
                .and_then(|()| builder.tempfile_in(folder).map_err(|e| self.failed("make a file for", e)));
            match made {
                Err(Error::NotFound(_)) if attempts < 100 => attempts += 1,
                made => return made,
            }
        }
    }

    fn remove(&self) -> Result<()> {
        match self.walk(false) {
            Err(Error::NotFound(_)) => return Ok(()),
            walked => walked?,
        }
        match fs::symlink_metadata(self.path()) {
            Ok(found) if found.is_dir() => return Ok(()),
            _ => {}
        }
        match fs::remove_file(self.path()).map_err(|e| self.failed("remove", e)) {
            Err(Error::NotFound(_)) => return Ok(()),
            removed => removed?,
        }
        // Folders are no objects: they go with the last one in them. Those that are not empty stay.
        let mut folders: Vec<PathBuf> = self.folders().collect();
        while folders.pop().is_some_and(|folder| fs::remove_dir(folder).is_ok()) {}
        Ok(())
    }
}

/// Makes a rename in it outlive a crash.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match File::open(folder).and_then(|folder| folder.sync_all()) {
            // Removed meanwhile, with the object.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    } else {
        Ok(())
    }
}

fn object_meta(found: &fs::Metadata) -> ObjectMeta {
    let mut meta = ObjectMeta::new(found.len());
    meta.modified = found.modified().ok();
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
    // A write makes a new file, whose number differs from that of the one it replaces even if the clock stands still.
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(found);
    #[cfg(not(unix))]
    let number = 0;
    meta.etag = meta
        .modified
        .and_then(since)
        .map(|time| format!("{:x}-{number:x}-{:x}", time.as_nanos(), found.len()));
    meta
}

struct Reader {
    /// `None` while a thread reads, and after an error.
    place: Option<(Place, File)>,
    left: u64,
}

impl Pieces for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            if self.left == 0 {
                return Ok(None);
            }
            let Some((place, mut file)) = self.place.take() else {
                return Err(Error::unavailable("an earlier piece could not be read"));
            };
            // At most a piece, and of a file that is really there.
            let want = self.left.min(READ);
            let read = blocking(move || {
                let mut piece = Vec::with_capacity(want as usize);
                (&mut file).take(want).read_to_end(&mut piece).map_err(|e| place.failed("read", e))?;
                if (piece.len() as u64) < want {
                    let object = super::at(&place.url, &place.key);
                    return Err(Error::corrupt(format!("{object} became shorter while it was read")));
                }
                Ok((place, file, piece))
            });
            let (place, file, piece) = read.await?;
            self.place = Some((place, file));
            self.left -= want;
            Ok(Some(piece.into()))
        })
    }
}

struct Pages {
    walk: Option<Walk>,
}

impl Listing for Pages {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>>> {
        Box::pin(async move {
            let Some(mut walk) = self.walk.take() else { return Ok(None) };
            let (walk, page) = blocking(move || {
                let mut page = Vec::new();
                while page.len() < PAGE {
                    match walk.next()? {
                        Some(Found::Object(key, meta)) => page.push((key, meta)),
                        Some(Found::Leftover(_)) => {}
                        None => break,
                    }
                }
                Ok((walk, page))
            })
            .await?;
            if page.is_empty() {
                return Ok(None);
            }
            self.walk = Some(walk);
            Ok(Some(page))
        })
    }
}

/// What is in a folder and those below it.
struct Walk {
    root: PathBuf,
    /// Folders to be read, as keys; `None` is the root.
    folders: Vec<Option<Key>>,
    reading: Option<(Option<Key>, ReadDir)>,
}

enum Found {
    Object(Key, ObjectMeta),
    /// What an interrupted write has left.
    Leftover(PathBuf),
}

impl Walk {
    fn new(root: PathBuf, folder: Option<&Key>) -> Self {
        Self { root, folders: vec![folder.cloned()], reading: None }
    }

    fn next(&mut self) -> Result<Option<Found>> {
        loop {
            let Some((folder, entries)) = &mut self.reading else {
                let Some(folder) = self.folders.pop() else { return Ok(None) };
                self.reading = self.open(&folder)?.map(|entries| (folder, entries));
                continue;
            };
            let place = || folder.as_ref().map_or(self.root.clone(), |key| self.root.join(key.as_str()));
            let entry = match entries.next() {
                None => {
                    self.reading = None;
                    continue;
                }
                Some(Err(e)) => return Err(Error::io("cannot list", &place(), e)),
                Some(Ok(entry)) => entry,
            };
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Not followed if it is a link. What has gone meanwhile is not there.
            let Ok(found) = entry.metadata() else { continue };
            if name.starts_with(TEMPORARY) && name.ends_with(SUFFIX) && found.is_file() {
                return Ok(Some(Found::Leftover(entry.path())));
            }
            let key = folder.as_ref().map_or(name.to_owned(), |folder| format!("{folder}/{name}"));
            let Ok(key) = Key::new(key) else { continue };
            if found.is_dir() {
                self.folders.push(Some(key));
            } else if found.is_file() {
                return Ok(Some(Found::Object(key, object_meta(&found))));
            }
        }
    }

    fn open(&self, folder: &Option<Key>) -> Result<Option<ReadDir>> {
        let mut path = self.root.clone();
        for segment in folder.iter().flat_map(|key| key.as_str().split('/')) {
            path.push(segment);
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                return Ok(None);
            }
        }
        match fs::read_dir(&path) {
            Ok(entries) => Ok(Some(entries)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(Error::denied(format!("cannot list {}: {e}", path.display())))
            }
            Err(e) => Err(Error::io("cannot list", &path, e)),
        }
    }

    fn sweep(mut self, age: Duration) -> Result<u64> {
        let mut removed = 0;
        while let Some(found) = self.next()? {
            let Found::Leftover(path) = found else { continue };
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let old = found.modified().is_ok_and(|time| time.elapsed().is_ok_and(|elapsed| elapsed >= age));
            if old && fs::remove_file(&path).is_ok() {
                removed += found.len();
            }
        }
        Ok(removed)
    }
}
