// A stage that works on whole rows of heads, `$` being its prefix: a workgroup for some rows of a head of a piece. It asks the
// stages behind for all values, has the stage transform them, and has what the stages in front make of them stored.

// The same for all invocations.
struct HeadRows {
    plane: u32,
    tile: u32,
    head: u32,
    // Which row of the tile the first is.
    first: u32,
    rows: u32,
    // Channels of a head.
    dim: u32,
}

const ROWS_LANES: u32 = 256u;

var<workgroup> row_values: array<f32, ROWS_VALUES>;
// A place's row times channels of a head, plus its channel, plus this is where its value is.
var<private> rows_base: u32;

fn $value(p: Place) -> f32 {
    return row_values[rows_base + p.row * piece.dim + p.col];
}

fn transform_rows(group: vec3<u32>, lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    enter_piece(number);
    // Not from `piece`: barriers want to know that they are the same for all invocations.
    let at = window.pieces + PIECE_WORDS * number;
    let dim = table[at + 8u];
    let rows = table[at + 10u];
    let most = ROWS_VALUES / dim;
    let runs = (rows + most - 1u) / most;
    let index = group.y * PER_ROW + group.x;
    let head = index / runs;
    if head >= table[at + 7u] {
        return;
    }
    let first = (index - head * runs) * most;
    let t = HeadRows(table[at + 5u], table[at + 4u], head, first, min(most, rows - first), dim);
    rows_base = 0u - (first + head) * dim;
    for (var i = lane; i < t.rows * dim; i += ROWS_LANES) {
        row_values[i] = $inner(rows_place(t, i));
    }
    workgroupBarrier();
    $rows(t, lane);
    workgroupBarrier();
    store_rows(t, lane);
}

// Of a value's number.
fn rows_place(t: HeadRows, number: u32) -> Place {
    let row = quotient(number, t.dim);
    return piece_place(t.first + row, t.head * t.dim + number - row * t.dim);
}
