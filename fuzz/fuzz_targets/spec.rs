#![no_main]

use cacheg::Pipeline;

// What parses must come back the same from its canonical form.
libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(pipeline) = Pipeline::parse(cacheg_fuzz::registry(), text) {
        let again = Pipeline::parse(cacheg_fuzz::registry(), &pipeline.to_string()).unwrap();
        assert_eq!(again.specs(), pipeline.specs());
    }
});
