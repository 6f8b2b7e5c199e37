//! Every level of `rans` against the scalar one: the same bytes, symbols and verdicts; and nothing outside buffers.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[cfg(unix)]
mod bounds;
mod coders;

use cacheg_entropy::Scope;
use cacheg_entropy::rans::differential;

use coders::{Coders, Random, contexts, segment, symbols};

#[test]
fn all_alphabets() {
    let mut random = Random(1);
    for size in 2..=256 {
        for scope in [Scope::Channel, Scope::One] {
            for contexts in contexts(size) {
                let coders = Coders::new(scope, *contexts, size, 9, &mut random);
                let tiles: Vec<_> = [97, 97, 97, 97, 64]
                    .map(|rows| (segment(size, rows, 9), symbols(&mut random, size, rows, 9)))
                    .into();
                coders.check(&tiles);
            }
        }
    }
}

#[test]
fn odd_sizes() {
    let mut random = Random(2);
    for (size, contexts) in [(2, 1), (2, 3), (20, 1), (20, 3), (32, 1), (32, 3), (33, 1), (256, 1)] {
        for cols in [1, 2, 63, 64, 65, 192] {
            let coders = Coders::new(Scope::Channel, contexts, size, cols, &mut random);
            let rows = [0, 1, 31, 32, 33, 63, 64, 65, 512, 1000];
            let tiles: Vec<_> = rows
                .iter()
                .map(|rows| (segment(size, *rows, cols), symbols(&mut random, size, *rows, cols)))
                .collect();
            // Alone, as equals, and all at once.
            for tile in &tiles {
                coders.check(std::slice::from_ref(tile));
                coders.check(&vec![tile.clone(); 4]);
            }
            coders.check(&tiles);
        }
    }
}

#[test]
fn truncation_and_corruption() {
    let mut random = Random(3);
    for (size, contexts) in [(3, 1), (3, 3), (32, 1), (32, 3), (50, 1), (256, 1)] {
        for (rows, cols) in [(97, 5), (256, 3), (7, 11), (160, 66)] {
            let coders = Coders::new(Scope::Channel, contexts, size, cols, &mut random);
            let tile = (segment(size, rows, cols), symbols(&mut random, size, rows, cols));
            let stream = coders.check(std::slice::from_ref(&tile)).remove(0);
            // At every word, where that is quick, and at bytes here and there.
            let words = if rows * cols < 1000 { 2 } else { 2 + stream.len() / 1400 * 2 };
            let cuts = (0..stream.len()).step_by(words).chain((1..stream.len()).step_by(101));
            let cut: Vec<Vec<u8>> = cuts.map(|len| stream[..len].to_vec()).collect();
            coders.verdicts(tile.0, &cut);
            // Every byte of the states and of the first words, then here and there.
            let flips = (0..stream.len().min(160)).chain((160..stream.len()).step_by(words * 10 + 1));
            let flipped = |at: usize| {
                let mut bad = stream.clone();
                bad[at] ^= 1 << random.below(8);
                bad
            };
            let flipped: Vec<Vec<u8>> = flips.map(flipped).collect();
            coders.verdicts(tile.0, &flipped);
            let corrupt = |_| {
                let mut bad = stream.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(bad.len() as u64) as usize;
                    bad[at] = random.next() as u8;
                }
                match random.below(4) {
                    0 => bad.truncate(random.below(stream.len() as u64) as usize),
                    1 => bad.extend((0..2 * random.below(80)).map(|_| random.next() as u8)),
                    _ => {}
                }
                bad
            };
            let bad: Vec<Vec<u8>> = (0..300).map(corrupt).collect();
            coders.verdicts(tile.0, &bad);
        }
    }
}

#[test]
fn symbols_of_two_alphabets_and_garbage() {
    let mut random = Random(4);
    for _ in 0..3000 {
        let len = 8 + random.below(600) as usize;
        let narrow = 1 + random.below(255);
        let input: Vec<u8> =
            (0..len).map(|i| if i < 8 { random.next() as u8 } else { random.below(narrow) as u8 }).collect();
        differential(&input);
    }
}
