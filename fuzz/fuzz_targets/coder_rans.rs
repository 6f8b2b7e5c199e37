#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cacheg_fuzz::run_coder(
    "rans",
    &[
        r#"{"tables":"one"}"#,
        r#"{"tables":"channel"}"#,
        r#"{"tables":"class","classes":3}"#,
        r#"{"tables":"layer"}"#,
        r#"{"tables":"scale"}"#,
    ],
    data
));
