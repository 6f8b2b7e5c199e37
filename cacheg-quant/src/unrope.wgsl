// `unrope`: rotates pairs of channels by position times frequency. Bounds are in unrope/kernel.rs.
//
// Angles are counted in turns, in integers, which wrap around as angles do. Data: cosine and sine of 256 angles that divide a
// turn; for each plane where its rotation is, or 0; rotations: channels of a head, first rotated channel, pairs, 1 if
// neighbours form a pair, and each pair's turns per token, in units of 2^-64, low and high word.

// The upper half of a product.
fn $high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let first = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let second = (a & 0xffffu) * (b >> 16u) + (first & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (first >> 16u) + (second >> 16u);
}

// Cosine and sine of a pair's angle at a position.
fn $rotation(position: vec2<u32>, at: u32) -> vec2<f32> {
    let low = $data(at);
    let turns = $high(position.x, low) + position.x * $data(at + 1u) + position.y * low;
    // An angle of the table, and a rest of at most half a step.
    let nearest = (turns + 0x800000u) >> 24u;
    let rest = f32(bitcast<i32>(turns - (nearest << 24u))) * 1.4629180792671596e-9;
    let square = rest * rest;
    // One minus the cosine, and the sine.
    let fall = 0.5 * square;
    let rise = rest - rest * square * 0.16666667;
    let c = bitcast<f32>($data(2u * (nearest & 255u)));
    let s = bitcast<f32>($data(2u * (nearest & 255u) + 1u));
    return vec2<f32>(c - (c * fall + s * rise), s + (c * rise - s * fall));
}

fn $value(p: Place) -> f32 {
    let at = $data(512u + p.plane);
    if at == 0u {
        return $inner(p);
    }
    let dim = $data(at);
    let pairs = $data(at + 2u);
    // Counted from the first rotated channel of its head; channels in front of it wrap around.
    let channel = p.col - quotient(p.col, dim) * dim - $data(at + 1u);
    if channel >= 2u * pairs {
        return $inner(p);
    }
    let neighbours = $data(at + 3u) == 1u;
    let distance = select(pairs, 1u, neighbours);
    let second = select(channel >= pairs, (channel & 1u) == 1u, neighbours);
    let pair = select(channel - select(0u, pairs, second), channel / 2u, neighbours);
    let rotation = $rotation(position(p), at + 4u + 2u * pair);
    let value = $inner(p);
    if second {
        return value * rotation.x + $inner(in_col(p, p.col - distance)) * rotation.y;
    }
    return value * rotation.x - $inner(in_col(p, p.col + distance)) * rotation.y;
}
