// `bins`: twin of bins/absmax.rs and bins/step.rs.
//
// Data: for each plane and each of its four possible parts four words: 0 and reach and step, or 1 and bins and 0 for f16, 1
// for bfloat16 scales.

// n / c · 2^e, rounded to nearest, ties to even, in integers: WGSL's division may be off. 0 < n < 2^24, 0 < c < 2^8.
fn $ratio(n: u32, c: u32, e: i32) -> u32 {
    let up = countLeadingZeros(n);
    let quotient = (n << up) / c;
    let rest = (n << up) % c;
    // 25 bits or more: 24 are kept, fewer of a subnormal.
    var drop = 8u - countLeadingZeros(quotient);
    var exponent = 150 + e + i32(drop) - i32(up);
    if exponent <= 0 {
        let more = u32(1 - exponent);
        if drop + more > 31u {
            return 0u;
        }
        drop += more;
        exponent = 1;
    }
    let low = quotient & ((1u << drop) - 1u);
    let kept = quotient >> drop;
    let half = 1u << (drop - 1u);
    let above = low > half || (low == half && (rest > 0u || (kept & 1u) == 1u));
    // A carry out of the mantissa raises the exponent by itself.
    return (u32(exponent - 1) << 23u) + kept + select(0u, 1u, above);
}

// Of each part.
var<private> $modes: array<vec3<u32>, 4>;

fn $enter(plane: u32) {
    for (var part = 0u; part < 4u; part++) {
        let at = 4u * (4u * plane + part);
        $modes[part] = vec3<u32>($data(at), $data(at + 1u), $data(at + 2u));
    }
}

fn $value(p: Place) -> f32 {
    let mode = $modes[p.part];
    let found = symbol(p, 0u);
    if mode.x == 0u {
        let reach = mode.y;
        if found == 2u * reach + 1u {
            return escape(p);
        }
        return f32(i32(found) - i32(reach)) * bitcast<f32>(mode.z);
    }
    let bins = mode.y;
    let centre = bins / 2u - 1u;
    let code = side_u16(p, p.row);
    let mantissa_bits = select(10u, 7u, mode.z == 1u);
    let field = (code & 0x7fffu) >> mantissa_bits;
    let exponent = i32(max(field, 1u)) - select(25, 134, mode.z == 1u);
    let mantissa = (code & ((1u << mantissa_bits) - 1u)) | (select(0u, 1u, field > 0u) << mantissa_bits);
    let largest = (bins - 1u - centre) * mantissa;
    let infinite = field == (0x7fffu >> mantissa_bits) || 32 - i32(countLeadingZeros(largest)) + exponent > 128;
    if code >= 0x8000u || infinite {
        fault(p.tile, FAULT_SCALE);
        return 0.0;
    }
    let below = found < centre;
    let steps = select(found - centre, centre - found, below);
    let sign = select(0u, 0x80000000u, below);
    if steps * mantissa == 0u {
        return bitcast<f32>(sign);
    }
    return bitcast<f32>(sign | $ratio(steps * mantissa, centre, exponent));
}
