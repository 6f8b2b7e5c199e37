//! A transform of two parts: every fourth token, and the others minus the one before them that is kept.

use std::sync::Arc;

use cacheg_core::testkit::{Suite, transform};
use cacheg_core::{
    BindCx, BoundTransform, Build, Error, Part, Plane, Plugin, Result, Role, Stage, TileCx, Transform,
};
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const PLUGIN: Plugin = Plugin {
    name: "toy.anchor",
    version: 1,
    origin: "tests",
    summary: "anchors and deltas",
    usage: "toy.anchor(fault=none)",
    build: Build::Transform(|config| Ok(Arc::new(cacheg_core::settings::<Anchor>("toy.anchor", config)?))),
};

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    #[default]
    None,
    /// Leaves the last row of the deltas as it was.
    Unwritten,
    /// Reads memory in its order.
    Strides,
    Allocates,
    Unsteady,
    /// Deltas against the original instead of what the decoder will have.
    OpenLoop,
    Inexact,
    PanicsOnNan,
    MultipleOfZero,
    NoParts,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Anchor {
    #[serde(default)]
    fault: Fault,
}

impl Stage for Anchor {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Transform for Anchor {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        Ok(Box::new(*self))
    }
}

/// The deltas' rows: token, and index of its anchor.
fn deltas(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).filter(|token| token % 4 != 0).map(|token| (token, token / 4))
}

impl BoundTransform for Anchor {
    fn parts(&self, plane: &Plane) -> Vec<Part> {
        if self.fault == Fault::NoParts {
            return Vec::new();
        }
        vec![Part::new(Role::Anchor, plane.channels()), Part::new(Role::Delta, plane.channels())]
    }

    fn part_rows(&self, part: usize, rows: usize) -> usize {
        let anchors = rows.div_ceil(4);
        if part == 0 { anchors } else { rows - anchors }
    }

    fn row_multiple(&self) -> usize {
        if self.fault == Fault::MultipleOfZero { 0 } else { 4 }
    }

    fn forward(
        &self,
        _: &TileCx<'_>,
        part: usize,
        x: ArrayView2<'_, f32>,
        done: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        if self.fault == Fault::Allocates {
            std::hint::black_box(vec![part; 10]);
        }
        if self.fault == Fault::PanicsOnNan {
            assert!(x.iter().all(|x| !x.is_nan()), "NaN");
        }
        let packed = x.as_slice_memory_order().filter(|_| self.fault == Fault::Strides);
        let get =
            |row: usize, col: usize| packed.map_or(x[(row, col)], |packed| packed[row * x.ncols() + col]);
        if part == 0 {
            for ((row, col), out) in out.indexed_iter_mut() {
                *out = get(4 * row, col);
            }
            if self.fault == Fault::Unsteady && !out.is_empty() {
                out[(0, 0)] += unsteady_half();
            }
            return Ok(());
        }
        let skip = usize::from(self.fault == Fault::Unwritten);
        let rows = out.nrows().saturating_sub(skip);
        for ((token, anchor), mut out) in deltas(x.nrows()).zip(out.rows_mut()).take(rows) {
            for (col, out) in out.iter_mut().enumerate() {
                let anchor =
                    if self.fault == Fault::OpenLoop { x[(4 * anchor, col)] } else { done[0][(anchor, col)] };
                *out = get(token, col) - anchor;
            }
        }
        Ok(())
    }

    fn inverse(
        &self,
        _: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let [anchors, delta] = parts else { return Err(Error::data("two parts")) };
        for (row, anchor) in anchors.rows().into_iter().enumerate() {
            out.row_mut(4 * row).assign(&anchor);
        }
        for ((token, anchor), delta) in deltas(out.nrows()).zip(delta.rows()) {
            for (col, delta) in delta.iter().enumerate() {
                out[(token, col)] = anchors[(anchor, col)] + delta;
            }
        }
        if self.fault == Fault::Inexact && !out.is_empty() {
            let last = (out.nrows() - 1, out.ncols() - 1);
            out[last] = 1.01 * out[last] + 0.01;
        }
        Ok(())
    }
}

fn unsteady_half() -> f32 {
    crate::unsteady() as f32 * 0.5
}

mod good {
    cacheg_core::conformance! {
        transform: super::PLUGIN,
        specs: ["toy.anchor", "toy.anchor(fault=none)"],
        tolerance: 1e-6,
        closed_loop: true,
        allocations: true,
        golden: "tests/testkit/golden",
    }
}

fn faulty(fault: &str) -> Suite {
    crate::faulty(PLUGIN, fault).tolerance(1e-6)
}

#[test]
fn faults_are_found() {
    for (fault, check, says) in [
        ("unwritten", transform::overwrites as fn(&Suite) -> _, "not overwritten whole"),
        ("strides", transform::strides, "views"),
        ("allocates", transform::allocations, "forward allocates: 1 times"),
        ("unsteady", transform::deterministic, "a second call"),
        ("open-loop", transform::closed_loop, "errors of earlier parts"),
        ("inexact", transform::inverts, "allowed is"),
        ("panics-on-nan", transform::survives, "forward panics: NaN"),
        ("multiple-of-zero", transform::shapes, "multiples of 0"),
        ("no-parts", transform::shapes, "has no parts"),
    ] {
        crate::caught(check, &faulty(fault), says);
    }
    // Subtraction rounds, so the good stage is not exact.
    crate::caught(transform::inverts, &faulty("none").tolerance(0.0), "inverse");
}
