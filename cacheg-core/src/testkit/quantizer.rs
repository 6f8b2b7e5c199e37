//! Checks of quantizers.

use std::ops::Range;

use ndarray::{Array2, Axis, s};

use super::alloc::no_allocation;
use super::bind::{Setup, concurrently, each, tiles};
use super::grid::{Grid, Lie, POISONS, Poison, largest, same_bits, same_bytes};
use super::models::part_rows;
use super::suite::{Within, ensure, survive};
use super::{Check, Failure, Model, Random, Suite, calibration, kv_like, settings, values};
use crate::{
    Alphabet, BoundQuantizer, CLASSES, Dtype, Escapes, GRADES, Part, PartCx, Plane, Quantizer, TileCx,
};

/// Number of the part's first symbol among the tile's: not 0, so that nobody overlooks it.
const BASE: u32 = 1000;

/// What a part became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coded {
    pub(crate) symbols: Vec<u8>,
    pub(crate) side: Vec<u8>,
    pub(crate) escapes: Escapes,
}

/// One part of one plane in one tile, and the quantizer for it.
pub(crate) struct Piece<'a> {
    pub(crate) bound: &'a dyn BoundQuantizer,
    pub(crate) tile: TileCx<'a>,
    pub(crate) cx: PartCx,
    pub(crate) alphabets: Vec<Alphabet>,
}

/// Grades of some tokens and heads, all of which occur.
static SOME_GRADES: [u8; 1 << 13] = {
    let mut grades = [0; 1 << 13];
    let mut at = 0;
    while at < grades.len() {
        grades[at] = (at * at / 3 % GRADES) as u8;
        at += 1;
    }
    grades
};

