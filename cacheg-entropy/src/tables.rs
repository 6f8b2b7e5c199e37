//! Static frequency tables, shared by the coders `range` and `rans`.
//!
//! A table gives each symbol a frequency of at least 1 out of 65,536, so that everything can be coded. What
//! shares a table is a setting:
//!
//! | `tables=` | tables | best for |
//! |---|---|---|
//! | `class` (default) | a few (`classes=64`) that all planes share; each channel names one | everything: within 2 % of a table per channel, and small |
//! | `channel` | one per channel | long calibration; what the CacheGen paper does (section 5.2, a distribution per layer and channel) |
//! | `scale` | one per class that the quantizer (`steps`) tells, for keys and for values | profiles: nothing to store per channel, and all layers share what was seen |
//! | `layer` | one per plane and part | coders that must stay tiny |
//! | `one` | one per kind of plane and part | transforms that make all channels alike |
//!
//! Tables come from a profile, or from the chunk itself, which then carries them; `carried=` is the scope of
//! the latter (default: that of `tables`). Tables from a profile must suit contexts that calibration never saw:
//! there, a channel's own histogram is drawn towards its class.
//!
//! Stored are *weights*; `normalize` makes frequencies of them in integers.

mod bits;
mod calibrate;
mod cdf;
mod cluster;
mod contexts;
mod counts;
mod layout;
mod normalize;
mod pack;
mod scale;
mod set;
mod settings;
mod table;

use cacheg_core::{BindCx, Calibrator, Result, Source, StageData};

pub(crate) use calibrate::TableCalibrator;
pub(crate) use layout::Layout;
#[cfg(test)]
pub(crate) use normalize::normalize;

pub(crate) use layout::CONTEXT_TABLES;
pub(crate) use set::{Limits, TableSet};
pub use settings::Scope;
pub(crate) use settings::{TableSettings, default_classes, default_scope};
pub(crate) use table::{MAX_BUCKETS, Split, Table};

/// The tables of a bound coder.
#[derive(Debug)]
pub(crate) struct Tables {
    /// Which segments there are.
    pub(crate) layout: Layout,
    /// Number of each channel's table; of the first of them, if there are contexts. By grade, then channel.
    pub(crate) index: Vec<u32>,
    /// Limits of each channel's contexts; nothing if there are none.
    pub(crate) limits: Vec<Limits>,
    /// All tables, checked, with the size of their alphabet.
    pub(crate) tables: Vec<(usize, Table)>,
}

/// What `range` and `rans` do about tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableStage {
    pub(crate) settings: TableSettings,
    pub(crate) split: Split,
}

impl TableStage {
    /// The tables for a model, checked.
    ///
    /// # Errors
    /// If there are none or they do not fit.
    pub(crate) fn bind(&self, cx: &BindCx<'_>) -> Result<Tables> {
        let layout = self.layout(cx)?;
        let set = TableSet::from_data(cx.require_data()?, &layout, self.split.is_some())?;
        let (index, limits) = (set.index(&layout), set.all_limits(&layout));
        let alphabets = layout
            .groups
            .iter()
            .zip(&set.counts)
            .flat_map(|(group, count)| std::iter::repeat_n(group.alphabet, count * group.each));
        let tables = alphabets.zip(set.tables).collect();
        Ok(Tables { layout, index, limits, tables })
    }

    /// The calibrator, unless the model is impossible (then binding says so).
    pub(crate) fn calibrator(&self, cx: &BindCx<'_>) -> Option<Box<dyn Calibrator>> {
        let calibrator = TableCalibrator::new(self.settings, self.split, cx).ok()?;
        Some(Box::new(calibrator))
    }

    /// Writes carried tables.
    ///
    /// # Errors
    /// If `data` holds other tables.
    pub(crate) fn pack(&self, cx: &BindCx<'_>, data: &StageData) -> Result<Vec<u8>> {
        let layout = self.layout(cx)?;
        let set = TableSet::from_data(data, &layout, self.split.is_some())?;
        Ok(match self.carried_cdf(cx) {
            Some(entries) => cdf::pack(&set, &layout, entries),
            None => pack::pack(&set, &layout),
        })
    }

    /// Reads carried tables.
    ///
    /// # Errors
    /// If the bytes are corrupt.
    pub(crate) fn unpack(&self, cx: &BindCx<'_>, bytes: &[u8]) -> Result<StageData> {
        let layout = self.layout(cx)?;
        let set = match self.carried_cdf(cx) {
            Some(entries) => cdf::unpack(bytes, &layout, entries),
            None => pack::unpack(bytes, &layout, self.split.is_some()),
        };
        Ok(set?.to_data())
    }

    fn carried_cdf(&self, cx: &BindCx<'_>) -> Option<u16> {
        self.settings.cdf.filter(|_| cx.source == Source::Chunk)
    }

    fn layout(&self, cx: &BindCx<'_>) -> Result<Layout> {
        let layout = Layout::new(cx, self.settings.scope(cx.source), self.settings.contexts)?;
        if let Some(entries) = self.carried_cdf(cx) {
            cdf::check(&layout, entries)?;
        }
        Ok(layout)
    }
}
