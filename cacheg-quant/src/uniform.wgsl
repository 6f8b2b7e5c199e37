// `uniform`: twin of uniform/grid.rs.
//
// Data: for each plane eight words: axis (0 tokens, 1 channels), group, whether there are zero points, steps, centre,
// 0 for f16 and 1 for bfloat16 scales.

fn $value(p: Place) -> f32 {
    let at = 8u * p.plane;
    let by_channel = $data(at) == 1u;
    let zero = $data(at + 2u);
    let cols = part_cols(p);
    var group = $data(at + 1u);
    if group == 0u {
        group = select(cols, part_rows(p), by_channel);
    }
    let across = quotient(select(p.col, p.row, by_channel), group);
    let of_row = quotient(cols + group - 1u, group);
    let groups = select(p.row * of_row + across, across * cols + p.col, by_channel);
    let number = groups * (1u + zero);
    let format = select(F16, BF16, $data(at + 5u) == 1u);
    var offset = 0.0;
    if zero == 1u {
        offset = widen(format, side_u16(p, number));
    }
    let code = side_u16(p, number + zero);
    let scale = widen(format, code);
    let end = offset + f32($data(at + 3u)) * scale;
    if code >= 0x8000u || !$finite(scale) || !$finite(offset) || !$finite(end) {
        fault(p.tile, FAULT_SCALE);
        return 0.0;
    }
    // The product is exact. A sum of zero is +0, whatever a compiler makes of adding 0.
    let value = offset + f32(i32(symbol(p, 0u)) - i32($data(at + 4u))) * scale;
    return select(value, 0.0, value == 0.0);
}

fn $finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
