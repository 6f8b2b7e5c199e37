
// Planes that are predicted from others: of each place the word that its prediction left, and then its value, is kept in `scratch`.

const PREDICT_ROWS: u32 = 16u;
const PREDICT_COLS: u32 = 256u;

// Some rows and columns of a plane; the same for all invocations of a workgroup.
struct PlaneRows {
    plane: u32,
    first: u32,
    rows: u32,
    col: u32,
    cols: u32,
}

fn kept_word(plane: u32, row: u32, col: u32) -> u32 {
    let at = window.planes + 2u * plane;
    return window.kept + piece.kept + table[at + 1u] * piece.rows + row * table[at] + col;
}

fn reference(plane: u32, row: u32, col: u32) -> f32 {
    return bitcast<f32>(scratch[kept_word(plane, row, col)]);
}

fn foretell(t: PlaneRows, row: u32, col: u32, word: u32) {
    scratch[kept_word(t.plane, t.first + row, col)] = word;
}

fn foretold(p: Place) -> u32 {
    return scratch[kept_word(p.plane, p.row, p.col)];
}

fn kept_value(p: Place) -> f32 {
    return reference(p.plane, p.row, p.col);
}

fn keep_value(p: Place) {
    scratch[kept_word(p.plane, p.row, p.col)] = bitcast<u32>($value(p));
}
