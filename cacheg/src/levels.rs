//! Levels of a publication by name: presets, one level of a preset, spec strings.

use cacheg_core::{Error, Pipeline, Registry, Result};
use cacheg_net::store::LevelSpec;

/// All levels of the presets in `presets`, or one of them (`fast@2`), then those of `specs`, each `NAME=SPEC`.
///
/// ```
/// let registry = cacheg::builtins()?;
/// let levels = cacheg::levels::parse(&registry, &["fast@1".into()], &["mine=mean|bins(step=0.5)|rans".into()])?;
/// let names: Vec<&str> = levels.iter().map(|level| &level.name[..]).collect();
/// assert_eq!(names, ["fast@1", "mine"]);
/// # Ok::<(), cacheg::Error>(())
/// ```
///
/// # Errors
/// Presets, levels and stages that do not exist.
pub fn parse(registry: &Registry, presets: &[String], specs: &[String]) -> Result<Vec<LevelSpec>> {
    let mut levels = Vec::new();
    for name in presets.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
        let (preset, only) = match name.split_once('@') {
            Some((preset, level)) => {
                let level: usize = level.parse().map_err(|_| {
                    Error::setting(format!("`{name}`: a number expected behind `@`, as in `fast@2`"))
                })?;
                (crate::preset(preset)?, Some(level))
            }
            None => (crate::preset(name)?, None),
        };
        for level in only.map_or(0..preset.levels.len(), |level| level..level.saturating_add(1)) {
            let pipeline = Pipeline::parse(registry, preset.spec(Some(level))?)?;
            levels.push(LevelSpec { name: format!("{}@{level}", preset.name), pipeline });
        }
    }
    for spec in specs {
        let (name, spec) = spec.split_once('=').ok_or_else(|| {
            Error::setting(format!("`{spec}`: NAME=SPEC expected, as in 'mine=mean|bins|rans'"))
        })?;
        levels.push(LevelSpec { name: name.to_owned(), pipeline: Pipeline::parse(registry, spec)? });
    }
    Ok(levels)
}
