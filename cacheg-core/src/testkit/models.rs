//! The geometries that every stage must bind to, and how transforms may have cut their planes.

use super::Failure;
use crate::{
    Alphabet, CLASSES, Dtype, Geometry, LayerGroup, Pairing, Part, Plane, Result, Role, Rope, RopeScaling,
    Shape,
};

/// A geometry with a name.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Model {
    /// What failures and [`Suite::refuses`](super::Suite::refuses) call it.
    pub name: &'static str,
    /// What it is.
    pub geometry: Geometry,
    /// Its planes.
    pub planes: Vec<Plane>,
}

fn shape(heads: u32, head_dim: u32, dtype: Dtype) -> Option<Shape> {
    Some(Shape { heads, head_dim, dtype })
}

fn layer(repeat: u32, key: Option<Shape>, value: Option<Shape>, rope: Option<Rope>) -> LayerGroup {
    LayerGroup { repeat, key, value, latent: None, rope }
}

fn rope(dims: u32, start: u32, pairing: Pairing, scaling: Option<RopeScaling>) -> Option<Rope> {
    Some(Rope { theta: 1e4, dims, start, pairing, scaling })
}

/// All models. Small, so that every check can afford all of them; each has something that stages overlook.
///
/// # Errors
/// If a geometry is refused.
pub fn models() -> Result<Vec<Model>> {
    let half = rope(8, 0, Pairing::Half, None);
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let latent = LayerGroup {
        repeat: 1,
        key: None,
        value: None,
        latent: shape(1, 24, Dtype::Bf16),
        rope: rope(8, 16, Pairing::Interleaved, None),
    };
    let models: [(&str, Vec<LayerGroup>); 8] = [
        ("equal layers", vec![layer(3, shape(2, 8, Dtype::F16), shape(2, 8, Dtype::F16), half)]),
        (
            "different layers",
            vec![
                layer(2, shape(2, 12, Dtype::Bf16), shape(2, 8, Dtype::Bf16), half),
                layer(1, shape(1, 16, Dtype::F32), shape(3, 4, Dtype::F16), None),
                layer(1, shape(1, 6, Dtype::F16), None, None),
            ],
        ),
        ("latent", vec![latent]),
        ("one channel", vec![layer(1, shape(1, 1, Dtype::F32), shape(1, 1, Dtype::F16), None)]),
        ("odd channels", vec![layer(1, shape(3, 5, Dtype::F16), shape(1, 7, Dtype::Bf16), None)]),
        (
            "element types",
            Dtype::ALL.into_iter().map(|d| layer(1, shape(1, 4, d), shape(2, 3, d), None)).collect(),
        ),
        (
            "scaled RoPE",
            vec![layer(
                2,
                shape(2, 8, Dtype::Bf16),
                shape(2, 8, Dtype::Bf16),
                rope(6, 2, Pairing::Interleaved, Some(llama3)),
            )],
        ),
        // Wide enough for every vector width and for more lanes than channels of the other models.
        (
            "wide",
            vec![layer(
                1,
                shape(4, 64, Dtype::F16),
                shape(4, 64, Dtype::F16),
                rope(64, 0, Pairing::Half, None),
            )],
        ),
    ];
    models
        .into_iter()
        .map(|(name, layers)| {
            let geometry = Geometry::new(layers)?;
            Ok(Model { name, planes: geometry.planes(), geometry })
        })
        .collect()
}

/// One model by name.
pub(crate) fn model(name: &str) -> Result<Model, Failure> {
    let found = models()?.into_iter().find(|model| model.name == name);
    found.ok_or_else(|| Failure::new(format!("the kit has no model `{name}`")))
}

/// How a transform cuts planes into parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    pub(crate) parts: fn(&Plane) -> Vec<Part>,
}

/// Rows of a part; anchors are every fourth token.
pub(crate) fn part_rows(role: Role, rows: usize) -> usize {
    match role {
        Role::Whole => rows,
        Role::Anchor => rows.div_ceil(4),
        Role::Delta => rows - rows.div_ceil(4),
    }
}

/// What transforms see: whole planes.
pub(crate) const PLANES: &[Layout] =
    &[Layout { name: "planes", parts: |plane| vec![Part::new(Role::Whole, plane.channels())] }];

/// What quantizers see.
pub(crate) const PARTS: &[Layout] = &[
    PLANES[0],
    Layout {
        name: "anchors and deltas",
        parts: |p| vec![Part::new(Role::Anchor, p.channels()), Part::new(Role::Delta, p.channels())],
    },
    Layout { name: "narrow parts", parts: |p| vec![Part::new(Role::Whole, p.channels().div_ceil(2))] },
];

fn coded(role: Role, plane: &Plane, alphabets: &[(u16, bool)]) -> Part {
    let alphabets = alphabets.iter().map(|&(size, escape)| Alphabet { size, escape }).collect();
    let cols = plane.channels();
    Part { role, cols, alphabets, classes: classes(cols), grades: Vec::new() }
}

/// Classes of columns, all of them if there are as many columns.
pub(crate) fn classes(cols: usize) -> Vec<u8> {
    (0..cols).map(|col| (col * 37 % CLASSES) as u8).collect()
}

/// What coders see.
pub(crate) const CODED: &[Layout] = &[
    Layout { name: "bytes", parts: |p| vec![coded(Role::Whole, p, &[(256, false)])] },
    Layout {
        name: "anchors and deltas",
        parts: |p| vec![coded(Role::Anchor, p, &[(256, false)]), coded(Role::Delta, p, &[(32, true)])],
    },
    Layout {
        name: "two symbol planes",
        parts: |p| vec![coded(Role::Whole, p, &[(16, false), (256, false)])],
    },
    Layout {
        name: "assorted alphabets",
        parts: |p| {
            let size = [2, 3, 5, 17, 33, 100, 255, 256][p.index % 8];
            vec![coded(Role::Whole, p, &[(size, p.index % 2 == 1)])]
        },
    },
];
