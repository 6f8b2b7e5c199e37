//! Damaged streams: the CPU's verdict, and its values where it finds nothing.

use cacheg_core::testkit::{Random, models};
use cacheg_core::{Chunk, ErrorKind, Limits, Profile, reseal};

use super::close::{BOUND, worst};
use super::{REGISTRY, both_with, cache, encode};

fn mutations(spec: &str, count: usize) {
    let geometry = &models().unwrap()[0].geometry;
    let bytes = encode(&cache(geometry, 150, 3).view(), spec).unwrap();
    // Behind the header: what it says is checked before any device sees the chunk.
    let (found, harmless) = verdicts(&bytes, None, bytes.len() / 2, count, spec);
    assert!(found + harmless > count / 2, "{spec}: {found} found, {harmless} harmless");
}

/// Damages a chunk behind `begin`; how often both devices found it, and how often neither did and their values are the same.
pub(crate) fn verdicts(
    bytes: &[u8],
    profile: Option<&Profile>,
    begin: usize,
    count: usize,
    spec: &str,
) -> (usize, usize) {
    let mut random = Random::new(11);
    let (mut found, mut harmless) = (0, 0);
    for _ in 0..count {
        let mut damaged = bytes.to_vec();
        for _ in 0..=random.below(3) {
            let at = begin + random.below(bytes.len() - begin);
            damaged[at] ^= 1 << random.below(8);
        }
        reseal::chunk(&mut damaged);
        let Some([cpu, gpu]) = both_with(&damaged, profile) else { continue };
        match (cpu, gpu) {
            (Ok(cpu), Ok(gpu)) => {
                let chunk = Chunk::parse(&damaged, &Limits::default()).unwrap();
                let plan = chunk.bind(&REGISTRY, profile).unwrap();
                assert!(worst(&plan, &cpu, &gpu) <= BOUND, "{spec}");
                harmless += 1;
            }
            (Err(cpu), Err(gpu)) => {
                assert_eq!(
                    (cpu.kind(), gpu.kind()),
                    (ErrorKind::Corrupt, ErrorKind::Corrupt),
                    "{cpu} / {gpu}"
                );
                found += 1;
            }
            (cpu, gpu) => panic!("{spec}: CPU {:?}, GPU {:?}", cpu.map(drop), gpu.map(drop)),
        }
    }
    (found, harmless)
}

#[test]
fn rans() {
    mutations("mean|bins(step=0.4;reach=15)|rans(tables=class)", 400);
    mutations("bins(step=0.1;reach=127)|rans(tables=class)", 400);
    mutations("unrope|hadamard|lloyd-max(bits=4)|rans(tables=class)", 200);
    mutations("mean|bins(step=0.4;reach=15)|rans(contexts=3)", 400);
}

#[test]
fn range() {
    mutations("anchor-delta|bins(step=0.5)|range(tables=class)", 400);
    mutations("bins|range(tables=class;streams=channel)", 400);
}

#[test]
fn raw() {
    mutations("bins(k=5;v=20)|raw", 400);
    mutations("uniform(bits=3;group=3;zero=true)|raw", 400);
    mutations("lloyd-max(bits=3;group=2)|raw", 400);
    mutations("hadamard|lloyd-max(bits=4)|raw", 200);
    mutations("lloyd-max(bits=2;group=4;scale=bf16)|raw", 400);
}
