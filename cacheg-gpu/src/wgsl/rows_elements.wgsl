// Rows are no whole words: an element at a time.
fn store_rows(t: HeadRows, lane: u32) {
    let dtype = piece_dtype();
    for (var i = lane; i < t.rows * t.dim; i += ROWS_LANES) {
        let row = quotient(i, t.dim);
        put_element(t.head, t.first + row, i - row * t.dim, dtype, pipeline_element(rows_place(t, i), dtype));
    }
}
