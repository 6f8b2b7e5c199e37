//! `h2o`: keeps the newest tokens and those that got most attention, drops the others.
//!
//! Heavy-Hitter Oracle (Zhang et al., NeurIPS 2023, arXiv 2306.14048, sections 3.2 and 4): attention weights, summed
//! over the queries so far, follow a power law, and a model that is left with the few tokens of large sums, the *heavy
//! hitters*, and with the most recent ones writes on nearly as before. The paper evicts while the model writes; here a
//! context is written down once, chunk by chunk, each of which keeps its own newest tokens and heavy hitters.
//!
//! A select stage: each KV head of each layer keeps its own tokens, `max(1, round(keep · tokens))` of a chunk; of these
//! `round(recent · kept)` are the chunk's newest, the rest has the largest sums
//! ([`SelectCx::accumulated`]) among the others, of equal ones the first. Halves are rounded away from zero.
//!
//! ```
//! let stages = cacheg_core::spec::parse("h2o(keep=0.25;recent=0.5)")?;
//! let cacheg_core::Build::Select(build) = cacheg_quant::h2o::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.name(), "h2o");
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{BoundSelect, Build, Geometry, Plugin, Result, Select, SelectCx, Stage, config, settings};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::refuse;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "h2o",
    version: 1,
    origin: "cacheg-quant",
    summary: "drops tokens: each head keeps the newest and those that got most attention (needs attention sums)",
    usage: "h2o(keep=0.5;recent=0.5)",
    build: Build::Select(build),
};

fn build(value: &Value) -> Result<Arc<dyn Select>> {
    let stage: H2o = settings(PLUGIN.name, value)?;
    if !(stage.keep > 0.0 && stage.keep <= 1.0) {
        return Err(refuse(PLUGIN.name, "keep", format!("is {}, but is above 0 and at most 1", stage.keep)));
    }
    if !(0.0..=1.0).contains(&stage.recent) {
        return Err(refuse(PLUGIN.name, "recent", format!("is {}, but is from 0 to 1", stage.recent)));
    }
    Ok(Arc::new(stage))
}

/// The settings are the stage, and, as nothing depends on the model, the bound stage too.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct H2o {
    /// Share of a chunk's tokens.
    keep: f64,
    /// Share of the kept that are the newest.
    recent: f64,
}

impl Default for H2o {
    fn default() -> Self {
        Self { keep: 0.5, recent: 0.5 }
    }
}

impl Stage for H2o {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(self)
    }
}

impl Select for H2o {
    fn bind(&self, _: &Geometry) -> Result<Box<dyn BoundSelect>> {
        Ok(Box::new(*self))
    }
}

/// `round(share · of)`, at most `of`.
fn part(share: f64, of: usize) -> usize {
    ((share * of as f64).round() as usize).min(of)
}

impl BoundSelect for H2o {
    fn kept(&self, tokens: usize) -> usize {
        part(self.keep, tokens).max(1)
    }

    fn select(&self, cx: &SelectCx<'_>, kept: &mut [u32]) -> Result<()> {
        let sums = cx.accumulated()?;
        let newest = part(self.recent, kept.len());
        let older = sums.len() - newest;
        let heavy = kept.len() - newest;
        let mut tokens: Vec<u32> = (0..older as u32).collect();
        let heavier = |a: &u32, b: &u32| {
            let by_sum = sums[*b as usize].total_cmp(&sums[*a as usize]);
            by_sum.then(a.cmp(b))
        };
        if heavy < tokens.len() {
            // No two are equal, so that the heavy ones are the same whatever the order among them.
            tokens.select_nth_unstable_by(heavy, heavier);
            tokens.truncate(heavy);
            tokens.sort_unstable();
        }
        tokens.extend(older as u32..sums.len() as u32);
        kept.copy_from_slice(&tokens);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cacheg_core::{ErrorKind, Importance};
    use serde_json::json;

    fn select(keep: f64, recent: f64, sums: &[f32]) -> Vec<u32> {
        let Build::Select(build) = PLUGIN.build else { panic!("h2o selects") };
        let stage = build(&json!({"keep": keep, "recent": recent})).unwrap();
        let shape = Some(cacheg_core::Shape { heads: 1, head_dim: 2, dtype: cacheg_core::Dtype::F16 });
        let group = cacheg_core::LayerGroup { repeat: 1, key: shape, value: shape, latent: None, rope: None };
        let bound = stage.bind(&Geometry::new([group]).unwrap()).unwrap();
        let mut importance = Importance::new(sums.len(), None);
        importance.push_layer(1, sums, sums).unwrap();
        let mut kept = vec![u32::MAX; bound.kept(sums.len())];
        bound.select(&SelectCx::new(0, 0, 0..sums.len(), 0, Some(&importance)), &mut kept).unwrap();
        kept
    }

    #[test]
    fn newest_and_heaviest_are_kept() {
        let sums = [9.0, 1.0, 5.0, 1.0, 5.0, 7.0, 0.0, 8.0];
        assert_eq!(select(0.5, 0.5, &sums), [0, 5, 6, 7]);
        assert_eq!(select(0.5, 0.0, &sums), [0, 2, 5, 7], "of equal ones the first");
        assert_eq!(select(0.5, 1.0, &sums), [4, 5, 6, 7]);
        assert_eq!(select(1.0, 0.3, &sums), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(select(0.01, 0.0, &sums), [0]);
        assert_eq!(select(0.01, 0.5, &sums), [7], "a half is rounded up");
        assert_eq!(select(0.5, 0.25, &[0.0; 6]), [0, 1, 5], "round(0.75) newest");
    }

    #[test]
    fn settings_are_checked() {
        let Build::Select(build) = PLUGIN.build else { panic!("h2o selects") };
        for (config, says) in [
            (json!({"keep": 0}), "`keep`"),
            (json!({"keep": 1.5}), "`keep`"),
            (json!({"keep": -1}), "`keep`"),
            (json!({"recent": -0.1}), "`recent`"),
            (json!({"recent": 2}), "`recent`"),
        ] {
            let error = build(&config).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidSetting && error.to_string().contains(says), "{error}");
        }
        assert!(build(&json!({"keep": 1, "recent": 0})).is_ok());
    }
}
