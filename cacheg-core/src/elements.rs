//! Tabulated pipelines: where a symbol stands for one element of its channel, whatever is around it, the coder looks
//! elements up and no other stage runs at all. What the tables hold is what the stages made of each symbol, so that
//! results are theirs, bit for bit.

mod run;

use crate::front::{Coded, Front, FrontScratch};
use crate::tile::{Tile, TileOut};
use crate::{ElementTable, Error, Escapes, Plane, Result, SymbolBounds, TileCx, element_key};

/// Stands for an escape, and for symbols that do not exist: a NaN, which no table holds otherwise.
const NONE: u16 = 0x7fff;

/// The tables of a plan.
pub(crate) struct Elements {
    /// One for each channel, planes one after the other.
    tables: Vec<ElementTable>,
    /// The first channel of each plane.
    first: Vec<usize>,
}

impl Elements {
    /// Runs the stages on every symbol of every channel; `None` if there is more to them than symbols.
    pub(crate) fn new(front: &Front) -> Option<Self> {
        // Elements are handed over as numbers and stored as they are.
        if !front.is_pointwise() || cfg!(target_endian = "big") {
            return None;
        }
        let mut new = Self { tables: Vec::new(), first: Vec::new() };
        let mut scratch = FrontScratch::default();
        for plane in front.planes() {
            new.first.push(new.tables.len());
            let alphabet = front.alphabet(plane)?;
            let cols = plane.channels();
            let symbols = usize::from(alphabet.size) - usize::from(alphabet.escape);
            let rows: Vec<u8> =
                (0..symbols).flat_map(|symbol| std::iter::repeat_n(symbol as u8, cols)).collect();
            front.reserve(symbols, &mut scratch);
            let begin = new.tables.len();
            new.tables.resize(begin + cols, ElementTable([NONE; 32]));
            let tables = &mut new.tables[begin..];
            let escapes = Escapes::default();
            let mut from =
                Coded { symbols: &rows, symbols_done: 0, side: &[], side_done: 0, escapes: &escapes };
            let mut bytes = Vec::new();
            let mut give = |first: usize, _: usize, values: &[f32]| {
                bytes.resize(2 * values.len(), 0);
                plane.shape.dtype.narrow(values, &mut bytes);
                for (row, elements) in (first..).zip(bytes.chunks_exact(2 * cols)) {
                    for (table, element) in tables.iter_mut().zip(elements.as_chunks::<2>().0) {
                        table.0[row] = u16::from_le_bytes(*element);
                    }
                }
            };
            front.dequantize(&TileCx::new(plane, 0, symbols, 0), &mut scratch, &mut from, &mut give).ok()?;
            if tables.iter().any(|table| table.0[..symbols].contains(&NONE)) {
                return None;
            }
        }
        new.first.push(new.tables.len());
        Some(new)
    }

    /// Those of a tile's channels.
    pub(crate) fn of(&self, tile: &Tile) -> &[ElementTable] {
        &self.tables[self.first[tile.planes.start]..self.first[tile.planes.end]]
    }

    /// Fills in the escapes of a tile whose other elements are in place, and checks that they are where escapes were.
    pub(crate) fn patch(
        front: &Front,
        tile: &Tile,
        escapes: &Escapes,
        out: &mut TileOut<'_, '_>,
        scratch: &mut FrontScratch,
    ) -> Result<()> {
        let (mut begin, mut number) = (0, tile.planes.start);
        for (index, value) in escapes.items() {
            let mut plane = &front.planes()[number];
            while *index as usize - begin >= plane.channels() * tile.rows {
                begin += plane.channels() * tile.rows;
                number += 1;
                plane = &front.planes()[number];
            }
            let (row, channel) =
                ((*index as usize - begin) / plane.channels(), (*index as usize - begin) % plane.channels());
            let at = out.row + tile.first + row;
            let element = out.plane(number).element(at, channel);
            if *element != NONE.to_le_bytes() {
                return Err(Error::corrupt("an escaped value without its symbol").at(plane.name()));
            }
            let value = front.escaped(plane, channel, *value, scratch).map_err(|e| e.at(plane.name()))?;
            plane.shape.dtype.narrow(&[value], element);
        }
        Ok(())
    }
}

/// Where symbols change, for coders that take elements.
pub(crate) struct Bounds {
    /// One for each channel, planes one after the other.
    bounds: Vec<SymbolBounds>,
    /// The first channel of each plane.
    first: Vec<usize>,
}

