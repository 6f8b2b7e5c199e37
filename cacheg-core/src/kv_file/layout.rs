//! Which tensors of a file are the KV cache, and where its planes are.

use std::collections::BTreeMap;
use std::ops::Range;

use super::metadata;
use crate::tensor_file::{Header, Shown, Tensor, quoted};
use crate::{Dtype, Error, Kind, LayerGroup, Limits, Order, Result, ResultExt, Shape};

/// A found KV cache.
#[derive(Debug)]
pub(super) struct Layout {
    /// One group per layer, without RoPE.
    pub(super) layers: Vec<LayerGroup>,
    pub(super) tokens: usize,
    pub(super) order: Order,
    /// Bytes of the file, plane by plane.
    pub(super) planes: Vec<Range<usize>>,
}

const EMPTY: LayerGroup = LayerGroup { repeat: 1, key: None, value: None, latent: None, rope: None };

impl Layout {
    /// Finds the planes; lengths are checked, sizes only where something is allocated by them.
    pub(super) fn find(header: &Header, limits: &Limits) -> Result<Self> {
        // Sorted as the planes of a geometry are: by layer, then by kind.
        let mut found = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            if let Some(place) = parse_name(name)? {
                found.insert(place, (name, tensor));
            }
        }
        match (header.tensors.get("kv"), found.is_empty()) {
            (Some(tensor), true) => stacked(header, tensor, limits).at(|| "kv"),
            (None, false) => layered(header, &found, limits),
            (Some(_), false) => {
                Err(Error::data("both a stacked tensor `kv` and tensors by layer; which is meant?"))
            }
            (None, true) => Err(Error::data(format!(
                "no KV cache: `layers.0.key`, `layers.0.value` … or one tensor `kv` expected, found {}",
                list(header)
            ))),
        }
    }
}

/// The names in a file, for messages.
fn list(header: &Header) -> String {
    const SHOWN: usize = 8;
    if header.tensors.is_empty() {
        return "no tensors".into();
    }
    let names: Vec<_> = header.tensors.keys().take(SHOWN).map(|name| quoted(name)).collect();
    match header.tensors.len() - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// The layer and kind of `layers.{i}.{kind}`; other names are other tensors, which a file may carry.
fn parse_name(name: &str) -> Result<Option<(u32, Kind)>> {
    let mut parts = name.split('.');
    let (Some("layers"), Some(layer), Some(kind), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Ok(None);
    };
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.name() == kind) else {
        return Ok(None);
    };
    // Through the number and back, or `layers.1.key` and `layers.01.key` would be the same.
    match layer.parse::<u32>() {
        Ok(number) if number.to_string() == layer => Ok(Some((number, kind))),
        _ => Err(Error::data("expected `layers.{number}.key`").at(quoted(name))),
    }
}

type Found<'a> = BTreeMap<(u32, Kind), (&'a String, &'a Tensor)>;

fn layered(header: &Header, found: &Found<'_>, limits: &Limits) -> Result<Layout> {
    let mut layers: Vec<LayerGroup> = Vec::new();
    let mut planes = Vec::new();
    let mut first: Option<(&String, u64)> = None;
    for ((layer, kind), (name, tensor)) in found {
        // `found` is sorted, so the next layer is the last or the one after it.
        if *layer as usize >= layers.len() {
            if *layer as usize != layers.len() {
                return Err(Error::data(format!("{name}, but nothing of layer {}", layers.len())));
            }
            layers.push(EMPTY);
        }
        let dtype = dtype(header, tensor).at(|| name)?;
        let (heads, tokens, head_dim) = match tensor.shape[..] {
            [heads, tokens, head_dim] | [1, heads, tokens, head_dim] => (heads, tokens, head_dim),
            [batch, _, _, _] => {
                return Err(Error::unsupported(format!(
                    "a batch of {batch} sequences; write one file per sequence"
                ))
                .at(name));
            }
            _ => {
                return Err(Error::data(format!(
                    "shape {:?}, but [heads, tokens, head_dim] is expected, or that after a batch axis of 1",
                    Shown(&tensor.shape)
                ))
                .at(name));
            }
        };
        match first {
            None => first = Some((name, tokens)),
            Some((other, count)) if count != tokens => {
                return Err(Error::data(format!("{other} has {count} tokens, {name} has {tokens}")));
            }
            Some(_) => {}
        }
        let shape = Shape { heads: narrow(heads, "heads")?, head_dim: narrow(head_dim, "channels")?, dtype };
        if let Some(group) = layers.last_mut() {
            *group.shape_mut(*kind) = Some(shape);
        }
        planes.push(tensor.range.clone());
    }
    let tokens = count_tokens(first.map_or(0, |(_, tokens)| tokens), limits)?;
    Ok(Layout { layers, tokens, order: Order::HeadMajor, planes })
}

