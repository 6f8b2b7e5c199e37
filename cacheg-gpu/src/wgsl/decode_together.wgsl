// Undoes the entropy coding: a workgroup for each run, whose lanes may use barriers.
@compute @workgroup_size(32)
fn decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let index = group.y * PER_ROW + group.x;
    if index < window.run_count {
        let run = run_at(index);
        // Others may have more units.
        if run.first < run.end {
            coder_decode(run, lane);
        }
    }
}

