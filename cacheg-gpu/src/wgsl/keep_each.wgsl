
// The values of a plane, to be kept: a workgroup makes 1,024 of a piece.
@compute @workgroup_size(64)
fn keep(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    enter_piece(number);
    let channels = piece.heads * piece.dim;
    let begin = (group.y * PER_ROW + group.x) * 1024u + lane;
    for (var i = begin; i < min(begin + 1024u, channels * piece.rows); i += 64u) {
        let row = quotient(i, channels);
        keep_value(piece_place(row, i - row * channels));
    }
}
