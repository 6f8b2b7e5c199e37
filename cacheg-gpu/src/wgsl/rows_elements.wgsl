
// A word may have elements of two workgroups, even of two pieces: an element at a time, into zeros.
fn store_rows(t: Rows, lane: u32) {
    let dtype = piece_dtype();
    let size = size_of(dtype);
    let each = 4u / size;
    for (var i = lane; i < t.rows * t.dim; i += ROWS_LANES) {
        let row = quotient(i, t.dim);
        let bits = pipeline_element(rows_place(t, i), dtype);
        let index = output_word(t.head, t.first + row, i - row * t.dim, 1u) - piece.output;
        atomicOr(&output[piece.output + index / each], bits << (8u * size * (index % each)));
    }
}

