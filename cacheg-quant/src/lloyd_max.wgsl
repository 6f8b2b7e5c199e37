// `lloyd-max`: twin of Layout::dequantize in lloyd_max.rs, in integers: scales and products may be subnormal.
//
// Data: for each plane four words: channels of a group, entries above 0, where they begin, 0 for f16 and 1 for bfloat16
// scales; then those entries, in units of 2^-11.

// n · 2^e as bits of a float; it has at most 24 significant bits, none of them below 2^-149.
fn $bits(n: u32, e: i32) -> u32 {
    if n == 0u {
        return 0u;
    }
    let up = countLeadingZeros(n);
    let exponent = 158 + e - i32(up);
    let drop = 8u + u32(max(1 - exponent, 0));
    // The leading one raises the exponent by itself.
    return (u32(max(exponent, 1) - 1) << 23u) + ((n << up) >> drop);
}

fn $value(p: Place) -> f32 {
    let at = 4u * p.plane;
    let group = $data(at);
    let half = $data(at + 1u);
    let first = $data(at + 2u);
    let code = side_u16(p, p.row * ((part_cols(p) + group - 1u) / group) + p.col / group);
    let wide = $data(at + 3u) == 1u;
    let mantissa_bits = select(10u, 7u, wide);
    let field = (code & 0x7fffu) >> mantissa_bits;
    let mantissa = (code & ((1u << mantissa_bits) - 1u)) | (select(0u, 1u, field > 0u) << mantissa_bits);
    let exponent = i32(max(field, 1u)) - select(25, 134, wide) - 11;
    let largest = $data(first + half - 1u) * mantissa;
    let infinite = field == (0x7fffu >> mantissa_bits) || 32 - i32(countLeadingZeros(largest)) + exponent > 128;
    if code >= 0x8000u || infinite {
        fault(p.tile, FAULT_SCALE);
        return 0.0;
    }
    let found = symbol(p, 0u);
    let below = found < half;
    let entry = $data(first + select(found - half, half - 1u - found, below));
    return bitcast<f32>(select(0u, 0x80000000u, below) | $bits(entry * mantissa, exponent));
}