/// The tile with grades of some rows of a part, of which each always has the same.
fn graded(tile: TileCx<'_>, rows: Range<usize>) -> TileCx<'_> {
    let heads = tile.plane.shape.heads as usize;
    let grades = SOME_GRADES.get((tile.first + rows.start) * heads..(tile.first + rows.end) * heads);
    tile.with_grades(grades.unwrap_or_default())
}

impl<'a> Piece<'a> {
    pub(crate) fn new(bound: &'a dyn BoundQuantizer, tile: TileCx<'a>, index: usize, part: &Part) -> Self {
        let cx = PartCx::new(index, part.role, part_rows(part.role, tile.rows), part.cols);
        let tile = if bound.grades().is_empty() { tile } else { graded(tile, 0..cx.rows) };
        Self { bound, tile, cx, alphabets: bound.alphabets(tile.plane, part, index) }
    }

    fn symbols(&self) -> usize {
        self.cx.rows * self.cx.cols * self.alphabets.len()
    }

    fn dtype(&self) -> Dtype {
        self.tile.plane.shape.dtype
    }

    pub(crate) fn sample(&self) -> Array2<f32> {
        let seed = (self.tile.plane.index * 8 + self.cx.index) as u64 + 100;
        kv_like(self.dtype(), self.cx.role, self.cx.rows, self.cx.cols, seed)
    }

    pub(crate) fn quantize(&self, x: &Array2<f32>, lie: Lie, poison: Poison) -> Result<Coded, Failure> {
        let x = Grid::of(lie, x);
        let mut symbols = vec![poison.byte; self.symbols()];
        let mut side = vec![poison.byte; self.bound.side_len(self.tile.plane, &self.cx)];
        let mut escapes = Escapes::default();
        let mut writer = escapes.writer(BASE);
        self.bound
            .quantize(&self.tile, &self.cx, x.view(), &mut symbols, &mut side, &mut writer)
            .within(|| "quantize".to_owned())?;
        Ok(Coded { symbols, side, escapes })
    }

    pub(crate) fn dequantize(&self, coded: &Coded, lie: Lie, poison: Poison) -> Result<Array2<f32>, Failure> {
        let mut out = Grid::poisoned(lie, self.cx.rows, self.cx.cols, poison);
        let mut reader = coded.escapes.reader(BASE, self.symbols() as u32);
        self.bound
            .dequantize(&self.tile, &self.cx, &coded.symbols, &coded.side, &mut reader, out.view_mut())
            .within(|| "dequantize".to_owned())?;
        reader.finish().within(|| "after dequantize".to_owned())?;
        Ok(out.to_array())
    }

    /// There and back.
    fn pass(&self, x: &Array2<f32>) -> Result<Array2<f32>, Failure> {
        self.dequantize(&self.quantize(x, Lie::RowMajor, POISONS[0])?, Lie::RowMajor, POISONS[0])
    }

    /// Alphabet of the symbol with that index.
    fn alphabet(&self, index: usize) -> Alphabet {
        self.alphabets[index / (self.cx.rows * self.cx.cols)]
    }

    fn is_escape(&self, index: usize, symbol: u8) -> bool {
        let alphabet = self.alphabet(index);
        alphabet.escape && u16::from(symbol) + 1 == alphabet.size
    }

    /// Symbols, and escapes just where the symbols say so.
    fn consistent(&self, coded: &Coded) -> Check {
        let mut wanted = Vec::new();
        for (index, &symbol) in coded.symbols.iter().enumerate() {
            let size = self.alphabet(index).size;
            ensure(u16::from(symbol) < size, || {
                format!("symbol {index} is {symbol} of an alphabet of {size}")
            })?;
            if self.is_escape(index, symbol) {
                wanted.push(BASE + index as u32);
            }
        }
        let got: Vec<u32> = coded.escapes.items().iter().map(|(index, _)| *index).collect();
        ensure(wanted == got, || {
            format!("escape symbols at {wanted:?}, but values at {got:?} (counted from {BASE})")
        })
    }
}

/// For every part of every plane, some tile heights and both tiles.
fn each_piece(
    setup: &Setup<'_, dyn Quantizer>,
    few: bool,
    mut check: impl FnMut(&Piece<'_>) -> Check,
) -> Check {
    let bound = &*setup.bound;
    let multiple = bound.row_multiple();
    for (plane, parts) in setup.model.planes.iter().zip(&setup.parts) {
        for (index, part) in parts.iter().enumerate() {
            let all = || setup.suite.tile_rows(multiple, part.cols);
            for rows in if few { setup.suite.few_rows(multiple) } else { all() } {
                for tile in tiles(plane, multiple, rows) {
                    let place =
                        || format!("{}, {:?}, {rows} tokens from {}", plane.name(), part.role, tile.first);
                    check(&Piece::new(bound, tile, index, part)).within(place)?;
                }
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
    settings::check::<dyn Quantizer>(suite)
}

/// Alphabets and sizes make sense and never change.
///
/// # Errors
/// If the stage does not conform.
pub fn shapes(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        let (bound, second) = (&*setup.bound, setup.again()?);
        ensure(bound.row_multiple() > 0, || "tiles begin at multiples of 0".to_owned())?;
        let traits = |b: &dyn BoundQuantizer| (b.row_multiple(), b.exact(), b.escapes());
        ensure(traits(bound) == traits(&*second), || "row_multiple, exact or escapes change".to_owned())?;
        let mut escapes = false;
        each_piece(setup, true, |piece| {
            let (plane, cx) = (piece.tile.plane, &piece.cx);
            let other = second.alphabets(plane, &setup.parts[plane.index][cx.index], cx.index);
            ensure(piece.alphabets == other, || "alphabets change".to_owned())?;
            ensure(!other.is_empty(), || "no symbol planes".to_owned())?;
            let part = &setup.parts[plane.index][cx.index];
            let classes = bound.classes(plane, part, cx.index);
            ensure(classes == second.classes(plane, part, cx.index), || "classes change".to_owned())?;
            let legal = classes.iter().all(|class| usize::from(*class) < CLASSES);
            ensure(legal && (classes.is_empty() || classes.len() == cx.cols), || {
                format!("classes are one for each column, below {CLASSES}, not {classes:?}")
            })?;
            let fits = other.iter().all(|alphabet| (2..=256).contains(&alphabet.size));
            ensure(fits, || format!("alphabets hold 2 to 256 symbols, not {other:?}"))?;
            escapes |= other.iter().any(|alphabet| alphabet.escape);
            let same = bound.side_len(plane, cx) == second.side_len(plane, cx);
            ensure(same, || "side_len changes".to_owned())
        })?;
        ensure(escapes == bound.escapes(), || {
            format!("escapes() is {}, but the alphabets say {escapes}", bound.escapes())
        })
    })
}

/// If rows are independent, pieces of a part give what the part gives; if the quantizer is pointwise, there is no side
/// information, one symbol plane, and symbols that never fall as values rise.
///
/// # Errors
/// If the stage does not conform.
pub fn pieces(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        let bound = &*setup.bound;
        ensure(!bound.pointwise() || bound.independent_rows(), || {
            "a pointwise quantizer has independent rows".to_owned()
        })?;
        if !bound.independent_rows() {
            return Ok(());
        }
        each_piece(setup, true, |piece| {
            let x = piece.sample();
            let whole = piece.quantize(&x, Lie::RowMajor, POISONS[0])?;
            let back = piece.dequantize(&whole, Lie::RowMajor, POISONS[0])?;
            let (cols, planes) = (piece.cx.cols, piece.alphabets.len());
            let mut side = 0;
            for first in (0..piece.cx.rows).step_by(bound.row_multiple()) {
                let rows = bound.row_multiple().min(piece.cx.rows - first);
                let cx = PartCx { rows, ..piece.cx };
                let own = |tile| graded(tile, first..first + rows);
                let tile = if bound.grades().is_empty() { piece.tile } else { own(piece.tile) };
                let part = Piece { bound, tile, cx, alphabets: piece.alphabets.clone() };
                let got = part.quantize(
                    &x.slice(s![first..first + rows, ..]).to_owned(),
                    Lie::RowMajor,
                    POISONS[0],
                )?;
                for plane in 0..planes {
                    let at = (plane * piece.cx.rows + first) * cols;
                    let (want, got) = (
                        &whole.symbols[at..at + rows * cols],
                        &got.symbols[plane * rows * cols..][..rows * cols],
                    );
                    same_bytes(&format!("piece from {first}, symbol plane {plane}"), want, got)?;
                }
                same_bytes(
                    "side information of a piece",
                    &whole.side[side..side + got.side.len()],
                    &got.side,
                )?;
                side += got.side.len();
                let want = back.slice(s![first..first + rows, ..]).to_owned();
                same_bits("dequantised piece", &want, &part.dequantize(&got, Lie::RowMajor, POISONS[0])?)?;
            }
            if bound.pointwise() {
                ensure(whole.side.is_empty() && planes == 1, || {
                    "pointwise, but with side information".to_owned()
                })?;
                let known = |symbol: u8| !piece.is_escape(0, symbol);
                for (values, symbols) in x.axis_iter(Axis(1)).zip(0..cols) {
                    let mut column: Vec<(f32, u8)> = values
                        .iter()
                        .copied()
                        .zip(whole.symbols.iter().skip(symbols).step_by(cols).copied())
                        .collect();
                    column.retain(|(_, symbol)| known(*symbol));
                    column.sort_by(|a, b| a.0.total_cmp(&b.0));
                    ensure(column.is_sorted_by_key(|(_, symbol)| *symbol), || {
                        "symbols fall as values rise".to_owned()
                    })?;
                }
            }
            Ok(())
        })
    })
}

/// Exact quantizers give every bit back, NaN included. Others stay finite; a second pass over the result stays
/// within the suite's error bound or, if it has none, loses no more than the first.
///
/// # Errors
/// If the stage does not conform.
pub fn reconstructs(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        each_piece(setup, false, |piece| {
            let x = piece.sample();
            let once = piece.pass(&x)?;
            if piece.bound.exact() {
                same_bits("an exact quantizer", &x, &once)?;
                let x = values::special(piece.dtype(), piece.cx.rows, piece.cx.cols, 7);
                return same_bits("an exact quantizer", &x, &piece.pass(&x)?);
            }
            bounded(&x, &once, suite.error_bound)?;
            let twice = piece.pass(&once).within(|| "second pass".to_owned())?;
            bounded(&once, &twice, suite.error_bound).within(|| "second pass".to_owned())?;
            let (first, second) = (energy(&x, &once), energy(&once, &twice));
            // A percent and some rounding, for scales that are themselves rounded.
            let noise = (1e-6 * f64::from(largest(&x))).powi(2) * x.len() as f64;
            ensure(suite.error_bound.is_some() || second <= 1.01 * first + noise, || {
                format!("drifts: squared error {second} on the second pass, {first} on the first")
            })
        })
    })
}

