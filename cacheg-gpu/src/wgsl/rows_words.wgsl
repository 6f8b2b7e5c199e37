
// Rows are whole words.
fn store_rows(t: HeadRows, lane: u32) {
    let dtype = piece_dtype();
    let size = size_of(dtype);
    let each = 4u / size;
    for (var i = lane * each; i < t.rows * t.dim; i += ROWS_LANES * each) {
        var packed = 0u;
        for (var k = 0u; k < each; k++) {
            packed |= pipeline_element(rows_place(t, i + k), dtype) << (8u * size * k);
        }
        let row = quotient(i, t.dim);
        output[output_word(t.head, t.first + row, i - row * t.dim, each)] = packed;
    }
}

