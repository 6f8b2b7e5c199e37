// Which lanes vote, where a subgroup has at least 32 of them, so that it holds the whole workgroup.
fn ballot(lane: u32, vote: bool) -> u32 {
    return subgroupBallot(vote).x;
}
