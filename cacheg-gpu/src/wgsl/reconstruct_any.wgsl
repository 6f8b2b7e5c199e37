// All that is left behind the coder, where rows are no whole words, so that a word may belong to two pieces: an element for each
// invocation, into zeros.
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
    let element = (group.y * PER_ROW + group.x) * 64u + lane;
    if element >= table[at + PIECE_HEADS] * rows * dim {
        return;
    }
    let rest = quotient(element, dim);
    let channel = element - rest * dim;
    let head = quotient(rest, rows);
    let row = rest - head * rows;
    let bits = pipeline_element(piece_place(at, row, head * dim + channel), dtype);
    let index = output_word(at, head, row, channel, 1u) - table[at + PIECE_OUTPUT];
    atomicOr(&output[table[at + PIECE_OUTPUT] + index / each], bits << (8u * size * (index % each)));
}
