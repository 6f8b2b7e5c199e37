//! What a KV cache looks like: layers, heads, widths, element types, RoPE. Never a model's name.

use serde::{Deserialize, Serialize};

use crate::{Dtype, Error, Limits, Result};

/// What a plane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Attention keys, after RoPE, as engines cache them.
    Key,
    /// Attention values.
    Value,
    /// A joint latent of keys and values (multi-head latent attention).
    Latent,
}

impl Kind {
    /// All kinds, in the order in which a layer's planes are stored.
    pub const ALL: [Self; 3] = [Self::Key, Self::Value, Self::Latent];

    /// `key`, `value` or `latent`: the last part of a tensor's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Value => "value",
            Self::Latent => "latent",
        }
    }
}

/// Heads, width and element type of one plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// KV heads.
    pub heads: u32,
    /// Channels per head.
    pub head_dim: u32,
    /// Element type.
    pub dtype: Dtype,
}

/// How RoPE pairs the channels it rotates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// Channel `c` with `c + dims/2` (Llama and most Hugging Face models).
    Half,
    /// Channel `2c` with `2c + 1` (GPT-J, original RoFormer).
    Interleaved,
}

/// Frequency scaling of RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the unscaled model, tokens.
        original_context: u32,
    },
}

/// Rotary position embedding of one layer's keys (Su et al. 2021, arXiv 2104.09864).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Rotated channels per head, even; the others pass through.
    pub dims: u32,
    /// First rotated channel of a head.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start: u32,
    /// Which channels form a pair.
    pub pairing: Pairing,
    /// Frequency scaling, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RopeScaling>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Rope {
    /// Angle per token of each pair, radians; `dims / 2` of them.
    pub fn frequencies(&self) -> Vec<f64> {
        let plain = |i: u32| self.theta.powf(-2.0 * f64::from(i) / f64::from(self.dims));
        (0..self.dims / 2)
            .map(|i| {
                let frequency = plain(i);
                match self.scaling {
                    None => frequency,
                    Some(RopeScaling::Linear { factor }) => frequency / factor,
                    Some(RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_context,
                    }) => {
                        let turns = f64::from(original_context) * frequency / std::f64::consts::TAU;
                        let ramp = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                            .clamp(0.0, 1.0);
                        frequency * (ramp + (1.0 - ramp) / factor)
                    }
                }
            })
            .collect()
    }

    fn validate(&self, head_dim: u32) -> Result<()> {
        let fits = self.start.checked_add(self.dims).is_some_and(|end| end <= head_dim);
        if self.dims == 0 || !self.dims.is_multiple_of(2) || !fits {
            return Err(Error::data(format!(
                "RoPE rotates {} channels from {} of a head of {head_dim}",
                self.dims, self.start
            )));
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let scaling_ok = match self.scaling {
            None => true,
            Some(RopeScaling::Linear { factor }) => positive(factor),
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => {
                positive(factor)
                    && positive(low_freq_factor)
                    && positive(high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && original_context > 0
            }
        };
        if !positive(self.theta) || !scaling_ok {
            return Err(Error::data("RoPE parameters must be positive, finite and in order"));
        }
        Ok(())
    }
}

/// One or several equal layers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many consecutive layers look like this.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repeat: u32,
    /// Keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Shape>,
    /// Values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Shape>,
    /// Latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<Shape>,
    /// Rotation of the keys; in a layer without keys, of a part of the latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<Rope>,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

impl LayerGroup {
    /// The shape of one kind of plane.
    pub fn shape(&self, kind: Kind) -> Option<Shape> {
        match kind {
            Kind::Key => self.key,
            Kind::Value => self.value,
            Kind::Latent => self.latent,
        }
    }

    /// The place of one kind's shape.
    pub fn shape_mut(&mut self, kind: Kind) -> &mut Option<Shape> {
        match kind {
            Kind::Key => &mut self.key,
            Kind::Value => &mut self.value,
            Kind::Latent => &mut self.latent,
        }
    }
}

/// One layer's keys, values or latents: `[tokens, channels]`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plane {
    /// Index among the planes of the geometry.
    pub index: usize,
    /// The layer.
    pub layer: u32,
    /// How many layers the model has.
    pub layers: u32,
    /// Keys, values or latents.
    pub kind: Kind,
    /// Heads, head width and element type.
    pub shape: Shape,
    /// RoPE, on the keys of models that use it; in a layer without keys, on the latents.
    pub rope: Option<Rope>,
}

