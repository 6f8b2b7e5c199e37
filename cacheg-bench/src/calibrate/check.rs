//! Noise of a known size, and what it does against what statistics predict.
//!
//! White noise of variance σ² on `n` tokens of a head moves the residual stream of every later token by `n σ² tr(S)` in
//! units of its mean square per channel (`FORMAT.md`, section 8.3). How many nats that is depends on the layers above and
//! on the text; the statistics say nothing of it, so that one constant is taken from the other units: the geometric mean
//! of KL / (n σ² tr(S)).

use std::path::Path;

use cacheg::core::{Plane, Statistics};
use cacheg::report::{Report, number, progress};
use cacheg::{Error, KvCache, Result};
use cacheg_bench::llm::{KvState, Model};
use serde_json::json;

use super::{Args, deviation, open};
use crate::quality::contexts::{self, Context};
use crate::quality::metrics::Predictions;

/// One head's keys or values in one layer.
struct Unit {
    plane: Plane,
    head: usize,
    /// Of the noise.
    sigma: f64,
    /// Moved in the residual stream by noise on one token.
    moved: f64,
}

pub(super) fn run(args: &Args, file: &Path) -> Result<()> {
    if !(args.noise.is_finite() && args.noise > 0.0) {
        return Err(Error::setting("--noise must be positive"));
    }
    let statistics = Statistics::open(file)?;
    let (path, model, texts) = open(args, contexts::TEST, args.tokens)?;
    statistics.check_model(model.geometry())?;
    let sinks = statistics.sinks() as usize;
    if args.tokens as usize <= sinks {
        return Err(Error::setting(format!("--tokens {}: the first {sinks} are left out", args.tokens)));
    }
    let units = units(args, &statistics)?;
    let bar = progress((texts.len() * units.len()) as u64, "checking");
    let mut measured = vec![0.0; units.len()];
    for text in &texts {
        let kl = measure(&model, text, args.tokens as usize, sinks, &units, &|| bar.inc(1));
        let kl = kl.map_err(|e| e.at(&text.name))?;
        measured.iter_mut().zip(kl).for_each(|(sum, kl)| *sum += kl / texts.len() as f64);
    }
    bar.finish_and_clear();

    let tokens = (args.tokens as usize - sinks) as f64;
    let per_moved: Vec<f64> =
        units.iter().zip(&measured).map(|(unit, kl)| (kl / (tokens * unit.moved)).ln()).collect();
    let all: f64 = per_moved.iter().sum();
    let others = (units.len() - 1).max(1) as f64;
    let mut report = Report::new("cacheg-bench");
    report.field("model", path.display().to_string());
    report.field("statistics", statistics.hash().unwrap_or_default());
    report.field("tokens", args.tokens);
    report.field("continuation_tokens", args.continuation);
    report.field("contexts", texts.iter().map(|text| text.name.clone()).collect::<Vec<_>>());
    report.field("nats_per_moved", number((all / units.len() as f64).exp()));
    let mut worst: f64 = 0.0;
    for ((unit, kl), own) in units.iter().zip(&measured).zip(&per_moved) {
        let constant = ((all - own) / others).exp();
        let predicted = constant * tokens * unit.moved;
        worst = worst.max((kl / predicted).ln().abs());
        report.row(json!({
            "name": unit.plane.name(),
            "head": unit.head,
            "sigma": unit.sigma,
            "kl": number(*kl),
            "predicted": number(predicted),
            "ratio": number(kl / predicted),
        }));
    }
    report.field("worst_factor", number(worst.exp()));
    report.print(args.json, |report| {
        format!(
            "{}\nworst by a factor of {:.2}; {} contexts, noise of {} standard deviations, predictions by the other units' \
             {:.4} nats per unit of residual",
            report.table(&[
                ("name", "noise in", 0),
                ("head", "head", 0),
                ("sigma", "of size", 4),
                ("kl", "KL measured", 8),
                ("predicted", "predicted", 8),
                ("ratio", "measured / predicted", 2),
            ]),
            worst.exp(),
            texts.len(),
            args.noise,
            (all / units.len() as f64).exp(),
        )
    })
}

