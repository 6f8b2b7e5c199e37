//! A tile's encode and decode do not allocate once they are warm.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use cacheg::core::testkit::{CountingAllocator, is_counting, measure};
use cacheg::core::{Plan, tile_work};
use cacheg::{KvCache, Pipeline, calibrate};
use common::specs;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn tiles_do_not_allocate_after_warm_up() {
    assert!(is_counting());
    let registry = cacheg::builtins().unwrap();
    let kv = KvCache::copy_of(&cacheg::sample().unwrap().view(), 0, 50);
    for spec in specs() {
        let pipeline = Pipeline::parse(&registry, spec).unwrap();
        let profile = calibrate(std::slice::from_ref(&pipeline), &[kv.view()], 50, &|_| ()).unwrap();
        let plan = Plan::bind(&pipeline, kv.geometry(), Some(&profile)).unwrap();
        tile_work(&plan, &kv.view(), &mut |what, step| {
            step();
            let ((), seen) = measure(step);
            assert_eq!(seen.count, 0, "{what} of `{spec}`");
        })
        .unwrap();
    }
}