impl Bounds {
    /// Searches for them by running the stages on elements; `None` if that cannot be done.
    pub(crate) fn new(front: &Front, elements: &Elements) -> Option<Self> {
        let mut new = Self { bounds: Vec::new(), first: elements.first.clone() };
        let mut scratch = FrontScratch::default();
        for plane in front.planes() {
            let alphabet = front.alphabet(plane).filter(|alphabet| alphabet.escape)?;
            let known = usize::from(alphabet.size) - 1;
            let tables = &elements.tables[elements.first[plane.index]..elements.first[plane.index + 1]];
            new.bounds.extend(bounds_of(front, plane, known, tables, &mut scratch)?);
        }
        Some(new)
    }

    /// Those of a tile's channels.
    pub(crate) fn of(&self, tile: &Tile) -> &[SymbolBounds] {
        &self.bounds[self.first[tile.planes.start]..self.first[tile.planes.end]]
    }
}

/// Bisects all bounds of a plane's channels at a time. `known` symbols are no escapes.
fn bounds_of(
    front: &Front,
    plane: &Plane,
    known: usize,
    tables: &[ElementTable],
    scratch: &mut FrontScratch,
) -> Option<Vec<SymbolBounds>> {
    let (cols, dtype) = (tables.len(), plane.shape.dtype);
    let infinity = element_key(dtype.infinity()?);
    let key = |symbol: usize, col: usize| i32::from(element_key(tables[col].0[symbol]));
    // Bound `k` of a channel is in `low + 1 ..= high`; far from all values lie escapes and nothing else.
    let ends: Vec<(i32, i32)> = (0..cols)
        .map(|col| {
            let value = |symbol: usize| dtype.value(tables[col].0[symbol]);
            let (first, last) = (value(0), value(known - 1));
            let margin =
                (last - first).abs() + 2.0 * (value(1.min(known - 1)) - first).abs() + f32::MIN_POSITIVE;
            let end = |x: f32| i32::from(element_key(dtype.element(x)));
            (end(first - margin), end(last + margin))
        })
        .collect();
    // If they are no escapes, cells are wider there than between the first symbols, or the elements end before.
    // Keys are their own inverses.
    let value = |key: i32| dtype.value(element_key(key as u16).cast_unsigned());
    let both: Vec<f32> =
        ends.iter().map(|end| value(end.0)).chain(ends.iter().map(|end| value(end.1))).collect();
    let mut escapes = vec![0; both.len()];
    front.symbols_of(plane, &both, scratch, &mut escapes).ok()?;
    if escapes.iter().any(|symbol| usize::from(*symbol) != known) {
        return None;
    }
    let mut low: Vec<i32> = (0..=known).flat_map(|_| ends.iter().map(|end| end.0)).collect();
    let mut high: Vec<i32> = (0..=known).flat_map(|_| ends.iter().map(|end| end.1)).collect();
    let (mut values, mut symbols) = (vec![0.0; low.len()], vec![0; low.len()]);
    while low.iter().zip(&high).any(|(low, high)| high - low > 1) {
        for (at, to) in values.iter_mut().enumerate() {
            *to = value((low[at] + high[at]).div_euclid(2));
        }
        front.symbols_of(plane, &values, scratch, &mut symbols).ok()?;
        for (at, symbol) in symbols.iter().enumerate() {
            let (k, col, middle) = (at / cols, at % cols, (low[at] + high[at]).div_euclid(2));
            let symbol = usize::from(*symbol);
            // Above bound `k` is symbol `k`, and above the last one an escape.
            let above = if symbol == known { middle > key(known / 2, col) } else { symbol >= k };
            *(if above { &mut high[at] } else { &mut low[at] }) = middle;
        }
    }
    let bound =
        |k: usize, col: usize| if k > known { i16::MAX } else { (high[k * cols + col] as i16).min(infinity) };
    Some((0..cols).map(|col| SymbolBounds(std::array::from_fn(|k| bound(k, col)))).collect())
}

/// Checks that there are as many escapes as escaped symbols.
pub(crate) fn check(escaped: usize, escapes: &Escapes) -> Result<()> {
    match escaped.cmp(&escapes.items().len()) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Error::corrupt("an escape symbol without its value")),
        std::cmp::Ordering::Less => Err(Error::corrupt("an escaped value without its symbol")),
    }
}
