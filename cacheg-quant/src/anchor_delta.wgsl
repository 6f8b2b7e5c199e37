// `anchor-delta`: data has the tokens of a group.

fn $value(p: Place) -> f32 {
    let group = p.row / $data(0u);
    let anchor = $inner(in_part(p, 0u, group));
    if p.row == group * $data(0u) {
        return anchor;
    }
    return anchor + $inner(in_part(p, 1u, p.row - group - 1u));
}
