// What lanes know of each other, where a subgroup has at least 32 invocations, so that it holds the whole workgroup.

fn ballot(lane: u32, vote: bool) -> u32 {
    return subgroupBallot(vote).x;
}

// An entry of each lane.
var<private> entry_of_lane: vec3<u32>;

fn give(lane: u32, entry: vec3<u32>) {
    entry_of_lane = entry;
}

fn given_x(lane: u32) -> u32 {
    return subgroupShuffle(entry_of_lane.x, lane);
}

fn given_y(lane: u32) -> u32 {
    return subgroupShuffle(entry_of_lane.y, lane);
}

fn given_z(lane: u32) -> u32 {
    return subgroupShuffle(entry_of_lane.z, lane);
}
