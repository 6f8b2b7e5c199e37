// What programs rely on, with answers that are known.

@group(0) @binding(0) var<storage, read> numbers: array<u32>;
@group(0) @binding(1) var<storage, read_write> answers: array<u32>;

@compute @workgroup_size(32)
fn test(@builtin(local_invocation_index) lane: u32) {
    // Sums and products round to nearest, ties to even; products that are exact may be contracted.
    let a = bitcast<f32>(numbers[2u * lane]);
    let b = bitcast<f32>(numbers[2u * lane + 1u]);
    answers[lane] = bitcast<u32>(a + b);
    answers[32u + lane] = bitcast<u32>(a * b);
    // A loop that some drivers end early, without a word.
    var x = lane;
    for (var i = 0u; i < numbers[64]; i++) {
        x = x * 1664525u + 1013904223u;
    }
    answers[64u + lane] = x;
    // Lanes see each other's votes, also behind ways of their own.
    var votes = 0u;
    for (var i = 0u; i < 5u; i++) {
        for (var own = 0u; own < (numbers[2u * lane + 1u] >> i) % 7u; own++) {
            x = x * 1664525u + own;
            if (x >> 29u) == i {
                break;
            }
        }
        workgroupBarrier();
        votes = ballot(lane, ((numbers[2u * lane] >> i) & 1u) == 1u);
    }
    answers[96u + lane] =
        countOneBits(votes & ((1u << lane) - 1u)) + 32u * countLeadingZeros(numbers[2u * lane + 1u]);
    // And each other's entries.
    give(lane, vec3<u32>(numbers[2u * lane], numbers[2u * lane + 1u], 7u * lane));
    let other = (numbers[2u * lane] >> 3u) & 31u;
    answers[128u + lane] = given_x(other) ^ (given_y(other ^ 1u) << 1u) ^ given_z(other ^ 2u);
    // Quotients come out right next to where they change.
    let d = 1u + (numbers[2u * lane] & 0x3ffu);
    let n = (numbers[2u * lane + 1u] & 0x3fffffu) / d * d;
    answers[160u + lane] = quotient(n, d) + 3u * quotient(max(n, 1u) - 1u, d);
}
