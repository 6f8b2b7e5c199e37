//! Every coder under the test-kit's properties.

use cacheg_core::testkit::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

mod range {
    cacheg_core::conformance! {
        coder: cacheg_entropy::range::PLUGIN,
        specs: [
            "range",
            "range(tables=layer;streams=channel)",
            "range(tables=scale)",
            "range(tables=channel;streams=channel;cdf=257)",
        ],
        allocations: true,
        golden: "tests/golden",
    }
}

mod rans {
    cacheg_core::conformance! {
        coder: cacheg_entropy::rans::PLUGIN,
        specs: [
            "rans",
            "rans(tables=channel)",
            "rans(tables=scale)",
            "rans(tables=one;carried=layer;classes=2)",
            "rans(classes=4;contexts=3)",
        ],
        allocations: true,
        golden: "tests/golden",
    }
}

mod raw {
    cacheg_core::conformance! {
        coder: cacheg_entropy::raw::PLUGIN,
        specs: ["raw"],
        allocations: true,
        golden: "tests/golden",
    }
}

#[cfg(feature = "zstd")]
mod zstd {
    cacheg_core::conformance! {
        coder: cacheg_entropy::zstd::PLUGIN,
        specs: ["zstd", "zstd(level=1)", "zstd(level=19)"],
        allocations: true,
    }
}
