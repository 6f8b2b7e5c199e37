//! Whether everything that a manifest promises is there.

use cacheg_core::{Chunk, Error, Result, ResultExt};

use super::{ContextId, Manifest, Store, layout, read};

/// One thing that is wrong with a context.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fault {
    /// The object's key.
    pub object: String,
    /// What is wrong with it.
    pub error: Error,
}

/// Reads all objects of a context and checks lengths, hashes, headers, and that they belong together; `done` is called
/// with the bytes of each. Holds one object at a time.
///
/// # Errors
/// If the manifest cannot be read; everything else that is wrong is a [`Fault`].
pub async fn verify(store: &Store, id: &ContextId, done: &(dyn Fn(u64) + Sync)) -> Result<Vec<Fault>> {
    let manifest = store.manifest(id).await?;
    let mut faults = Vec::new();
    if let Some(blob) = &manifest.profile {
        let checked = store.profile(&manifest).await.and_then(|profile| match profile {
            Some(profile) if *profile.geometry() != manifest.geometry => {
                Err(Error::corrupt("the profile is of another model"))
            }
            _ => Ok(()),
        });
        note(&mut faults, layout::profile(&blob.sha256)?.as_str(), checked);
        done(blob.bytes);
    }
    if let Some(blob) = &manifest.text {
        note(&mut faults, layout::text(id, &blob.sha256)?.as_str(), store.tokens(&manifest).await.map(drop));
        done(blob.bytes);
    }
    let starts = manifest.starts();
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        for (level, object) in &chunk.levels {
            let Some((key, _)) = manifest.object(index, level)? else { continue };
            let read = read::exact(&**store.transport(), &key, object.bytes, &object.sha256).await;
            let checked = read.and_then(|bytes| {
                check_chunk(&manifest, index, starts[index], level, &bytes, store)
                    .at(|| key.as_str().to_owned())
            });
            note(&mut faults, key.as_str(), checked);
            done(object.bytes);
        }
    }
    Ok(faults)
}

fn note(faults: &mut Vec<Fault>, object: &str, checked: Result<()>) {
    if let Err(error) = checked {
        faults.push(Fault { object: object.to_owned(), error });
    }
}

fn check_chunk(
    manifest: &Manifest,
    index: usize,
    first: u64,
    level: &str,
    bytes: &[u8],
    store: &Store,
) -> Result<()> {
    let chunk = Chunk::parse(bytes, store.limits())?;
    manifest.check_chunk(index, first, level, &chunk, bytes.len())
}

impl Manifest {
    /// Whether a chunk is what the manifest says; `first` is the index of its first token.
    ///
    /// # Errors
    /// If it is not; the message says in what.
    pub fn check_chunk(
        &self,
        index: usize,
        first: u64,
        level: &str,
        chunk: &Chunk<'_>,
        bytes: usize,
    ) -> Result<()> {
        let wrong = |what: &str| Err(Error::corrupt(format!("chunk {index} at `{level}`: {what}")));
        let (Some(said), Some(level)) = (self.chunks.get(index), self.level(level)) else {
            return wrong("the manifest knows no such chunk");
        };
        let tokens = chunk.tokens();
        if *chunk.geometry() != self.geometry {
            return wrong("it is of another model");
        }
        if chunk.pipeline() != level.pipeline {
            return wrong("it has other stages");
        }
        if (tokens.start as u64, tokens.len() as u64) != (first, said.tokens)
            || Some(chunk.position()) != self.position.checked_add(first)
        {
            return wrong("it has other tokens");
        }
        if chunk.len() != bytes {
            return wrong("bytes follow it");
        }
        let profile = self.profile.as_ref().map(|blob| blob.sha256.as_str());
        if chunk.profile().is_some() && chunk.profile() != profile {
            return wrong("it needs another profile");
        }
        if chunk.selects() {
            return wrong("tokens were dropped from it");
        }
        Ok(())
    }
}
