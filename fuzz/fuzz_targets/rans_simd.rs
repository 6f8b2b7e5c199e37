//! All kernels of `rans` that this machine has against the scalar one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cacheg_entropy::rans::differential(data));
