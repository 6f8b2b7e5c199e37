// `uniform`: twin of uniform/grid.rs.
//
// Data: for each plane eight words: axis (0 tokens, 1 channels), group, whether there are zero points, steps, centre,
// 0 for f16 and 1 for bfloat16 scales.

var<private> $by_channel: bool;
// 0 for all rows of a part.
var<private> $group: u32;
var<private> $zero: u32;
var<private> $steps: f32;
var<private> $centre: i32;
var<private> $format: u32;
// Channels, and groups that they make.
var<private> $cols: u32;
var<private> $of_row: u32;

fn $enter(plane: u32) {
    let at = 8u * plane;
    $cols = piece.heads * piece.dim;
    $by_channel = $data(at) == 1u;
    $group = $data(at + 1u);
    if !$by_channel {
        $group = select($group, $cols, $group == 0u);
        $of_row = quotient($cols + $group - 1u, $group);
    }
    $zero = $data(at + 2u);
    $steps = f32($data(at + 3u));
    $centre = i32($data(at + 4u));
    $format = select(F16, BF16, $data(at + 5u) == 1u);
}

fn $value(p: Place) -> f32 {
    var group = $group;
    if group == 0u {
        group = part_rows(p);
    }
    let across = quotient(select(p.col, p.row, $by_channel), group);
    let groups = select(p.row * $of_row + across, across * $cols + p.col, $by_channel);
    let number = groups << $zero;
    var offset = 0.0;
    if $zero == 1u {
        offset = widen($format, side_u16(p, number));
    }
    let code = side_u16(p, number + $zero);
    let scale = widen($format, code);
    if code >= 0x8000u || !$finite(scale) || !$finite(offset) || !$finite(offset + $steps * scale) {
        fault(p.tile, FAULT_SCALE);
        return 0.0;
    }
    // The product is exact. A sum of zero is +0, whatever a compiler makes of adding 0.
    let value = offset + f32(i32(symbol(p, 0u)) - $centre) * scale;
    return select(value, 0.0, value == 0.0);
}

fn $finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}
