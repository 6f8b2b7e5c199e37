// Whether every escaped value has its symbol.
@compute @workgroup_size(64)
fn check_escapes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * PER_ROW + group.x) * 64u + lane;
    if index >= window.escape_count {
        return;
    }
    let record = window.escapes + ESCAPE_WORDS * index;
    let segment = table[record + 2u];
    let place = table[record + 3u];
    if !escape_has_symbol(segment, place, index) {
        fault(segment_tile(segment), FAULT_VALUE);
    }
}
