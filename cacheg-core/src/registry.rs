//! Which stages exist: an explicit value, filled from a list and from what `inventory` finds linked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::{Coder, Error, Quantizer, Result, Select, Transform};

/// A stage that can be built by name. `const`-constructible; submit it with [`register_stage!`](crate::register_stage).
#[derive(Debug, Clone, Copy)]
pub struct Plugin {
    /// The name in spec strings: lower case, digits, `-`; third parties put a prefix and a dot before it.
    pub name: &'static str,
    /// Version of the bytes and of the arithmetic: a container names it, a reader that has another refuses.
    pub version: u32,
    /// The crate that brings it.
    pub origin: &'static str,
    /// One line for `cacheg stages`.
    pub summary: &'static str,
    /// The settings and their defaults, as they are written in a spec string.
    pub usage: &'static str,
    /// Builds it from its settings.
    pub build: Build,
}

/// How to build a stage of one kind from its JSON settings.
#[derive(Debug, Clone, Copy)]
pub enum Build {
    /// A selection of tokens.
    Select(fn(&Value) -> Result<Arc<dyn Select>>),
    /// A transform.
    Transform(fn(&Value) -> Result<Arc<dyn Transform>>),
    /// A quantizer.
    Quantizer(fn(&Value) -> Result<Arc<dyn Quantizer>>),
    /// An entropy coder.
    Coder(fn(&Value) -> Result<Arc<dyn Coder>>),
}

impl Build {
    /// `select`, `transform`, `quantizer` or `coder`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Select(_) => "select",
            Self::Transform(_) => "transform",
            Self::Quantizer(_) => "quantizer",
            Self::Coder(_) => "coder",
        }
    }
}

/// A plug-in found by `inventory`; made by [`register_stage!`](crate::register_stage).
#[doc(hidden)]
#[derive(Debug)]
pub struct Linked(pub Plugin);

inventory::collect!(Linked);

/// Registers a third-party stage with every program that links the crate **and names it** (`use the_crate as _;`
/// is enough): the linker drops crates that nobody names.
///
/// ```
/// # use cacheg_core::{Build, Error, Plugin};
/// const PLUGIN: Plugin = Plugin {
///     name: "acme.nothing",
///     version: 1,
///     origin: "acme",
///     summary: "refuses everything",
///     usage: "acme.nothing",
///     build: Build::Coder(|_| Err(Error::unsupported("on purpose"))),
/// };
/// cacheg_core::register_stage!(PLUGIN);
/// let registry = cacheg_core::Registry::new([]).unwrap().with_linked().unwrap();
/// assert!(registry.get("acme.nothing").is_ok());
/// ```
#[macro_export]
macro_rules! register_stage {
    ($plugin:expr) => {
        $crate::__inventory::submit! { $crate::Linked($plugin) }
    };
}

/// The stages a program can use. An ordinary value: pass it on, extend it with [`with`](Self::with).
#[derive(Debug, Clone, Default)]
pub struct Registry {
    plugins: BTreeMap<&'static str, Plugin>,
}

impl Registry {
    /// A registry of these stages; `cacheg::builtins()` is the usual start.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn new(plugins: impl IntoIterator<Item = Plugin>) -> Result<Self> {
        plugins.into_iter().try_fold(Self::default(), Self::with)
    }

    /// Adds all stages that linked crates have submitted.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn with_linked(self) -> Result<Self> {
        inventory::iter::<Linked>.into_iter().try_fold(self, |registry, linked| registry.with(linked.0))
    }

    /// Adds one stage.
    ///
    /// # Errors
    /// If the name is malformed or another origin has registered it.
    pub fn with(mut self, plugin: Plugin) -> Result<Self> {
        if !crate::spec::is_name(plugin.name) {
            return Err(Error::setting(format!(
                "`{}` (from {}) is no stage name",
                plugin.name, plugin.origin
            )));
        }
        if let Some(other) = self.plugins.insert(plugin.name, plugin) {
            return Err(Error::setting(format!(
                "stage `{}` is registered twice, by {} and by {}",
                plugin.name, other.origin, plugin.origin
            )));
        }
        Ok(self)
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// If there is none; the message lists what there is.
    pub fn get(&self, name: &str) -> Result<&Plugin> {
        self.plugins.get(name).ok_or_else(|| {
            let nearest = self
                .plugins
                .keys()
                .map(|known| (strsim::damerau_levenshtein(name, known), *known))
                .min()
                .filter(|(distance, known)| *distance <= known.len().div_ceil(3));
            let hint = nearest.map_or(String::new(), |(_, known)| format!("; did you mean `{known}`"));
            let known: Vec<&str> = self.plugins.keys().copied().collect();
            Error::setting(format!(
                "unknown stage `{name}`{hint}. Linked are: {}. A stage of another crate must be linked and \
                 named in the program (`use that_crate as _;`).",
                known.join(", ")
            ))
        })
    }

    /// All stages, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Plugin> {
        self.plugins.values()
    }
}

impl fmt::Display for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({}, from {})", self.name, self.version, self.build.kind(), self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &'static str, origin: &'static str) -> Plugin {
        let build = Build::Coder(|_| Err(Error::unsupported("test")));
        Plugin { name, version: 1, origin, summary: "", usage: "", build }
    }

    #[test]
    fn unknown_names_list_what_is_linked() {
        let registry = Registry::new([plugin("range", "a"), plugin("rans", "a")]).unwrap();
        let message = registry.get("rnas").unwrap_err().to_string();
        assert!(message.contains("did you mean `rans`") && message.contains("range"), "{message}");
        assert!(!registry.get("something-else").unwrap_err().to_string().contains("did you mean"));
        assert_eq!(registry.iter().map(|p| p.name).collect::<Vec<_>>(), ["range", "rans"]);
    }

    #[test]
    fn same_name_twice_names_both_origins() {
        let message = Registry::new([plugin("x", "one"), plugin("x", "two")]).unwrap_err().to_string();
        assert!(message.contains("one") && message.contains("two"), "{message}");
        assert!(Registry::new([plugin("No Name", "one")]).is_err());
    }
}
