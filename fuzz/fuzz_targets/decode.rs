#![no_main]

// Whole decode of damaged containers whose checksums are right.
libfuzzer_sys::fuzz_target!(|data: &[u8]| cacheg_fuzz::damage(data));
