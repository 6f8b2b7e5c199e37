//! One level for all chunks: `fixed(level=1)`.

use serde::Deserialize;

use super::{nearest, refine};
use crate::control::policy::{Move, Policy};
use crate::control::registry::{Plugin, settings};
use crate::control::state::View;

pub(super) const PLUGIN: Plugin<dyn Policy> = Plugin {
    name: "fixed",
    origin: "cacheg-net",
    summary: "the same level for all chunks, in order; where it is missing the next smaller one",
    usage: "fixed(level=0)",
    build: |config| Ok(Box::new(settings::<Fixed>(config)?)),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed {
    #[serde(default)]
    level: usize,
}

impl Policy for Fixed {
    fn decide(&mut self, view: &View<'_>) -> Move {
        match view.needed().next() {
            Some(chunk) => {
                // A chunk with fewer levels has its smallest instead.
                let last = view.job.chunks()[chunk].levels.len().saturating_sub(1);
                nearest(view, chunk, self.level.min(last))
            }
            None => refine(view),
        }
    }
}
