//! What is fetched: ten chunks of a 7B model at three levels like CacheGen's.

use std::time::Duration;

use cacheg::Result;
use cacheg_net::control::{Chunk, Job, Level};

/// Chunks of a context.
pub(crate) const CHUNKS: usize = 10;
/// Values of a chunk: 1,500 tokens of a 7B model with 32 layers, keys and values, 1,024 channels.
pub(crate) const VALUES: f64 = 1_500.0 * 65_536.0;
/// Time to recompute a chunk from text, as in CacheGen's public code (`chunk_delay` in `run_adaptation.py`).
pub(crate) const TEXT: Duration = Duration::from_millis(200);
/// Time to decode a chunk: 197 MB of f16 at 4.9 GB/s.
pub(crate) const DECODE: Duration = Duration::from_millis(40);

/// (bits per value, KL per token) of `cachegen-paper` levels 1 to 3 in `docs/quality.md`.
const MEASURED: [(f64, f64); 3] = [(3.41, 0.0144), (2.56, 0.0731), (1.75, 0.466)];
/// The rates of the ladder.
pub(crate) const BITS: [f64; 3] = [3.4, 2.6, 1.9];

/// KL at some bits per value: the logarithm is linear between what was measured.
pub(crate) fn kl(bits: f64) -> f64 {
    let pair = if bits >= MEASURED[1].0 { 0 } else { 1 };
    let ((x0, y0), (x1, y1)) = (MEASURED[pair], MEASURED[pair + 1]);
    let part = (bits - x0) / (x1 - x0);
    (y0.ln() + part * (y1 / y0).ln()).exp()
}

/// Bytes of a chunk at some bits per value.
pub(crate) fn bytes(bits: f64) -> u64 {
    (VALUES * bits / 8.0).round() as u64
}

/// The job with that deadline.
pub(crate) fn job(slo: Duration) -> Result<Job> {
    let levels = BITS.map(|bits| Level::new(bytes(bits), kl(bits), DECODE)).to_vec();
    Job::new(vec![Chunk { levels, text: Some(TEXT) }; CHUNKS], slo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distortion_is_what_was_measured() {
        for (bits, measured) in MEASURED {
            assert!((kl(bits) / measured - 1.0).abs() < 1e-12);
        }
        let rounded = BITS.map(|bits| (kl(bits) * 1e4).round() / 1e4);
        assert_eq!(rounded, [0.0147, 0.0677, 0.3307]);
        assert_eq!(bytes(3.4), 41_779_200);
    }
}
