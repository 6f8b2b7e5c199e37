// Symbols are arranged by head and grade. Of a piece `orders` has 16 segments of each head, those of its grades; then of each head a
// word for each row: which row of its segment it is, and above that, from bit 28, its grade.

fn row_order(head: u32, row: u32) -> u32 {
    return table[window.orders + piece.order + 16u * piece.heads + head * piece.rows + row];
}

fn coded(p: Place) -> Coded {
    let head = quotient(p.col, piece.dim);
    let found = row_order(head, p.row);
    let segment = table[window.orders + piece.order + 16u * head + (found >> 28u)];
    return Coded(segment, found & 0xfffffffu, p.col - head * piece.dim);
}

fn grade(p: Place) -> u32 {
    return row_order(quotient(p.col, piece.dim), p.row) >> 28u;
}

fn part_rows(p: Place) -> u32 {
    return piece.rows;
}

fn part_cols(p: Place) -> u32 {
    return piece.heads * piece.dim;
}
