#![no_main]

use cacheg::core::{Chunk, Container};

// Headers and directories as they come.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let limits = cacheg_fuzz::limits();
    let _ = Container::parse(data, &limits);
    let _ = Chunk::parse(data, &limits);
    let mut bytes = data.to_vec();
    cacheg::core::reseal::container(&mut bytes);
    cacheg_fuzz::decode(&bytes, None);
    cacheg::core::reseal::chunk(&mut bytes);
    let _ = Chunk::parse(&bytes, &limits);
});
