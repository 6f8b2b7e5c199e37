//! What was measured, as rows.

use cacheg::net::store::Manifest;
use cacheg::report::{Column, Report};
use serde_json::{Value, json};

use super::median;
use super::methods::{self, Method, Slo};
use super::protocol::Answer;

/// One method at one rate.
pub(crate) struct Measured {
    pub(crate) method: Method,
    pub(crate) rate_mbps: f64,
    /// Its deadline.
    pub(crate) slo_s: Option<f64>,
    pub(crate) answers: Vec<Answer>,
}

impl Measured {
    pub(crate) fn ttft_s(&self) -> f64 {
        self.of(|answer| answer.ttft_s)
    }

    fn of(&self, number: impl Fn(&Answer) -> f64) -> f64 {
        median(&self.answers.iter().map(number).collect::<Vec<_>>())
    }

    fn missed(&self) -> Option<f64> {
        let slo = self.slo_s?;
        let late = self.answers.iter().filter(|answer| answer.ttft_s > slo).count();
        Some(late as f64 * 100.0 / self.answers.len().max(1) as f64)
    }
}

pub(crate) const COLUMNS: &[Column] = &[
    ("rate_mbps", "Mbit/s", 0),
    ("equivalent_7b_gbps", "7B Gbit/s", 2),
    ("name", "method", 0),
    ("slo_s", "deadline s", 2),
    ("ttft_s", "TTFT s", 3),
    ("slo_miss_percent", "missed %", 0),
    ("ttft_over_text", "× text", 2),
    ("ttft_over_q8", "× q8", 2),
    ("kl", "KL", 4),
    ("megabytes", "MB", 2),
    ("levels", "levels", 0),
];

/// All rows.
pub(crate) fn rows(all: &[Measured], manifests: &[Manifest], factor: f64) -> Vec<Value> {
    let find = |name: &str, rate: f64| {
        let same = |m: &&Measured| m.method.name == name && m.rate_mbps == rate && m.method.slo.is_none();
        all.iter().find(same).map_or(f64::NAN, Measured::ttft_s)
    };
    all.iter()
        .filter(|measured| !measured.answers.is_empty())
        .map(|measured| {
            let (method, rate, ttft_s) = (&measured.method, measured.rate_mbps, measured.ttft_s());
            let manifest = manifests.iter().find(|manifest| manifest.id.as_str() == method.context);
            let tokens = manifest.map_or(0, |manifest| manifest.tokens);
            let text = measured.of(|answer| text_share(answer, manifest));
            let bytes = measured.of(|answer| answer.bytes as f64);
            let times = measured.answers.iter().map(|answer| answer.ttft_s);
            let each: Vec<f64> = times.clone().collect();
            // The levels of the run in the middle, so that they belong to the time beside them.
            let shown = measured.answers.iter().find(|answer| answer.ttft_s == ttft_s);
            json!({
                "name": method.name,
                "policy": method.policy,
                "context": method.context,
                "set": match method.slo { None => "fixed", Some(Slo::Fixed(_)) => "slo", Some(Slo::Share(_)) => "share" },
                "rate_mbps": rate,
                "equivalent_7b_gbps": rate * factor / 1e3,
                "runs": measured.answers.len(),
                "slo_s": measured.slo_s,
                "slo_miss_percent": measured.missed(),
                "ttft_s": ttft_s,
                "ttft_low_s": times.clone().fold(f64::INFINITY, f64::min),
                "ttft_high_s": times.fold(0.0, f64::max),
                "ttft_each_s": each,
                "fetch_s": measured.of(|answer| answer.fetch_s),
                "hand_over_s": measured.of(|answer| answer.hand_over_s),
                "ttft_over_text": ttft_s / find(methods::TEXT, rate),
                "ttft_over_q8": ttft_s / find(methods::Q8, rate),
                "kl": measured.of(|answer| answer.kl),
                "top1_percent": measured.of(|answer| answer.top1_percent),
                "delta_ppl_percent": measured.of(|answer| answer.delta_ppl_percent),
                "bytes": bytes,
                "megabytes": bytes / 1e6,
                "text_percent": text * 100.0,
                "tokens": tokens,
                "levels": shown.map(|answer| summary(&answer.levels)),
                "faults": measured.answers.iter().map(|answer| answer.faults.len()).sum::<usize>(),
            })
        })
        .collect()
}

