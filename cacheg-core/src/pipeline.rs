//! A pipeline: stages built from a spec, not yet bound to a model.

use std::fmt;
use std::sync::Arc;

use crate::spec::{self, StageSpec};
use crate::{Build, Coder, Error, ExactTokens, Quantizer, Registry, Result, Select, Transform};

/// Perhaps a selection, transforms, a quantizer and a coder with their settings.
#[derive(Debug, Clone)]
pub struct Pipeline {
    select: Option<Arc<dyn Select>>,
    transforms: Vec<Arc<dyn Transform>>,
    quantizer: Arc<dyn Quantizer>,
    coder: Arc<dyn Coder>,
    specs: Vec<StageSpec>,
    /// The stage that wants exact tokens, and which.
    exact: Option<(usize, ExactTokens)>,
}

impl Pipeline {
    /// Builds the pipeline that a spec string (or its JSON) describes.
    ///
    /// # Errors
    /// Syntax errors, unknown stages, unknown or ill-typed settings, stages in the wrong order.
    pub fn parse(registry: &Registry, text: &str) -> Result<Self> {
        Self::new(registry, &spec::parse(text)?)
    }

    /// Builds the stages.
    ///
    /// # Errors
    /// Unknown stages, other format versions than the linked ones, bad settings, a wrong order.
    pub fn new(registry: &Registry, stages: &[StageSpec]) -> Result<Self> {
        if stages.len() > MAX_STAGES {
            return Err(Error::limit(format!(
                "a pipeline of {} stages; {MAX_STAGES} are possible",
                stages.len()
            )));
        }
        let mut select = None;
        let mut transforms: Vec<Arc<dyn Transform>> = Vec::new();
        let (mut quantizer, mut coder, mut exact) = (None, None, None);
        let mut specs = Vec::with_capacity(stages.len());
        for stage in stages {
            let plugin = registry.get(&stage.name)?;
            if let Some(version) = stage.version.filter(|version| *version != plugin.version) {
                return Err(Error::unsupported(format!(
                    "stage `{}` in format version {version}; the linked one (from {}) has version {}",
                    plugin.name, plugin.origin, plugin.version
                )));
            }
            let order = || Error::setting(format!("{} `{}`: {ORDER}", plugin.build.kind(), plugin.name));
            let mut config = match plugin.build {
                Build::Select(build) => {
                    if !specs.is_empty() {
                        return Err(order());
                    }
                    let built = build(&stage.config)?;
                    let config = built.config();
                    select = Some(built);
                    config
                }
                Build::Transform(build) => {
                    if quantizer.is_some() {
                        return Err(order());
                    }
                    let transform = build(&stage.config)?;
                    let config = transform.config();
                    let tokens = transform.exact_tokens();
                    if tokens != ExactTokens::default() {
                        if select.is_some() {
                            return Err(Error::setting(format!(
                                "`{}` cannot follow a stage that drops tokens: heads differ in what is first",
                                plugin.name
                            )));
                        }
                        if exact.replace((specs.len(), tokens)).is_some() {
                            return Err(Error::setting(format!(
                                "`{}`: another stage keeps tokens exactly already",
                                plugin.name
                            )));
                        }
                    }
                    transforms.push(transform);
                    config
                }
                Build::Quantizer(build) => {
                    let built = build(&stage.config)?;
                    let config = built.config();
                    if quantizer.replace(built).is_some() {
                        return Err(order());
                    }
                    config
                }
                Build::Coder(build) => {
                    let built = build(&stage.config)?;
                    let config = built.config();
                    if quantizer.is_none() || coder.replace(built).is_some() {
                        return Err(order());
                    }
                    config
                }
            };
            // Canonical whatever serde_json's features say: the bytes name profile sections.
            config.sort_all_objects();
            specs.push(StageSpec { name: stage.name.clone(), version: Some(plugin.version), config });
        }
        match (quantizer, coder) {
            (Some(quantizer), Some(coder)) => Ok(Self { select, transforms, quantizer, coder, specs, exact }),
            (None, _) => Err(Error::setting(format!("no quantizer: {ORDER}"))),
            (_, None) => Err(Error::setting(format!("no coder: {ORDER}"))),
        }
    }

    /// The stages with all settings and their format versions: what containers store.
    pub fn specs(&self) -> &[StageSpec] {
        &self.specs
    }

    /// Whether it drops tokens; its first stage then chooses which, and has no part in binding or decoding.
    pub fn selects(&self) -> bool {
        self.select.is_some()
    }

    pub(crate) fn select(&self) -> Option<&dyn Select> {
        self.select.as_deref()
    }

    /// Whether encoding, and calibration, go by how much attention tokens got ([`Importance`](crate::Importance)).
    pub fn wants_importance(&self) -> bool {
        self.selects() || self.quantizer.wants_importance()
    }

    /// Number of the stage that wants exact tokens, and which.
    pub(crate) fn exact(&self) -> Option<(usize, ExactTokens)> {
        self.exact
    }

    pub(crate) fn transforms(&self) -> &[Arc<dyn Transform>] {
        &self.transforms
    }

    pub(crate) fn quantizer(&self) -> &dyn Quantizer {
        &*self.quantizer
    }

    pub(crate) fn coder(&self) -> &dyn Coder {
        &*self.coder
    }
}

/// Each one is a pass over every tile, and the list may come from a file.
const MAX_STAGES: usize = 18;

const ORDER: &str = "a pipeline is at most one select stage, any number of transforms, one quantizer, one coder, in this order";

/// The spec string, all settings written out.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&spec::format(&self.specs))
    }
}
