//! What a store says of a context (`FORMAT.md`, section 9.1).

use std::collections::BTreeMap;

use cacheg_core::spec::StageSpec;
use cacheg_core::{Error, Geometry, Limits, Result, canonical_json};
use serde::{Deserialize, Serialize};

use super::{ContextId, Hash, layout};

/// The version that is written, and the only one that is read.
const VERSION: &str = "0.1";

/// Levels of one context.
const MAX_LEVELS: usize = 64;

/// A context: its chunks, each at several levels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    cacheg_manifest: String,
    /// In the order of their tokens.
    pub chunks: Vec<ManifestChunk>,
    /// What distortions measure: [`NMSE`](super::NMSE) or a name that only compares with itself.
    pub distortion: String,
    /// The model's.
    pub geometry: Geometry,
    /// The context's name.
    pub id: ContextId,
    /// Best first.
    pub levels: Vec<Level>,
    /// Of the KV cache's file, without token ids.
    pub metadata: BTreeMap<String, String>,
    /// Whose KV cache it is.
    pub model: ModelName,
    /// Position of the first token in the model's sequence.
    pub position: u64,
    /// What levels that need a profile were encoded with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Blob>,
    /// Its token ids, if they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Blob>,
    /// Number of tokens.
    pub tokens: u64,
}

/// One chunk of a context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestChunk {
    /// Its prefix key.
    pub key: Hash,
    /// By level name.
    pub levels: BTreeMap<String, ChunkObject>,
    /// Number of tokens.
    pub tokens: u64,
}

/// One chunk at one level.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkObject {
    /// Its length.
    pub bytes: u64,
    /// How far it is from the original; see [`Manifest::distortion`].
    pub distortion: f64,
    /// Of its bytes.
    pub sha256: Hash,
}

/// A quality at which chunks are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Its name, unique in the context.
    pub name: String,
    /// Its stages.
    pub pipeline: Vec<StageSpec>,
}

impl Level {
    /// Whether a level can have this name.
    pub fn is_name(name: &str) -> bool {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._@-".contains(&b);
        (1..=64).contains(&name.len()) && name.bytes().all(fits)
    }
}

/// Whose KV cache it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelName {
    /// Hash of the geometry and the name: prefix keys begin with it.
    pub fingerprint: Hash,
    /// For people.
    pub name: String,
}

/// An object beside the chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Its length.
    pub bytes: u64,
    /// Of its bytes.
    pub sha256: Hash,
}

/// What a manifest is made of, before it is checked.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) id: ContextId,
    pub(super) geometry: Geometry,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) model: ModelName,
    pub(super) position: u64,
    pub(super) profile: Option<Blob>,
    pub(super) text: Option<Blob>,
    pub(super) distortion: &'static str,
    pub(super) levels: Vec<Level>,
    pub(super) chunks: Vec<ManifestChunk>,
}

impl Manifest {
    pub(super) fn new(parts: Parts, limits: &Limits) -> Result<Self> {
        let Parts { id, geometry, metadata, model, position, profile, text, distortion, levels, chunks } =
            parts;
        let tokens = chunks.iter().map(|chunk| chunk.tokens).sum();
        let manifest = Self {
            cacheg_manifest: VERSION.into(),
            chunks,
            distortion: distortion.into(),
            geometry,
            id,
            levels,
            metadata,
            model,
            position,
            profile,
            text,
            tokens,
        };
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// Reads a manifest; every number in it has been checked against the limits and the others.
    ///
    /// # Errors
    /// Bytes that are no manifest, of another version, that contradict themselves, or are over the limits.
    pub fn from_bytes(bytes: &[u8], limits: &Limits) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            cacheg_manifest: String,
        }
        if bytes.len() > limits.max_header as usize {
            return Err(Error::limit(format!("a manifest of {} bytes", bytes.len())));
        }
        let json = |e: serde_json::Error| Error::corrupt(format!("manifest: {e}"));
        // First of all: what a newer version has beside it, nobody here knows.
        let version: Version = serde_json::from_slice(bytes).map_err(json)?;
        if version.cacheg_manifest != VERSION {
            let shown: String = version.cacheg_manifest.chars().take(16).collect();
            return Err(Error::unsupported(format!("a manifest of version {shown:?}; this reads {VERSION}")));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check(limits)?;
        Ok(manifest)
    }

