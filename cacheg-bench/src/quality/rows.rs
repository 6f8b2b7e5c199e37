//! Rows of the report: of every context, and over all of them.

use cacheg::Result;
use cacheg::report::{Column, number};
use serde_json::{Map, Value, json};

use super::codecs::Ready;
use super::measure::{Found, Outcome, Task};
use crate::bootstrap::bootstrap;
use crate::comma::{self, Row};

/// Of tables over all contexts, by task.
pub(crate) fn columns(task: Task) -> Vec<Column> {
    let mut columns = vec![("name", "codec", 0), ("bits_per_value", "bits/value", 3)];
    if task == Task::Retrieval {
        columns.extend([
            ("retrieval_percent", "found %", 1),
            ("retrieval_percent_90", "90 %", 0),
            ("reference_retrieval_percent", "reference %", 1),
            ("answer_equal_percent", "same answer %", 1),
            ("label_nll", "NLL of the topic", 4),
            ("delta_label_nll", "Δ NLL", 4),
            ("delta_label_nll_90", "90 %", 0),
        ]);
        return columns;
    }
    columns.extend([
        ("kl", "KL", 4),
        ("kl_90", "90 %", 0),
        ("perplexity", "perplexity", 2),
        ("delta_ppl_percent", "Δppl %", 2),
        ("delta_ppl_percent_90", "90 %", 0),
        ("top1_percent", "top-1 %", 1),
    ]);
    if task == Task::Continuation {
        columns.extend([
            ("greedy_percent", "greedy %", 1),
            ("greedy_first", "first equal", 1),
            ("profile_bytes", "profile B", 0),
            ("encode_s", "encode s", 3),
            ("decode_s", "decode s", 3),
        ]);
    }
    columns
}

/// Keys and values of what was measured; a task is among those of the outcome's context.
fn numbers(outcome: &Outcome, task: Task) -> Vec<(&'static str, f64)> {
    let mut numbers = vec![("bits_per_value", outcome.bits_per_value)];
    numbers.extend(outcome.visible_bits_per_value.map(|bits| ("visible_bits_per_value", bits)));
    let percent = |yes: bool| if yes { 100.0 } else { 0.0 };
    match &outcome.found {
        Found::Reading { continuation, reread, greedy } => {
            let damage = if task == Task::Reread { reread } else { continuation };
            numbers.extend([
                ("kl", damage.kl),
                ("perplexity", damage.perplexity),
                ("delta_ppl_percent", damage.delta_ppl_percent),
                ("top1_percent", damage.top1_percent),
            ]);
            if task == Task::Continuation {
                numbers.extend([
                    ("greedy_percent", greedy.1),
                    ("greedy_first", greedy.0 as f64),
                    ("encode_s", outcome.encode_s),
                    ("decode_s", outcome.decode_s),
                ]);
                numbers.extend(outcome.parts.named());
            }
        }
        Found::Retrieval(answer) => numbers.extend([
            ("retrieval_percent", percent(answer.right)),
            ("reference_retrieval_percent", percent(answer.reference_right)),
            ("answer_equal_percent", percent(answer.equal)),
            ("label_nll", answer.label_nll),
            ("delta_label_nll", answer.delta_label_nll),
        ]),
    }
    numbers
}

fn head(ready: &Ready<'_>, task: Task, context: &str) -> Map<String, Value> {
    let row = json!({
        "name": ready.codec.name(),
        "codec": ready.codec.codec,
        "level": ready.codec.level,
        "spec": ready.codec.spec,
        "task": task.name(),
        "context": context,
        "profile_bytes": ready.profile_bytes(),
    });
    match row {
        Value::Object(row) => row,
        _ => Map::new(),
    }
}

/// The row of a codec on a context.
pub(crate) fn single(ready: &Ready<'_>, task: Task, context: &str, outcome: &Outcome) -> Value {
    let mut row = head(ready, task, context);
    row.extend(numbers(outcome, task).into_iter().map(|(key, value)| (key.to_owned(), number(value))));
    Value::Object(row)
}

/// The row of a codec over all contexts, from those of each: means, and where they are in 90 % of resamples of the
/// contexts. What is no measurement is that of the first.
pub(crate) fn overall(singles: &[&Map<String, Value>]) -> Value {
    let mut row = singles.first().map_or_else(Map::new, |first| (*first).clone());
    row.insert("context".into(), "all".into());
    row.insert("contexts".into(), singles.len().into());
    let measured: Vec<String> =
        row.iter().filter(|(_, value)| value.as_f64().is_some()).map(|(key, _)| key.clone()).collect();
    for key in measured.into_iter().filter(|key| !GIVEN.contains(&&key[..])) {
        let of = |single: &&Map<String, Value>| single.get(&key).map_or(f64::NAN, finite_or_text);
        let (mean, [low, high]) = bootstrap(&singles.iter().map(of).collect::<Vec<_>>());
        row.insert(format!("{key}_low"), number(low));
        row.insert(format!("{key}_high"), number(high));
        row.insert(key, number(mean));
    }
    Value::Object(row)
}

/// Numbers of a row that are the same for all contexts.
const GIVEN: &[&str] = &["level", "contexts", "chunk_tokens", "profile_bytes"];

/// What [`number`] made.
fn finite_or_text(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(f64::NAN)
}

/// Intervals in words, for a table.
pub(crate) fn with_intervals(mut row: Value) -> Value {
    let shown = [("kl", 4), ("delta_ppl_percent", 2), ("retrieval_percent", 0), ("delta_label_nll", 4)];
    for (key, decimals) in shown {
        let bound = |end: &str| row[format!("{key}_{end}")].as_f64();
        if let (Some(low), Some(high)) = (bound("low"), bound("high")) {
            row[format!("{key}_90")] = format!("{low:.decimals$} to {high:.decimals$}").into();
        }
    }
    row
}

/// The rows as comma-separated values.
pub(crate) fn csv(rows: &[Value]) -> Result<Vec<u8>> {
    let rows: Vec<Row> = rows.iter().filter_map(Value::as_object).cloned().collect();
    let mut keys = Vec::new();
    comma::add_keys(&mut keys, &rows);
    comma::write(&keys, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_what_was_measured() {
        let row = |context: &str, kl: Value| json!({"name": "a", "level": 2, "context": context, "kl": kl, "set.step": "1"});
        let rows = [row("x", json!(1.0)), row("y", json!(4))];
        let mean = overall(&rows.iter().filter_map(Value::as_object).collect::<Vec<_>>());
        assert_eq!((&mean["kl"], &mean["kl_low"], &mean["kl_high"]), (&json!(2.5), &json!(1.0), &json!(4.0)));
        assert_eq!(
            (&mean["context"], &mean["contexts"], &mean["level"]),
            (&json!("all"), &json!(2), &json!(2))
        );
        assert!(mean.get("level_low").is_none() && mean["set.step"] == "1");
        let rows = [row("x", json!(1.0)), row("y", number(f64::INFINITY))];
        assert_eq!(overall(&rows.iter().filter_map(Value::as_object).collect::<Vec<_>>())["kl"], "inf");
    }
}
