//! `anchor-delta(group=10)`: CacheGen's change-based encoding.
//!
//! Groups of `group` consecutive tokens; the first token of a group is its anchor, every other token is coded
//! as its difference from that anchor, so that all groups (and all tokens of a group) decode in parallel.
//! Paper: CacheGen, arXiv 2310.07240, sections 5.1.1 (token-wise locality) and 5.2 (change-based encoding).
//!
//! Two parts. Part 0, [`Role::Anchor`]: `ceil(rows / group)` rows. Part 1, [`Role::Delta`]: the other tokens in
//! their order; a group that consists of its anchor has none. The loop is closed: differences are taken from
//! the anchors *as the decoder will see them*, so an anchor's error is not added to its group's.
//!
//! Arithmetic: `delta = x − anchor` and `x' = anchor + delta` in `f32`. Both round, so that even exact coders of
//! the parts do not make the stage exact. No data. Tiles begin at multiples of `group`.
//!
//! ```
//! let stages = cacheg_core::spec::parse("anchor-delta(group=12)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::anchor_delta::PLUGIN.build else { unreachable!() };
//! assert_eq!(build(&stages[0].config)?.config()["group"], 12);
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, Error, Kernel, Part, Plane, Plugin, Result, Role, Rows, Stage, TileCx,
    Transform, config, settings,
};
use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rows::{check, combine};
use crate::settings::refuse;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "anchor-delta",
    version: 1,
    origin: "cacheg-quant",
    summary: "groups of tokens as an anchor and differences from it (CacheGen)",
    usage: "anchor-delta(group=10)",
    build: Build::Transform(build),
};

/// Settings of `anchor-delta`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Tokens of a group, 2 to 1,024.
    pub group: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { group: 10 }
    }
}

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    if !(2..=1024).contains(&settings.group) {
        return Err(refuse(PLUGIN.name, "group", "must be 2 to 1024 tokens"));
    }
    Ok(Arc::new(AnchorDelta(settings)))
}

#[derive(Debug)]
struct AnchorDelta(Settings);

impl Stage for AnchorDelta {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Transform for AnchorDelta {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        Ok(Box::new(Bound { group: self.0.group as usize }))
    }
}

#[derive(Debug)]
struct Bound {
    group: usize,
}

impl Bound {
    fn anchors(&self, rows: usize) -> usize {
        rows.div_ceil(self.group)
    }

    /// The tokens that are not anchors, in order.
    fn deltas(&self) -> impl Iterator<Item = usize> + use<> {
        let group = self.group;
        (0..).filter(move |row| row % group != 0)
    }
}

impl BoundTransform for Bound {
    fn independent_rows(&self) -> bool {
        true
    }

    fn parts(&self, plane: &Plane) -> Vec<Part> {
        [Role::Anchor, Role::Delta].map(|role| Part::new(role, plane.channels())).to_vec()
    }

    fn part_rows(&self, part: usize, rows: usize) -> usize {
        if part == 0 { self.anchors(rows) } else { rows - self.anchors(rows) }
    }

    fn row_multiple(&self) -> usize {
        self.group
    }

    fn kernel(&self, _: &[Plane]) -> Option<Kernel> {
        Some(Kernel::new(include_str!("anchor_delta.wgsl"), vec![self.group as u32]).with_rows(Rows::Parts))
    }

    fn forward(
        &self,
        tile: &TileCx<'_>,
        part: usize,
        x: ArrayView2<'_, f32>,
        done: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let cols = tile.plane.channels();
        check(x.dim(), tile.rows, cols)?;
        check(out.dim(), self.part_rows(part, tile.rows), cols)?;
        match (part, done) {
            (0, _) => out.assign(&x.slice(s![..;self.group, ..])),
            (1, [anchors, ..]) => {
                check(anchors.dim(), self.anchors(tile.rows), cols)?;
                for (out, row) in out.outer_iter_mut().zip(self.deltas()) {
                    combine(out, x.row(row), anchors.row(row / self.group), |x, anchor| x - anchor);
                }
            }
            _ => return Err(Error::data("anchor-delta has an anchor part, then a delta part")),
        }
        Ok(())
    }

