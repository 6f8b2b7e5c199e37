//! What the settings of several stages have in common.

use cacheg_core::{Error, List, Result};
use serde::{Deserialize, Serialize};

/// Settings of a stage that has none.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoSettings {}

/// An error that names the stage and the setting.
pub(crate) fn refuse(stage: &str, setting: &str, why: impl std::fmt::Display) -> Error {
    Error::setting(format!("`{setting}` {why}")).at(format!("stage `{stage}`"))
}

/// Checks a setting for keys and values: one value for both, or two.
///
/// # Errors
/// If there are more.
pub(crate) fn at_most_two<T: Copy>(stage: &str, setting: &str, list: &List<T>) -> Result<()> {
    match list.values().len() {
        1 | 2 => Ok(()),
        n => Err(refuse(stage, setting, format!("takes one value, or two (keys, values), not {n}"))),
    }
}
