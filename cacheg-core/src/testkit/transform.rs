//! Checks of transforms.

use ndarray::{Array2, ArrayView2, Axis, s};

use super::alloc::no_allocation;
use super::bind::{Setup, concurrently, each, tiles};
use super::grid::{Grid, Lie, POISONS, Poison, largest, perturb, same_bits};
use super::suite::{Within, ensure, survive};
use super::{Check, Failure, Model, Random, Suite, calibration, kv_like, settings, values};
use crate::{BoundTransform, Plane, Role, TileCx, Transform};

/// A tile's parts, and what the inverse made of them.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) parts: Vec<Array2<f32>>,
    pub(crate) back: Array2<f32>,
}

/// How to drive a transform.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    lie: Lie,
    poison: Poison,
    /// What is added to parts before later ones are computed.
    loss: Option<f32>,
}

/// Row-major, as the engine mostly does it.
pub(crate) const PLAIN: How = How { lie: Lie::RowMajor, poison: POISONS[0], loss: None };

/// The same rows of planes that a plane is predicted from, as if they had been decoded: a token's are always the same.
pub(crate) fn references(planes: &[Plane], wanted: &[usize], tile: &TileCx<'_>) -> Vec<Array2<f32>> {
    let of = |plane: &Plane| {
        let mut rows = Array2::zeros((tile.rows, plane.channels()));
        for (number, mut row) in rows.outer_iter_mut().enumerate() {
            let seed = ((plane.index + 1) << 32) + tile.first + number;
            let values = kv_like(plane.shape.dtype, Role::Whole, 1, plane.channels(), seed as u64);
            row.assign(&values.row(0));
        }
        rows
    };
    wanted.iter().filter_map(|other| planes.get(*other)).map(of).collect()
}

/// Forward part by part, then back.
pub(crate) fn drive(
    (bound, planes): (&dyn BoundTransform, &[Plane]),
    tile: &TileCx<'_>,
    x: &Array2<f32>,
    how: How,
) -> Result<Driven, Failure> {
    let mut random = Random::new(1);
    let x = Grid::of(how.lie, x);
    let specs = bound.parts(tile.plane);
    let references = references(planes, bound.references(tile.plane), tile);
    let references: Vec<Grid> = references.iter().map(|rows| Grid::of(how.lie, rows)).collect();
    ensure(references.is_empty() || specs.len() == 1, || "a predicted plane of several parts".to_owned())?;
    let (mut parts, mut done) = (Vec::new(), Vec::<Grid>::new());
    for (index, part) in specs.iter().enumerate() {
        let rows = bound.part_rows(index, tile.rows);
        let mut out = Grid::poisoned(how.lie, rows, part.cols, how.poison);
        let views: Vec<_> = done.iter().chain(&references).map(Grid::view).collect();
        bound.forward(tile, index, x.view(), &views, out.view_mut()).within(|| format!("part {index}"))?;
        let part = out.to_array();
        done.push(match how.loss {
            Some(loss) if index + 1 < specs.len() => Grid::of(how.lie, &perturb(&part, loss, &mut random)),
            _ => out,
        });
        parts.push(part);
    }
    let views: Vec<_> = done.iter().chain(&references).map(Grid::view).collect();
    let mut back = Grid::poisoned(how.lie, tile.rows, tile.plane.channels(), how.poison);
    bound.inverse(tile, &views, back.view_mut()).within(|| "inverse".to_owned())?;
    Ok(Driven { parts, back: back.to_array() })
}

fn sample(tile: &TileCx<'_>) -> Array2<f32> {
    kv_like(
        tile.plane.shape.dtype,
        Role::Whole,
        tile.rows,
        tile.plane.channels(),
        tile.plane.index as u64 + 100,
    )
}

fn same(what: &str, want: &Driven, got: &Driven) -> Check {
    for (index, (want, got)) in want.parts.iter().zip(&got.parts).enumerate() {
        same_bits(&format!("{what}, part {index}"), want, got)?;
    }
    same_bits(&format!("{what}, inverse"), &want.back, &got.back)
}

