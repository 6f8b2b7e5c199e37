//! Arguments and inputs that several commands share.

use std::io::Read;
use std::path::{Path, PathBuf};

use cacheg::core::{Importance, ResultExt};
use cacheg::{Error, KvFile, Limits, Pipeline, Preset, Profile, Registry, Result, Statistics};

/// Which pipeline.
#[derive(clap::Args)]
pub(crate) struct PipelineArgs {
    /// A named pipeline; `cacheg presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with = "pipeline", default_value = "cachegen-paper")]
    pub(crate) preset: String,
    /// Quality level of the preset; 0 is best [default: the preset's own]
    #[arg(long, value_name = "N", conflicts_with = "pipeline")]
    pub(crate) level: Option<usize>,
    /// A pipeline as a spec string, e.g. 'mean|uniform(bits=4)|rans'; `cacheg stages` lists the stages
    #[arg(long, value_name = "SPEC")]
    pub(crate) pipeline: Option<String>,
}

impl PipelineArgs {
    /// The pipeline, its name for reports, and its tokens per chunk.
    pub(crate) fn build(&self, registry: &Registry) -> Result<(Pipeline, String, usize)> {
        let preset: &Preset = cacheg::preset(&self.preset)?;
        let spec = match &self.pipeline {
            Some(spec) => spec,
            None => preset.spec(self.level)?,
        };
        let name = if self.pipeline.is_some() { "custom" } else { preset.name };
        let chunk = if self.pipeline.is_some() { 1_500 } else { preset.chunk_tokens };
        Ok((Pipeline::parse(registry, spec)?, name.to_owned(), chunk))
    }
}

/// Opens a KV cache by memory map.
pub(crate) fn kv(path: &Path) -> Result<KvFile> {
    KvFile::open(path, &Limits::default())
}

/// How much attention its tokens got, if that is known and somebody asks.
pub(crate) fn importance(file: &KvFile, path: &Path, wanted: bool) -> Result<Option<Importance>> {
    if wanted { file.importance().at(|| path.display()) } else { Ok(None) }
}

/// Reads a profile, if one is given.
pub(crate) fn profile(path: Option<&PathBuf>) -> Result<Option<Profile>> {
    let Some(path) = path else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
    Profile::from_bytes(bytes).at(|| path.display()).map(Some)
}

/// Reads statistics, if some are given.
pub(crate) fn statistics(path: Option<&Path>) -> Result<Option<Statistics>> {
    path.map(Statistics::open).transpose()
}

/// Reads a container.
pub(crate) fn container(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io("cannot open", path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io("cannot open", path, e))?;
    if !metadata.is_file() {
        return Err(Error::unsupported(format!("{} is not a regular file", path.display())));
    }
    let room = usize::try_from(metadata.len()).unwrap_or(usize::MAX).saturating_add(1);
    if bytes.try_reserve_exact(room).is_err() {
        return Err(Error::limit(format!("no memory for {}", path.display())));
    }
    let mut file = file;
    file.read_to_end(&mut bytes).map_err(|e| Error::io("cannot read", path, e))?;
    Ok(bytes)
}
