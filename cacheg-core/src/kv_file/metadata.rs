//! What a file's metadata says of the model, and how a geometry is put there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::tensor_file::quoted;
use crate::{Dtype, Error, KvView, LayerGroup, Pairing, Result, ResultExt, Rope, RopeScaling};

type Metadata = BTreeMap<String, String>;

/// Position of the first token.
pub(super) fn first_position(metadata: &Metadata) -> Result<u64> {
    match scalar(metadata, "position_offset") {
        Value::Null => Ok(0),
        value => value.as_u64().ok_or_else(|| wrong("position_offset", "a position", &value)),
    }
}

/// A number, if there is one.
pub(super) fn number(metadata: &Metadata, key: &str) -> Option<u64> {
    scalar(metadata, key).as_u64()
}

/// Heads and head width of `hidden` channels.
pub(super) fn split_hidden(metadata: &Metadata, hidden: u32) -> Result<(u32, u32)> {
    let count = |key| match scalar(metadata, key) {
        Value::Null => Ok(None),
        value => as_u32(&value).map(Some).ok_or_else(|| wrong(key, "a number", &value)),
    };
    // Not a multiple, or zero: the product below will not be `hidden`.
    let split = |by: u32| hidden.checked_div(by).unwrap_or(0);
    let (heads, head_dim) = match (count("kv_heads")?, count("head_dim")?) {
        (Some(heads), Some(head_dim)) => (heads, head_dim),
        (Some(heads), None) => (heads, split(heads)),
        (None, Some(head_dim)) => (split(head_dim), head_dim),
        (None, None) => (1, hidden),
    };
    if heads.checked_mul(head_dim) != Some(hidden) {
        return Err(Error::data(format!(
            "{hidden} channels are not {heads} heads of {head_dim}, as `kv_heads` and `head_dim` say"
        )));
    }
    Ok((heads, head_dim))
}

/// What tensors of type U8 hold; engines without an fp8 type in their files store fp8 like that.
pub(super) fn byte_dtype(metadata: &Metadata) -> Result<Dtype> {
    let Some(text) = metadata.get("dtype") else {
        return Err(Error::data(
            "element type U8, and no metadata `dtype` that says what the bytes are (`float8_e4m3fn` or \
             `float8_e5m2`)",
        ));
    };
    let name = text.trim().to_ascii_lowercase();
    match name.strip_prefix("torch.").unwrap_or(&name) {
        "float8_e4m3fn" | "float8_e4m3" | "fp8_e4m3" | "f8_e4m3" | "e4m3fn" | "e4m3" => Ok(Dtype::F8E4m3),
        "float8_e5m2" | "fp8_e5m2" | "f8_e5m2" | "e5m2" => Ok(Dtype::F8E5m2),
        _ => Err(Error::data(format!(
            "element type U8, but metadata `dtype` is {}; `float8_e4m3fn` or `float8_e5m2` can be read",
            quoted(text)
        ))),
    }
}

/// Gives the layers their RoPE.
///
/// What this version cannot express leaves the layer without RoPE and is a warning: most pipelines never ask.
pub(super) fn add_ropes(metadata: &Metadata, layers: &mut [LayerGroup]) -> Result<()> {
    match metadata.get("keys").map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        None | Some("post-rope") => {}
        Some("pre-rope") => return Ok(()),
        Some(other) => {
            return Err(Error::data(format!(
                "metadata `keys`: {}, not post-RoPE or pre-RoPE",
                quoted(other)
            )));
        }
    }
    let texts = RopeTexts::new(metadata, layers.len())?;
    let mut unknown = None;
    for (index, layer) in layers.iter_mut().enumerate() {
        match texts.rope(index, layer).at(|| format_args!("layer {index}").to_string())? {
            Found::None => {}
            Found::Rope(rope) => layer.rope = Some(rope),
            Found::Unknown(what) => unknown = unknown.or(Some((index, what))),
        }
    }
    if let Some((layer, what)) = unknown {
        tracing::warn!(layer, "RoPE not recorded, so no pipeline can undo it: {what}");
    }
    Ok(())
}

enum Found {
    None,
    Rope(Rope),
    /// Not among what [`Rope`] can say; why, for people.
    Unknown(String),
}

struct RopeTexts {
    theta: PerLayer,
    layout: PerLayer,
    dims: PerLayer,
    factor: PerLayer,
    start: PerLayer,
    scaling: PerLayer,
}

impl RopeTexts {
    fn new(metadata: &Metadata, layers: usize) -> Result<Self> {
        let read = |key| PerLayer::read(metadata, key, layers);
        Ok(Self {
            theta: read("rope_theta")?,
            layout: read("rope_layout")?,
            dims: read("rope_dims")?,
            factor: read("partial_rotary_factor")?,
            start: read("rope_start")?,
            scaling: read("rope_scaling")?,
        })
    }

