//! The lossy half of cacheg's codecs: what drops tokens, transforms and quantizers for KV caches.
//!
//! One module per stage, named like the stage; each holds a `PLUGIN` for a
//! [`Registry`](cacheg_core::Registry), and [`PLUGINS`] lists them all. `FORMAT.md`
//! specifies their bytes.
//!
//! | select stage | what it is for |
//! |---|---|
//! | [`h2o`] | drops the tokens that got least attention |
//!
//! | transform | what it is for |
//! |---|---|
//! | [`identity`] | nothing: the public CacheGen code, and lossless pipelines |
//! | [`anchor_delta`] | CacheGen's groups of tokens: an anchor and differences from it |
//! | [`sinks`] | stores the first tokens of a context exactly, since all others attend to them |
//! | [`mean`] | removes each channel's offset |
//! | [`unrope`] | undoes the rotation of keys by position, so that channels keep their meaning |
//! | [`hadamard`] | spreads outliers over a head's channels |
//! | [`klt`] | decorrelates a head's channels, in units of what errors cost |
//!
//! | quantizer | what it is for |
//! |---|---|
//! | [`bins`] | CacheGen's: bins per token's largest value, or steps in units of σ; needs an entropy coder |
//! | [`steps`] | one step for each head, for coefficients of a transform; coders share tables by its classes |
//! | [`uniform`] | 1 to 8 bits with a scale per group, by token or by channel: q8, q4, KIVI |
//! | [`lloyd_max`] | the best codebook for normal values and a scale per head: TurboQuant, after `hadamard` |
//! | [`bytes`] | the elements' own bytes, nothing lost |
//!
//! Which to choose: for `lossless`, `identity | bytes`. For a fixed, small cost and no calibration, `uniform`,
//! after `hadamard` if there are outliers. With an entropy coder and a profile, `bins(step=…)` after
//! `unrope | mean` is the best of these; `anchor-delta` is there to be CacheGen.
//!
//! Stages take matrices of any layout, but are fast on row-major ones, as the pipeline in `cacheg-core` passes
//! them.

pub mod anchor_delta;
pub mod bins;
pub mod bytes;
pub mod h2o;
pub mod hadamard;
pub mod identity;
pub mod klt;
pub mod lloyd_max;
pub mod mean;
pub mod predict;
pub mod sinks;
pub mod steps;
pub mod uniform;
pub mod unrope;
mod weight;

mod carried;
mod escaping;
mod integer;
mod metric;
mod numeric;
mod rounding;
mod rows;
mod scale;
mod settings;
#[cfg(test)]
mod testing;

pub use scale::ScaleFormat;

use cacheg_core::{Error, Plugin, Result};
use ndarray::ArrayView2;

/// All stages of this crate.
pub const PLUGINS: &[Plugin] = &[
    anchor_delta::PLUGIN,
    bins::PLUGIN,
    bytes::PLUGIN,
    h2o::PLUGIN,
    hadamard::PLUGIN,
    identity::PLUGIN,
    klt::PLUGIN,
    lloyd_max::PLUGIN,
    mean::PLUGIN,
    predict::PLUGIN,
    sinks::PLUGIN,
    steps::PLUGIN,
    uniform::PLUGIN,
    unrope::PLUGIN,
];

/// The one part of a transform that has one.
fn only<'v, 'a>(parts: &'v [ArrayView2<'a, f32>]) -> Result<&'v ArrayView2<'a, f32>> {
    match parts {
        [part] => Ok(part),
        _ => Err(Error::data(format!("{} parts where one is expected", parts.len()))),
    }
}

/// The error for a plane that the stage was not bound to.
fn unknown_plane() -> Error {
    Error::data("a plane that the stage was not bound to")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cacheg_core::{Build, Registry, Stage, spec};
    use serde_json::Value;

    fn stage_of(plugin: &Plugin, config: &Value) -> Result<(&'static str, Value)> {
        let of = |stage: &dyn Stage| (stage.name(), stage.config());
        match plugin.build {
            Build::Select(build) => build(config).map(|stage| of(&*stage)),
            Build::Transform(build) => build(config).map(|stage| of(&*stage)),
            Build::Quantizer(build) => build(config).map(|stage| of(&*stage)),
            Build::Coder(_) => panic!("no coder is in this crate"),
        }
    }

    /// Names, usage lines, defaults and configs must not drift apart.
    #[test]
    fn usage_shows_the_defaults() {
        Registry::new(PLUGINS.iter().copied()).unwrap();
        for plugin in PLUGINS {
            let defaults = stage_of(plugin, &Value::Null).unwrap();
            let usage = spec::parse(plugin.usage).unwrap().remove(0);
            assert_eq!(usage.name, plugin.name);
            assert_eq!(stage_of(plugin, &usage.config).unwrap(), defaults);
            assert_eq!(stage_of(plugin, &defaults.1).unwrap(), defaults);
            assert_eq!(defaults.0, plugin.name);
            let shown = usage.config.as_object().unwrap();
            assert!(
                defaults.1.as_object().unwrap().keys().all(|key| shown.contains_key(key)),
                "{}",
                plugin.name
            );
            let unknown = stage_of(plugin, &serde_json::json!({"colour": 3})).unwrap_err().to_string();
            assert!(unknown.contains(plugin.name) && unknown.contains("colour"), "{unknown}");
        }
    }
}
