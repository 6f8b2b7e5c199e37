// `klt`: data has where the matrices begin; where each plane's begin among them, in numbers; and their numbers, bfloat16, two to a word.

fn $number(index: u32) -> f32 {
    let pair = $data($data(0u) + index / 2u);
    return bitcast<f32>(select(pair << 16u, pair & 0xffff0000u, (index & 1u) == 1u));
}

fn $rows(t: HeadRows, lane: u32) {
    let matrix = $data(1u + t.plane) + t.head * t.dim * t.dim;
    let count = t.rows * t.dim;
    var sums: array<f32, 16>;
    for (var turn = 0u; turn < 16u; turn++) {
        let i = lane + turn * ROWS_LANES;
        if i < count {
            let row = quotient(i, t.dim);
            let channel = i - row * t.dim;
            var sum = 0.0;
            for (var k = 0u; k < t.dim; k++) {
                sum += row_values[row * t.dim + k] * $number(matrix + k * t.dim + channel);
            }
            sums[turn] = sum;
        }
    }
    // All have read.
    workgroupBarrier();
    for (var turn = 0u; turn < 16u; turn++) {
        let i = lane + turn * ROWS_LANES;
        if i < count {
            row_values[i] = sums[turn];
        }
    }
}