/// For every plane, some tile heights and both tiles: the tile and its values.
fn each_tile(
    setup: &Setup<'_, dyn Transform>,
    few: bool,
    mut check: impl FnMut(&TileCx<'_>, &Array2<f32>) -> Check,
) -> Check {
    let multiple = setup.bound.row_multiple();
    for plane in &setup.model.planes {
        let all = || setup.suite.tile_rows(multiple, plane.channels());
        for rows in if few { setup.suite.few_rows(multiple) } else { all() } {
            for tile in tiles(plane, multiple, rows) {
                let place = || format!("{}, {rows} tokens from {}", plane.name(), tile.first);
                check(&tile, &sample(&tile)).within(place)?;
            }
        }
    }
    Ok(())
}

/// Name, usage line and settings: complete, refused if unknown, named in errors.
///
/// # Errors
/// If the stage does not conform.
pub fn settings(suite: &Suite) -> Check {
    settings::check::<dyn Transform>(suite)
}

/// Parts and their sizes make sense and never change.
///
/// # Errors
/// If the stage does not conform.
pub fn shapes(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        let (bound, second) = (&*setup.bound, setup.again()?);
        ensure(bound.row_multiple() > 0, || "tiles begin at multiples of 0".to_owned())?;
        ensure(bound.row_multiple() == second.row_multiple(), || "row_multiple changes".to_owned())?;
        for plane in &setup.model.planes {
            let parts = bound.parts(plane);
            ensure(!parts.is_empty(), || format!("{} has no parts", plane.name()))?;
            ensure(parts == bound.parts(plane) && parts == second.parts(plane), || {
                "parts change".to_owned()
            })?;
            for (index, part) in parts.iter().enumerate() {
                let named = || format!("{}, part {index}", plane.name());
                ensure(part.cols > 0, || format!("{} has no columns", named()))?;
                ensure(part.alphabets.is_empty(), || format!("{}: alphabets are the quantizer's", named()))?;
                for rows in 0..40 {
                    let of = |rows| bound.part_rows(index, rows);
                    ensure(of(rows) <= of(rows + 1), || format!("{} shrinks as tiles grow", named()))?;
                    ensure(of(rows) == second.part_rows(index, rows), || {
                        format!("{}: rows change", named())
                    })?;
                }
            }
        }
        Ok(())
    })
}

/// If rows are independent, pieces of a tile give what the tile gives; if the transform is pointwise, so does every
/// value by itself, in its channel.
///
/// # Errors
/// If the stage does not conform.
pub fn pieces(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        let bound = &*setup.bound;
        let single = setup.model.planes.iter().all(|plane| bound.parts(plane).len() == 1);
        ensure(!bound.pointwise() || bound.independent_rows() && single, || {
            "a pointwise transform has independent rows and one part".to_owned()
        })?;
        if !bound.independent_rows() {
            return Ok(());
        }
        each_tile(setup, true, |tile, x| {
            let whole = drive((bound, &setup.model.planes), tile, x, PLAIN)?;
            let mut begun = vec![0; whole.parts.len()];
            for first in (0..tile.rows).step_by(bound.row_multiple()) {
                let rows = bound.row_multiple().min(tile.rows - first);
                let piece = TileCx::new(
                    tile.plane,
                    tile.first + first,
                    rows,
                    tile.position.wrapping_add(first as u64),
                );
                let got = drive(
                    (bound, &setup.model.planes),
                    &piece,
                    &x.slice(s![first..first + rows, ..]).to_owned(),
                    PLAIN,
                )?;
                for (index, (part, begun)) in got.parts.iter().zip(&mut begun).enumerate() {
                    let want = whole.parts[index].slice(s![*begun..*begun + part.nrows(), ..]).to_owned();
                    same_bits(&format!("piece from {first}, part {index}"), &want, part)?;
                    *begun += part.nrows();
                }
                let want = whole.back.slice(s![first..first + rows, ..]).to_owned();
                same_bits(&format!("piece from {first}, inverse"), &want, &got.back)?;
            }
            if bound.pointwise() && tile.rows > 0 {
                // The rows elsewhere and in another order, where only the channel is the same.
                let mut reversed = x.clone();
                reversed.invert_axis(Axis(0));
                let elsewhere = TileCx::new(tile.plane, 0, tile.rows, tile.position.wrapping_add(77));
                let mut got = drive(
                    (bound, &setup.model.planes),
                    &elsewhere,
                    &reversed.as_standard_layout().to_owned(),
                    PLAIN,
                )?;
                got.parts[0].invert_axis(Axis(0));
                got.back.invert_axis(Axis(0));
                same_bits("pointwise, forward", &whole.parts[0], &got.parts[0])?;
                same_bits("pointwise, inverse", &whole.back, &got.back)?;
            }
            Ok(())
        })
    })
}

