// All that is left behind the coder. A workgroup makes 1,024 words of one piece: what it needs to know of it is the same for all
// invocations, and found out once. Rows are whole words.
@compute @workgroup_size(64)
fn reconstruct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    enter_piece(number);
    let dtype = piece_dtype();
    let size = size_of(dtype);
    let each = 4u / size;
    let words = piece.dim / each;
    let count = piece.heads * piece.rows * words;
    let begin = (group.y * PER_ROW + group.x) * 1024u + lane;
    for (var word = begin; word < min(begin + 1024u, count); word += 64u) {
        let rest = quotient(word, words);
        let channel = (word - rest * words) * each;
        let head = quotient(rest, piece.rows);
        let row = rest - head * piece.rows;
        var packed = 0u;
        for (var i = 0u; i < each; i++) {
            let p = piece_place(row, head * piece.dim + channel + i);
            packed |= pipeline_element(p, dtype) << (8u * size * i);
        }
        output[output_word(head, row, channel, each)] = packed;
    }
}
