//! Settings of the frequency tables, shared by `range` and `rans`.

use cacheg_core::{Error, Result, Source};
use serde::{Deserialize, Serialize};

/// What shares one frequency table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All planes of one kind: a table for each kind, part, symbol plane and alphabet.
    One,
    /// One plane: a table for each of its parts and symbol planes.
    Layer,
    /// One channel: a table for each column of each part and symbol plane.
    Channel,
    /// Channels that look alike: each channel names one of a few tables that all planes share.
    Class,
    /// Columns of equal deviation in steps, as the quantizer says (`steps` does): a table for each of its classes, keys
    /// apart from values.
    Scale,
}

/// How tables are made, from the settings of a coder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableSettings {
    /// Scope of tables from a profile.
    pub(crate) tables: Scope,
    /// Scope of tables that a chunk carries.
    pub(crate) carried: Scope,
    /// Most classes for each kind of histogram, 1 to 256.
    pub(crate) classes: usize,
    /// Carried tables are cumulative distributions of this many entries.
    pub(crate) cdf: Option<u16>,
    /// Small alphabets have contexts.
    pub(crate) contexts: bool,
}

impl TableSettings {
    /// Checks the settings.
    pub(crate) fn new(tables: Scope, carried: Option<Scope>, classes: u16, cdf: Option<u16>) -> Result<Self> {
        let carried = carried.unwrap_or(tables);
        if !(1..=256).contains(&classes) {
            return Err(Error::setting(format!("classes = {classes}, not 1 to 256")));
        }
        if cdf.is_some_and(|entries| !(3..=257).contains(&entries)) {
            return Err(Error::setting("cdf is the number of entries of a table, 3 to 257"));
        }
        if cdf.is_some() && carried != Scope::Channel {
            return Err(Error::setting(
                "cdf describes tables per channel: set tables (or carried) to channel",
            ));
        }
        Ok(Self { tables, carried, classes: usize::from(classes), cdf, contexts: false })
    }

    /// The scope of tables from this source.
    pub(crate) fn scope(&self, source: Source) -> Scope {
        match source {
            Source::Profile => self.tables,
            Source::Chunk => self.carried,
        }
    }
}

/// Default of `tables`.
pub(crate) const fn default_scope() -> Scope {
    Scope::Class
}

/// Default of `classes`.
pub(crate) const fn default_classes() -> u16 {
    64
}
