// n / d where n < 2^22: division of integers is slow everywhere.
fn quotient(n: u32, d: u32) -> u32 {
    let q = u32(f32(n) / f32(d));
    // Off by one at most: WGSL's division is within 2.5 units of the last place, which are 0.25 or less here.
    let below = select(q, q - 1u, q * d > n);
    return select(below, below + 1u, n - below * d >= d);
}
