//! What of a container is for values that a model still sees behind the context.
//!
//! Layers of sliding-window attention never look at most of a long context again, and engines do not keep it; KV caches
//! here, and containers of them, have all of it. Bytes of a tile count by the share of its values that the next token sees,
//! and so do rows that are stored exactly; everything else (headers, directories, tables) counts as a whole.

use cacheg::core::{Chunk, Container, Kept, Plane};
use cacheg::{Limits, Profile, Registry, Result};
use cacheg_bench::llm::Hyper;

/// Bytes of a container for what the model sees of it.
pub(crate) fn bytes(
    container: &[u8],
    registry: &Registry,
    profile: Option<&Profile>,
    hyper: &Hyper,
) -> Result<f64> {
    let chunks = Container::parse(container, &Limits::default())?.chunks;
    let next = chunks.last().map_or(0, |chunk| chunk.position() + chunk.tokens().len() as u64);
    let mut bytes = container.len() as f64;
    for chunk in &chunks {
        let rows = Rows { chunk, kept: chunk.kept(), hyper, next };
        let planes = chunk.geometry().planes();
        let plan = chunk.bind(registry, profile)?;
        let [first, last] = chunk.exact_rows();
        for index in 0..chunk.layout().tiles() {
            let tile = chunk.open_tile(&plan, index)?;
            let (mut hidden, mut all) = (0.0, 0.0);
            for plane in &planes[tile.planes.clone()] {
                hidden += rows.hidden(plane, first + tile.first, tile.rows) * plane.channels() as f64;
                all += (tile.rows * plane.channels()) as f64;
            }
            bytes -= tile.bytes.len() as f64 * hidden / all;
        }
        for plane in &planes {
            let hidden = rows.hidden(plane, 0, first) + rows.hidden(plane, chunk.rows() - last, last);
            bytes -= hidden * (plane.channels() * plane.shape.dtype.size()) as f64;
        }
    }
    Ok(bytes)
}

/// A chunk's rows, some of which are out of sight.
struct Rows<'a> {
    chunk: &'a Chunk<'a>,
    kept: Option<Kept>,
    hyper: &'a Hyper,
    /// Position of the token that comes next.
    next: u64,
}

impl Rows<'_> {
    /// How many of some rows of a plane are before the window; a mean over heads, which may have kept different tokens.
    fn hidden(&self, plane: &Plane, first: usize, rows: usize) -> f64 {
        let layer = plane.layer as usize;
        let Some(window) = self.hyper.window_of(layer) else { return 0.0 };
        let oldest = (self.next + 1).saturating_sub(window as u64);
        match &self.kept {
            None => {
                let before = oldest.saturating_sub(self.chunk.position() + first as u64);
                before.min(rows as u64) as f64
            }
            Some(kept) => {
                let of_head = |head: usize| {
                    let positions = kept.positions(layer, head).skip(first).take(rows);
                    positions.filter(|position| *position < oldest).count()
                };
                let heads = kept.heads(layer);
                (0..heads).map(of_head).sum::<usize>() as f64 / heads as f64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cacheg::core::{Importance, Pairing, Rope};
    use cacheg::{Encoder, KvCache, Pipeline};
    use cacheg_bench::llm::{Block, Local};

    use super::*;

    fn hyper(window: Option<usize>) -> Hyper {
        let rope = Rope { theta: 1e4, dims: 16, start: 0, pairing: Pairing::Half, scaling: None };
        Hyper {
            architecture: "gemma3".into(),
            vocabulary: 8,
            context: 64,
            layers: 3,
            hidden: 8,
            feed_forward: 8,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            norm_epsilon: 1e-6,
            rope,
            local: window.map(|window| Local { window, period: 3, rope }),
            block: Block::Gemma3,
        }
    }

    fn container(spec: &str, tokens: usize) -> Vec<u8> {
        let geometry = hyper(None).geometry().unwrap();
        let cache = KvCache::from_fn(&geometry, tokens, |plane, token, channel| {
            ((plane.index + 3 * token + 7 * channel) as f32).sin()
        });
        let mut importance = Importance::new(tokens, None);
        let weights: Vec<f32> = (0..2 * tokens).map(|at| (at % tokens) as f32).collect();
        (0..3).for_each(|_| importance.push_layer(1, &weights, &weights).unwrap());
        let pipeline = Pipeline::parse(&cacheg::builtins().unwrap(), spec).unwrap();
        let encoder = Encoder::new(pipeline, &geometry, None).unwrap();
        let mut out = Vec::new();
        let view = cache.view();
        let view = view.with_importance(&importance).unwrap();
        cacheg::flow::encode(&view, &BTreeMap::new(), &encoder, 32, &mut out, &|_| ()).unwrap();
        out
    }

    /// With codes of one length, what is out of sight is as many bytes as it has values.
    #[test]
    fn rows_out_of_sight_do_not_count() {
        let registry = cacheg::builtins().unwrap();
        let visible = |container: &[u8], window| bytes(container, &registry, None, &hyper(window)).unwrap();
        for spec in ["bytes|raw", "sinks(first=2;last=1)|bytes|raw"] {
            let container = container(spec, 80);
            let all = container.len() as f64;
            assert_eq!(visible(&container, None), all);
            assert_eq!(visible(&container, Some(81)), all);
            for window in [1, 11, 40, 80] {
                // Keys and values of two layers, 16 channels of 2 bytes each.
                let gone = (4 * 32 * (80 - (window - 1))) as f64;
                let got = all - visible(&container, Some(window));
                assert!((got - gone).abs() < 1e-6, "{spec}, {window}: {got} {gone}");
                let values = hyper(None).visible_values(80) - hyper(Some(window)).visible_values(80);
                assert_eq!(gone, 2.0 * values as f64);
            }
        }
        // Of 32, 32 and 16 tokens the last, likeliest halves are there: 16 to 31, 48 to 63, 72 to 79.
        let container = container("h2o(keep=0.5)|bytes|raw", 80);
        let got = container.len() as f64 - visible(&container, Some(13));
        assert_eq!(got, f64::from(4 * 32 * (16 + 16)));
        let got = container.len() as f64 - visible(&container, Some(25));
        assert_eq!(got, f64::from(4 * 32 * (16 + 8)));
    }
}
