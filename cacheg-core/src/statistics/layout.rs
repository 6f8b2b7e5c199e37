//! Which tensors there are, and what must hold for each.

use std::collections::BTreeMap;

use super::MAX_WINDOW;
use crate::{Error, Geometry, Kind, Limits, Plane, Result};

/// What a tensor's numbers must be, beside finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anything.
    Any,
    /// Square matrices, one after the other, that are symmetric and positive semi-definite.
    Gram,
}

/// The tensors of a layer by name: shape and rule.
pub(super) type Layout = BTreeMap<String, (Vec<usize>, Rule)>;

/// The features of the regression before the key's channels.
pub(super) const FEATURES: usize = 4;

/// The tensors of every layer.
pub(super) fn layers(geometry: &Geometry, window: u32) -> Result<Vec<Layout>> {
    geometry.validate(&Limits::default())?;
    if window > MAX_WINDOW {
        return Err(Error::limit(format!("a window of {window} layers; at most {MAX_WINDOW}")));
    }
    let planes = geometry.planes();
    let layers = geometry.layers() as usize;
    let of = |layer: usize| -> Vec<&Plane> { planes.iter().filter(|p| p.layer as usize == layer).collect() };
    let width = |layer: usize| of(layer).iter().map(|plane| plane.channels()).sum::<usize>();
    let mut all = Vec::with_capacity(layers);
    let mut values = 0u64;
    for layer in 0..layers {
        let mut tensors = Layout::new();
        let mut add = |name: String, shape: Vec<usize>, rule: Rule| {
            values = values.saturating_add(shape.iter().map(|n| *n as u64).product());
            tensors.insert(name, (shape, rule));
        };
        let planes = of(layer);
        for plane in &planes {
            let name = |what: &str| format!("{}.{what}", plane.kind.name());
            let (channels, heads, dim) =
                (plane.channels(), plane.shape.heads as usize, plane.shape.head_dim as usize);
            add(name("sum"), vec![channels], Rule::Any);
            add(name("moment"), vec![channels, channels], Rule::Gram);
            add(name("sensitivity"), vec![heads, dim, dim], Rule::Gram);
            add(name("sink_sensitivity"), vec![heads, dim, dim], Rule::Gram);
        }
        let find = |kind| planes.iter().find(|plane| plane.kind == kind);
        if let (Some(key), Some(value)) = (find(Kind::Key), find(Kind::Value)) {
            add("value_key".into(), vec![value.channels(), key.channels()], Rule::Any);
            if key.shape.heads == value.shape.heads {
                let (heads, features) = (key.shape.heads as usize, FEATURES + key.shape.head_dim as usize);
                add("importance.xx".into(), vec![heads, features, features], Rule::Gram);
                add("importance.xy".into(), vec![heads, features], Rule::Any);
                add("importance.yy".into(), vec![heads], Rule::Any);
            }
        }
        for back in 1..=layer.min(window as usize) {
            add(format!("back.{back}"), vec![width(layer), width(layer - back)], Rule::Any);
        }
        all.push(tensors);
    }
    let bytes = values.saturating_mul(8);
    if bytes > Limits::default().max_output {
        return Err(Error::limit(format!("{bytes} bytes of sums; a smaller window needs less")));
    }
    Ok(all)
}