/// LMCache's blobs: all layers in one tensor, the tokens of a plane outermost.
fn stacked(header: &Header, tensor: &Tensor, limits: &Limits) -> Result<Layout> {
    let dtype = dtype(header, tensor)?;
    let hidden = |n| metadata::split_hidden(&header.metadata, narrow(n, "channels")?);
    let (kinds, layers, tokens, (heads, head_dim)) = match tensor.shape[..] {
        [2, layers, tokens, n] => (2, layers, tokens, hidden(n)?),
        // A latent has no heads, whatever the metadata says of the model's.
        [1, layers, tokens, n] => (1, layers, tokens, (1, narrow(n, "channels")?)),
        [layers, 2, tokens, heads, head_dim] => {
            (2, layers, tokens, (narrow(heads, "heads")?, narrow(head_dim, "channels")?))
        }
        _ => {
            return Err(Error::data(format!(
                "shape {:?}, but [2, layers, tokens, hidden], [1, layers, tokens, latent] or \
                 [layers, 2, tokens, heads, head_dim] is expected",
                Shown(&tensor.shape)
            )));
        }
    };
    let layers_outermost = tensor.shape.len() == 5;
    // Without tokens a few bytes can announce any number of layers.
    if layers == 0 {
        return Err(Error::data("no layers"));
    }
    if layers > u64::from(limits.max_layers) {
        return Err(Error::limit(format!("{layers} layers")));
    }
    let layers = layers as usize;
    let shape = Some(Shape { heads, head_dim, dtype });
    let layer = match kinds {
        1 => LayerGroup { latent: shape, ..EMPTY },
        _ => LayerGroup { key: shape, value: shape, ..EMPTY },
    };
    // Exact, as the header was checked: the shape is the length.
    let length = tensor.range.len() / (kinds * layers);
    // The n-th plane of the geometry: by layer, then by kind.
    let place = |n: usize| {
        let index = if layers_outermost { n } else { n % kinds * layers + n / kinds };
        let start = tensor.range.start + index * length;
        start..start + length
    };
    Ok(Layout {
        layers: vec![layer; layers],
        tokens: count_tokens(tokens, limits)?,
        order: Order::TokenMajor,
        planes: (0..layers * kinds).map(place).collect(),
    })
}

fn count_tokens(tokens: u64, limits: &Limits) -> Result<usize> {
    match usize::try_from(tokens) {
        Ok(count) if tokens <= limits.max_tokens => Ok(count),
        _ => Err(Error::limit(format!("{tokens} tokens"))),
    }
}

fn narrow(n: u64, what: &str) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::limit(format!("{n} {what}")))
}

fn dtype(header: &Header, tensor: &Tensor) -> Result<Dtype> {
    Ok(match tensor.dtype.as_str() {
        "F16" => Dtype::F16,
        "BF16" => Dtype::Bf16,
        "F32" => Dtype::F32,
        "F8_E4M3" => Dtype::F8E4m3,
        "F8_E5M2" => Dtype::F8E5m2,
        "U8" => metadata::byte_dtype(&header.metadata)?,
        other => {
            return Err(Error::unsupported(format!(
                "element type {}; F16, BF16, F32, F8_E4M3 and F8_E5M2 can be read",
                quoted(other)
            )));
        }
    })
}
