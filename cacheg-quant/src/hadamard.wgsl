// `hadamard`: twin of Bound::inverse in hadamard.rs. No product is added to anything, and sums have the order of the CPU's.
//
// Data: where the planes are; the signs of a head's channels, bit by bit, 1 for −; for each plane the channels of a block and the
// norm.

fn $rows(t: HeadRows, lane: u32) {
    let at = $data(0u) + 2u * t.plane;
    let block = $data(at);
    let norm = bitcast<f32>($data(at + 1u));
    let count = t.rows * t.dim;
    for (var i = lane; i < count; i += ROWS_LANES) {
        row_values[i] *= norm;
    }
    workgroupBarrier();
    // Two distances at a time.
    var distance = 1u;
    while 4u * distance <= block {
        for (var i = lane; i < count / 4u; i += ROWS_LANES) {
            let first = i + 3u * (i & ~(distance - 1u));
            let a = row_values[first];
            let b = row_values[first + distance];
            let c = row_values[first + 2u * distance];
            let d = row_values[first + 3u * distance];
            let e = a + b;
            let f = a - b;
            let g = c + d;
            let h = c - d;
            row_values[first] = e + g;
            row_values[first + distance] = f + h;
            row_values[first + 2u * distance] = e - g;
            row_values[first + 3u * distance] = f - h;
        }
        workgroupBarrier();
        distance *= 4u;
    }
    if distance < block {
        for (var i = lane; i < count / 2u; i += ROWS_LANES) {
            let first = i + (i & ~(distance - 1u));
            let a = row_values[first];
            let b = row_values[first + distance];
            row_values[first] = a + b;
            row_values[first + distance] = a - b;
        }
        workgroupBarrier();
    }
    for (var i = lane; i < count; i += ROWS_LANES) {
        let channel = i - quotient(i, t.dim) * t.dim;
        if (($data(1u + channel / 32u) >> (channel % 32u)) & 1u) == 1u {
            row_values[i] = -row_values[i];
        }
    }
}
