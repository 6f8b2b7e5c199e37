//! What a model's file says of its shape.

use cacheg::core::{Dtype, LayerGroup, Rope, Shape};
use cacheg::{Error, Geometry, Result};
use serde_json::{Value, json};

/// Hyper-parameters of a Llama-type model or a Gemma 3; all from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// As the file calls it: `llama`, `qwen2`, `gemma3` …
    pub architecture: String,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    /// Longest text that it was trained on, tokens.
    pub context: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward networks.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f64,
    /// Rotation of queries and keys, but in local layers.
    pub rope: Rope,
    /// Which layers see only the last tokens; none, if nothing.
    pub local: Option<Local>,
    /// What blocks have that Llama's have not.
    pub block: Block,
}

/// Layers of sliding-window attention among others that see everything (Gemma 3, arXiv 2503.19786, section 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Local {
    /// Tokens that a token sees, itself included.
    pub window: usize,
    /// Every so many layers, the last one is global.
    pub period: usize,
    /// Rotation of queries and keys in local layers.
    pub rope: Rope,
}

/// The kind of a model's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Norms before attention and the feed-forward network, whose gate is SiLU.
    Llama,
    /// Norms behind both, too, and of every query and key head before RoPE; a gate of GELU (by tanh); embeddings times
    /// the square root of the hidden width.
    Gemma3,
}

/// More than any model has, and few enough that products do not overflow.
const MOST: usize = 1 << 24;

impl Hyper {
    /// Checks that the parameters are a model's.
    pub(super) fn checked(self) -> Result<Self> {
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("layers", self.layers),
            ("hidden width", self.hidden),
            ("feed-forward width", self.feed_forward),
            ("heads", self.heads),
            ("KV heads", self.kv_heads),
            ("head width", self.head_dim),
        ];
        for (what, size) in sizes {
            if size == 0 || size > MOST {
                return Err(Error::data(format!("{what}: {size}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::data(format!("{} heads do not share {} KV heads", self.heads, self.kv_heads)));
        }
        if let Some(local) = self.local.filter(|local| local.window == 0 || local.period == 0) {
            return Err(Error::data(format!(
                "windows of {} tokens in all but every {}th layer",
                local.window, local.period
            )));
        }
        if !self.norm_epsilon.is_finite() || self.norm_epsilon < 0.0 {
            return Err(Error::data(format!("norm epsilon {}", self.norm_epsilon)));
        }
        self.geometry()?;
        Ok(self)
    }

    /// Query heads per KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn local_at(&self, layer: usize) -> Option<&Local> {
        self.local.as_ref().filter(|local| !(layer + 1).is_multiple_of(local.period))
    }

    /// Tokens that a token sees in a layer, itself included; `None` if all before it. Engines need keep no more, though
    /// KV caches here have all tokens of all layers.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.local_at(layer).map(|local| local.window)
    }

    /// Rotation of a layer's queries and keys.
    pub fn rope_of(&self, layer: usize) -> Rope {
        self.local_at(layer).map_or(self.rope, |local| local.rope)
    }

    /// Values of a KV cache that the model still sees behind a context of so many tokens: of layers with a window, only
    /// the rows that the next token sees.
    pub fn visible_values(&self, tokens: usize) -> u64 {
        let of_layer = |layer: usize| tokens.min(self.window_of(layer).map_or(tokens, |window| window - 1));
        let rows: usize = (0..self.layers).map(of_layer).sum();
        (2 * rows * self.kv_heads * self.head_dim) as u64
    }

    /// The KV cache as engines keep it, but that local layers have all tokens: f16, keys after RoPE.
    ///
    /// # Errors
    /// If the parameters are no model's.
    pub fn geometry(&self) -> Result<Geometry> {
        let fits =
            |n: usize| u32::try_from(n).map_err(|_| Error::limit(format!("{n} heads, channels or layers")));
        let shape =
            Some(Shape { heads: fits(self.kv_heads)?, head_dim: fits(self.head_dim)?, dtype: Dtype::F16 });
        fits(self.layers)?;
        // Equal neighbours become one group.
        Geometry::new((0..self.layers).map(|layer| LayerGroup {
            repeat: 1,
            key: shape,
            value: shape,
            latent: None,
            rope: Some(self.rope_of(layer)),
        }))
    }

    /// Names and values, for reports.
    pub fn rows(&self) -> Vec<(&'static str, Value)> {
        let mut rows = vec![
            ("architecture", json!(self.architecture)),
            ("vocabulary", json!(self.vocabulary)),
            ("context", json!(self.context)),
            ("layers", json!(self.layers)),
            ("hidden", json!(self.hidden)),
            ("feed_forward", json!(self.feed_forward)),
            ("heads", json!(self.heads)),
            ("kv_heads", json!(self.kv_heads)),
            ("head_dim", json!(self.head_dim)),
            ("norm_epsilon", json!(self.norm_epsilon)),
            ("rope_theta", json!(self.rope.theta)),
            ("rope_dims", json!(self.rope.dims)),
            ("rope_scaling", self.rope.scaling.map_or(Value::Null, |scaling| json!(scaling))),
        ];
        if let Some(local) = &self.local {
            let layers = (0..self.layers).filter(|layer| self.window_of(*layer).is_some()).count();
            rows.extend([
                ("local_layers", json!(layers)),
                ("local_window", json!(local.window)),
                ("local_period", json!(local.period)),
                ("local_rope_theta", json!(local.rope.theta)),
            ]);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use cacheg::core::Pairing;

    use super::*;

    #[test]
    fn local_and_global_layers_are_groups_in_their_order() {
        let rope = |theta| Rope { theta, dims: 16, start: 0, pairing: Pairing::Half, scaling: None };
        let hyper = Hyper {
            architecture: "gemma3".into(),
            vocabulary: 8,
            context: 64,
            layers: 8,
            hidden: 8,
            feed_forward: 8,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            norm_epsilon: 1e-6,
            rope: rope(1e6),
            local: Some(Local { window: 5, period: 3, rope: rope(1e4) }),
            block: Block::Gemma3,
        };
        let hyper = hyper.checked().unwrap();
        let geometry = hyper.geometry().unwrap();
        let groups: Vec<(u32, f64)> =
            geometry.groups().iter().map(|group| (group.repeat, group.rope.unwrap().theta)).collect();
        assert_eq!(groups, [(2, 1e4), (1, 1e6), (2, 1e4), (1, 1e6), (2, 1e4)]);
        assert_eq!((hyper.window_of(1), hyper.window_of(2), hyper.window_of(7)), (Some(5), None, Some(5)));
        // The next token sees itself and four others: six layers of 4 rows, two of all.
        assert_eq!(hyper.visible_values(3), 8 * 3 * 32);
        assert_eq!(hyper.visible_values(20), (6 * 4 + 2 * 20) * 32);
        let plain = Hyper { local: None, ..hyper.clone() };
        assert_eq!(plain.geometry().unwrap().groups().len(), 1);
        assert_eq!(plain.visible_values(20), 8 * 20 * 32);
        for (window, period) in [(0, 6), (4, 0)] {
            let local = Some(Local { window, period, rope: rope(1e4) });
            assert!(Hyper { local, ..hyper.clone() }.checked().is_err());
        }
    }
}
