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
    // Lanes see each other's votes.
    var votes = 0u;
    for (var i = 0u; i < 5u; i++) {
        votes = ballot(lane, ((numbers[2u * lane] >> i) & 1u) == 1u);
    }
    answers[96u + lane] =
        countOneBits(votes & ((1u << lane) - 1u)) + 32u * countLeadingZeros(numbers[2u * lane + 1u]);
}
