// What lanes know of each other, by workgroup memory and barriers.

// Which lanes vote. Three ballots in turn: one is written, one read and one cleared between two barriers.
var<workgroup> ballots: array<atomic<u32>, 3>;
var<private> ballot_turn: u32;

fn ballot(lane: u32, vote: bool) -> u32 {
    let turn = ballot_turn;
    if vote {
        atomicOr(&ballots[turn], 1u << lane);
    }
    ballot_turn = select(turn + 1u, 0u, turn == 2u);
    if lane == 0u {
        atomicStore(&ballots[ballot_turn], 0u);
    }
    workgroupBarrier();
    return atomicLoad(&ballots[turn]);
}

// An entry of each lane, word by word.
var<workgroup> entries: array<u32, 96>;

fn give(lane: u32, entry: vec3<u32>) {
    workgroupBarrier();
    entries[lane] = entry.x;
    entries[32u + lane] = entry.y;
    entries[64u + lane] = entry.z;
    workgroupBarrier();
}

fn given_x(lane: u32) -> u32 {
    return entries[lane];
}

fn given_y(lane: u32) -> u32 {
    return entries[32u + lane];
}

fn given_z(lane: u32) -> u32 {
    return entries[64u + lane];
}
