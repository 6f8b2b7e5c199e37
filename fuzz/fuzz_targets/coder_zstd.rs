#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cacheg_fuzz::run_coder(
    "zstd",
    &[r#"{"level":1}"#, r#"{"level":9}"#],
    data
));
