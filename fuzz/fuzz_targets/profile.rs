#![no_main]

use cacheg::core::Plan;
use cacheg::{Pipeline, Profile};

// A damaged profile must not bind to something that panics.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Profile::from_bytes(data.to_vec());
    let [which, edits @ ..] = data else { return };
    let profiles: Vec<&Profile> = cacheg_fuzz::containers().iter().filter_map(|(_, p)| p.as_ref()).collect();
    let profile = profiles[usize::from(*which) % profiles.len()];
    let mut bytes = profile.bytes().to_vec();
    for edit in edits.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        bytes[at] = edit[3];
    }
    let Ok(damaged) = Profile::from_bytes(bytes) else { return };
    for stages in profile.sections() {
        let Ok(pipeline) = Pipeline::new(cacheg_fuzz::registry(), stages) else { continue };
        let _ = Plan::bind(&pipeline, &cacheg_fuzz::geometry(), Some(&damaged));
    }
});
