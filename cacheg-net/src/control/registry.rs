//! What can be built by name: policies, estimators, schedulers.

use std::collections::BTreeMap;
use std::fmt;

use cacheg_core::{Error, Result, ResultExt, spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Something that can be built by name from settings. `const`-constructible.
pub struct Plugin<T: ?Sized> {
    /// The name in spec strings: lower case, digits, `-`; third parties put a prefix and a dot before it.
    pub name: &'static str,
    /// The crate that brings it.
    pub origin: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// The settings and their defaults, as they are written in a spec string.
    pub usage: &'static str,
    /// Builds it from its settings, a JSON object.
    pub build: fn(&Value) -> Result<Box<T>>,
}

impl<T: ?Sized> Clone for Plugin<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Plugin<T> {}

impl<T: ?Sized> fmt::Debug for Plugin<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", self.usage, self.origin)
    }
}

/// The plug-ins of one kind that a program can use. An ordinary value: pass it on, extend it with
/// [`with`](Self::with).
#[derive(Debug)]
pub struct Registry<T: ?Sized> {
    kind: &'static str,
    plugins: BTreeMap<&'static str, Plugin<T>>,
}

impl<T: ?Sized> Clone for Registry<T> {
    fn clone(&self) -> Self {
        Self { kind: self.kind, plugins: self.plugins.clone() }
    }
}

impl<T: ?Sized> Registry<T> {
    /// A registry of these plug-ins; `kind` is for error messages (`policy`).
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn new(kind: &'static str, plugins: impl IntoIterator<Item = Plugin<T>>) -> Result<Self> {
        plugins.into_iter().try_fold(Self { kind, plugins: BTreeMap::new() }, Self::with)
    }

    /// Of plug-ins whose names are known to differ.
    pub(super) fn builtin(kind: &'static str, plugins: &[Plugin<T>]) -> Self {
        Self { kind, plugins: plugins.iter().map(|plugin| (plugin.name, *plugin)).collect() }
    }

    /// Adds one.
    ///
    /// # Errors
    /// If the name is malformed or already registered.
    pub fn with(mut self, plugin: Plugin<T>) -> Result<Self> {
        let kind = self.kind;
        if spec::parse(plugin.name).map_or(true, |stages| stages.len() != 1 || stages[0].name != plugin.name)
        {
            return Err(Error::setting(format!(
                "`{}` (from {}) is no name for a {kind}",
                plugin.name, plugin.origin
            )));
        }
        if let Some(other) = self.plugins.insert(plugin.name, plugin) {
            return Err(Error::setting(format!(
                "{kind} `{}` is registered twice, by {} and by {}",
                plugin.name, other.origin, plugin.origin
            )));
        }
        Ok(self)
    }

    /// Builds one from a spec string as for stages: `name` or `name(key=value;…)`.
    ///
    /// # Errors
    /// If the spec is malformed, the name unknown (the message lists what there is), or a setting wrong.
    pub fn build(&self, spec: &str) -> Result<Box<T>> {
        let kind = self.kind;
        let mut stages = spec::parse(spec)?;
        let (Some(stage), true) = (stages.pop(), stages.is_empty()) else {
            return Err(Error::setting(format!("`{spec}` names more than one {kind}")));
        };
        let plugin = self.plugins.get(stage.name.as_str()).ok_or_else(|| self.unknown(&stage.name))?;
        (plugin.build)(&stage.config).at(|| format!("{kind} `{spec}`"))
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Plugin<T>> {
        self.plugins.values()
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> = self.iter().map(|plugin| plugin.usage).collect();
        Error::setting(format!("unknown {} `{name}`. There are: {}", self.kind, known.join(", ")))
    }
}

/// Settings of a plug-in from JSON; its struct denies unknown fields.
///
/// # Errors
/// If they do not fit the struct.
pub(super) fn settings<S: DeserializeOwned>(config: &Value) -> Result<S> {
    let empty = Value::Object(serde_json::Map::new());
    let config = if config.is_null() { &empty } else { config };
    S::deserialize(config).map_err(|error| Error::setting(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Plugin<str> =
        Plugin { name: "nothing", origin: "a", summary: "", usage: "nothing(x=1)", build: |_| Ok("".into()) };

    #[test]
    fn names_are_checked_and_unknown_ones_list_what_there_is() {
        let registry = Registry::new("policy", [NOTHING]).unwrap();
        let message = registry.build("nothin").unwrap_err().to_string();
        assert!(message.contains("unknown policy `nothin`") && message.contains("nothing(x=1)"), "{message}");
        assert!(registry.build("nothing").is_ok());
        assert!(registry.build("nothing|nothing").is_err() && registry.build("nothing(").is_err());
        let twice = registry.clone().with(Plugin { origin: "b", ..NOTHING }).unwrap_err().to_string();
        assert!(twice.contains("by a and by b"), "{twice}");
        assert!(registry.with(Plugin { name: "No(", ..NOTHING }).is_err());
    }
}