/// The share of the tokens that was recomputed.
fn text_share(answer: &Answer, manifest: Option<&Manifest>) -> f64 {
    let Some(manifest) = manifest.filter(|manifest| manifest.chunks.len() == answer.levels.len()) else {
        return 1.0;
    };
    let chunks = manifest.chunks.iter().zip(&answer.levels).filter(|(_, level)| *level == "text");
    chunks.map(|(chunk, _)| chunk.tokens).sum::<u64>() as f64 / manifest.tokens.max(1) as f64
}

/// `3 text, 5 fast@1`: how many chunks came how, in order of appearance.
fn summary(levels: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for level in levels {
        match counts.iter_mut().find(|(name, _)| name == level) {
            Some((_, count)) => *count += 1,
            None => counts.push((level, 1)),
        }
    }
    let words: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    words.join(", ")
}

/// Sizes of all levels of all contexts.
pub(crate) fn levels(manifests: &[Manifest]) -> Vec<Value> {
    let mut rows = Vec::new();
    for manifest in manifests {
        let values = (manifest.geometry.values_per_token() * manifest.tokens) as f64;
        for level in &manifest.levels {
            let objects = manifest.chunks.iter().filter_map(|chunk| chunk.levels.get(&level.name));
            let bytes: u64 = objects.map(|object| object.bytes).sum();
            rows.push(json!({
                "name": level.name,
                "context": manifest.id.as_str(),
                "chunks": manifest.chunks.len(),
                "bytes": bytes,
                "bits_per_value": bytes as f64 * 8.0 / values,
            }));
        }
    }
    rows
}

/// At each rate the fastest that does no more damage than `cachegen-paper` level 1, against recomputing and 8 bits.
pub(crate) fn targets(rows: &[Value]) -> String {
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let mut table = Report::new("cacheg-bench");
    let mut rates: Vec<f64> = rows.iter().map(|row| number(row, "rate_mbps")).collect();
    rates.dedup();
    for rate in rates {
        let here = || rows.iter().filter(move |row| number(row, "rate_mbps") == rate);
        let of = |name: &str| here().find(|row| row["name"] == name && row["set"] == "fixed");
        let Some(most) = of(methods::PAPER).map(|row| number(row, "kl")) else { continue };
        let fits = here().filter(|row| row["name"] != methods::TEXT && number(row, "kl") <= most);
        let best = fits.min_by(|a, b| number(a, "ttft_s").total_cmp(&number(b, "ttft_s")));
        let Some(best) = best else { continue };
        let simple = [methods::TEXT, methods::Q8, "q4", "f16", "cachegen-release@1", methods::PAPER];
        let fastest = simple.iter().filter_map(|name| of(name));
        let fastest = fastest.min_by(|a, b| number(a, "ttft_s").total_cmp(&number(b, "ttft_s")));
        table.row(json!({
            "rate_mbps": rate,
            "name": best["name"],
            "ttft_s": best["ttft_s"],
            "kl": best["kl"],
            "text": best["ttft_over_text"],
            "q8": best["ttft_over_q8"],
            "other": fastest.map(|row| row["name"].clone()),
            "other_s": fastest.map(|row| row["ttft_s"].clone()),
        }));
    }
    format!(
        "the fastest with a KL of at most that of {}, and the fastest of the others:\n{}",
        methods::PAPER,
        table.table(&[
            ("rate_mbps", "Mbit/s", 0),
            ("name", "method", 0),
            ("ttft_s", "TTFT s", 3),
            ("kl", "KL", 4),
            ("text", "× text", 2),
            ("q8", "× q8", 2),
            ("other", "fastest other", 0),
            ("other_s", "TTFT s", 3),
        ])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted() {
        let levels = ["text", "text", "fast@1", "fast@2", "fast@1"].map(str::to_owned);
        assert_eq!(summary(&levels), "2 text, 2 fast@1, 1 fast@2");
        assert_eq!(summary(&[]), "");
    }
}