fn bounded(x: &Array2<f32>, back: &Array2<f32>, bound: Option<f32>) -> Check {
    let allowed = bound.map_or(f32::INFINITY, |bound| bound * largest(x));
    for ((at, x), back) in x.indexed_iter().zip(back) {
        let near = back.is_finite() && (x - back).abs() <= allowed;
        ensure(near, || format!("{x} becomes {back} at {at:?}; allowed is ±{allowed}"))?;
    }
    Ok(())
}

fn energy(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

/// Values far outside of what calibration saw.
fn outliers(piece: &Piece<'_>, factor: f32) -> Array2<f32> {
    let mut random = Random::new(9);
    let mut x = piece.sample().mapv(|x| if random.below(8) == 0 { (x + 1.0) * factor } else { x });
    values::round(piece.dtype(), &mut x);
    x.mapv_inplace(|x| if x.is_finite() { x } else { 0.0 });
    x
}

/// Symbols are below their alphabets; a value escapes if and only if its symbol says so; escapes that are
/// missing, surplus or at another symbol are errors.
///
/// # Errors
/// If the stage does not conform, or if it can escape and nothing makes it.
pub fn escapes(suite: &Suite) -> Check {
    let (mut may, mut seen) = (false, false);
    each::<dyn Quantizer>(suite, |setup| {
        may |= setup.bound.escapes();
        each_piece(setup, true, |piece| {
            let coded = piece.quantize(&piece.sample(), Lie::RowMajor, POISONS[0])?;
            piece.consistent(&coded)?;
            for factor in [8.0, 100.0, 1e4, 1e30] {
                // It may refuse values as wild as these, but not lose them.
                let x = outliers(piece, factor);
                let coded = survive("quantize", || piece.quantize(&x, Lie::RowMajor, POISONS[0]))?;
                let Ok(coded) = coded else { continue };
                piece.consistent(&coded)?;
                piece.dequantize(&coded, Lie::RowMajor, POISONS[0])?;
                seen |= !coded.escapes.items().is_empty();
                tampered(piece, &coded)?;
            }
            Ok(())
        })
    })?;
    ensure(seen || !may, || "says that it may escape, but nothing makes it".to_owned())
}

fn tampered(piece: &Piece<'_>, coded: &Coded) -> Check {
    let refuse = |what: &str, items: Vec<(u32, i32)>| {
        let coded = Coded { escapes: escapes_of(&items), ..coded.clone() };
        let back = survive(what, || piece.dequantize(&coded, Lie::RowMajor, POISONS[0]))?;
        ensure(back.is_err(), || format!("{what} is accepted"))
    };
    let items = coded.escapes.items();
    if let Some((&(at, value), rest)) = items.split_last() {
        refuse("a missing escape", rest.to_vec())?;
        refuse("an early escape", [rest, &[(at - 1, value)]].concat()).or_else(|failure| {
            // The symbol before may be an escape too; then the index occurs twice and is no order at all.
            if rest.last().is_some_and(|(before, _)| *before == at - 1) { Ok(()) } else { Err(failure) }
        })?;
    }
    let free = (0..coded.symbols.len()).find(|&index| !piece.is_escape(index, coded.symbols[index]));
    if let Some(free) = free {
        let at = BASE + free as u32;
        let mut surplus = items.to_vec();
        surplus.insert(items.partition_point(|(index, _)| *index < at), (at, 1));
        refuse("a surplus escape", surplus)?;
    }
    Ok(())
}

fn escapes_of(items: &[(u32, i32)]) -> Escapes {
    let mut escapes = Escapes::default();
    let mut writer = escapes.writer(0);
    for &(index, value) in items {
        writer.push(index as usize, value);
    }
    escapes
}

/// Outputs do not depend on what the buffers held.
///
/// # Errors
/// If the stage does not conform.
pub fn overwrites(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        each_piece(setup, true, |piece| {
            let x = piece.sample();
            let [a, b] = POISONS.map(|poison| piece.quantize(&x, Lie::RowMajor, poison));
            let a = a?;
            same("a buffer is not overwritten whole", &a, &b?)?;
            let [x, y] = POISONS.map(|poison| piece.dequantize(&a, Lie::RowMajor, poison));
            same_bits("a buffer is not overwritten whole", &x?, &y?)
        })
    })
}

