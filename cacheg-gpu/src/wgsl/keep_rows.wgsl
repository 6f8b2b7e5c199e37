
// The values of a plane, to be kept, if a stage behind the prediction works on whole rows of heads.
@compute @workgroup_size(256)
fn keep(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    transform_rows(group, lane);
}

fn store_rows(t: HeadRows, lane: u32) {
    for (var i = lane; i < t.rows * t.dim; i += ROWS_LANES) {
        keep_value(rows_place(t, i));
    }
}