    fn rope(&self, index: usize, layer: &LayerGroup) -> Result<Found> {
        let theta = match self.theta.get(index) {
            Value::Null => return Ok(Found::None),
            value => value.as_f64().ok_or_else(|| wrong("rope_theta", "a number", value))?,
        };
        let Some(shape) = layer.key.or(layer.latent) else {
            return Ok(Found::None);
        };
        let start = match self.start.get(index) {
            Value::Null => 0,
            value => as_u32(value).ok_or_else(|| wrong("rope_start", "a channel", value))?,
        };
        let dims = match (self.dims.get(index), self.factor.get(index)) {
            (Value::Null, Value::Null) if layer.key.is_none() => {
                // Only a part of a latent is rotated, and only the model's configuration tells which.
                return Ok(Found::Unknown("latents need `rope_start` and `rope_dims`".into()));
            }
            (Value::Null, Value::Null) => shape.head_dim.saturating_sub(start),
            (Value::Null, value) => {
                let share = value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0);
                let share = share.ok_or_else(|| wrong("partial_rotary_factor", "a share", value))?;
                (f64::from(shape.head_dim) * share) as u32
            }
            (value, _) => as_u32(value).ok_or_else(|| wrong("rope_dims", "a number", value))?,
        };
        let Some(pairing) = pairing(self.layout.get(index))? else {
            return Ok(Found::Unknown(format!("`rope_layout` {}", shown(self.layout.get(index)))));
        };
        let scaling = match scaling(self.scaling.get(index))? {
            Ok(scaling) => scaling,
            Err(name) => return Ok(Found::Unknown(format!("`rope_scaling` of type {}", quoted(&name)))),
        };
        Ok(Found::Rope(Rope { theta, dims, start, pairing, scaling }))
    }
}

/// How channels are paired, or `None` for what is not known.
fn pairing(value: &Value) -> Result<Option<Pairing>> {
    let text = match value {
        Value::Null => return Ok(Some(Pairing::Half)),
        Value::String(text) => text.to_ascii_lowercase(),
        _ => return Err(wrong("rope_layout", "a name", value)),
    };
    let any = |names: &[&str]| names.iter().any(|name| text.contains(name));
    Ok(if text.starts_with("rotate_half") {
        Some(Pairing::Half)
    } else if any(&["interleaved", "rotate_every_two", "gptj", "gpt-j"]) {
        Some(Pairing::Interleaved)
    } else if any(&["half", "neox"]) {
        Some(Pairing::Half)
    } else {
        None
    })
}

/// The scaling, or as an inner error the name of one that is not known.
fn scaling(value: &Value) -> Result<Result<Option<RopeScaling>, String>> {
    let object = match value {
        Value::Null => return Ok(Ok(None)),
        Value::Object(object) => object,
        _ => return Err(wrong("rope_scaling", "a JSON object", value)),
    };
    let name = match object.get("rope_type").or_else(|| object.get("type")) {
        Some(Value::String(name)) => name.as_str(),
        _ => return Err(wrong("rope_scaling", "a JSON object with a `rope_type`", value)),
    };
    let number = |key: &str| {
        let number = object.get(key).and_then(Value::as_f64);
        number.ok_or_else(|| Error::data(format!("metadata `rope_scaling`: no number `{key}`")))
    };
    let scaling = match name {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => {
            let key = "original_max_position_embeddings";
            let context = object.get(key).and_then(as_u32);
            Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: context
                    .ok_or_else(|| Error::data(format!("metadata `rope_scaling`: no number `{key}`")))?,
            })
        }
        other => return Ok(Err(other.to_owned())),
    };
    Ok(Ok(scaling))
}

/// A setting of each layer.
enum PerLayer {
    Same(Value),
    Each(Vec<Value>),
}

impl PerLayer {
    fn read(metadata: &Metadata, key: &str, layers: usize) -> Result<Self> {
        Ok(match scalar(metadata, key) {
            Value::Array(values) if values.len() == layers => Self::Each(values),
            Value::Array(values) => {
                return Err(Error::data(format!(
                    "metadata `{key}` lists {} values for {layers} layers",
                    values.len()
                )));
            }
            value => Self::Same(value),
        })
    }

    fn get(&self, layer: usize) -> &Value {
        match self {
            Self::Same(value) => value,
            Self::Each(values) => values.get(layer).unwrap_or(&Value::Null),
        }
    }
}

/// A value as JSON; what is not JSON is text; nothing at all, in words too, is null.
fn scalar(metadata: &Metadata, key: &str) -> Value {
    let text = metadata.get(key).map_or("", |text| text.trim());
    if text.is_empty() || text.eq_ignore_ascii_case("none") {
        return Value::Null;
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    Error::data(format!("metadata `{key}`: {expected} expected, found {}", shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => quoted(&other.to_string()),
    }
}

/// The metadata from which [`KvFile`](crate::KvFile) reads the same RoPE and position again. Of other keys it
/// says nothing: extend what the source had by it.
pub fn kv_metadata(kv: &KvView<'_>) -> BTreeMap<String, String> {
    let mut metadata = Metadata::new();
    metadata.insert("position_offset".into(), kv.first_position().to_string());
    let groups = kv.geometry().groups();
    let ropes: Vec<Option<Rope>> =
        groups.iter().flat_map(|group| std::iter::repeat_n(group.rope, group.repeat as usize)).collect();
    if ropes.iter().all(Option::is_none) {
        return metadata;
    }
    let mut put = |key: &str, of: &dyn Fn(&Rope) -> Value| {
        let values: Vec<Value> = ropes.iter().map(|rope| rope.as_ref().map_or(Value::Null, of)).collect();
        if values.iter().all(Value::is_null) {
            return;
        }
        let same = values.iter().all(|value| *value == values[0]);
        let value = if same { values[0].clone() } else { Value::Array(values) };
        let text = if let Value::String(text) = value { text } else { value.to_string() };
        metadata.insert(key.into(), text);
    };
    put("rope_theta", &|rope| json!(rope.theta));
    put("rope_layout", &|rope| {
        Value::from(match rope.pairing {
            Pairing::Half => "rotate_half",
            Pairing::Interleaved => "interleaved",
        })
    });
    put("rope_dims", &|rope| json!(rope.dims));
    put("rope_start", &|rope| json!(rope.start));
    put("rope_scaling", &|rope| match rope.scaling {
        None => Value::Null,
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": factor }),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
    });
    metadata
}
