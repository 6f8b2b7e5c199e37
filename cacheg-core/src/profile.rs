//! Profiles: what is calibrated once per model and shared by all its contexts.
//!
//! A profile is a safetensors file. Its name is the SHA-256 of its bytes, so that `sha256sum` can check one.
//! The data of a stage depends on the stages before it and on its own settings; a section is therefore named
//! by that run of stages, and pipelines that begin alike share sections.

use std::collections::HashMap;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::json;
use crate::spec::StageSpec;
use crate::tensor_file::{Header, quoted};
use crate::{Error, Geometry, Limits, Pipeline, Result, StageData};

/// Major and minor version of the file.
const VERSION: &str = "0.1";

/// Calibrated data of one model, for any number of pipelines.
#[derive(Debug, Clone)]
pub struct Profile {
    geometry: Geometry,
    sections: Vec<Section>,
    tokens: u64,
    contexts: u64,
    statistics: Option<String>,
    bytes: Vec<u8>,
    hash: String,
}

#[derive(Debug, Clone)]
struct Section {
    stages: Vec<StageSpec>,
    data: StageData,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SectionHeader {
    id: String,
    stages: Vec<StageSpec>,
}

impl Profile {
    /// A profile of these sections.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn new(
        geometry: Geometry,
        sections: Vec<(Vec<StageSpec>, StageData)>,
        contexts: u64,
        tokens: u64,
        statistics: Option<&str>,
    ) -> Result<Self> {
        let sections: Vec<Section> =
            sections.into_iter().map(|(stages, data)| Section { stages, data }).collect();
        // serde_json writes UTF-8.
        let text = |json: Vec<u8>| String::from_utf8_lossy(&json).into_owned();
        let headers: Vec<SectionHeader> = sections
            .iter()
            .enumerate()
            .map(|(index, section)| SectionHeader { id: format!("s{index}"), stages: section.stages.clone() })
            .collect();
        let mut metadata = HashMap::from([
            ("cacheg_profile".to_owned(), VERSION.to_owned()),
            ("geometry".to_owned(), text(json::canonical(&geometry)?)),
            ("sections".to_owned(), text(json::canonical(&headers)?)),
            ("contexts".to_owned(), contexts.to_string()),
            ("tokens".to_owned(), tokens.to_string()),
        ]);
        metadata.extend(statistics.map(|hash| ("statistics".to_owned(), hash.to_owned())));
        let mut views = Vec::new();
        for (header, section) in headers.iter().zip(&sections) {
            views.extend(
                section.data.tensors().map(|(name, tensor)| (format!("{}/{name}", header.id), tensor.view())),
            );
        }
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| Error::data(format!("profile: {e}")))?;
        // The crate writes metadata in the order of a hash map; the name of a profile must not depend on it.
        let bytes = canonical_header(bytes)?;
        let hash = hash(&bytes);
        let statistics = statistics.map(str::to_owned);
        Ok(Self { geometry, sections, tokens, contexts, statistics, bytes, hash })
    }

    /// What a pipeline needs of it, as a profile of its own.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn only(&self, pipeline: &Pipeline) -> Result<Self> {
        let needed = self.sections.iter().filter(|section| pipeline.specs().starts_with(&section.stages));
        let sections = needed.map(|section| (section.stages.clone(), section.data.clone())).collect();
        Self::new(self.geometry.clone(), sections, self.contexts, self.tokens, self.statistics.as_deref())
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// If the bytes are no profile, or one of a version that this reader does not know.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let bad = |what: String| Error::profile(format!("{what}; is this a .cgprof file?"));
        let header = Header::parse(&bytes, &Limits::default()).map_err(|e| bad(e.to_string()))?;
        let metadata = &header.metadata;
        let field = |key: &str| metadata.get(key).ok_or_else(|| bad(format!("no `{key}` in its metadata")));
        let version = field("cacheg_profile")?;
        if version != VERSION {
            return Err(Error::unsupported(format!(
                "profile version {version}; this reader knows {VERSION}"
            )));
        }
        let geometry: Geometry =
            serde_json::from_str(field("geometry")?).map_err(|e| bad(format!("geometry: {e}")))?;
        geometry.validate(&Limits::default())?;
        let headers: Vec<SectionHeader> =
            serde_json::from_str(field("sections")?).map_err(|e| bad(format!("sections: {e}")))?;
        let number = |key: &str| field(key)?.parse::<u64>().map_err(|e| bad(format!("{key}: {e}")));
        let (contexts, tokens) = (number("contexts")?, number("tokens")?);
        let statistics = metadata.get("statistics").cloned();
        if statistics.as_ref().is_some_and(|hash| !is_hash(hash)) {
            return Err(bad("`statistics` is no SHA-256".into()));
        }
        let mut sections: Vec<Section> =
            headers.iter().map(|h| Section { stages: h.stages.clone(), data: StageData::new() }).collect();
        for (name, tensor) in &header.tensors {
            let place = name.split_once('/').and_then(|(id, rest)| {
                headers.iter().position(|header| header.id == id).map(|index| (index, rest))
            });
            let (index, rest) =
                place.ok_or_else(|| bad(format!("tensor {} belongs to no section", quoted(name))))?;
            sections[index].data.insert(rest, tensor, &bytes)?;
        }
        let hash = hash(&bytes);
        Ok(Self { geometry, sections, tokens, contexts, statistics, bytes, hash })
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its name: SHA-256 of the file, lower-case hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The model it was calibrated for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How many contexts it was calibrated on.
    pub fn contexts(&self) -> u64 {
        self.contexts
    }

    /// How many tokens it was calibrated on.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// SHA-256 of the file of statistics that it was made with, if any were.
    pub fn statistics(&self) -> Option<&str> {
        self.statistics.as_deref()
    }

    /// The runs of stages it has data for.
    pub fn sections(&self) -> impl Iterator<Item = &[StageSpec]> {
        self.sections.iter().map(|section| section.stages.as_slice())
    }

    /// Whether it has all that a run of stages has asked for while calibrating.
    pub fn has(&self, stages: &[StageSpec]) -> bool {
        self.sections.iter().any(|section| section.stages == stages)
    }

    /// Data of the last of these stages.
    pub(crate) fn section(&self, stages: &[StageSpec]) -> Result<&StageData> {
        let found = self.sections.iter().find(|section| section.stages == stages);
        found.map(|section| &section.data).ok_or_else(|| {
            let known: Vec<String> = self.sections().map(|stages| format!("\n    {}", crate::spec::format(stages))).collect();
            Error::profile(format!(
                "profile {} has no data for `{}`; calibrate one with `--preset` or `--pipeline`. It was calibrated for{}",
                short(&self.hash),
                crate::spec::format(stages),
                known.concat()
            ))
        })
    }

    /// Refuses the profile of another model.
    pub(crate) fn check_geometry(&self, geometry: &Geometry) -> Result<()> {
        if self.geometry == *geometry {
            return Ok(());
        }
        let describe = |g: &Geometry| serde_json::to_string(g).unwrap_or_default();
        Err(Error::profile(format!(
            "profile {} is of another model: its geometry is {}, the KV cache's {}",
            short(&self.hash),
            describe(&self.geometry),
            describe(geometry)
        )))
    }
}

/// Enough of a hash to tell profiles apart in a message.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a safetensors header again with sorted keys; offsets and data stay.
fn canonical_header(bytes: Vec<u8>) -> Result<Vec<u8>> {
    let bad = |what: String| Error::data(format!("profile header: {what}"));
    let (size, _) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
    let mut header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + size]).map_err(|e| bad(e.to_string()))?;
    header.sort_all_objects();
    let mut text = serde_json::to_vec(&header).map_err(|e| bad(e.to_string()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(bytes.len());
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(&text);
    out.extend(&bytes[8 + size..]);
    Ok(out)
}