/// The inverse of the exact parts gives the tile back, within the suite's tolerance.
///
/// # Errors
/// If the stage does not conform.
pub fn inverts(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        each_tile(setup, false, |tile, x| {
            close(x, &drive((&*setup.bound, &setup.model.planes), tile, x, PLAIN)?.back, suite.tolerance)?;
            if suite.tolerance > 0.0 {
                return Ok(());
            }
            let x = values::special(tile.plane.shape.dtype, tile.rows, tile.plane.channels(), 5);
            close(&x, &drive((&*setup.bound, &setup.model.planes), tile, &x, PLAIN)?.back, 0.0)
        })
    })
}

fn close(x: &Array2<f32>, back: &Array2<f32>, tolerance: f32) -> Check {
    if tolerance == 0.0 {
        return same_bits("inverse", x, back);
    }
    let allowed = tolerance * largest(x);
    for ((at, x), back) in x.indexed_iter().zip(back) {
        // Negated, so that NaN fails.
        let near = (x - back).abs() <= allowed;
        ensure(near, || format!("inverse: {back} at {at:?}, not {x}; allowed is ±{allowed}"))?;
    }
    Ok(())
}

/// Later parts make up for what earlier ones lost: with errors in all parts but the last, no more rows are
/// wrong than the earlier parts have.
///
/// # Errors
/// If the stage does not conform, or has no plane of several parts.
pub fn closed_loop(suite: &Suite) -> Check {
    let mut tested = false;
    each::<dyn Transform>(suite, |setup| {
        let bound = &*setup.bound;
        each_tile(setup, false, |tile, x| {
            let earlier = bound.parts(tile.plane).len() - 1;
            let free: usize = (0..earlier).map(|part| bound.part_rows(part, tile.rows)).sum();
            if free == 0 || free >= tile.rows {
                return Ok(());
            }
            tested = true;
            let loss = Some(0.25 * largest(x));
            let back = drive((bound, &setup.model.planes), tile, x, How { loss, ..PLAIN })?.back;
            // Errors of the lossy parts make the numbers larger, and with them the rounding.
            let allowed = 2.0 * suite.tolerance.max(f32::EPSILON) * largest(x);
            let off = |(x, back): (&f32, &f32)| (x - back).abs() > allowed || back.is_nan();
            let wrong =
                x.rows().into_iter().zip(back.rows()).filter(|(x, back)| x.iter().zip(back).any(off)).count();
            ensure(wrong <= free, || {
                format!("errors of earlier parts reach {wrong} rows, but these parts have only {free}")
            })
        })
    })?;
    ensure(tested, || "no plane has several parts, of which the last has most rows".to_owned())
}

/// Outputs do not depend on what the buffers held.
///
/// # Errors
/// If the stage does not conform.
pub fn overwrites(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        each_tile(setup, true, |tile, x| {
            let [a, b] = POISONS
                .map(|poison| drive((&*setup.bound, &setup.model.planes), tile, x, How { poison, ..PLAIN }));
            same("a buffer is not overwritten whole", &a?, &b?)
        })
    })
}

/// Views with other strides give the same results.
///
/// # Errors
/// If the stage does not conform.
pub fn strides(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        each_tile(setup, true, |tile, x| {
            let want = drive((&*setup.bound, &setup.model.planes), tile, x, PLAIN)?;
            Lie::UNUSUAL.into_iter().try_for_each(|lie| {
                let what = format!("{lie:?} views");
                let got = survive(&what, || {
                    drive((&*setup.bound, &setup.model.planes), tile, x, How { lie, ..PLAIN })
                })??;
                same(&what, &want, &got)
            })
        })
    })
}

