// All that is left behind the coder, where rows are no whole words, so that a word may belong to two pieces: an element for each
// invocation, into zeros.
@compute @workgroup_size(64)
fn reconstruct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    enter_piece(number);
    let dtype = piece_dtype();
    let element = (group.y * PER_ROW + group.x) * 64u + lane;
    if element >= piece.heads * piece.rows * piece.dim {
        return;
    }
    let rest = quotient(element, piece.dim);
    let channel = element - rest * piece.dim;
    let head = quotient(rest, piece.rows);
    let row = rest - head * piece.rows;
    let bits = pipeline_element(piece_place(row, head * piece.dim + channel), dtype);
    put_element(head, row, channel, dtype, bits);
}
