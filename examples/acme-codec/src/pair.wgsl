// The inverse of acme.pair. Data: 0 for neighbours, 1 for halves.

fn $value(p: Place) -> f32 {
    let cols = part_cols(p);
    let half = cols / 2u;
    if p.col >= 2u * half {
        return $inner(p);
    }
    var first = p.col - p.col % 2u;
    var second = first + 1u;
    if $data(0u) == 1u {
        first = p.col % half;
        second = first + half;
    }
    // Half of a difference is exact.
    let mean = $inner(in_col(p, first));
    let difference = 0.5 * $inner(in_col(p, second));
    return select(mean - difference, mean + difference, p.col == first);
}