    /// As it is stored.
    ///
    /// # Errors
    /// If it is longer than a reader with these limits takes.
    pub fn to_bytes(&self, limits: &Limits) -> Result<Vec<u8>> {
        let bytes = canonical_json(self)?;
        if bytes.len() > limits.max_header as usize {
            return Err(Error::limit(format!("a manifest of {} bytes; take larger chunks", bytes.len())));
        }
        Ok(bytes)
    }

    fn check(&self, limits: &Limits) -> Result<()> {
        let corrupt = |what: String| Err(Error::corrupt(format!("manifest: {what}")));
        self.geometry.validate(limits)?;
        let per_token = self.geometry.bytes_per_token();
        if self.tokens > limits.max_tokens || self.tokens.saturating_mul(per_token) > limits.max_output {
            return Err(Error::limit(format!("{} tokens of {per_token} bytes", self.tokens)));
        }
        if self.tokens == 0 || self.position.checked_add(self.tokens).is_none() {
            return corrupt(format!("{} tokens at position {}", self.tokens, self.position));
        }
        if self.levels.len() > MAX_LEVELS {
            return Err(Error::limit(format!("{} levels", self.levels.len())));
        }
        for (i, level) in self.levels.iter().enumerate() {
            let name = &level.name;
            if !Level::is_name(name) {
                return corrupt("malformed level name".into());
            }
            if self.levels[..i].iter().any(|other| other.name == *name) {
                return corrupt(format!("two levels `{name}`"));
            }
        }
        let mut tokens = 0u64;
        for (i, chunk) in self.chunks.iter().enumerate() {
            tokens = tokens.saturating_add(chunk.tokens);
            if chunk.tokens == 0 || chunk.levels.is_empty() {
                return corrupt(format!("chunk {i} has no tokens or no levels"));
            }
            for (name, object) in &chunk.levels {
                if self.level(name).is_none() {
                    return corrupt(format!("chunk {i} has an unknown level"));
                }
                if !(object.distortion.is_finite() && object.distortion >= 0.0) {
                    return corrupt(format!("distortion of chunk {i} at `{name}`"));
                }
                // Coded worse than raw by a margin that no codec needs.
                let most = chunk.tokens.saturating_mul(per_token).saturating_mul(4).saturating_add(1 << 30);
                if object.bytes == 0 || object.bytes > most {
                    return Err(Error::limit(format!("chunk {i} at `{name}`: {} bytes", object.bytes)));
                }
            }
        }
        if tokens != self.tokens {
            return corrupt(format!("chunks of {tokens} tokens in a context of {}", self.tokens));
        }
        if let Some(text) = &self.text
            && text.bytes > 64 + 8 * self.tokens
        {
            return Err(Error::limit(format!("{} bytes of text for {} tokens", text.bytes, self.tokens)));
        }
        if let Some(profile) = &self.profile
            && profile.bytes > u64::from(limits.max_carried)
        {
            return Err(Error::limit(format!("a profile of {} bytes", profile.bytes)));
        }
        Ok(())
    }

    /// The level of that name.
    pub fn level(&self, name: &str) -> Option<&Level> {
        self.levels.iter().find(|level| level.name == name)
    }

    /// Index of the first token of each chunk, and of the end.
    pub fn starts(&self) -> Vec<u64> {
        let mut starts = vec![0];
        for chunk in &self.chunks {
            starts.push(starts[starts.len() - 1] + chunk.tokens);
        }
        starts
    }

    /// The key of a chunk's object at a level; `None` if there is none.
    ///
    /// # Errors
    /// Never, for manifests that were checked.
    pub fn object(&self, chunk: usize, level: &str) -> Result<Option<(cacheg_core::Key, &ChunkObject)>> {
        let Some((chunk, level)) = self.chunks.get(chunk).zip(self.level(level)) else { return Ok(None) };
        let Some(object) = chunk.levels.get(&level.name) else { return Ok(None) };
        let key = layout::chunk(&chunk.key, &layout::stages_name(&level.pipeline)?, &object.sha256)?;
        Ok(Some((key, object)))
    }
}
