//! What the rates of a small model on a CPU are on a large one on a GPU.
//!
//! Which method is fastest depends on the ratio of the time to transfer a token's KV cache to the time to recompute it.
//! Two machines on which that is the same show the same picture, at other rates.

/// KV cache of a token of a 7B model with 8 KV heads of 128 channels in 32 layers (Mistral 7B, Llama 3 8B), f16.
pub(crate) const LARGE_BYTES: f64 = 32.0 * 2.0 * 8.0 * 128.0 * 2.0;

/// Tokens per second that such a model prefills: CacheGen's public code takes 0.2 s for a chunk of 1,500
/// (`chunk_delay` in `run_adaptation.py`).
pub(crate) const LARGE_TOKENS_S: f64 = 1_500.0 / 0.2;

/// By what a rate here is to be multiplied for the large model.
pub(crate) fn factor(bytes_per_token: f64, prefill_tokens_s: f64) -> f64 {
    LARGE_BYTES / bytes_per_token * LARGE_TOKENS_S / prefill_tokens_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_stays() {
        let (bytes, speed, rate) = (23_040.0, 400.0, 50e6);
        let large = rate * factor(bytes, speed);
        let here = (bytes * 8.0 / rate) / (1.0 / speed);
        let there = (LARGE_BYTES * 8.0 / large) / (1.0 / LARGE_TOKENS_S);
        assert!((here / there - 1.0).abs() < 1e-12);
        assert_eq!(LARGE_BYTES, 131_072.0);
    }
}
