//! Conformance kit: what every stage must do, checked by one macro.
//!
//! The engine trusts its stages: that they overwrite their outputs whole, read strided views, give equal bytes
//! on every call, never panic on corrupt bytes and never allocate in their calls. None of this shows in a
//! stage's own round-trip test. [`conformance!`](crate::conformance) generates one `#[test]` per property; each
//! is also a public function of [`select`], [`transform`], [`quantizer`] or [`coder`] that takes a [`Suite`].
//!
//! ```
//! # use cacheg_core::{Build, Error, Plugin};
//! # const PLUGIN: Plugin = Plugin { name: "acme.gamma", version: 1, origin: "acme", summary: "s",
//! #     usage: "acme.gamma", build: Build::Coder(|_| Err(Error::unsupported("doc"))) };
//! #[cfg(test)]
//! mod conformance {
//!     // Only for `allocations: true`; one per test binary.
//!     #[global_allocator]
//!     static ALLOCATOR: cacheg_core::testkit::CountingAllocator = cacheg_core::testkit::CountingAllocator;
//!
//!     cacheg_core::conformance! {
//!         coder: super::PLUGIN,
//!         specs: ["acme.gamma", "acme.gamma(k=3)"],
//!         allocations: true,
//!         golden: "tests/golden",
//!     }
//! }
//! ```
//!
//! Everything here is driven by one small generator with fixed seeds: a failure comes back on every run and
//! machine. The kit is no part of the stable interface; a minor version may add checks.

mod alloc;
mod bind;
mod calibration;
pub mod coder;
pub mod golden;
mod grid;
mod made;
mod models;
pub mod quantizer;
mod random;
pub mod select;
mod settings;
mod suite;
pub mod transform;
mod values;

pub use alloc::{Allocations, CountingAllocator, is_counting, measure, no_allocation};
pub use made::{even_heads, importance, statistics};
pub use models::{Model, models};
pub use random::Random;
pub use suite::{Check, Failure, Suite};
pub use values::kv_like;

/// Generates the tests of one plug-in; see [`testkit`](crate::testkit). Use it once per module.
///
/// `conformance! { KIND: PLUGIN, specs: [SPEC, …], OPTION: VALUE, … }`, where `KIND` is `select`, `transform`,
/// `quantizer` or `coder`, `PLUGIN` a [`Plugin`](crate::Plugin) (`*registry.get("name").unwrap()` will do) and
/// every `SPEC` one stage, as a spec string or as JSON. Options, in any order:
///
/// | option | value | meaning |
/// |---|---|---|
/// | `tolerance` | `f32` | transforms: inverse error, relative to the tile's largest value; 0 (the default) means every bit |
/// | `closed_loop` | `true` | transforms of several parts: later parts must make up for errors of earlier ones |
/// | `error_bound` | `f32` | quantizers: largest error, relative to the part's largest value; without it, a second pass must lose no more than the first |
/// | `rows` | `&[usize]` | more tile heights to test |
/// | `refuses` | `&[&str]` | models and layouts of the kit that the stage must refuse to bind to |
/// | `layouts` | `&[&str]` | the only layouts of the kit to test; all by default |
/// | `sources` | `&[Source]` | where the stage's data may come from; both by default |
/// | `allocations` | `true` | proves that calls do not allocate; needs [`CountingAllocator`](crate::testkit::CountingAllocator) |
/// | `golden` | `"dir"` | compares with files under `dir` of the calling crate; see [`golden`](crate::testkit::golden) |
/// | `golden_bound` | `f32` | transforms whose last bits may differ between machines: how much |
///
/// Of these, select stages have `refuses` only.
#[macro_export]
macro_rules! conformance {
    ($kind:ident: $plugin:expr, specs: [$($spec:expr),+ $(,)?] $(, $($options:tt)*)?) => {
        $crate::__conformance! { $kind [$crate::testkit::Suite::new($plugin, &[$($spec),+])] $($($options)*)? }
    };
}

/// Takes the options of [`conformance!`](crate::conformance) one by one: some add a test, the others are
/// methods of [`Suite`](crate::testkit::Suite).
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance {
    ($kind:ident [$suite:expr]) => {
        fn conformance_suite() -> $crate::testkit::Suite {
            $suite
        }
        $crate::__conformance_tests! { $kind }
    };
    ($kind:ident [$suite:expr] allocations: true $(, $($rest:tt)*)?) => {
        $crate::__conformance_tests! { $kind: allocations }
        $crate::__conformance! { $kind [$suite] $($($rest)*)? }
    };
    (transform [$suite:expr] closed_loop: true $(, $($rest:tt)*)?) => {
        $crate::__conformance_tests! { transform: closed_loop }
        $crate::__conformance! { transform [$suite] $($($rest)*)? }
    };
    ($kind:ident [$suite:expr] golden: $dir:literal $(, $($rest:tt)*)?) => {
        #[test]
        fn golden() -> $crate::testkit::Check {
            let dir = ::std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join($dir);
            $crate::testkit::golden::$kind(&conformance_suite(), &dir)
        }
        $crate::__conformance! { $kind [$suite] $($($rest)*)? }
    };
    ($kind:ident [$suite:expr] $option:ident: $value:expr $(, $($rest:tt)*)?) => {
        $crate::__conformance! { $kind [$suite.$option($value)] $($($rest)*)? }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    (select) => {
        $crate::__conformance_tests! { select: settings, selects, deterministic, survives }
    };
    (transform) => {
        $crate::__conformance_tests! { transform:
            settings, shapes, inverts, pieces, overwrites, strides, deterministic, survives, calibration
        }
    };
    (quantizer) => {
        $crate::__conformance_tests! { quantizer:
            settings, shapes, reconstructs, pieces, escapes, overwrites, strides, deterministic, survives, calibration
        }
    };
    (coder) => {
        $crate::__conformance_tests! { coder:
            settings, round_trips, alphabets, bad_symbols, overwrites, deterministic, lengths, flips, calibration
        }
    };
    ($kind:ident: $($check:ident),+) => { $(
        #[test]
        fn $check() -> $crate::testkit::Check {
            $crate::testkit::$kind::$check(&conformance_suite())
        }
    )+ };
}
