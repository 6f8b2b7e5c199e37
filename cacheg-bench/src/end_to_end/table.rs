//! What was measured, as rows.

use std::collections::BTreeMap;

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

    /// Damage, over the texts.
    fn mean(&self, number: impl Fn(&Answer) -> f64) -> f64 {
        self.answers.iter().map(number).sum::<f64>() / self.answers.len().max(1) as f64
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
pub(crate) fn rows(all: &[Measured], manifests: &[(&str, Manifest)], factor: f64) -> Vec<Value> {
    let fixed = |name: &str| {
        let name = name.to_owned();
        all.iter().filter(move |m| m.method.name == name && m.method.slo.is_none())
    };
    let at =
        |name: &str, rate: f64| fixed(name).find(|m| m.rate_mbps == rate).map_or(f64::NAN, Measured::ttft_s);
    // Whatever the rate.
    let answers = fixed(methods::TEXT).flat_map(|m| m.answers.iter().map(|answer| answer.ttft_s));
    let text_s = median(&answers.collect::<Vec<_>>());
    // What a fixed method does to a text does not depend on the rate either; all texts count the same.
    let damage = |measured: &Measured, number: fn(&Answer) -> f64| {
        if measured.method.slo.is_some() {
            return measured.mean(number);
        }
        let mut by_text: BTreeMap<usize, f64> = BTreeMap::new();
        for answer in fixed(&measured.method.name).flat_map(|m| &m.answers) {
            by_text.insert(answer.text, number(answer));
        }
        by_text.values().sum::<f64>() / by_text.len().max(1) as f64
    };
    all.iter()
        .filter(|measured| !measured.answers.is_empty())
        .map(|measured| {
            let (method, rate, ttft_s) = (&measured.method, measured.rate_mbps, measured.ttft_s());
            let manifest = manifests.iter().find(|(ladder, _)| *ladder == method.context).map(|(_, manifest)| manifest);
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
                "ttft_over_text": ttft_s / text_s,
                "ttft_over_q8": ttft_s / at(methods::Q8, rate),
                "kl": damage(measured, |answer| answer.kl),
                "top1_percent": damage(measured, |answer| answer.top1_percent),
                "delta_ppl_percent": damage(measured, |answer| answer.delta_ppl_percent),
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

/// Sizes of all levels, over all texts.
pub(crate) fn levels(manifests: &[(&str, Manifest)]) -> Vec<Value> {
    let mut sums: Vec<(&str, &str, u64, f64)> = Vec::new();
    for (ladder, manifest) in manifests {
        let values = (manifest.geometry.values_per_token() * manifest.tokens) as f64;
        for level in &manifest.levels {
            let objects = manifest.chunks.iter().filter_map(|chunk| chunk.levels.get(&level.name));
            let bytes: u64 = objects.map(|object| object.bytes).sum();
            match sums.iter_mut().find(|sum| (sum.0, sum.1) == (*ladder, &*level.name)) {
                Some(sum) => (sum.2, sum.3) = (sum.2 + bytes, sum.3 + values),
                None => sums.push((ladder, &level.name, bytes, values)),
            }
        }
    }
    let row = |(ladder, name, bytes, values): (&str, &str, u64, f64)| json!({ "name": name, "context": ladder, "bits_per_value": bytes as f64 * 8.0 / values });
    sums.into_iter().map(row).collect()
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
