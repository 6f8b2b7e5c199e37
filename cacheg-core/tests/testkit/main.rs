//! The conformance kit, tested: good toy stages pass all of it, and each way of being wrong fails the check
//! that is there for it.
#![cfg(feature = "testkit")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of it is test code")]

mod coder;
mod golden;
mod quantizer;
mod select;
mod settings;
mod transform;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use cacheg_core::Plugin;
use cacheg_core::testkit::{Check, CountingAllocator, Suite, measure, no_allocation};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Asserts that a check finds the fault and says so. A stage may also fail a test by panicking in it.
fn caught(check: fn(&Suite) -> Check, suite: &Suite, says: &str) {
    let message = match catch_unwind(AssertUnwindSafe(|| check(suite))) {
        Ok(result) => result.expect_err("the fault is not found").to_string(),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    };
    assert!(message.contains(says), "`{says}` is not in: {message}");
}

/// A suite of one spec, `{name}(fault={fault})`.
fn faulty(plugin: Plugin, fault: &str) -> Suite {
    Suite::new(plugin, &[&format!("{}(fault={fault})", plugin.name)])
}

/// Something else on every call.
fn unsteady() -> u32 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed)
}

#[test]
fn allocations_are_counted_per_thread() {
    let (vec, seen) = measure(|| {
        drop(std::hint::black_box(vec![1u8; 3000]));
        std::thread::scope(|scope| drop(scope.spawn(|| std::hint::black_box(vec![1u8; 1 << 20]))));
        std::hint::black_box(vec![2u8; 1000])
    });
    assert!(seen.count >= 2 && seen.largest == 3000, "{seen:?}");
    assert!((3000..8000).contains(&seen.peak), "{seen:?} {}", vec.len());
    let allocate = || Ok::<_, cacheg_core::Error>(std::hint::black_box(Box::new(1u8)));
    assert!(no_allocation("boxing", allocate).is_err());
    assert_eq!(no_allocation("nothing", || Ok::<_, cacheg_core::Error>(())), Ok(()));
}

#[test]
fn suites_that_would_test_nothing_fail() {
    let plugin = coder::PLUGIN;
    caught(cacheg_core::testkit::coder::flips, &Suite::new(plugin, &[]), "empty");
    caught(cacheg_core::testkit::coder::flips, &Suite::new(plugin, &["toy.raw|toy.raw"]), "not one stage");
    caught(cacheg_core::testkit::coder::flips, &Suite::new(plugin, &["toy.other"]), "not one stage");
    let suite = Suite::new(plugin, &["toy.raw"]);
    caught(cacheg_core::testkit::transform::inverts, &suite, "is no transform");
    caught(cacheg_core::testkit::coder::flips, &suite.clone().refuses(&["no such model"]), "the kit has no");
    caught(cacheg_core::testkit::coder::flips, &suite.clone().refuses(&["latent"]), "which it should refuse");
}
