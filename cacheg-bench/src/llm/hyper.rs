//! What a model's file says of its shape.

use cacheg::core::{Dtype, LayerGroup, Rope, Shape};
use cacheg::{Error, Geometry, Result};
use serde_json::{Value, json};

/// Hyper-parameters of a Llama-type model; all from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// As the file calls it: `llama`, `qwen2` …
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
    /// Rotation of queries and keys.
    pub rope: Rope,
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

    /// The KV cache as engines keep it: f16, keys after RoPE.
    ///
    /// # Errors
    /// If the parameters are no model's.
    pub fn geometry(&self) -> Result<Geometry> {
        let fits =
            |n: usize| u32::try_from(n).map_err(|_| Error::limit(format!("{n} heads, channels or layers")));
        let shape =
            Some(Shape { heads: fits(self.kv_heads)?, head_dim: fits(self.head_dim)?, dtype: Dtype::F16 });
        Geometry::new([LayerGroup {
            repeat: fits(self.layers)?,
            key: shape,
            value: shape,
            latent: None,
            rope: Some(self.rope),
        }])
    }

    /// Names and values, for reports.
    pub fn rows(&self) -> Vec<(&'static str, Value)> {
        vec![
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
        ]
    }
}
