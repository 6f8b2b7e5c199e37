// Which lanes vote, by workgroup memory and one barrier. Three ballots in turn: one is written, one read and one cleared
// between two barriers.
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
