//! The longest stored prefix of a prompt.

use cacheg_core::{ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::{ContextId, Hash, Manifest, PrefixChain, Store, layout, read};

/// What `prefixes/{key}.json` holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pointer {
    pub(super) context: ContextId,
}

/// A pointer is a name; nothing longer is read.
const MOST: u64 = 4096;

/// A stored prefix of a prompt.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// Of a context that begins with it.
    pub manifest: Manifest,
    /// Chunks of that context that belong to the prefix.
    pub chunks: usize,
    /// Tokens of these.
    pub tokens: u64,
}

impl Store {
    /// Finds the longest prefix of `tokens` that the store has, in whole chunks; `None` if it has nothing of it.
    ///
    /// Stored chunks of `chunk_tokens` tokens are found, and behind the last of them a shorter one at the end of a
    /// context. Takes a request per chunk that is found, and two.
    ///
    /// # Errors
    /// What the transport reports. Pointers to contexts that are gone count as absent.
    pub async fn lookup(
        &self,
        fingerprint: &Hash,
        profile: Option<&Hash>,
        position: u64,
        tokens: &[u32],
        chunk_tokens: usize,
    ) -> Result<Option<Found>> {
        let mut chain = PrefixChain::of_tokens(fingerprint, profile, position);
        let mut found = None;
        for (index, chunk) in tokens.chunks(chunk_tokens.max(1)).enumerate() {
            let key = chain.next(chunk);
            let Some(context) = self.pointer(&key).await? else { break };
            found = Some((index + 1, key, context));
        }
        // The context may be gone: then what the one before it points to.
        let mut chain = PrefixChain::of_tokens(fingerprint, profile, position);
        let Some((mut count, mut key, mut context)) = found else {
            // A context shorter than a chunk has no whole one.
            return self.short(&mut chain, tokens).await;
        };
        loop {
            if let Some(manifest) = self.holding(&context, &key, count).await? {
                return Ok(Some(extend(manifest, count, tokens, (fingerprint, profile, position))));
            }
            count -= 1;
            if count == 0 {
                return Ok(None);
            }
            let mut chain = chain.clone();
            let keys = tokens.chunks(chunk_tokens.max(1)).take(count).map(|chunk| chain.next(chunk));
            let Some(last) = keys.last() else { return Ok(None) };
            let Some(pointed) = self.pointer(&last).await? else { return Ok(None) };
            (key, context) = (last, pointed);
        }
    }

    /// A context of exactly these tokens, which are fewer than a chunk.
    async fn short(&self, chain: &mut PrefixChain, tokens: &[u32]) -> Result<Option<Found>> {
        if tokens.is_empty() {
            return Ok(None);
        }
        let key = chain.next(tokens);
        let Some(context) = self.pointer(&key).await? else { return Ok(None) };
        let manifest = self.holding(&context, &key, 1).await?;
        Ok(manifest.map(|manifest| Found { manifest, chunks: 1, tokens: tokens.len() as u64 }))
    }

    /// Which context a prefix is known to be of.
    pub(super) async fn pointer(&self, key: &Hash) -> Result<Option<ContextId>> {
        match read::whole(&**self.transport(), &layout::prefix(key)?, MOST).await {
            // A damaged pointer is none: chunks can always be sent again.
            Ok(bytes) => Ok(serde_json::from_slice::<Pointer>(&bytes).ok().map(|pointer| pointer.context)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The context's manifest, if its chunk number `count` has that key.
    pub(super) async fn holding(&self, id: &ContextId, key: &Hash, count: usize) -> Result<Option<Manifest>> {
        match self.manifest(id).await {
            Ok(manifest) if manifest.chunks.get(count - 1).is_some_and(|chunk| chunk.key == *key) => {
                Ok(Some(manifest))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Behind the chunks that were found there may be others, of other lengths, that the prompt goes on with.
fn extend(
    manifest: Manifest,
    count: usize,
    tokens: &[u32],
    (fingerprint, profile, position): (&Hash, Option<&Hash>, u64),
) -> Found {
    let mut chain = PrefixChain::of_tokens(fingerprint, profile, position);
    let mut found = (0, 0usize);
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        let end = usize::try_from(chunk.tokens).ok().and_then(|n| found.1.checked_add(n));
        let Some(run) = end.and_then(|end| tokens.get(found.1..end)) else { break };
        if chain.next(run) != chunk.key {
            break;
        }
        found = (index + 1, found.1 + run.len());
    }
    debug_assert!(found.0 >= count, "the chunks that were found are a prefix");
    Found { manifest, chunks: found.0, tokens: found.1 as u64 }
}