    fn inverse(
        &self,
        tile: &TileCx<'_>,
        parts: &[ArrayView2<'_, f32>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let [anchors, deltas] = parts else {
            return Err(Error::data("anchor-delta has two parts"));
        };
        let cols = tile.plane.channels();
        check(anchors.dim(), self.anchors(tile.rows), cols)?;
        check(deltas.dim(), self.part_rows(1, tile.rows), cols)?;
        check(out.dim(), tile.rows, cols)?;
        out.slice_mut(s![..;self.group, ..]).assign(anchors);
        for (delta, row) in deltas.outer_iter().zip(self.deltas()) {
            let anchor = anchors.row(row / self.group);
            combine(out.row_mut(row), delta, anchor, |delta, anchor| anchor + delta);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use ndarray::{Array2, array};

    #[test]
    fn hand_computed_groups() {
        let planes = planes(1, 1, 2);
        let bound = bind_transform("anchor-delta(group=3)", &planes, None);
        let roles: Vec<Role> = bound.parts(&planes[0]).iter().map(|part| part.role).collect();
        assert_eq!(roles, [Role::Anchor, Role::Delta]);
        assert_eq!(bound.row_multiple(), 3);
        let x = array![[1., 2.], [3., 5.], [0., 0.], [10., 20.], [11., 19.], [12., 24.], [7., 7.]];
        let tile = TileCx::new(&planes[0], 0, 7, 0);
        let mut anchors = Array2::from_elem((3, 2), f32::NAN);
        bound.forward(&tile, 0, x.view(), &[], anchors.view_mut()).unwrap();
        assert_eq!(anchors, array![[1., 2.], [10., 20.], [7., 7.]]);
        let seen = &anchors + 0.5;
        let mut deltas = Array2::from_elem((4, 2), f32::NAN);
        bound.forward(&tile, 1, x.view(), &[seen.view()], deltas.view_mut()).unwrap();
        assert_eq!(deltas, array![[1.5, 2.5], [-1.5, -2.5], [0.5, -1.5], [1.5, 3.5]]);
        let mut back = Array2::from_elem((7, 2), f32::NAN);
        bound.inverse(&tile, &[seen.view(), deltas.view()], back.view_mut()).unwrap();
        assert_eq!(back.row(0), seen.row(0));
        assert_eq!(back.row(1), x.row(1));
        assert_eq!(back.row(5), x.row(5));
        assert_eq!(back.row(6), seen.row(2));
    }

    #[test]
    fn any_number_of_rows() {
        let planes = planes(1, 3, 4);
        let bound = bind_transform("anchor-delta", &planes, None);
        for rows in [0, 1, 2, 9, 10, 11, 12, 20, 31] {
            let x = random(rows, 12, 1.0);
            let y = round_trip_transform(&*bound, &planes[0], 0, &x, |_, _| {});
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= 1e-6), "{rows}");
        }
        assert_eq!((bound.part_rows(0, 11), bound.part_rows(1, 11)), (2, 9));
        assert_eq!((bound.part_rows(0, 0), bound.part_rows(1, 0)), (0, 0));
    }

    /// Anchors with an error of up to 1 and deltas rounded to 1/8: without the closed loop the errors would add.
    #[test]
    fn errors_do_not_accumulate() {
        let planes = planes(1, 1, 8);
        let bound = bind_transform("anchor-delta", &planes, None);
        let x = random(40, 8, 5.0);
        let y = round_trip_transform(&*bound, &planes[0], 0, &x, |part, values| {
            let step = if part == 0 { 2.0 } else { 0.125 };
            values.mapv_inplace(|v| (v / step).round_ties_even() * step);
        });
        for ((row, _), error) in x.indexed_iter().zip((&x - &y).iter()) {
            let bound = if row.0 % 10 == 0 { 1.0 } else { 0.0626 };
            assert!(error.abs() <= bound, "{row:?} {error}");
        }
    }

    #[test]
    fn settings_and_shapes_are_checked() {
        for bad in ["anchor-delta(group=1)", "anchor-delta(group=2000)", "anchor-delta(group=-1)"] {
            let message = try_transform(bad).unwrap_err().to_string();
            assert!(message.contains("anchor-delta"), "{message}");
        }
        let planes = planes(1, 1, 2);
        let bound = bind_transform("anchor-delta", &planes, None);
        let x = Array2::zeros((3, 2));
        let tile = TileCx::new(&planes[0], 0, 3, 0);
        let mut out = Array2::zeros((2, 2));
        assert!(bound.forward(&tile, 0, x.view(), &[], out.view_mut()).is_err());
        assert!(bound.forward(&tile, 1, x.view(), &[], out.view_mut()).is_err());
        assert!(bound.inverse(&tile, &[x.view()], out.view_mut()).is_err());
    }
}