fn same(what: &str, want: &Coded, got: &Coded) -> Check {
    same_bytes(&format!("{what}: symbols"), &want.symbols, &got.symbols)?;
    same_bytes(&format!("{what}: side information"), &want.side, &got.side)?;
    ensure(want.escapes == got.escapes, || format!("{what}: other escapes"))
}

/// Views with other strides give the same results.
///
/// # Errors
/// If the stage does not conform.
pub fn strides(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        each_piece(setup, true, |piece| {
            let x = piece.sample();
            let want = piece.quantize(&x, Lie::RowMajor, POISONS[0])?;
            let back = piece.dequantize(&want, Lie::RowMajor, POISONS[0])?;
            Lie::UNUSUAL.into_iter().try_for_each(|lie| {
                let what = format!("{lie:?} views");
                same(&what, &want, &survive(&what, || piece.quantize(&x, lie, POISONS[0]))??)?;
                same_bits(&what, &back, &survive(&what, || piece.dequantize(&want, lie, POISONS[0]))??)
            })
        })
    })
}

/// Repeated calls, a second instance and several threads give the same results.
///
/// # Errors
/// If the stage does not conform.
pub fn deterministic(suite: &Suite) -> Check {
    let both = |piece: &Piece<'_>, x: &Array2<f32>| {
        let coded = piece.quantize(x, Lie::RowMajor, POISONS[0])?;
        let back = piece.dequantize(&coded, Lie::RowMajor, POISONS[0])?;
        Ok::<_, Failure>((coded, back))
    };
    each::<dyn Quantizer>(suite, |setup| {
        let second = setup.again()?;
        each_piece(setup, true, |piece| {
            let x = piece.sample();
            let (want, back) = both(piece, &x)?;
            let part = &setup.parts[piece.tile.plane.index][piece.cx.index];
            let other = Piece::new(&*second, piece.tile, piece.cx.index, part);
            let mut results =
                vec![("a second call", both(piece, &x)?), ("a second instance", both(&other, &x)?)];
            if piece.cx.rows == 11 {
                let threads = concurrently(|| both(piece, &x))?;
                results.extend(threads.into_iter().map(|result| ("another thread", result)));
            }
            results.iter().try_for_each(|(what, (coded, values))| {
                same(what, &want, coded)?;
                same_bits(what, &back, values)
            })
        })
    })
}

