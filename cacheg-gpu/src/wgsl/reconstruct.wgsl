// All that is left behind the coder: each invocation makes one word of the output. A workgroup works on one piece: what it needs
// to know of it is the same for all invocations. Rows are whole words.
@compute @workgroup_size(64)
fn reconstruct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    let at = window.pieces + PIECE_WORDS * number;
    let dim = table[at + PIECE_DIM];
    let rows = table[at + PIECE_ROWS];
    let dtype = piece_dtype(at);
    let size = size_of(dtype);
    let each = 4u / size;
    let words = dim / each;
    let word = (group.y * PER_ROW + group.x) * 64u + lane;
    if word >= table[at + PIECE_HEADS] * rows * words {
        return;
    }
    let rest = quotient(word, words);
    let channel = (word - rest * words) * each;
    let head = quotient(rest, rows);
    let row = rest - head * rows;
    var packed = 0u;
    for (var i = 0u; i < each; i++) {
        let p = piece_place(at, row, head * dim + channel + i);
        packed |= pipeline_element(p, dtype) << (8u * size * i);
    }
    output[output_word(at, head, row, channel, each)] = packed;
}
