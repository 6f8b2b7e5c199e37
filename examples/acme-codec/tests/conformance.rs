//! The conformance kit on both codecs, and the way by which programs find them.

use cacheg_core::Registry;
use cacheg_core::testkit::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

mod pair {
    cacheg_core::conformance! {
        transform: acme_codec::PAIR,
        specs: ["acme.pair", "acme.pair(pairs=halves)"],
        tolerance: 2.4e-7,
        allocations: true,
        golden: "tests/golden",
    }
}

mod gamma {
    cacheg_core::conformance! {
        coder: acme_codec::GAMMA,
        specs: ["acme.gamma", "acme.gamma(k=3)", "acme.gamma(k=7)"],
        allocations: true,
        golden: "tests/golden",
    }
}

#[test]
fn both_are_found_in_programs_that_name_the_crate() {
    let registry = Registry::default().with_linked().unwrap();
    for plugin in [acme_codec::PAIR, acme_codec::GAMMA] {
        let found = registry.get(plugin.name).unwrap();
        assert_eq!((found.origin, found.version), ("acme-codec", 1));
    }
}

#[test]
fn impossible_settings_are_refused() {
    let cacheg_core::Build::Coder(build) = acme_codec::GAMMA.build else { panic!("gamma is a coder") };
    let message = build(&serde_json::json!({"k": 8})).unwrap_err().to_string();
    assert!(message.contains("acme.gamma") && message.contains("`k` is 8"), "{message}");
}
