//! The forward pass against other implementations' numbers, and against itself.
//!
//! Tests on the real models run where `cacheg-bench model get smollm2` (or `gemma3`) has been (or `CACHEG_MODEL` names the
//! first one's file), and say so where not; those on real KV caches need the folder `CACHEG_KV` (default: `../shared/data/kv` beside the
//! repository) as well.

mod files;
mod gemma;
mod real;
mod recompute;
mod tiny;

use std::path::PathBuf;

use cacheg::Geometry;
use cacheg::core::{Dtype, LayerGroup, Shape};
use candle_core::Tensor;

/// A file of `tests/data/tiny`, which `tests/data/tiny.py` makes.
fn tiny(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)
}

/// The same shapes with another element type.
fn with_dtype(geometry: &Geometry, dtype: Dtype) -> Geometry {
    Geometry::new(geometry.groups().iter().map(|group| {
        let change = |shape: Option<Shape>| shape.map(|shape| Shape { dtype, ..shape });
        LayerGroup { key: change(group.key), value: change(group.value), ..*group }
    }))
    .unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    floats(tensor).into_iter().map(f32::to_bits).collect()
}
