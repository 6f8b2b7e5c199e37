//! The order of graded symbols: of each plane head after head, of each head its rows by grade, rows of a grade in their
//! order. So a run of symbols has one grade, and coders need to know nothing else.

use crate::grade::{CodedRows, GRADES};
use crate::tile::Tile;
use crate::{Alphabet, Escapes, Plane, Segment};

/// Where each row of each head of a tile begins among its arranged symbols.
#[derive(Debug, Default)]
pub(crate) struct Order {
    starts: Vec<u32>,
}

/// How many rows of a head have each grade.
fn counts(grades: &[u8], heads: usize, head: usize) -> [usize; GRADES] {
    let mut counts = [0; GRADES];
    for grade in grades.iter().skip(head).step_by(heads) {
        counts[usize::from(*grade) % GRADES] += 1;
    }
    counts
}

/// Appends the segments of a graded plane of a tile.
pub(crate) fn segments(
    plane: &Plane,
    tile: &Tile,
    rows: CodedRows<'_>,
    alphabet: Alphabet,
    segments: &mut Vec<Segment>,
) {
    let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
    let grades = rows.grades.of(plane.layer as usize, tile.first..tile.first + tile.rows);
    for head in 0..heads {
        for (grade, rows) in counts(grades, heads, head).into_iter().enumerate().filter(|(_, rows)| *rows > 0)
        {
            let segment = Segment::new(plane.index, 0, 0, rows, dim, alphabet);
            segments.push(segment.of_grade(head * dim, grade as u8));
        }
    }
}

impl Order {
    /// Finds the order of a tile of some planes.
    pub(crate) fn find(&mut self, planes: &[Plane], tile: &Tile, rows: CodedRows<'_>) {
        self.starts.clear();
        let mut next = 0;
        for plane in &planes[tile.planes.clone()] {
            let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
            let grades = rows.grades.of(plane.layer as usize, tile.first..tile.first + tile.rows);
            for head in 0..heads {
                let mut starts = counts(grades, heads, head).map(|rows| {
                    let start = next;
                    next += rows * dim;
                    start
                });
                self.starts.extend(grades.iter().skip(head).step_by(heads).map(|grade| {
                    let start = &mut starts[usize::from(*grade) % GRADES];
                    *start += dim;
                    (*start - dim) as u32
                }));
            }
        }
    }

    /// Calls `each` with where a row of a head begins in row-major symbols, where in arranged ones, and its length.
    fn runs(&self, planes: &[Plane], tile: &Tile, mut each: impl FnMut(usize, usize, usize)) {
        let (mut starts, mut base) = (self.starts.chunks_exact(tile.rows.max(1)), 0);
        for plane in &planes[tile.planes.clone()] {
            let (heads, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
            for (head, starts) in (0..heads).zip(&mut starts) {
                for (row, start) in starts.iter().enumerate() {
                    each(base + (row * heads + head) * dim, *start as usize, dim);
                }
            }
            base += heads * dim * tile.rows;
        }
    }

    /// Arranges row-major symbols and their escapes.
    pub(crate) fn arrange(
        &self,
        planes: &[Plane],
        tile: &Tile,
        from: &[u8],
        to: &mut [u8],
        escapes: &mut Escapes,
    ) {
        self.runs(planes, tile, |at, start, len| {
            to[start..start + len].copy_from_slice(&from[at..at + len]);
        });
        self.move_escapes(planes, tile, escapes, |at, start| (at, start));
    }

    /// Undoes [`arrange`](Self::arrange).
    pub(crate) fn restore(
        &self,
        planes: &[Plane],
        tile: &Tile,
        from: &[u8],
        to: &mut [u8],
        escapes: &mut Escapes,
    ) {
        self.runs(planes, tile, |at, start, len| {
            to[at..at + len].copy_from_slice(&from[start..start + len]);
        });
        self.move_escapes(planes, tile, escapes, |at, start| (start, at));
    }

    /// Gives escapes the numbers that their symbols have after a move; `way` says from where to where a run goes.
    fn move_escapes(
        &self,
        planes: &[Plane],
        tile: &Tile,
        escapes: &mut Escapes,
        way: impl Fn(usize, usize) -> (usize, usize),
    ) {
        if escapes.items().is_empty() {
            return;
        }
        let mut moves = Vec::with_capacity(self.starts.len());
        self.runs(planes, tile, |at, start, len| {
            let (from, to) = way(at, start);
            moves.push((from, to, len));
        });
        moves.sort_unstable();
        escapes.renumber(|index| {
            let after = moves.partition_point(|(from, _, _)| *from <= index as usize);
            let (from, to, _) = moves[after.saturating_sub(1)];
            (to + index as usize - from) as u32
        });
    }
}