/// Repeated calls, a second instance and several threads give the same results.
///
/// # Errors
/// If the stage does not conform.
pub fn deterministic(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        let second = setup.again()?;
        each_tile(setup, true, |tile, x| {
            let want = drive((&*setup.bound, &setup.model.planes), tile, x, PLAIN)?;
            same("a second call", &want, &drive((&*setup.bound, &setup.model.planes), tile, x, PLAIN)?)?;
            same("a second instance", &want, &drive((&*second, &setup.model.planes), tile, x, PLAIN)?)
        })?;
        let Some(plane) = setup.model.planes.last() else { return Ok(()) };
        let tile = TileCx::new(plane, 0, 33, 0);
        let x = sample(&tile);
        let want = drive((&*setup.bound, &setup.model.planes), &tile, &x, PLAIN)?;
        let threads = concurrently(|| drive((&*setup.bound, &setup.model.planes), &tile, &x, PLAIN))?;
        threads.iter().try_for_each(|got| same("another thread", &want, got))
    })
}

/// No values make it panic, finite or not.
///
/// # Errors
/// If the stage does not conform.
pub fn survives(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| exercise(&*setup.bound, setup.model))
}

pub(crate) fn exercise(bound: &dyn BoundTransform, model: &Model) -> Check {
    let wild = |plane: &Plane, rows, cols, seed| match seed {
        0 => values::special(crate::Dtype::F32, rows, cols, seed),
        1 => Array2::from_elem((rows, cols), f32::MAX),
        _ => kv_like(plane.shape.dtype, Role::Whole, rows, cols, seed),
    };
    for plane in &model.planes {
        for (rows, seed) in [(1, 0), (11, 0), (11, 1), (16, 2)] {
            let tile = TileCx::new(plane, 0, rows, 0);
            let x = wild(plane, rows, plane.channels(), seed);
            let place = || format!("{}, {rows} tokens", plane.name());
            // What it answers is its own business here.
            let _ = survive("forward", || drive((bound, &model.planes), &tile, &x, PLAIN)).within(place)?;
            let parts: Vec<_> = bound
                .parts(plane)
                .iter()
                .enumerate()
                .map(|(index, part)| wild(plane, bound.part_rows(index, rows), part.cols, seed))
                .collect();
            let references = references(&model.planes, bound.references(plane), &tile);
            let views: Vec<_> = parts.iter().chain(&references).map(|part| part.view()).collect();
            let mut out = Array2::zeros(x.dim());
            let _ = survive("inverse", || bound.inverse(&tile, &views, out.view_mut())).within(place)?;
        }
    }
    Ok(())
}

/// Calibration, and data that do not fit.
///
/// # Errors
/// If the stage does not conform.
pub fn calibration(suite: &Suite) -> Check {
    calibration::check::<dyn Transform>(suite)
}

/// Calls do not allocate.
///
/// # Errors
/// If the stage does not conform, or if nobody counts.
pub fn allocations(suite: &Suite) -> Check {
    each::<dyn Transform>(suite, |setup| {
        let bound = &*setup.bound;
        each_tile(setup, true, |tile, x| {
            let parts = drive((bound, &setup.model.planes), tile, x, PLAIN)?.parts;
            let references = references(&setup.model.planes, bound.references(tile.plane), tile);
            let views: Vec<ArrayView2<'_, f32>> =
                parts.iter().chain(&references).map(|part| part.view()).collect();
            for (index, part) in parts.iter().enumerate() {
                let mut out = Array2::zeros(part.dim());
                let done = if references.is_empty() { &views[..index] } else { &views[1..] };
                let forward = || bound.forward(tile, index, x.view(), done, out.view_mut());
                no_allocation("forward", forward)?;
            }
            let mut out = Array2::zeros(x.dim());
            no_allocation("inverse", || bound.inverse(tile, &views, out.view_mut()))
        })
    })
}
