#![no_main]

// Safetensors files of any layout.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(file) = cacheg::KvFile::from_bytes(data.to_vec(), &cacheg_fuzz::limits()) {
        let view = file.view();
        if let Ok(Some(importance)) = file.importance() {
            view.clone().with_importance(&importance).unwrap();
        }
        for plane in view.planes() {
            if view.tokens() > 0 {
                view.load(plane.index, view.tokens() - 1, 1, &mut vec![0.0; plane.channels()]);
            }
        }
    }
});
