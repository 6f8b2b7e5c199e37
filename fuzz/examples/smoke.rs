fn main() {
    let n = cacheg_fuzz::containers().len();
    println!("{n} containers");
    let mut state = 1u64;
    let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 33) as u8 };
    for i in 0..60_000u32 {
        let which = (n - 1 - (i as usize % 4)) as u8;
        let mut data = vec![which];
        for _ in 0..(1 + i % 3) { let lo = next(); data.extend([lo, next() % 8, 4, next()]); }
        cacheg_fuzz::damage(&data);
    }
    println!("ok");
}
