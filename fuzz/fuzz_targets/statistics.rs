#![no_main]

use std::sync::OnceLock;

use cacheg::core::{Counts, Origin};
use cacheg::{Geometry, Statistics};

/// Statistics of a small model that pass all checks.
fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let layer = r#"{"key":{"dtype":"f16","head_dim":2,"heads":2},"repeat":2,"value":{"dtype":"f16","head_dim":2,"heads":2}}"#;
        let geometry: Geometry = serde_json::from_str(&format!(r#"{{"layers":[{layer}]}}"#)).unwrap();
        let mut statistics = Statistics::new(&geometry, 4, 1).unwrap();
        let counts = Counts { contexts: 1, tokens: 1, continuation_tokens: 1, pairs: 1 };
        statistics.note(Origin { name: "none".into(), sha256: String::new() }, counts).unwrap();
        for sums in statistics.layers_mut() {
            sums.residual = 1.0;
            sums.get_mut("importance.xx").iter_mut().step_by(36).for_each(|x| *x = 1.0);
        }
        let mut bytes = Vec::new();
        statistics.write(&mut bytes).unwrap();
        bytes
    })
}

// Statistics from anywhere are refused or can be asked everything.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Statistics::from_bytes(data);
    let mut bytes = good().to_vec();
    for edit in data.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        bytes[at] = edit[3];
    }
    let Ok(statistics) = Statistics::from_bytes(&bytes) else { return };
    for plane in statistics.geometry().planes() {
        let _ = (statistics.covariance(&plane), statistics.mean_sensitivity(&plane));
        let layer = plane.layer as usize;
        let _ = (statistics.back_covariance(layer, 1), statistics.importance(layer, 0));
    }
    let mut twice = statistics.clone();
    let _ = twice.merge(&statistics);
});
