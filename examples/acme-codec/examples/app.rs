//! A program that uses the codecs of this crate by their names, among cacheg's own.
//!
//! `cargo run --example app`

// Without this line the linker would drop the crate, and the registry would not know its codecs.
use acme_codec as _;

use cacheg::core::Cpu;
use cacheg::{Encoder, Limits, Pipeline, Result, compare, flow};

fn main() -> Result<()> {
    let registry = cacheg::builtins()?;
    for plugin in registry.iter().filter(|plugin| plugin.name.starts_with("acme.")) {
        println!("{plugin}: {}", plugin.summary);
    }
    let kv = cacheg::sample()?;
    let values = kv.geometry().values_per_token() * kv.tokens() as u64;
    for spec in [
        "acme.pair|uniform(bits=5)|acme.gamma(k=2)",
        "uniform(bits=5)|acme.gamma(k=2)",
        "uniform(bits=5)|raw",
    ] {
        let encoder = Encoder::new(Pipeline::parse(&registry, spec)?, kv.geometry(), None)?;
        let mut bytes = Vec::new();
        flow::encode(&kv.view(), kv.metadata(), &encoder, 1_500, &mut bytes, &|_| ())?;
        let decode = flow::Decode { registry: &registry, profile: None, backend: &Cpu };
        let back = decode.run(&bytes, &Limits::default(), &|_| ())?.cache;
        let all = compare::planes(&kv.view(), &back.view())?
            .into_iter()
            .fold(compare::Sums::default(), compare::Sums::plus);
        let bits = bytes.len() as f64 * 8.0 / values as f64;
        println!("{spec}: {bits:.2} bits per value, {:.1} dB", all.difference().snr_db);
    }
    Ok(())
}
