// What the references say of a plane: a workgroup for 16 rows and 256 columns of a piece.
@compute @workgroup_size(256)
fn predict(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = window.first_piece + group.z;
    if number >= window.piece_count {
        return;
    }
    enter_piece(number);
    // Not from `piece`: barriers want to know that they are the same for all invocations.
    let at = window.pieces + PIECE_WORDS * number;
    let rows = table[at + 10u];
    let channels = table[at + 7u] * table[at + 8u];
    let index = group.y * PER_ROW + group.x;
    let across = (channels + PREDICT_COLS - 1u) / PREDICT_COLS;
    let first = PREDICT_ROWS * (index / across);
    if first >= rows {
        return;
    }
    let col = PREDICT_COLS * (index % across);
    $predict(
        PlaneRows(
            table[at + 5u], first, min(rows - first, PREDICT_ROWS), col, min(channels - col, PREDICT_COLS),
        ),
        lane,
    );
}