fn units(args: &Args, statistics: &Statistics) -> Result<Vec<Unit>> {
    const SPREAD: usize = 6;
    let count = statistics.geometry().layers() as usize;
    let mut layers = args.layers.clone();
    if layers.is_empty() {
        layers = (0..SPREAD).map(|i| i * (count - 1) / (SPREAD - 1)).collect();
        layers.dedup();
    }
    let mut units = Vec::new();
    for layer in layers {
        let planes = statistics.geometry().planes();
        let planes: Vec<Plane> = planes.into_iter().filter(|plane| plane.layer as usize == layer).collect();
        if planes.is_empty() {
            return Err(Error::setting(format!("--layers {layer}: the model has {count}, from 0 on")));
        }
        for plane in planes {
            let (all, dim) = (plane.shape.heads as usize, plane.shape.head_dim as usize);
            let heads = if args.every_head { 0..all } else { layer % all..layer % all + 1 };
            let sensitivity = statistics.sensitivity(&plane);
            for head in heads {
                let matrix = &sensitivity[head * dim * dim..][..dim * dim];
                let trace: f64 = matrix.iter().step_by(dim + 1).sum();
                let sigma = args.noise * deviation(statistics, &plane, Some(head));
                units.push(Unit { head, sigma, moved: sigma * sigma * trace, plane: plane.clone() });
            }
        }
    }
    Ok(units)
}

/// KL per continuation token with noise in each of the units.
fn measure(
    model: &Model,
    text: &Context,
    tokens: usize,
    sinks: usize,
    units: &[Unit],
    done: &dyn Fn(),
) -> Result<Vec<f64>> {
    let (context, continuation) = text.ids.split_at(tokens);
    // Rounding to f16 would make tokens differ by more than small noise does: KL of some 10⁻⁷.
    let mut kv = KvState::exact(model.geometry())?;
    model.prefill(context, &mut kv, None, &|_, _| ())?;
    let cache = kv.to_cache()?;
    let predict = |kv: &mut KvState| -> Result<Predictions> {
        let logits = model.logits(&model.forward(continuation, kv)?)?.to_vec2::<f32>();
        Ok(Predictions::new(logits.map_err(|e| Error::data(e.to_string()))?))
    };
    let reference = predict(&mut kv)?;
    let mut measured = Vec::new();
    for (seed, unit) in units.iter().enumerate() {
        let noisy = with_noise(&cache, unit, sinks, seed as u64);
        let predictions = predict(&mut model.state_of(&noisy.view())?)?;
        measured.push(reference.damage(&predictions, &continuation[1..]).kl);
        done();
    }
    Ok(measured)
}

/// White noise is white before RoPE and after.
fn with_noise(cache: &KvCache, unit: &Unit, sinks: usize, seed: u64) -> KvCache {
    let mut cache = KvCache::copy_of(&cache.view(), 0, cache.tokens());
    let (tokens, channels, dim) = (cache.tokens(), unit.plane.channels(), unit.plane.shape.head_dim as usize);
    let mut rows = vec![0.0; tokens * channels];
    cache.view().load(unit.plane.index, 0, tokens, &mut rows);
    let mut random = Random(seed);
    for row in rows.chunks_exact_mut(channels).skip(sinks) {
        row[unit.head * dim..][..dim].iter_mut().for_each(|x| *x += (unit.sigma * random.normal()) as f32);
    }
    cache.view_mut().planes_mut()[unit.plane.index].store(0, tokens, &rows);
    cache
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Above 0, at most 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Of mean 0 and variance 1, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_white() {
        let mut random = Random(7);
        let values: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let moment = |power: i32| values.iter().map(|x| x.powi(power)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
    }
}