impl Plane {
    /// Channels: heads × head width.
    pub fn channels(&self) -> usize {
        self.shape.heads as usize * self.shape.head_dim as usize
    }

    /// The tensor's name: `layers.3.key`.
    pub fn name(&self) -> String {
        format!("layers.{}.{}", self.layer, self.kind.name())
    }
}

/// Shapes of all planes of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    layers: Vec<LayerGroup>,
}

impl Geometry {
    /// Checks the layers and merges equal neighbours, so that equal models have equal geometries.
    ///
    /// # Errors
    /// Zero or absurd sizes, layers without planes, impossible RoPE parameters.
    pub fn new(layers: impl IntoIterator<Item = LayerGroup>) -> Result<Self> {
        let mut merged: Vec<LayerGroup> = Vec::new();
        for layer in layers {
            match merged.last_mut() {
                Some(last) if LayerGroup { repeat: last.repeat, ..layer } == *last => {
                    last.repeat = last.repeat.saturating_add(layer.repeat);
                }
                _ => merged.push(layer),
            }
        }
        let geometry = Self { layers: merged };
        geometry.validate(&Limits::default())?;
        Ok(geometry)
    }

    /// Checks what was read from a file.
    ///
    /// # Errors
    /// As [`Geometry::new`]; sizes over the limits are [`ErrorKind::Limit`](crate::ErrorKind::Limit).
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let mut layers = 0u64;
        for group in &self.layers {
            layers += u64::from(group.repeat);
            if group.repeat == 0 || Kind::ALL.iter().all(|kind| group.shape(*kind).is_none()) {
                return Err(Error::data("a layer without keys, values or latents"));
            }
            for shape in Kind::ALL.iter().filter_map(|kind| group.shape(*kind)) {
                let channels = u64::from(shape.heads) * u64::from(shape.head_dim);
                if channels == 0 {
                    return Err(Error::data("a plane without channels"));
                }
                if channels > u64::from(limits.max_channels) {
                    return Err(Error::limit(format!("{channels} channels in one plane")));
                }
            }
            if let Some(rope) = group.rope {
                let head_dim = group.key.or(group.latent).map_or(0, |shape| shape.head_dim);
                rope.validate(head_dim)?;
            }
        }
        if layers == 0 {
            return Err(Error::data("no layers"));
        }
        if self.layers.windows(2).any(|pair| LayerGroup { repeat: pair[0].repeat, ..pair[1] } == pair[0]) {
            return Err(Error::data("equal neighbouring layers that are not one group"));
        }
        if layers > u64::from(limits.max_layers) {
            return Err(Error::limit(format!("{layers} layers")));
        }
        let channels = self.values_per_token();
        if channels > limits.max_model_channels {
            return Err(Error::limit(format!("{channels} channels in all layers")));
        }
        Ok(())
    }

    /// Runs of equal layers.
    pub fn groups(&self) -> &[LayerGroup] {
        &self.layers
    }

    /// Number of layers.
    pub fn layers(&self) -> u32 {
        self.layers.iter().map(|group| group.repeat).sum()
    }

    /// All planes: by layer, keys before values before latents.
    pub fn planes(&self) -> Vec<Plane> {
        let layers = self.layers();
        let mut planes = Vec::new();
        let mut layer = 0;
        for group in &self.layers {
            let rotated = if group.key.is_some() { Kind::Key } else { Kind::Latent };
            for _ in 0..group.repeat {
                for kind in Kind::ALL {
                    if let Some(shape) = group.shape(kind) {
                        let rope = group.rope.filter(|_| kind == rotated);
                        planes.push(Plane { index: planes.len(), layer, layers, kind, shape, rope });
                    }
                }
                layer += 1;
            }
        }
        planes
    }

    /// Values per token, all planes together.
    pub fn values_per_token(&self) -> u64 {
        self.sum(|shape| u64::from(shape.heads) * u64::from(shape.head_dim))
    }

    /// Bytes per token, all planes together.
    pub fn bytes_per_token(&self) -> u64 {
        self.sum(|shape| u64::from(shape.heads) * u64::from(shape.head_dim) * shape.dtype.size() as u64)
    }

    fn sum(&self, of: impl Fn(Shape) -> u64) -> u64 {
        let per_layer =
            |group: &LayerGroup| Kind::ALL.iter().filter_map(|kind| group.shape(*kind)).map(&of).sum::<u64>();
        self.layers.iter().map(|group| u64::from(group.repeat) * per_layer(group)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(heads: u32) -> LayerGroup {
        let shape = Shape { heads, head_dim: 64, dtype: Dtype::F16 };
        let rope = Rope { theta: 1e4, dims: 64, start: 0, pairing: Pairing::Half, scaling: None };
        LayerGroup { repeat: 1, key: Some(shape), value: Some(shape), latent: None, rope: Some(rope) }
    }

    #[test]
    fn equal_neighbours_merge_and_layers_may_differ() {
        let geometry = Geometry::new([llama(3), llama(3), llama(1)]).unwrap();
        assert_eq!(geometry.groups().len(), 2);
        assert_eq!(geometry.layers(), 3);
        let planes = geometry.planes();
        assert_eq!(planes.len(), 6);
        assert_eq!(planes[5].name(), "layers.2.value");
        assert_eq!(planes[5].channels(), 64);
        assert!(planes[4].rope.is_some() && planes[5].rope.is_none());
        assert_eq!(geometry.values_per_token(), 2 * (192 + 192 + 64));
        let json = serde_json::to_string(&geometry).unwrap();
        assert_eq!(serde_json::from_str::<Geometry>(&json).unwrap(), geometry);
    }

    #[test]
    fn nonsense_is_refused() {
        let empty = LayerGroup { repeat: 1, key: None, value: None, latent: None, rope: None };
        assert!(Geometry::new([empty]).is_err());
        assert!(Geometry::new([]).is_err());
        assert!(Geometry::new([llama(0)]).is_err());
        let mut wide = llama(1);
        wide.key = Some(Shape { heads: u32::MAX, head_dim: u32::MAX, dtype: Dtype::F16 });
        assert_eq!(Geometry::new([wide]).unwrap_err().kind(), crate::ErrorKind::Limit);
        let mut odd = llama(1);
        odd.rope = Some(Rope { theta: 1e4, dims: 66, start: 0, pairing: Pairing::Half, scaling: None });
        assert!(Geometry::new([odd]).is_err());
        assert_eq!(
            Geometry::new([LayerGroup { repeat: u32::MAX, ..llama(1) }]).unwrap_err().kind(),
            crate::ErrorKind::Limit
        );
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let scaled = Rope { theta: 5e5, dims: 128, start: 0, pairing: Pairing::Half, scaling: Some(scaling) };
        let plain = Rope { scaling: None, ..scaled };
        let (s, p) = (scaled.frequencies(), plain.frequencies());
        assert_eq!(s[0], p[0]);
        assert!((s[63] * 8.0 / p[63] - 1.0).abs() < 1e-12);
        assert!(s.iter().zip(&p).all(|(s, p)| s <= p && *s * 8.0 >= *p * 0.999_999));
    }
}
