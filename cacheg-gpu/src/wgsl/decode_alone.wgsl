// Undoes the entropy coding: an invocation for each run.
@compute @workgroup_size(32)
fn decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = (group.y * PER_ROW + group.x) * 32u + lane;
    if index < window.run_count {
        let run = run_at(index);
        // Others may have more units.
        if run.first < run.end {
            coder_decode(run, 0u);
        }
    }
}

