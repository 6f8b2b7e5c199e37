// `klt`: data has where each plane's heads begin. Of a head: its grid, the shift of each row, and the numbers of its matrix, four to a
// word, signed. All in integers modulo 2³², so that the order of the sums does not matter.

fn $number(first: u32, index: u32) -> i32 {
    let word = bitcast<i32>($data(first + index / 4u));
    return extractBits(word, 8u * (index & 3u), 8u);
}

// Of a normal number.
fn $power(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// Words of a head of that many channels.
fn $words(dim: u32) -> u32 {
    return 1u + dim + (dim * dim + 3u) / 4u;
}

fn $rows(t: HeadRows, lane: u32) {
    let head = $data(t.plane) + t.head * $words(t.dim);
    let grid = bitcast<i32>($data(head));
    let count = t.rows * t.dim;
    // Coefficients to integers, each in place, and as floats, which hold all that there are.
    for (var i = lane; i < count; i += ROWS_LANES) {
        let row = quotient(i, t.dim);
        let shift = bitcast<i32>($data(head + 1u + i - row * t.dim));
        row_values[i] = round(clamp(row_values[i] * $power(grid - shift), -1073741824.0, 1073741824.0));
    }
    workgroupBarrier();
    var sums: array<i32, 16>;
    for (var turn = 0u; turn < 16u; turn++) {
        let i = lane + turn * ROWS_LANES;
        if i < count {
            let row = quotient(i, t.dim);
            let channel = i - row * t.dim;
            var sum = 0i;
            for (var k = 0u; k < t.dim; k++) {
                sum += i32(row_values[row * t.dim + k]) * $number(head + 1u + t.dim, k * t.dim + channel);
            }
            sums[turn] = sum;
        }
    }
    // All have read.
    workgroupBarrier();
    for (var turn = 0u; turn < 16u; turn++) {
        let i = lane + turn * ROWS_LANES;
        if i < count {
            let x = sums[turn];
            // A float holds 24 bits of an integer.
            let kept = select(x & -256i, x, x >= -16777216i && x <= 16777216i);
            row_values[i] = f32(kept) * $power(-grid);
        }
    }
}
