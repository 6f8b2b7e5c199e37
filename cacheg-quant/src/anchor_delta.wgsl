// `anchor-delta`: data has the tokens of a group.

fn $value(p: Place) -> f32 {
    let group = quotient(p.row, $data(0u));
    let anchor = $inner(in_part(p, 0u, group));
    if p.row == group * $data(0u) {
        return anchor;
    }
    return anchor + $inner(in_part(p, 1u, p.row - group - 1u));
}

fn $row(part: u32, row: u32) -> u32 {
    if part == 0u {
        return row * $data(0u);
    }
    return row + quotient(row, $data(0u) - 1u) + 1u;
}
