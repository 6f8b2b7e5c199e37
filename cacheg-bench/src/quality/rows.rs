//! Rows of the report: of every context, and over all of them.

use std::fmt::Write as _;

use cacheg::report::{Column, number};
use serde_json::{Map, Value, json};

use super::codecs::Ready;
use super::measure::{Outcome, Task};
use super::metrics::bootstrap;

/// Of tables over all contexts, by task.
pub(crate) fn columns(task: Task) -> Vec<Column> {
    let mut columns = vec![
        ("name", "codec", 0),
        ("bits_per_value", "bits/value", 3),
        ("kl", "KL", 4),
        ("kl_90", "90 %", 0),
        ("perplexity", "perplexity", 2),
        ("delta_ppl_percent", "Δppl %", 2),
        ("delta_ppl_percent_90", "90 %", 0),
        ("top1_percent", "top-1 %", 1),
    ];
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

/// Keys and values of what was measured.
fn numbers(outcome: &Outcome, task: Task) -> Vec<(&'static str, f64)> {
    let damage = outcome.damage[usize::from(task == Task::Reread)];
    let mut numbers = vec![
        ("bits_per_value", outcome.bits_per_value),
        ("kl", damage.kl),
        ("perplexity", damage.perplexity),
        ("delta_ppl_percent", damage.delta_ppl_percent),
        ("top1_percent", damage.top1_percent),
    ];
    if task == Task::Continuation {
        numbers.extend([
            ("greedy_percent", outcome.greedy.1),
            ("greedy_first", outcome.greedy.0 as f64),
            ("encode_s", outcome.encode_s),
            ("decode_s", outcome.decode_s),
        ]);
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

/// The row of a codec over all contexts: means, and where they are in 90 % of resamples of the contexts.
pub(crate) fn overall(ready: &Ready<'_>, task: Task, outcomes: &[&Outcome]) -> Value {
    let mut row = head(ready, task, "all");
    row.insert("contexts".into(), outcomes.len().into());
    let each: Vec<_> = outcomes.iter().map(|outcome| numbers(outcome, task)).collect();
    let keys = each.first().map_or(0, Vec::len);
    for at in 0..keys {
        let key = each[0][at].0;
        let (mean, [low, high]) = bootstrap(&each.iter().map(|numbers| numbers[at].1).collect::<Vec<_>>());
        row.insert(key.into(), number(mean));
        row.insert(format!("{key}_low"), number(low));
        row.insert(format!("{key}_high"), number(high));
    }
    Value::Object(row)
}

/// Intervals in words, for a table.
pub(crate) fn with_intervals(mut row: Value) -> Value {
    for (key, decimals) in [("kl", 4), ("delta_ppl_percent", 2)] {
        let bound = |end: &str| row[format!("{key}_{end}")].as_f64();
        if let (Some(low), Some(high)) = (bound("low"), bound("high")) {
            row[format!("{key}_90")] = format!("{low:.decimals$} to {high:.decimals$}").into();
        }
    }
    row
}

/// The rows as comma-separated values, under the keys of the longest.
pub(crate) fn csv(rows: &[Value]) -> String {
    let objects: Vec<&Map<String, Value>> = rows.iter().filter_map(Value::as_object).collect();
    let mut keys: Vec<&str> = Vec::new();
    for key in objects.iter().flat_map(|row| row.keys()) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let mut out = format!("{}\n", keys.join(","));
    for row in objects {
        let cells = keys.iter().map(|key| match row.get(*key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) if text.contains([',', '"', '\n']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        });
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join(","));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_it_must() {
        let rows = [
            json!({"codec": "a|b(x=1,2)", "kl": 0.5}),
            json!({"codec": "say \"q\"", "level": 3, "kl": null}),
        ];
        let text = csv(&rows);
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        assert_eq!(header, ["codec", "kl", "level"]);
        assert_eq!(lines.next().unwrap(), "\"a|b(x=1,2)\",0.5,");
        assert_eq!(lines.next().unwrap(), "\"say \"\"q\"\"\",,3");
    }
}
