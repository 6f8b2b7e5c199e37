
// All that is left behind the coder, if a stage works on whole rows of heads.
@compute @workgroup_size(256)
fn reconstruct(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    transform_rows(group, lane);
}
