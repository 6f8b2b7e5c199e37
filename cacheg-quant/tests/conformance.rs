//! The conformance kit of `cacheg-core` on every stage, with golden files.

use cacheg_core::conformance;
use cacheg_core::testkit::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

mod identity {
    super::conformance! {
        transform: cacheg_quant::identity::PLUGIN,
        specs: ["identity"],
        allocations: true,
        golden: "tests/golden",
    }
}

mod anchor_delta {
    super::conformance! {
        transform: cacheg_quant::anchor_delta::PLUGIN,
        specs: ["anchor-delta", "anchor-delta(group=2)", "anchor-delta(group=7)"],
        tolerance: 3e-7,
        closed_loop: true,
        allocations: true,
        golden: "tests/golden",
    }
}

mod sinks {
    super::conformance! {
        transform: cacheg_quant::sinks::PLUGIN,
        specs: ["sinks", "sinks(first=0;last=3)"],
        allocations: true,
        golden: "tests/golden",
    }
}

mod mean {
    super::conformance! {
        transform: cacheg_quant::mean::PLUGIN,
        specs: ["mean"],
        tolerance: 3e-7,
        allocations: true,
        golden: "tests/golden",
    }
}

mod unrope {
    super::conformance! {
        transform: cacheg_quant::unrope::PLUGIN,
        specs: ["unrope"],
        tolerance: 1e-6,
        allocations: true,
        golden: "tests/golden",
        golden_bound: 1e-6,
    }
}

mod hadamard {
    super::conformance! {
        transform: cacheg_quant::hadamard::PLUGIN,
        specs: ["hadamard", "hadamard(seed=12345678901)"],
        tolerance: 4e-6,
        allocations: true,
        golden: "tests/golden",
    }
}

/// Coefficients become integers on a grid.
mod klt {
    super::conformance! {
        transform: cacheg_quant::klt::PLUGIN,
        specs: ["klt"],
        tolerance: 3e-3,
        allocations: true,
        golden: "tests/golden",
    }
}

/// What is left becomes integers on a grid; predictors of values that have nothing to do with each other are next to nothing.
mod predict {
    super::conformance! {
        transform: cacheg_quant::predict::PLUGIN,
        specs: ["predict", "predict(layers=2;v-from-k=false)", "predict(fit=3;layers=7)"],
        tolerance: 1e-2,
        sources: &[cacheg_core::Source::Profile],
        allocations: true,
        golden: "tests/golden",
    }
}

/// Absmax: at most half of `max / C`, plus what the rounded-up scale adds.
mod bins {
    super::conformance! {
        quantizer: cacheg_quant::bins::PLUGIN,
        specs: [
            "bins",
            "bins(k=32,16,16;k-at=10,20;v=32,16;v-at=2;scale=f16)",
            "bins(k=12;v=16;anchor=64)",
        ],
        error_bound: 0.51 / 5.0,
        allocations: true,
        golden: "tests/golden",
    }
}

mod bins_by_sigma {
    super::conformance! {
        quantizer: cacheg_quant::bins::PLUGIN,
        specs: ["bins(step=0.5,1,1.5)", "bins(step=0.5;level=0.25;reach=3)"],
        allocations: true,
        golden: "tests/golden",
    }
}

mod steps {
    super::conformance! {
        quantizer: cacheg_quant::steps::PLUGIN,
        specs: ["steps", "steps(step=0.03;reach=127)", "steps(step=3;reach=1)"],
        allocations: true,
        golden: "tests/golden",
    }
}

/// Grades of a chunk come with it; only a profile has tables for them.
mod graded_steps {
    super::conformance! {
        quantizer: cacheg_quant::steps::PLUGIN,
        specs: ["steps(importance=attention;step=0.3)", "steps(importance=attention;reach=3;step=2)"],
        sources: &[cacheg_core::Source::Profile],
        allocations: true,
        layouts: &["planes"],
    }
}

mod uniform {
    super::conformance! {
        quantizer: cacheg_quant::uniform::PLUGIN,
        specs: [
            "uniform",
            "uniform(bits=4)",
            "uniform(bits=4;axis=channel,token;group=32;zero=true)",
            "uniform(bits=3,5;axis=channel;group=3;scale=bf16)",
            "uniform(bits=2;group=0;axis=token,channel;zero=false,true)",
        ],
        // Two bits: half of the largest value.
        error_bound: 0.505,
        allocations: true,
        golden: "tests/golden",
    }
}

/// What stands out of a group is cut to its last entry, and there is no entry for 0. Passes drift: entries are means,
/// so each leaves a little less energy.
mod lloyd_max {
    super::conformance! {
        quantizer: cacheg_quant::lloyd_max::PLUGIN,
        specs: ["lloyd-max", "lloyd-max(bits=8,3;group=5;scale=bf16)", "lloyd-max(bits=1)"],
        error_bound: 1.0,
        allocations: true,
        golden: "tests/golden",
    }
}

mod bytes {
    super::conformance! {
        quantizer: cacheg_quant::bytes::PLUGIN,
        specs: ["bytes"],
        allocations: true,
        golden: "tests/golden",
    }
}

mod h2o {
    super::conformance! {
        select: cacheg_quant::h2o::PLUGIN,
        specs: ["h2o", "h2o(keep=0.1;recent=0)", "h2o(keep=1;recent=1)", "h2o(keep=0.001)"],
    }
}
