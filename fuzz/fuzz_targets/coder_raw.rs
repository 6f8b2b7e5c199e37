#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cacheg_fuzz::run_coder("raw", &["{}"], data));