/// Whatever symbols, side information and escapes hold: no panic.
///
/// # Errors
/// If the stage does not conform.
pub fn survives(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| exercise(&*setup.bound, setup.model, &setup.parts))
}

pub(crate) fn exercise(bound: &dyn BoundQuantizer, model: &Model, parts: &[Vec<Part>]) -> Check {
    let piece = |plane, rows, index, part| {
        let what = "alphabets";
        survive(what, || Piece::new(bound, TileCx::new(plane, 0, rows, 0), index, part))
    };
    for (plane, parts) in model.planes.iter().zip(parts) {
        for (index, part) in parts.iter().enumerate() {
            for rows in [1, 11] {
                let piece = piece(plane, rows, index, part)?;
                rubbish(&piece, plane)
                    .within(|| format!("{}, {:?}, {rows} tokens", plane.name(), part.role))?;
            }
        }
    }
    Ok(())
}

fn rubbish(piece: &Piece<'_>, plane: &Plane) -> Check {
    let x = piece.sample();
    // What it answers is its own business here.
    let _ = survive("quantize", || piece.quantize(&x, Lie::RowMajor, POISONS[0]))?;
    let side = survive("side_len", || piece.bound.side_len(plane, &piece.cx))?;
    let mut random = Random::new(11);
    for round in 0..24 {
        let mut coded = Coded { symbols: Vec::new(), side: Vec::new(), escapes: Escapes::default() };
        let mut items = Vec::new();
        for index in 0..piece.symbols() {
            let symbol = random.below(usize::from(piece.alphabet(index).size)) as u8;
            coded.symbols.push(symbol);
            if piece.is_escape(index, symbol) {
                let value = [i32::MIN, i32::MAX, 0, -1, random.bits() as i32][random.below(5)];
                items.push((BASE + index as u32, value));
            }
        }
        if round % 4 == 3 && !items.is_empty() {
            items.remove(random.below(items.len()));
        }
        coded.escapes = escapes_of(&items);
        coded
            .side
            .resize_with(side, || if round % 3 == 0 { 0xff * (round / 3 % 2) as u8 } else { random.byte() });
        let _ = survive("dequantize", || piece.dequantize(&coded, Lie::RowMajor, POISONS[0]))?;
    }
    Ok(())
}

/// Calibration, and data that do not fit.
///
/// # Errors
/// If the stage does not conform.
pub fn calibration(suite: &Suite) -> Check {
    calibration::check::<dyn Quantizer>(suite)
}

/// Calls do not allocate.
///
/// # Errors
/// If the stage does not conform, or if nobody counts.
pub fn allocations(suite: &Suite) -> Check {
    each::<dyn Quantizer>(suite, |setup| {
        each_piece(setup, true, |piece| {
            let x = piece.sample();
            let Coded { mut symbols, mut side, mut escapes } =
                piece.quantize(&x, Lie::RowMajor, POISONS[0])?;
            no_allocation("quantize", || {
                escapes.clear();
                let mut writer = escapes.writer(BASE);
                piece.bound.quantize(&piece.tile, &piece.cx, x.view(), &mut symbols, &mut side, &mut writer)
            })?;
            let mut out = Array2::zeros(x.dim());
            no_allocation("dequantize", || {
                let mut reader = escapes.reader(BASE, symbols.len() as u32);
                let view = out.view_mut();
                piece.bound.dequantize(&piece.tile, &piece.cx, &symbols, &side, &mut reader, view)
            })
        })
    })
}
