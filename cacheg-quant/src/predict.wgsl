// `predict`: twin of Bound::inverse in predict.rs. All in integers modulo 2³², so that the order of the sums does not matter.
//
// Data: where each plane's numbers are, or 0; of a plane its grid, how many channels its references have together, its own
// channels, and how many references there are; of each its plane and its channels; by which power of two each reference's channel
// is multiplied; by how many bits each of the plane's channels is shifted down; and the matrix, a row for each channel of the
// references, four numbers to a word, signed, each row in words of its own.

// Integers of 16 rows for 256 channels of the references: four rows to a vector.
var<workgroup> $numbers: array<vec4<i32>, 1024>;

// Of a normal number.
fn $power(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// A value to a number of a grid.
fn $grid_of(x: f32, scale: f32, most: f32) -> i32 {
    return i32(round(clamp(x * scale, -most, most)));
}

// Divides by a power of two, rounding to the nearest, halves up; or multiplies by one.
fn $down(x: i32, bits: i32) -> i32 {
    if bits <= 0i {
        return x << u32(-bits);
    }
    return (x + (1i << u32(bits - 1i))) >> u32(bits);
}

fn $predict(t: PlaneRows, lane: u32) {
    let at = $data(t.plane);
    let count = $data(at + 1u);
    let cols = $data(at + 2u);
    let scales = at + 4u + 2u * $data(at + 3u);
    let downs = scales + count;
    let words = (cols + 3u) / 4u;
    let col = t.col + lane;
    var number = downs + cols + min(col, cols - 1u) / 4u;
    let shift = 8u * (col & 3u);
    var sums: array<vec4<i32>, 4>;
    for (var first = 0u; first < count; first += PREDICT_COLS) {
        // A channel of the references for each invocation.
        let own = first + lane;
        if own < count {
            var pair = at + 4u;
            var channel = own;
            while channel >= $data(pair + 1u) {
                channel -= $data(pair + 1u);
                pair += 2u;
            }
            let scale = bitcast<f32>($data(scales + own));
            for (var i = 0u; i < 4u; i++) {
                var four: vec4<i32>;
                for (var k = 0u; k < 4u; k++) {
                    let row = t.first + min(4u * i + k, t.rows - 1u);
                    four[k] = $grid_of(reference($data(pair), row, channel), scale, 32767.0);
                }
                $numbers[4u * lane + i] = four;
            }
        }
        workgroupBarrier();
        if lane < t.cols {
            let these = 4u * min(count - first, PREDICT_COLS);
            for (var i = 0u; i < these; i += 4u) {
                let weight = extractBits(bitcast<i32>($data(number)), shift, 8u);
                number += words;
                sums[0] += weight * $numbers[i];
                sums[1] += weight * $numbers[i + 1u];
                sums[2] += weight * $numbers[i + 2u];
                sums[3] += weight * $numbers[i + 3u];
            }
        }
        // All have read.
        workgroupBarrier();
    }
    if lane < t.cols {
        let down = bitcast<i32>($data(downs + col));
        for (var row = 0u; row < t.rows; row++) {
            foretell(t, row, col, bitcast<u32>($down(sums[row / 4u][row & 3u], down)));
        }
    }
}

fn $value(p: Place) -> f32 {
    let at = $data(p.plane);
    let y = $inner(p);
    if at == 0u {
        return y;
    }
    let grid = bitcast<i32>($data(at));
    let x = $grid_of(y, $power(grid), 1073741824.0) + bitcast<i32>(foretold(p));
    // A float holds 24 bits of an integer.
    let kept = select(x & -256i, x, x >= -16777216i && x <= 16777216i);
    return f32(kept) * $power(-grid);
}
